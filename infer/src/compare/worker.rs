//! The worker of one device: measures speed and memory, and writes the results of the computation to a trace file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use firebox_checkpoint::{NamedTensor, Values, named_gradients};
use firebox_kernels::Precision;
use firebox_kernels::dispatch::DispatchPlan;
use firebox_kernels::dtype::{WeightDtype, WeightFormat};
use firebox_model::batch::Batch;
use firebox_model::cache::KeyValueCache;
use firebox_model::decode::Piece;
use firebox_model::language_model::{LanguageModel, ModelOutput};
use firebox_model::loss::{Objective, cross_entropy_sum};
use firebox_model::moe::Routing;
use firebox_model::moe::balance::TokensPerExpert;
use firebox_model::moe::router::RouterOutput;
use firebox_model::observer::{Observer, Unobserved};
use firebox_model::parallel::{RankLayout, observed};
use firebox_model::parts::{self, LayerPart};
use firebox_model::vision::{Picture, TowerPart};
use firebox_runtime::device::finish;
use firebox_runtime::{device, memory};

use super::tokens::{Tokens, read_pictures};
use super::trace_file::{self, Matrix, Timings, TraceFile};
use crate::InferError;
use crate::engine::open_model;
use crate::ranks::{Part, RankOptions};

/// Number of timed warm forward passes, of which the best counts.
const REPEATS: usize = 3;
/// No further pass is timed after this many seconds.
const TIMING_SECONDS: f64 = 5.0;
/// Maximum number of tokens to decode one at a time.
const DECODED: usize = 16;

/// The task of one worker process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// A checkpoint folder.
    pub checkpoint: PathBuf,
    /// Fields of its config.json that are accepted although Firebox does not know them.
    pub accept: Vec<String>,
    /// A name for `--device`.
    pub device: String,
    /// The type of the weights.
    pub dtype: WeightFormat,
    /// How ranks divide the model.
    pub layout: RankLayout,
    /// A file of [`Tokens`].
    pub tokens: PathBuf,
    /// The [`TraceFile`] to write.
    pub output: PathBuf,
    /// The reference's trace file; `None` for the reference itself.
    pub reference: Option<PathBuf>,
    /// Also compute the gradient of every parameter; on a single rank.
    pub gradients: bool,
    /// Threads of all ranks together; `None` for one per physical core.
    pub threads: Option<usize>,
}

impl Worker {
    /// Runs the task; `stage` is called with the name of each stage.
    ///
    /// # Errors
    ///
    /// When the device or the checkpoint cannot be used, or a file cannot be read or written.
    pub fn run(&self, mut stage: impl FnMut(&str)) -> Result<(), InferError> {
        let started = Instant::now();
        let tokens = Tokens::read(&self.tokens)?;
        if self.layout != RankLayout::ONE {
            stage("on many ranks");
            return self.run_on_ranks(started, tokens);
        }
        let selected = device::select(&self.device)?;
        let open = |device: &Device, dtype: WeightFormat| -> Result<LanguageModel, InferError> {
            let (_, opened) = open_model(&self.checkpoint, &self.accept, device, dtype)?;
            Ok(opened.model)
        };
        stage("loading the checkpoint");
        let model = open(&selected, self.dtype)?;
        let load_seconds = started.elapsed().as_secs_f64();
        stage("first batch");
        let pictures = read_pictures(&self.checkpoint, model.config(), tokens.images())?;
        let network = Observed::Alone(&model);
        network.forward(&tokens, &pictures)?;
        let first_result_seconds = started.elapsed().as_secs_f64();
        stage("prefill");
        let prefill = best_forward(network, &tokens, &pictures)?;
        stage("decode");
        let decoded = decode(&model, &tokens, &pictures, &selected);
        let timings = Timings {
            threads: device::threads(),
            load_seconds,
            first_result_seconds,
            prefill_tokens_per_second: tokens.count() as f64 / prefill,
            decode_tokens_per_second: decoded.as_ref().map(|decoded| decoded.tokens_per_second),
            peak_memory: memory::peak(),
            router_bias: model.router_bias(),
        };
        stage("part by part");
        let reference = self.reference.as_deref().map(TraceFile::open).transpose()?;
        let mut matrices = trace_parts(network, &tokens, &pictures, reference.as_ref())?;
        matrices.extend(decoded.map(|decoded| (trace_file::DECODED.to_owned(), decoded.logits)));
        drop(model);
        if self.gradients {
            stage("gradients");
            let model = open(&selected.autodiff(), WeightDtype::F32.into())?;
            matrices.extend(gradients(&model.train(), &tokens, &pictures));
        }
        TraceFile::write(&self.output, &timings, &matrices)
    }

    /// The same on many ranks, without a cache. The first tensor rank of each stage has the results of its layers.
    fn run_on_ranks(&self, started: Instant, tokens: Tokens) -> Result<(), InferError> {
        let options = RankOptions {
            checkpoint: self.checkpoint.clone(),
            accept: self.accept.clone(),
            device: self.device.clone(),
            dtype: self.dtype,
            precision: Precision::F32,
            layout: self.layout,
            threads: self.threads,
            processes: None,
        };
        let reference = self.reference.clone();
        let checkpoint = self.checkpoint.clone();
        let (timings, matrices) = options.on_every_rank(move |part| {
            let load_seconds = started.elapsed().as_secs_f64();
            let network = Observed::Among(&part);
            let pictures = read_pictures(&checkpoint, part.model.config(), tokens.images())?;
            network.forward(&tokens, &pictures)?;
            let first_result_seconds = started.elapsed().as_secs_f64();
            let prefill = best_forward(network, &tokens, &pictures)?;
            let reference = reference.as_deref().map(TraceFile::open).transpose()?;
            let own = trace_parts(network, &tokens, &pictures, reference.as_ref())?;
            let own = match part.ranks.at().tensor {
                0 => (own, part.model.router_bias()),
                _ => Default::default(),
            };
            let mut matrices = Vec::new();
            let mut router_bias = Vec::new();
            for (of_rank, bias) in gathered(&part, &own)? {
                matrices.extend(of_rank);
                router_bias.extend(bias);
            }
            let timings = Timings {
                threads: device::threads() * part.ranks.layout().ranks(),
                load_seconds,
                first_result_seconds,
                prefill_tokens_per_second: tokens.count() as f64 / prefill,
                decode_tokens_per_second: None,
                peak_memory: memory::peak(),
                router_bias,
            };
            Ok((timings, matrices))
        })?;
        TraceFile::write(&self.output, &timings, &matrices)
    }
}

/// What a rank has of a trace: matrices by name, and the selection biases of its routers.
type OfRank = (Vec<(String, Matrix)>, Vec<Vec<f32>>);

/// What every rank has, in the order of the ranks.
fn gathered(part: &Part, own: &OfRank) -> Result<Vec<OfRank>, InferError> {
    let bytes = postcard::to_allocvec(own).expect("numbers and names");
    let of_ranks = part.ranks.world().all_gather(&bytes)?;
    let read = |bytes: &Vec<u8>| postcard::from_bytes(bytes).expect("of the same program");
    Ok(of_ranks.iter().map(read).collect())
}

/// What computes a forward pass that is looked at.
#[derive(Debug, Clone, Copy)]
pub enum Observed<'a> {
    /// A whole model.
    Alone(&'a LanguageModel),
    /// A rank's part of a model, on every rank.
    Among(&'a Part),
}

impl<'a> Observed<'a> {
    fn model(&self) -> &'a LanguageModel {
        match self {
            Self::Alone(model) => model,
            Self::Among(part) => &part.model,
        }
    }

    /// Number of the first layer that is here, among those that are computed.
    fn first_layer(&self, sees: bool) -> usize {
        let model = self.model();
        let first = model.shard().map_or(0, |shard| shard.layers().start);
        let before = model.config().layers[..first].iter();
        before.filter(|layer| sees || !layer.is_cross()).count()
    }

    /// The tokens, which see all of the pictures; `see` is called with each part of the tower, and returns what the later parts
    /// are given.
    fn batch(
        &self,
        tokens: &Tokens,
        pictures: &[Picture],
        see: &mut impl FnMut(TowerPart, Tensor<4>) -> Tensor<4>,
    ) -> Batch {
        batch(self.model(), tokens, pictures, see)
    }

    /// The logits, `[tokens, vocab_size]`, where they are here, and the routing of the layers that are here.
    fn pass(
        &self,
        batch: &Batch,
        observer: &mut impl Observer,
    ) -> (Option<Tensor<2>>, Vec<Routing>) {
        let (tokens, placement) = (batch.tokens.clone(), &batch.placement);
        match self {
            Self::Alone(model) => {
                let output = model.observed(tokens, placement, observer);
                (Some(output.logits.flatten(0, 1)), output.routing)
            }
            Self::Among(part) => observed(&part.model, &part.ranks, tokens, placement, observer),
        }
    }

    /// One forward pass, including the wait for its result on all ranks.
    fn forward(&self, tokens: &Tokens, pictures: &[Picture]) -> Result<(), InferError> {
        let batch = self.batch(tokens, pictures, &mut |_, values| values);
        if let (Some(logits), _) = self.pass(&batch, &mut Unobserved) {
            finish(logits);
        }
        match self {
            Self::Alone(_) => Ok(()),
            Self::Among(part) => Ok(part.ranks.world().barrier()?),
        }
    }

    /// The answer of the first rank, on every rank.
    fn of_first(&self, answer: bool) -> Result<bool, InferError> {
        let Self::Among(part) = self else {
            return Ok(answer);
        };
        let answers = part.ranks.world().all_gather(&[u8::from(answer)])?;
        Ok(answers[0] == [1])
    }
}

/// Tokens that see all of some pictures.
fn batch(
    model: &LanguageModel,
    tokens: &Tokens,
    pictures: &[Picture],
    see: &mut impl FnMut(TowerPart, Tensor<4>) -> Tensor<4>,
) -> Batch {
    let mut batch = Batch::new(&tokens.sequences(), &model.device());
    if !pictures.is_empty() && model.vision.is_some() {
        let sight = model.sight_of_all(pictures, batch.tokens.dims(), see);
        batch.placement = batch.placement.seeing(sight);
    }
    batch
}

/// Records the residual stream.
#[derive(Default)]
struct Stream(Vec<Tensor<2>>);

impl Observer for Stream {
    fn sees_parts(&self) -> bool {
        false
    }

    fn residual(&mut self, stream: &Tensor<2>) {
        self.0.push(stream.clone());
    }
}

/// The outputs of a network for the tokens, which see all of the pictures: of the whole network and of each part alone; each part is given the reference's
/// inputs, or the network's own without a reference. On a rank among others these are the outputs of its stage.
///
/// # Errors
///
/// When the reference cannot be read.
pub fn trace_parts(
    network: Observed,
    tokens: &Tokens,
    pictures: &[Picture],
    reference: Option<&TraceFile>,
) -> Result<Vec<(String, Matrix)>, InferError> {
    let model = network.model();
    let device = model.device();
    let batch = network.batch(tokens, pictures, &mut |_, values| values);
    let mut matrices = Vec::new();
    let mut stream = Stream::default();
    let (logits, routing) = network.pass(&batch, &mut stream);
    let first = network.first_layer(!pictures.is_empty());
    for (index, hidden) in (first..).zip(stream.0) {
        matrices.push((trace_file::hidden(index), Matrix::of(hidden)));
    }
    for routing in routing {
        let plan = routing.plan;
        matrices.push((
            trace_file::router(routing.layer),
            Matrix::of(routing.logits),
        ));
        let chosen = plan.chosen().into_data();
        let chosen = chosen.iter::<i32>().map(|expert| expert as f32).collect();
        let chosen = Matrix::new(plan.top_k(), chosen);
        matrices.push((trace_file::chosen(routing.layer), chosen));
    }
    let logits = logits.map(|logits| (trace_file::LOGITS.to_owned(), Matrix::of(logits)));
    matrices.extend(logits);

    let mut recorder = Recorder {
        matrices,
        reference,
        device,
        error: None,
    };
    let batch = network.batch(tokens, pictures, &mut |part, values| {
        recorder.tower(part, values)
    });
    let (logits, routing) = network.pass(&batch, &mut recorder);
    let Recorder {
        mut matrices,
        error,
        ..
    } = recorder;
    if let Some(logits) = logits {
        let logits = logits.unsqueeze();
        let output = ModelOutput { logits, routing };
        let loss = objective(model, output, batch.targets).cross_entropy;
        matrices.push((trace_file::LOSS.to_owned(), Matrix::of(loss.unsqueeze())));
    }
    match error {
        Some(error) => Err(error),
        None => Ok(matrices),
    }
}

/// Records the output of each part, and replaces it with the reference's output.
struct Recorder<'a> {
    matrices: Vec<(String, Matrix)>,
    reference: Option<&'a TraceFile>,
    device: Device,
    /// The first error; an observer cannot return one.
    error: Option<InferError>,
}

impl Recorder<'_> {
    fn reference(&mut self, name: &str) -> Option<Matrix> {
        match self.reference?.matrix(name) {
            Ok(matrix) => Some(matrix),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }

    /// As [`Observer::output`], for a part of the tower.
    fn tower(&mut self, part: TowerPart, computed: Tensor<4>) -> Tensor<4> {
        let name = trace_file::tower(part);
        let shape = computed.dims();
        let reference = self.reference(&name);
        let rows: Tensor<2> = computed.clone().flatten(0, 2);
        self.matrices.push((name, Matrix::of(rows)));
        match reference {
            Some(reference) => self.tensor(reference).reshape(shape),
            None => computed,
        }
    }

    fn tensor(&self, matrix: Matrix) -> Tensor<2> {
        let columns = matrix.columns();
        let rows = matrix.values.len() / columns.max(1);
        Tensor::from_data(
            TensorData::new(matrix.values, [rows, columns]),
            &self.device,
        )
    }
}

impl Observer for Recorder<'_> {
    fn output(&mut self, layer_part: LayerPart, computed: Tensor<2>) -> Tensor<2> {
        let name = trace_file::alone(layer_part);
        let reference = self.reference(&name);
        self.matrices.push((name, Matrix::of(computed.clone())));
        match reference {
            Some(reference) => self.tensor(reference),
            None => computed,
        }
    }

    fn routing(&mut self, layer: usize, computed: RouterOutput) -> RouterOutput {
        let part = |part| LayerPart::of_layer(layer, part);
        // The selection has already been made from these logits, so replacing them would have no effect.
        let _ = self.output(part(parts::Part::Router), computed.logits.clone());
        let (count, top_k) = (computed.plan.experts(), computed.plan.top_k());
        let selection = trace_file::alone(part(parts::Part::Selection));
        let chosen = computed.plan.chosen().into_data();
        let chosen = chosen.iter::<i32>().map(|expert| expert as f32).collect();
        let reference = self.reference(&selection);
        self.matrices.push((selection, Matrix::new(top_k, chosen)));
        let weights = self.output(part(parts::Part::RoutingWeights), computed.weights);
        let plan = match reference {
            Some(selection) => {
                let experts = selection.values.iter().map(|&expert| expert as u32);
                DispatchPlan::new(&experts.collect::<Vec<_>>(), count, top_k, &self.device)
            }
            None => computed.plan,
        };
        RouterOutput {
            weights,
            plan,
            ..computed
        }
    }
}

/// Seconds of the fastest of up to [`REPEATS`] forward passes, on one rank or many.
fn best_forward(
    network: Observed,
    tokens: &Tokens,
    pictures: &[Picture],
) -> Result<f64, InferError> {
    let mut best = f64::INFINITY;
    let all = Instant::now();
    for _ in 0..REPEATS {
        let started = Instant::now();
        network.forward(tokens, pictures)?;
        best = best.min(started.elapsed().as_secs_f64());
        // Ranks go on together.
        if network.of_first(all.elapsed().as_secs_f64() > TIMING_SECONDS)? {
            break;
        }
    }
    Ok(best)
}

/// The result of decoding tokens one at a time.
struct Decoded {
    logits: Matrix,
    tokens_per_second: f64,
}

/// Prefills a cache with image tokens and the first half of the first sequence, then decodes up to [`DECODED`] of its tokens, as
/// many as the context has room for, one at a
/// time: once for the logits, and once for the time. `None` if the sequence is too short.
fn decode(
    model: &LanguageModel,
    tokens: &Tokens,
    pictures: &[Picture],
    device: &Device,
) -> Option<Decoded> {
    let sequence = tokens.sequences().into_iter().next()?.tokens;
    let half = sequence.len() / 2;
    let (prompt, rest) = sequence.split_at(half);
    let image_tokens = match model.config().image_token() {
        Some(image) => vec![image; pictures.len()],
        None => Vec::new(),
    };
    let prompt = &[&image_tokens[..], prompt].concat()[..];
    // The image tokens take room that the sequence may have filled.
    let room = model.config().context_length.saturating_sub(prompt.len());
    let rest = &rest[..rest.len().min(DECODED).min(room)];
    if half == 0 || rest.is_empty() {
        return None;
    }
    let whole = prompt.len() + rest.len();
    let keys = (!pictures.is_empty()).then(|| Arc::new(model.look(pictures)));
    let pass = |read: &mut dyn FnMut(Tensor<2>)| {
        let mut cache = KeyValueCache::new(model.config(), 1, whole, device);
        cache.show(0, keys.as_ref());
        let step = |tokens: &[u32], cache: &mut KeyValueCache| {
            let logits = model.decode(&[Piece::new(0, tokens)], cache);
            logits.expect("of the last token")
        };
        finish(step(prompt, &mut cache));
        let started = Instant::now();
        for token in rest.chunks(1) {
            read(step(token, &mut cache));
        }
        started.elapsed().as_secs_f64()
    };
    let mut values = Vec::new();
    pass(&mut |logits| values.extend(logits.into_data().iter::<f32>()));
    let seconds = pass(&mut |logits| {
        // Reading the result waits for the device.
        let greedy = logits.argmax(1).into_data();
        std::hint::black_box(greedy.iter::<i32>().sum::<i32>());
    });
    Some(Decoded {
        logits: Matrix::new(model.config().vocab_size, values),
        tokens_per_second: rest.len() as f64 / seconds,
    })
}

/// The training objective of tokens without padding.
fn objective(model: &LanguageModel, output: ModelOutput, targets: Tensor<1, Int>) -> Objective {
    let ModelOutput { logits, routing } = output;
    let [tokens] = targets.dims();
    let mut load = TokensPerExpert::default();
    load.add(&routing, None, tokens as u64);
    // The ranks of a layout have put these logits together.
    let nats = cross_entropy_sum(logits.flatten(0, 1), targets, None);
    Objective::new(model.config(), nats, tokens as u64, &routing, None, &load)
}

/// Gradients of the training loss: mean cross-entropy plus the auxiliary losses of the checkpoint's configuration.
fn gradients(
    model: &LanguageModel,
    tokens: &Tokens,
    pictures: &[Picture],
) -> Vec<(String, Matrix)> {
    let batch = batch(model, tokens, pictures, &mut |_, values| values);
    let output = model.forward_batch(&batch);
    let found = objective(model, output, batch.targets).total().backward();
    let named = named_gradients(model, &found);
    let matrix = |NamedTensor {
                      name,
                      shape,
                      values,
                  }: NamedTensor<'_>| {
        let Values::Float(values) = values else {
            return None;
        };
        let columns = shape.last().copied().unwrap_or(1);
        Some((
            format!("{}{name}", trace_file::GRADIENT),
            Matrix::new(columns, values()),
        ))
    };
    named.into_iter().filter_map(matrix).collect()
}
