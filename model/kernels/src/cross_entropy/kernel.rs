//! Cross-entropy over slices of logits, one row a token.

use rayon::prelude::*;

use crate::host::exp::exp;
use crate::host::simd::{maximum, sum, vectorized};

/// Which scores are asked for.
#[derive(Debug, Clone)]
pub struct Targets {
    /// The right token of each row.
    pub ids: Vec<u32>,
    /// How much each row counts.
    pub counted: Vec<f32>,
}

/// What the backward pass needs to know of a row: its softmax is `exp(logit − maximum) / sum`. The two are kept
/// apart because their logarithmic sum would lose the last bits of the sum.
#[derive(Debug, Clone, Copy, Default)]
pub struct Normalizer {
    maximum: f32,
    sum: f32,
}

/// Rows of this width that a thread takes at once: some 64 KiB, which stay in a core's cache.
fn block_rows(vocab_size: usize) -> usize {
    ((1 << 14) / vocab_size).max(1)
}

/// The sum over rows of `−counted · ln softmax(logits)[target]`, and what the backward pass needs of each row.
/// Rows add up in f64, in their order; a row that counts 0 is not looked at.
///
/// # Panics
///
/// When the lengths do not fit, or a target that counts is not in the vocabulary.
pub fn forward(logits: &[f32], vocab_size: usize, targets: &Targets) -> (f32, Vec<Normalizer>) {
    let rows = targets.ids.len();
    assert!(logits.len() == rows * vocab_size && targets.counted.len() == rows);
    let block = block_rows(vocab_size);
    let mut normalizers = vec![Normalizer::default(); rows];
    let blocks = logits
        .par_chunks(block * vocab_size)
        .zip(normalizers.par_chunks_mut(block))
        .enumerate();
    let nats = blocks.map(|(index, (logits, normalizers))| {
        let mut nats = 0.0;
        let rows = logits.chunks_exact(vocab_size).zip(normalizers);
        for (row, (logits, normalizer)) in (index * block..).zip(rows) {
            let counted = targets.counted[row];
            if counted != 0.0 {
                *normalizer = vectorized(
                    #[inline(always)]
                    || normalize(logits),
                );
                let logit = logits[targets.ids[row] as usize];
                let surprise = (normalizer.maximum - logit) + normalizer.sum.ln();
                nats += f64::from(counted * surprise);
            }
        }
        nats
    });
    let nats: Vec<f64> = nats.collect();
    (nats.iter().sum::<f64>() as f32, normalizers)
}

#[inline(always)]
fn normalize(logits: &[f32]) -> Normalizer {
    let maximum = maximum(logits);
    let sum = sum(logits, |logit| exp(logit - maximum));
    Normalizer { maximum, sum }
}

/// Turns the logits into their gradient, in place: `gradient · counted · (softmax − onehot(target))`.
///
/// # Panics
///
/// When the lengths do not fit.
pub fn backward(
    logits: &mut [f32],
    vocab_size: usize,
    targets: &Targets,
    normalizers: &[Normalizer],
    gradient: f32,
) {
    let rows = targets.ids.len();
    assert!(logits.len() == rows * vocab_size && normalizers.len() == rows);
    let block = block_rows(vocab_size);
    let blocks = logits
        .par_chunks_mut(block * vocab_size)
        .zip(normalizers.par_chunks(block))
        .enumerate();
    blocks.for_each(|(index, (logits, normalizers))| {
        let rows = logits.chunks_exact_mut(vocab_size).zip(normalizers);
        for (row, (logits, normalizer)) in (index * block..).zip(rows) {
            let scale = gradient * targets.counted[row];
            if scale == 0.0 {
                logits.fill(0.0);
                continue;
            }
            let (maximum, factor) = (normalizer.maximum, scale / normalizer.sum);
            vectorized(
                #[inline(always)]
                || {
                    for logit in logits.iter_mut() {
                        *logit = exp(*logit - maximum) * factor;
                    }
                },
            );
            logits[targets.ids[row] as usize] -= scale;
        }
    });
}
