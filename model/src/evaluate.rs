//! The quality of a model on text: loss in nats and bits per byte, and router health.

use burn::tensor::Tensor;
use serde::Serialize;

use crate::batch::{Batch, Sequence};
use crate::language_model::LanguageModel;
use crate::loss::cross_entropy_sum;
use crate::moe::stats::{HealthSums, LayerHealth};

/// Default number of sequences per batch: the same in training and evaluation, so that sums are taken in the same
/// order.
pub const ROWS: usize = 16;

/// The quality of a model on some text. The loss contains no auxiliary term.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Number of predicted tokens.
    pub tokens: u64,
    /// Number of UTF-8 bytes of the predicted tokens.
    pub bytes: u64,
    /// Mean cross-entropy in nats per token.
    pub nats_per_token: f64,
    /// `exp(nats_per_token)`
    pub perplexity: f64,
    /// `nats / ln 2 / bytes`: the bits per byte of an ideal compressor that uses this model. Unlike the loss per
    /// token, it can be compared between tokenizers.
    pub bits_per_byte: f64,
    /// Router health of each MoE layer; empty for a dense model.
    pub layers: Vec<LayerHealth>,
}

/// Evaluates on sequences, `rows` of them at a time; `progress` is called with the number of tokens done.
///
/// Sums are accumulated in f64 in the order of the sequences, so that the same sequences and `rows` give bit-identical
/// results for every caller.
///
/// # Panics
///
/// When sequences differ in length or exceed the context.
pub fn evaluate(
    model: &LanguageModel,
    sequences: impl Iterator<Item = Sequence>,
    bytes: u64,
    rows: usize,
    mut progress: impl FnMut(u64),
) -> Evaluation {
    let device = model.embedding.lazy_device();
    let mut sums = HealthSums::default();
    let (mut nats, mut tokens) = (0.0, 0);
    let mut sequences = sequences.peekable();
    while sequences.peek().is_some() {
        let chunk: Vec<Sequence> = sequences.by_ref().take(rows.max(1)).collect();
        let batch = Batch::new(&chunk, &device);
        let output = model.forward(batch.tokens);
        let logits = output.logits.flatten::<2>(0, 1);
        let loss = cross_entropy_sum(logits, batch.targets, batch.valid.as_ref());
        let terms = HealthSums::terms(&output.routing, batch.valid.as_ref());
        let read = Tensor::cat(std::iter::once(loss).chain(terms).collect(), 0);
        let values: Vec<f32> = read.into_data().iter::<f32>().collect();
        nats += f64::from(values[0]);
        tokens += batch.valid_tokens;
        let layers: Vec<usize> = output.routing.iter().map(|routing| routing.layer).collect();
        sums.add(&layers, batch.valid_tokens, &values[1..]);
        progress(tokens);
    }
    let nats_per_token = nats / tokens.max(1) as f64;
    Evaluation {
        tokens,
        bytes,
        nats_per_token,
        perplexity: nats_per_token.exp(),
        bits_per_byte: nats / std::f64::consts::LN_2 / bytes.max(1) as f64,
        layers: sums.health(),
    }
}
