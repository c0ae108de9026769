//! What computes a model for those who generate, evaluate or trace: one model in this process ([`Local`]), or many ranks
//! that hold it together ([`Driver`](crate::parallel::Driver)).
//!
//! Steps are submitted and their results taken in the same order, so that several can be under way: while a later stage of
//! a pipeline is at one of them, an earlier stage does the next.

use std::borrow::Cow;
use std::collections::VecDeque;

use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Sequence};
use crate::cache::KeyValueCache;
use crate::config::ModelConfig;
use crate::decode::Piece;
use crate::language_model::{LanguageModel, Trace, token_tensor};
use crate::layout::Placement;
use crate::loss::cross_entropy_sum;
use crate::moe::stats::HealthSums;
use crate::sampling::{Draws, Memory};

/// A sequence's input to one step: its new tokens, and what is sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part<'a> {
    /// Index of its sequence in the cache.
    pub sequence: usize,
    /// The tokens that follow those in the cache, at least one.
    pub tokens: Cow<'a, [u32]>,
    /// What is drawn from the logits after the last of them; `None` for a part of a prompt.
    pub draws: Option<Draws<'a>>,
}

impl Part<'_> {
    pub(crate) fn piece(&self) -> Piece<'_> {
        Piece {
            sequence: self.sequence,
            tokens: &self.tokens,
            logits: self.draws.as_ref().map_or(0, Draws::rows),
        }
    }
}

/// Sums over a batch of sequences.
#[derive(Debug, Clone, PartialEq)]
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

/// Rows of tokens of equal length, and which of them are no padding.
#[derive(Debug, Clone, Copy)]
pub struct PaddedRows<'a> {
    /// Token ids, row by row.
    pub ids: &'a [u32],
    /// False for padding, row by row.
    pub valid: &'a [bool],
    /// Tokens of a row.
    pub length: usize,
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

/// Computes a model. See the [module](self) for the order of its results.
pub trait Network {
    /// That of the model.
    fn config(&self) -> &ModelConfig;

    /// Steps in flight that keep every pipeline stage busy.
    fn stages(&self) -> usize {
        1
    }

    /// Begins anew with an empty cache for so many sequences.
    fn begin(&mut self, sequences: usize);

    /// The cache, with all steps that were submitted. Where many ranks hold a model together it is the first one's: that of
    /// every rank has the same sequences and blocks, of other layers and heads.
    fn cache(&self) -> &KeyValueCache;

    /// See [`KeyValueCache::truncate`].
    fn truncate(&mut self, sequence: usize, length: usize);

    /// See [`KeyValueCache::fork`].
    fn fork(&mut self, from: usize, length: usize, to: usize);

    /// Begins a step that adds tokens to sequences of the cache; at most one part for each.
    ///
    /// # Panics
    ///
    /// As [`LanguageModel::decode`].
    fn submit(&mut self, parts: &[Part]);

    /// What was drawn in the oldest [submitted](Self::submit) step whose result has not been taken: for each of its parts
    /// that draw, in order, the tokens up to the first one that its draft does not have.
    ///
    /// # Panics
    ///
    /// When there is no such step.
    fn drawn(&mut self) -> Vec<Vec<u32>>;

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

    /// The values of a forward pass without a cache. No other step may be under way.
    ///
    /// # Panics
    ///
    /// When a row exceeds the context, or has padding between two tokens.
    fn trace(&mut self, rows: PaddedRows) -> Trace;
}

/// A model in this process.
#[derive(Debug)]
pub struct Local<'a> {
    model: &'a LanguageModel,
    cache: KeyValueCache,
    memory: Memory,
    drawn: VecDeque<Vec<Vec<u32>>>,
    sums: VecDeque<BatchSums>,
}

/// Room in a cache for a sequence to begin with, in tokens.
const FIRST_ROOM: usize = 64;

impl<'a> Local<'a> {
    /// A whole model.
    pub fn new(model: &'a LanguageModel) -> Self {
        Self {
            model,
            cache: cache(model, 0),
            memory: Memory::default(),
            drawn: VecDeque::new(),
            sums: VecDeque::new(),
        }
    }
}

/// An empty cache for so many sequences of a model.
pub(crate) fn cache(model: &LanguageModel, sequences: usize) -> KeyValueCache {
    let room = FIRST_ROOM.min(model.config().context_length);
    KeyValueCache::new(model, sequences, room, &model.device())
}

/// Logits on the host, in row-major order.
pub(crate) fn host(logits: Option<Tensor<2>>) -> Vec<f32> {
    logits.map_or_else(Vec::new, |logits| {
        let data = logits.into_data();
        data.try_into_vec().expect("logits in f32")
    })
}

impl Network for Local<'_> {
    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn begin(&mut self, sequences: usize) {
        self.cache = cache(self.model, sequences);
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

    fn submit(&mut self, parts: &[Part]) {
        let pieces: Vec<Piece> = parts.iter().map(Part::piece).collect();
        let logits = host(self.model.decode(&pieces, &mut self.cache));
        let texts: Vec<Draws> = parts.iter().filter_map(|part| part.draws.clone()).collect();
        let drawn = Draws::of_each(&texts, &logits, &mut self.memory);
        self.drawn.push_back(drawn);
    }

    fn drawn(&mut self) -> Vec<Vec<u32>> {
        self.drawn.pop_front().expect("a step that was submitted")
    }

    fn submit_batch(&mut self, sequences: &[Sequence]) {
        let batch = Batch::new(sequences, &self.model.device());
        let output = self.model.forward_batch(&batch);
        let logits = output.logits.flatten::<2>(0, 1);
        let loss = cross_entropy_sum(logits, batch.targets, batch.valid.as_ref());
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
    }

    fn sums(&mut self) -> BatchSums {
        self.sums.pop_front().expect("a batch that was submitted")
    }

    fn trace(&mut self, rows: PaddedRows) -> Trace {
        let (tokens, placement) = rows.on(&self.model.device());
        self.model.trace(tokens, &placement)
    }
}
