//! What one device does for a comparison, in a process of its own: it is timed, and writes down what it computes.

use std::path::PathBuf;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use firebox_checkpoint::{NamedTensor, Values, named_gradients};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::batch::Batch;
use firebox_model::cache::KeyValueCache;
use firebox_model::language_model::{LanguageModel, token_tensor};
use firebox_model::loss::{auxiliary, cross_entropy_sum};
use firebox_model::moe::balance::BatchLoad;
use firebox_model::parts::{Observer, Part, Place, observed};
use firebox_runtime::device::finish;
use firebox_runtime::{device, memory};

use super::findings::{self, Facts, Findings, Matrix};
use super::tokens::Tokens;
use crate::InferError;
use crate::engine::open_model;

/// Warm forward passes that are timed, the best of which counts.
const REPEATS: usize = 3;
/// But no more of them once they took so many seconds.
const PATIENCE: f64 = 5.0;
/// Tokens that are fed one at a time, at most.
const DECODED: usize = 16;

/// One device's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// A checkpoint's folder.
    pub checkpoint: PathBuf,
    /// A name for `--device`.
    pub device: String,
    /// The type in which weights are held.
    pub dtype: WeightDtype,
    /// A file of [`Tokens`].
    pub tokens: PathBuf,
    /// The file of [`Findings`] to write.
    pub output: PathBuf,
    /// The reference's findings; none for the reference itself.
    pub reference: Option<PathBuf>,
    /// Also the gradient of every parameter.
    pub gradients: bool,
}

impl Probe {
    /// Does it; `stage` hears what is at hand.
    ///
    /// # Errors
    ///
    /// When the device or the checkpoint cannot be used, or a file cannot be read or written.
    pub fn run(&self, mut stage: impl FnMut(&str)) -> Result<(), InferError> {
        let started = Instant::now();
        let tokens = Tokens::read(&self.tokens)?;
        let selected = device::select(&self.device)?;
        stage("loads the checkpoint");
        let model = open_model(&self.checkpoint, &selected, self.dtype)?.1.model;
        let load_seconds = started.elapsed().as_secs_f64();
        stage("computes its first batch");
        forward(&model, &tokens, &selected);
        let first_result_seconds = started.elapsed().as_secs_f64();
        stage("computes it again, warm");
        let prefill = best_forward(&model, &tokens, &selected);
        stage("writes token by token");
        let decoded = decode(&model, &tokens, &selected);
        let facts = Facts {
            threads: device::threads(),
            load_seconds,
            first_result_seconds,
            prefill_tokens_per_second: tokens.count() as f64 / prefill,
            decode_tokens_per_second: decoded.as_ref().map(|decoded| decoded.tokens_per_second),
            peak_memory: memory::peak(),
            router_bias: model.router_bias(),
        };
        stage("computes part by part");
        let reference = self.reference.as_deref().map(Findings::open).transpose()?;
        let mut matrices = examine(&model, &tokens, reference.as_ref())?;
        matrices.extend(decoded.map(|decoded| (findings::DECODED.to_owned(), decoded.scores)));
        drop(model);
        if self.gradients {
            stage("computes gradients");
            let model = open_model(&self.checkpoint, &selected.autodiff(), WeightDtype::F32)?
                .1
                .model;
            matrices.extend(gradients(&model.train(), &tokens));
        }
        Findings::write(&self.output, &facts, &matrices)
    }
}

/// What a model computes for the tokens, in the whole and part by part; each part from what the reference computed
/// before it, or from its own where there is none.
///
/// # Errors
///
/// When the reference cannot be read.
pub fn examine(
    model: &LanguageModel,
    tokens: &Tokens,
    reference: Option<&Findings>,
) -> Result<Vec<(String, Matrix)>, InferError> {
    let device = model.embedding.lazy_device();
    let batch = Batch::new(&tokens.sequences(), &device);
    let mut matrices = Vec::new();
    let trace = model.trace(batch.tokens.clone(), None);
    for (number, hidden) in trace.hidden.into_iter().enumerate() {
        matrices.push((
            findings::hidden(number),
            Matrix::of(hidden.flatten::<2>(0, 1)),
        ));
    }
    for routing in trace.output.routing {
        let plan = routing.plan;
        matrices.push((findings::router(routing.layer), Matrix::of(routing.logits)));
        let chosen = plan.chosen().into_data();
        let chosen = chosen.iter::<i32>().map(|expert| expert as f32).collect();
        let chosen = Matrix::new(plan.per_token(), chosen);
        matrices.push((findings::chosen(routing.layer), chosen));
    }
    matrices.push((
        findings::LOGITS.to_owned(),
        Matrix::of(trace.output.logits.flatten::<2>(0, 1)),
    ));

    let mut recorder = Recorder {
        matrices,
        reference,
        device,
        error: None,
    };
    let scores = observed(model, batch.tokens, &mut recorder);
    let loss = cross_entropy_sum(scores, batch.targets, None).div_scalar(tokens.count() as f64);
    let Recorder {
        mut matrices,
        error,
        ..
    } = recorder;
    matrices.push((findings::LOSS.to_owned(), Matrix::of(loss.unsqueeze())));
    match error {
        Some(error) => Err(error),
        None => Ok(matrices),
    }
}

/// Writes down what each part computes, and goes on with what the reference computed.
struct Recorder<'a> {
    matrices: Vec<(String, Matrix)>,
    reference: Option<&'a Findings>,
    device: Device,
    /// The first one; an observer cannot return it.
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
    fn values(&mut self, place: Place, computed: Tensor<2>) -> Tensor<2> {
        let name = findings::alone(place);
        let reference = self.reference(&name);
        self.matrices.push((name, Matrix::of(computed.clone())));
        match reference {
            Some(reference) => self.tensor(reference),
            None => computed,
        }
    }

    fn choice(
        &mut self,
        layer: usize,
        chosen: Vec<u32>,
        weights: Tensor<2>,
    ) -> (Vec<u32>, Tensor<2>) {
        let [_, per_token] = weights.dims();
        let name = |part| {
            findings::alone(Place {
                layer: Some(layer),
                part,
            })
        };
        let (choice, factors) = (name(Part::Choice), name(Part::Weights));
        let reference = self.reference(&choice).zip(self.reference(&factors));
        self.matrices.push((choice, experts(&chosen, per_token)));
        self.matrices.push((factors, Matrix::of(weights.clone())));
        match reference {
            Some((choice, factors)) => {
                let chosen = choice.values.iter().map(|&expert| expert as u32).collect();
                (chosen, self.tensor(factors))
            }
            None => (chosen, weights),
        }
    }
}

/// Numbers of experts, each of which f32 holds exactly.
fn experts(chosen: &[u32], per_token: usize) -> Matrix {
    Matrix::new(
        per_token,
        chosen.iter().map(|&expert| expert as f32).collect(),
    )
}

/// One forward pass, until its result can be read.
fn forward(model: &LanguageModel, tokens: &Tokens, device: &Device) {
    let batch = Batch::new(&tokens.sequences(), device);
    let logits = model.forward(batch.tokens).logits;
    finish(logits);
}

/// Seconds of the fastest of some forward passes.
fn best_forward(model: &LanguageModel, tokens: &Tokens, device: &Device) -> f64 {
    let mut best = f64::INFINITY;
    let all = Instant::now();
    for _ in 0..REPEATS {
        let started = Instant::now();
        forward(model, tokens, device);
        best = best.min(started.elapsed().as_secs_f64());
        if all.elapsed().as_secs_f64() > PATIENCE {
            break;
        }
    }
    best
}

/// The last tokens of a sequence, fed one at a time.
struct Decoded {
    scores: Matrix,
    tokens_per_second: f64,
}

/// Reads the first half of the first sequence into a cache, and then up to [`DECODED`] of its tokens one at a time:
/// once for the scores, and once for the time.
fn decode(model: &LanguageModel, tokens: &Tokens, device: &Device) -> Option<Decoded> {
    let sequence = tokens.sequences().into_iter().next()?.tokens;
    let half = sequence.len() / 2;
    let (prompt, rest) = sequence.split_at(half);
    let rest = &rest[..rest.len().min(DECODED)];
    if prompt.is_empty() {
        return None;
    }
    let pass = |read: &mut dyn FnMut(Tensor<2>)| {
        let mut cache = KeyValueCache::new(model.config(), 1, prompt.len() + rest.len(), device);
        let step = |tokens: &[u32], cache: &mut KeyValueCache| {
            model.decode(token_tensor(std::iter::once(tokens), device), cache)
        };
        finish(step(prompt, &mut cache));
        let started = Instant::now();
        for token in rest.chunks(1) {
            read(step(token, &mut cache));
        }
        started.elapsed().as_secs_f64()
    };
    let mut scores = Vec::new();
    pass(&mut |logits| scores.extend(logits.into_data().iter::<f32>()));
    let seconds = pass(&mut |logits| {
        // What is read comes when it is looked at.
        let greedy = logits.argmax(1).into_data();
        std::hint::black_box(greedy.iter::<i32>().sum::<i32>());
    });
    Some(Decoded {
        scores: Matrix::new(model.config().vocabulary, scores),
        tokens_per_second: rest.len() as f64 / seconds,
    })
}

/// Gradients of the training loss: the mean cross-entropy, and the auxiliary losses that the checkpoint names.
fn gradients(model: &LanguageModel, tokens: &Tokens) -> Vec<(String, Matrix)> {
    let batch = Batch::new(&tokens.sequences(), &model.embedding.lazy_device());
    let output = model.forward(batch.tokens);
    let mut load = BatchLoad::default();
    load.add(&output.routing, None, tokens.count() as u64);
    let logits = output.logits.flatten::<2>(0, 1);
    let loss = cross_entropy_sum(logits, batch.targets, None).div_scalar(tokens.count() as f64);
    let loss = match auxiliary(model.config(), &output.routing, None, &load) {
        Some(auxiliary) => loss + auxiliary,
        None => loss,
    };
    let found = loss.backward();
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
            format!("{}{name}", findings::GRADIENT),
            Matrix::new(columns, values()),
        ))
    };
    named.into_iter().filter_map(matrix).collect()
}
