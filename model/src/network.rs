//! What computes a model for those who generate, evaluate or trace: one model in this process ([`Local`]), or many ranks
//! that hold it together ([`Driver`](crate::parallel::Driver)).
//!
//! Steps are submitted and their results taken in the same order, so that several can be under way: while a later stage of
//! a pipeline is at one of them, an earlier stage does the next.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Sequence};
use crate::cache::{BLOCK_TOKENS, KeyValueCache, Room};
use crate::captions::{self, Captioned};
use crate::config::ModelConfig;
use crate::decode::{Decoded, Piece};
use crate::language_model::{LanguageModel, Trace, token_tensor};
use crate::layout::Placement;
use crate::moe::loads::ExpertLoads;
use crate::moe::stats::HealthSums;
use crate::parallel::cross_entropy::target_nats;
use crate::sampling::{Asked, Drawn, Memory};
use crate::timeline::{Activity, Recorder, Span};
use crate::vision::{Picture, PictureBatch, PictureKeys};

/// A sequence's input to one step: its new tokens, and what is sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part<'a> {
    /// Index of its sequence in the cache.
    pub sequence: usize,
    /// The tokens that follow those in the cache, at least one.
    pub tokens: Cow<'a, [u32]>,
    /// What is asked of the logits after the last of them; nothing of most parts of a prompt.
    pub asked: Asked<'a>,
}

impl Part<'_> {
    pub(crate) fn piece(&self) -> Piece<'_> {
        Piece {
            sequence: self.sequence,
            tokens: &self.tokens,
            logits: self.asked.rows(),
        }
    }
}

/// How sequences are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Sequences of the cache.
    pub sequences: usize,
    /// Blocks of the cache, of which there are never more; `None` lets it grow.
    pub blocks: Option<usize>,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Whether to count which experts the steps visit.
    pub counts_experts: bool,
}

impl Session {
    /// With a cache that grows, and nothing counted.
    pub fn new(sequences: usize) -> Self {
        Self {
            sequences,
            blocks: None,
            block_tokens: BLOCK_TOKENS,
            counts_experts: false,
        }
    }

    /// The empty cache of a model, or of a rank's part of one.
    pub(crate) fn cache(&self, model: &LanguageModel) -> KeyValueCache {
        let Self {
            sequences,
            blocks,
            block_tokens,
            ..
        } = *self;
        let room = FIRST_ROOM.min(model.config().context_length);
        let begin = sequences * room.div_ceil(block_tokens);
        let room = match blocks {
            Some(blocks) => Room::Bounded(blocks),
            None => Room::Growing(begin),
        };
        KeyValueCache::in_blocks(model, sequences, room, block_tokens, &model.device())
    }
}

/// Sums over a batch of sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchSums {
    /// Cross-entropy of the targets that count, in nats.
    pub nats: f32,
    /// Number of targets that count.
    pub tokens: u64,
    /// Indices of the MoE layers.
    pub layers: Vec<usize>,
    /// What [`HealthSums::terms`] gives of their routing.
    pub health: Vec<f32>,
}

/// What a pass made of captions.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionNats {
    /// Of each caption, the cross-entropy of each target that is to be learned, in nats.
    pub nats: Vec<Vec<f64>>,
    /// Indices of the MoE layers.
    pub layers: Vec<usize>,
    /// What [`HealthSums::terms`] gives of their routing.
    pub health: Vec<f32>,
}

impl CaptionNats {
    /// Of the nats of all targets of a pass, row by row.
    pub(crate) fn of_pass(
        captions: &[Captioned],
        nats: &[f64],
        layers: Vec<usize>,
        health: Vec<f32>,
    ) -> Self {
        let rows = captions.iter().zip(nats.chunks(captions::length(captions)));
        let rows = rows.map(|(caption, row)| {
            let valid = caption.sequence.valid;
            row[caption.given.min(valid)..valid].to_vec()
        });
        Self {
            nats: rows.collect(),
            layers,
            health,
        }
    }
}

/// How much captions attend to their pictures in a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PictureWeights {
    /// The layer's index.
    pub layer: usize,
    /// The mean over its heads, `[captions, length, keys]`: the length is that of the longest caption, and the keys are the
    /// positions of the tiles, as [`LanguageModel::attention_to_pictures`] has them.
    pub weights: Vec<f32>,
}

impl PictureWeights {
    pub(crate) fn of(layers: Vec<(usize, Tensor<3>)>) -> Vec<Self> {
        let of_layer = |(layer, weights): (usize, Tensor<3>)| Self {
            layer,
            weights: weights.into_data().iter::<f32>().collect(),
        };
        layers.into_iter().map(of_layer).collect()
    }
}

/// Rows of tokens of equal length, and which of them are no padding.
#[derive(Debug, Clone, Copy)]
pub struct PaddedRows<'a> {
    /// Token ids, row by row.
    pub ids: &'a [u32],
    /// False for padding, row by row.
    pub valid: &'a [bool],
    /// Tokens of a row.
    pub length: usize,
    /// The pictures that they see; `None` for text alone.
    pub pictures: Option<&'a PictureBatch>,
}

impl PaddedRows<'_> {
    /// Number of rows and their length.
    pub fn shape(&self) -> [usize; 2] {
        [self.ids.len() / self.length.max(1), self.length]
    }

    /// The tokens, `[rows, length]`, and where they stand.
    pub(crate) fn on(&self, device: &Device) -> (Tensor<2, Int>, Placement) {
        let tokens = token_tensor(self.ids.chunks(self.length.max(1)), device);
        let placement = Placement::padded(self.valid, self.length, device);
        (tokens, placement)
    }
}

/// Computes batches of sequences without a cache. See the [module](self) for the order of the results.
pub trait Batches {
    /// Steps in flight that keep everything busy that computes.
    fn stages(&self) -> usize {
        1
    }

    /// Begins a forward pass of sequences of one length without a cache.
    ///
    /// # Panics
    ///
    /// When the sequences differ in length or exceed the context.
    fn submit_batch(&mut self, sequences: &[Sequence]);

    /// The sums of the oldest [submitted](Self::submit_batch) batch whose result has not been taken.
    ///
    /// # Panics
    ///
    /// When there is no such batch.
    fn sums(&mut self) -> BatchSums;
}

/// Computes a model. See the [module](self) for the order of its results.
pub trait Network: Batches {
    /// That of the model.
    fn config(&self) -> &ModelConfig;

    /// Begins anew with an empty cache.
    fn begin(&mut self, session: Session);

    /// The cache, with all steps that were submitted. Where many ranks hold a model together it is the first one's: that of
    /// every rank has the same sequences and blocks, of other layers and heads.
    fn cache(&self) -> &KeyValueCache;

    /// See [`KeyValueCache::truncate`].
    fn truncate(&mut self, sequence: usize, length: usize);

    /// See [`KeyValueCache::fork`].
    fn fork(&mut self, from: usize, length: usize, to: usize);

    /// The keys and values of pictures; see [`LanguageModel::look`]. Where many ranks hold a model together they are the first
    /// one's, and the others make theirs when a sequence is [shown](Self::show) the pictures.
    ///
    /// # Panics
    ///
    /// As there.
    fn look(&mut self, pictures: &[Picture]) -> PictureKeys;

    /// Gives a sequence pictures to see, or takes them from it; see [`KeyValueCache::show`].
    ///
    /// # Panics
    ///
    /// As there.
    fn show(&mut self, sequence: usize, pictures: Option<&Arc<PictureKeys>>);

    /// Begins a step that adds tokens to sequences of the cache; at most one part for each.
    ///
    /// # Panics
    ///
    /// As [`LanguageModel::decode`].
    fn submit(&mut self, parts: &[Part]);

    /// What came of the oldest [submitted](Self::submit) step whose result has not been taken, for each of its parts, in
    /// order; nothing for a part of which nothing was asked.
    ///
    /// # Panics
    ///
    /// When there is no such step.
    fn drawn(&mut self) -> Vec<Drawn>;

    /// What the experts of each MoE layer did in the steps since this was asked last; nothing where
    /// [`Session::counts_experts`] is false.
    fn expert_loads(&mut self) -> Vec<ExpertLoads>;

    /// Records from now on when each stage computes and when it waits.
    fn record(&mut self);

    /// What was recorded since the [beginning](Self::record), or since this was asked last.
    fn spans(&mut self) -> Vec<Span>;

    /// Begins a forward pass of captions behind their pictures, without a cache.
    ///
    /// # Panics
    ///
    /// As [`Captioned::batch`].
    fn submit_captions(&mut self, captions: &[Captioned]);

    /// What came of the oldest [submitted](Self::submit_captions) captions whose result has not been taken.
    ///
    /// # Panics
    ///
    /// When there are none.
    fn caption_nats(&mut self) -> CaptionNats;

    /// How much each token of captions attends to its picture, in each layer that does; see
    /// [`LanguageModel::attention_to_pictures`]. No other step may be under way.
    ///
    /// # Panics
    ///
    /// As there.
    fn attention_to_pictures(&mut self, captions: &[Captioned]) -> Vec<PictureWeights>;

    /// The values of a forward pass without a cache. No other step may be under way.
    ///
    /// # Panics
    ///
    /// When a row exceeds the context, or has padding between two tokens; when there are pictures that do not fit.
    fn trace(&mut self, rows: PaddedRows) -> Trace;
}

/// A model in this process, or a tensor rank of one with all layers, if every rank asks the same of it; traces are of whole models
/// alone.
#[derive(Debug)]
pub struct Local<'a> {
    model: &'a LanguageModel,
    session: Session,
    cache: KeyValueCache,
    memory: Memory,
    drawn: VecDeque<Vec<Drawn>>,
    loads: Vec<ExpertLoads>,
    sums: VecDeque<BatchSums>,
    captions: VecDeque<CaptionNats>,
    recorder: Recorder,
}

/// Room in a cache that grows for a sequence to begin with, in tokens.
const FIRST_ROOM: usize = 64;

impl<'a> Local<'a> {
    /// A model with all layers.
    pub fn new(model: &'a LanguageModel) -> Self {
        let session = Session::new(0);
        Self {
            model,
            session,
            cache: session.cache(model),
            memory: Memory::default(),
            drawn: VecDeque::new(),
            loads: Vec::new(),
            sums: VecDeque::new(),
            captions: VecDeque::new(),
            recorder: Recorder::default(),
        }
    }
}

/// Tokens that a pass of sequences computes.
pub(crate) fn tokens_of(sequences: &[Sequence]) -> usize {
    sequences.iter().map(|sequence| sequence.tokens.len()).sum()
}

/// Logits on the host, in row-major order.
pub(crate) fn host(logits: Option<Tensor<2>>) -> Vec<f32> {
    logits.map_or_else(Vec::new, |logits| {
        let data = logits.into_data();
        data.try_into_vec().expect("logits in f32")
    })
}

impl Batches for Local<'_> {
    fn submit_batch(&mut self, sequences: &[Sequence]) {
        self.recorder.step(tokens_of(sequences));
        let batch = Batch::new(sequences, &self.model.device());
        let output = self.model.forward_batch(&batch);
        let valid = batch.valid.as_ref();
        let loss = (self.model).cross_entropy_sum(output.logits, batch.targets, valid);
        let terms = HealthSums::terms(&output.routing, batch.valid.as_ref());
        let read = Tensor::cat(std::iter::once(loss).chain(terms).collect(), 0);
        let mut values: Vec<f32> = read.into_data().iter::<f32>().collect();
        let health = values.split_off(1);
        self.sums.push_back(BatchSums {
            nats: values[0],
            tokens: batch.valid_tokens,
            layers: output.routing.iter().map(|routing| routing.layer).collect(),
            health,
        });
        self.recorder.did(Activity::Compute);
    }

    fn sums(&mut self) -> BatchSums {
        self.sums.pop_front().expect("a batch that was submitted")
    }
}

impl Network for Local<'_> {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn begin(&mut self, session: Session) {
        self.session = session;
        self.cache = session.cache(self.model);
        self.loads.clear();
    }

    fn cache(&self) -> &KeyValueCache {
        &self.cache
    }

    fn truncate(&mut self, sequence: usize, length: usize) {
        self.cache.truncate(sequence, length);
    }

    fn fork(&mut self, from: usize, length: usize, to: usize) {
        self.cache.fork(from, length, to);
    }

    fn look(&mut self, pictures: &[Picture]) -> PictureKeys {
        self.model.look(pictures)
    }

    fn show(&mut self, sequence: usize, pictures: Option<&Arc<PictureKeys>>) {
        self.cache.show(sequence, pictures);
    }

    fn submit(&mut self, parts: &[Part]) {
        self.recorder
            .step(parts.iter().map(|part| part.tokens.len()).sum());
        let pieces: Vec<Piece> = parts.iter().map(Part::piece).collect();
        let entry = self.model.entry(&pieces);
        let (decoded, routing) = self.model.decode_stage(entry, &pieces, &mut self.cache);
        let Decoded::Logits(logits) = decoded else {
            panic!("a whole model has a head");
        };
        if self.session.counts_experts {
            ExpertLoads::add(&mut self.loads, &routing);
        }
        let logits = host(logits);
        let asked: Vec<Asked> = parts.iter().map(|part| part.asked.clone()).collect();
        let exchange = &mut self.model.group().cloned();
        let first = self.model.first_token() as u32;
        let drawn = Asked::answer(&asked, &logits, first, &mut self.memory, exchange);
        self.drawn.push_back(drawn);
        self.recorder.did(Activity::Compute);
    }

    fn drawn(&mut self) -> Vec<Drawn> {
        self.drawn.pop_front().expect("a step that was submitted")
    }

    fn expert_loads(&mut self) -> Vec<ExpertLoads> {
        std::mem::take(&mut self.loads)
    }

    fn record(&mut self) {
        self.recorder.start(0);
    }

    fn spans(&mut self) -> Vec<Span> {
        self.recorder.take()
    }

    fn submit_captions(&mut self, captions: &[Captioned]) {
        let batch = Captioned::batch(captions, self.model);
        let output = self.model.forward_batch(&batch);
        let logits = output.logits.flatten::<2>(0, 1);
        let exchange = &mut self.model.group().cloned();
        let first = self.model.first_token();
        let nats = target_nats(logits, batch.targets, first, exchange);
        let terms = HealthSums::terms(&output.routing, batch.valid.as_ref());
        self.captions.push_back(CaptionNats::of_pass(
            captions,
            &nats,
            output.routing.iter().map(|routing| routing.layer).collect(),
            terms.map_or_else(Vec::new, |terms| terms.into_data().iter::<f32>().collect()),
        ));
    }

    fn caption_nats(&mut self) -> CaptionNats {
        let oldest = self.captions.pop_front();
        oldest.expect("captions that were submitted")
    }

    fn attention_to_pictures(&mut self, captions: &[Captioned]) -> Vec<PictureWeights> {
        let batch = Captioned::batch(captions, self.model);
        PictureWeights::of(self.model.attention_to_pictures(&batch))
    }

    fn trace(&mut self, rows: PaddedRows) -> Trace {
        let (tokens, placement) = rows.on(&self.model.device());
        match rows.pictures {
            None => self.model.trace(tokens, &placement),
            Some(pictures) => self.model.trace_seeing(tokens, &placement, pictures),
        }
    }
}
