//! A rank at work: its part of every step.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Int, Tensor};

use super::Ranks;
use super::cross_entropy::{cross_entropy_sum, target_nats};
use super::group::decoded;
use super::step::{Edit, Reply, Routed, Seen, Step};
use crate::batch::{Batch, Sequence};
use crate::cache::KeyValueCache;
use crate::captions::Captioned;
use crate::decode::{Decoded, Piece};
use crate::language_model::{CrossInputs, Entry, LanguageModel};
use crate::layout::Placement;
use crate::moe::Routing;
use crate::moe::loads::ExpertLoads;
use crate::moe::stats::HealthSums;
use crate::network::{self, PaddedRows, PictureWeights, Session};
use crate::observer::{Observer, ResidualStream, Unobserved};
use crate::parts::{LayerPart, Part};
use crate::sampling::{Asked, Memory};
use crate::timeline::{Activity, Recorder};
use crate::vision::PictureKeys;

/// One rank's part of a model, with what it keeps between steps.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub model: &'a LanguageModel,
    pub ranks: &'a Ranks,
    pub cache: KeyValueCache,
    /// The pictures that sequences may see, by their numbers; of no use to the first rank.
    pictures: BTreeMap<u64, Arc<PictureKeys>>,
    session: Session,
    memory: Memory,
    loads: Vec<ExpertLoads>,
    recorder: Recorder,
}

/// The worker loop of every rank but rank 0: runs its part of each step until there are no more.
///
/// # Panics
///
/// When the model is not this rank's part, or a message fails: see [`TensorGroup`](super::TensorGroup).
pub fn serve(model: &LanguageModel, ranks: &Ranks) {
    let mut stage = Stage::new(model, ranks);
    loop {
        let bytes = ranks.next_step();
        ranks.pass_on(&bytes);
        let step: Step = decoded(&bytes);
        if matches!(step, Step::End) {
            return;
        }
        if let Some(reply) = stage.run(&step) {
            ranks.reply(&reply);
        }
    }
}

/// This rank's part of [`LanguageModel::observed`], which all ranks call with the same arguments: an observer sees the parts
/// of its stage. Returns the logits, those of the whole vocabulary, on the last stage, `None` on another one; and the routing
/// of the stage's layers.
///
/// # Panics
///
/// As [`serve`], and when a sequence is longer than the context.
pub fn observed(
    model: &LanguageModel,
    ranks: &Ranks,
    tokens: Tensor<2, Int>,
    placement: &Placement,
    observer: &mut impl Observer,
) -> (Option<Tensor<2>>, Vec<Routing>) {
    let recorder = &mut Recorder::default();
    let (stream, routing) = pass(model, ranks, tokens, placement, observer, recorder);
    let logits = stream.map(|stream| {
        let logits = ranks.tensor().gather_columns(model.logits(stream));
        observer.output(LayerPart::outside(Part::Head), logits)
    });
    (logits, routing)
}

/// A stage's part of a forward pass without a cache: the residual stream comes from the stage before and goes to the next one.
/// Returns it after the final norm on the last stage, `None` on another one; and the routing of the stage's layers.
fn pass(
    model: &LanguageModel,
    ranks: &Ranks,
    tokens: Tensor<2, Int>,
    placement: &Placement,
    observer: &mut impl Observer,
    recorder: &mut Recorder,
) -> (Option<Tensor<2>>, Vec<Routing>) {
    let shape = tokens.dims();
    let entry = match ranks.is_first_stage() {
        true => Entry::Tokens(tokens.flatten(0, 1)),
        false => received(model, ranks, recorder),
    };
    let (stream, routing) = model.pass(entry, shape, placement, observer);
    match ranks.is_last_stage() {
        true => (Some(stream), routing),
        false => {
            sent(stream, ranks, recorder);
            (None, routing)
        }
    }
}

fn received(model: &LanguageModel, ranks: &Ranks, recorder: &mut Recorder) -> Entry {
    let stream = ranks.receive_stream(model.config().d_model, &model.device());
    recorder.did(Activity::Wait);
    Entry::Stream(stream)
}

fn sent(stream: Tensor<2>, ranks: &Ranks, recorder: &mut Recorder) {
    // The host has the values when they are computed.
    let values = host(stream);
    recorder.did(Activity::Compute);
    ranks.send_stream(&values);
    recorder.did(Activity::Send);
}

impl<'a> Stage<'a> {
    pub fn new(model: &'a LanguageModel, ranks: &'a Ranks) -> Self {
        let session = Session::new(0);
        Self {
            model,
            ranks,
            cache: session.cache(model),
            pictures: BTreeMap::new(),
            session,
            memory: Memory::default(),
            loads: Vec::new(),
            recorder: Recorder::default(),
        }
    }

    /// Does this rank's part of a step. Returns the reply of the stage on its first tensor rank, if there is one.
    pub fn run(&mut self, step: &Step) -> Option<Reply> {
        match step {
            Step::Begin(session) => {
                self.session = *session;
                self.cache = session.cache(self.model);
                self.loads.clear();
                None
            }
            Step::Decode { edits, parts } => {
                edits.iter().for_each(|edit| self.edit(edit));
                self.decode(parts)
            }
            Step::Record => {
                self.recorder.start(self.ranks.at().stage);
                None
            }
            Step::Spans => {
                let spans = self.recorder.take();
                self.replies().then_some(Reply::Spans(spans))
            }
            Step::ExpertLoads => {
                let loads = std::mem::take(&mut self.loads);
                self.replies().then_some(Reply::ExpertLoads(loads))
            }
            Step::Batch(sequences) => self.batch(sequences),
            Step::Trace {
                ids,
                valid,
                length,
                pictures,
            } => self.trace(PaddedRows {
                ids,
                valid,
                length: *length,
                pictures: pictures.as_deref(),
            }),
            Step::Captions(captions) => self.captions(&captions.read()),
            Step::Attention(captions) => self.attention(&captions.read()),
            Step::End => None,
        }
    }

    pub fn edit(&mut self, edit: &Edit) {
        match edit {
            Edit::Truncate { sequence, length } => self.cache.truncate(*sequence, *length),
            Edit::Fork { from, length, to } => self.cache.fork(*from, *length, *to),
            Edit::Show { sequence, number } => {
                let pictures = number.map(|number| &self.pictures[&number]);
                self.cache.show(*sequence, pictures);
            }
            Edit::Look { number, pictures } => {
                let keys = PictureKeys {
                    // Nobody makes others of these.
                    pictures: Vec::new(),
                    ..self.model.look(pictures)
                };
                self.pictures.insert(*number, Arc::new(keys));
            }
            Edit::Forget { number } => _ = self.pictures.remove(number),
        }
    }

    pub fn decode(&mut self, parts: &[network::Part]) -> Option<Reply> {
        self.recorder
            .step(parts.iter().map(|part| part.tokens.len()).sum());
        let pieces: Vec<Piece> = parts.iter().map(network::Part::piece).collect();
        let entry = match self.ranks.is_first_stage() {
            true => self.model.entry(&pieces),
            false => received(self.model, self.ranks, &mut self.recorder),
        };
        let (decoded, routing) = self.model.decode_stage(entry, &pieces, &mut self.cache);
        // All tensor ranks of a stage have the same routing.
        let counts = self.session.counts_experts && self.replies();
        let counted = if counts { &routing[..] } else { &[] };
        let logits = match decoded {
            Decoded::Stream(stream) => {
                sent(stream, self.ranks, &mut self.recorder);
                // The next stage is at work already.
                ExpertLoads::add(&mut self.loads, counted);
                return None;
            }
            Decoded::Logits(logits) => network::host(logits),
        };
        ExpertLoads::add(&mut self.loads, counted);
        let asked: Vec<Asked> = parts.iter().map(|part| part.asked.clone()).collect();
        let exchange = &mut self.ranks.tensor().clone();
        let first = self.model.first_token() as u32;
        let drawn = Asked::answer(&asked, &logits, first, &mut self.memory, exchange);
        self.recorder.did(Activity::Compute);
        self.replies().then_some(Reply::Drawn(drawn))
    }

    fn batch(&mut self, sequences: &[Sequence]) -> Option<Reply> {
        let batch = Batch::new(sequences, &self.model.device());
        let tokens = batch.tokens.clone();
        let observer = &mut Unobserved;
        let recorder = &mut self.recorder;
        recorder.step(network::tokens_of(sequences));
        let placement = &batch.placement;
        let (stream, routing) = pass(
            self.model, self.ranks, tokens, placement, observer, recorder,
        );
        let is_last = stream.is_some();
        let counted = batch.valid.as_ref();
        let nats = stream.map(|stream| {
            let logits = self.model.logits(stream);
            let exchange = &mut self.ranks.tensor().clone();
            let first = self.model.first_token();
            cross_entropy_sum(logits, batch.targets, counted, first, exchange)
        });
        let health = HealthSums::terms(&routing, counted).map_or_else(Vec::new, values);
        if is_last {
            self.recorder.did(Activity::Compute);
        }
        self.replies().then(|| Reply::Sums {
            nats,
            layers: routing.iter().map(|routing| routing.layer).collect(),
            health,
        })
    }

    pub fn captions(&mut self, captions: &[Captioned]) -> Option<Reply> {
        let batch = Captioned::batch(captions, self.model);
        let recorder = &mut Recorder::default();
        let (model, ranks, placement) = (self.model, self.ranks, &batch.placement);
        let tokens = batch.tokens.clone();
        let (stream, routing) = pass(model, ranks, tokens, placement, &mut Unobserved, recorder);
        let nats = stream.map(|stream| {
            let logits = model.logits(stream);
            let exchange = &mut ranks.tensor().clone();
            target_nats(logits, batch.targets, self.model.first_token(), exchange)
        });
        let health = HealthSums::terms(&routing, batch.valid.as_ref());
        self.replies().then(|| Reply::Captions {
            nats,
            layers: routing.iter().map(|routing| routing.layer).collect(),
            health: health.map_or_else(Vec::new, values),
        })
    }

    pub fn attention(&mut self, captions: &[Captioned]) -> Option<Reply> {
        let batch = Captioned::batch(captions, self.model);
        let recorder = &mut Recorder::default();
        let (model, placement) = (self.model, &batch.placement);
        let mut inputs = CrossInputs::new(model.config());
        let tokens = batch.tokens.clone();
        pass(model, self.ranks, tokens, placement, &mut inputs, recorder);
        // All tensor ranks of a stage add theirs up.
        let weights = PictureWeights::of(model.weights_of(inputs, placement));
        self.replies().then_some(Reply::Attention(weights))
    }

    fn trace(&mut self, rows: PaddedRows) -> Option<Reply> {
        let mut hidden = ResidualStream::default();
        let (tokens, mut placement) = rows.on(&self.model.device());
        let seeing = rows.pictures.filter(|_| self.model.vision.is_some());
        let seen = seeing.map(|pictures| {
            let (sight, trace) = self.model.sight_traced(pictures);
            placement = placement.clone().seeing(sight);
            trace
        });
        let recorder = &mut Recorder::default();
        let ranks = self.ranks;
        let (stream, routing) = pass(self.model, ranks, tokens, &placement, &mut hidden, recorder);
        let logits = stream.map(|stream| {
            let logits = self.model.logits(stream);
            self.ranks.tensor().gather_columns(logits)
        });
        if !self.replies() {
            return None;
        }
        let routed = routing.into_iter().map(|routing| {
            let chosen = routing.plan.chosen().into_data();
            Routed {
                layer: routing.layer,
                logits: values(routing.logits),
                probabilities: values(routing.probabilities),
                chosen: chosen.iter::<i64>().map(|expert| expert as u32).collect(),
            }
        });
        Some(Reply::Trace {
            hidden: hidden.0.into_iter().map(values).collect(),
            routing: routed.collect(),
            logits: logits.map(values),
            vision: seen.map(|trace| Seen {
                parts: trace
                    .parts
                    .into_iter()
                    .map(|(part, of)| (part, of.dims(), values(of)))
                    .collect(),
                states: (trace.states.dims(), values(trace.states)),
            }),
        })
    }

    /// Whether this rank replies for its stage, whose tensor ranks all have the same.
    fn replies(&self) -> bool {
        self.ranks.at().tensor == 0
    }
}

fn host(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("values in f32")
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}
