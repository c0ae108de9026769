//! Choosing the next token.
//!
//! A token is drawn by Gumbel noise: it is the argmax of `ln p(token) + g(token)`, which is an exact draw from `p`. The
//! noise is a pure function of the seed, the position and the token (`noise`), so that a text
//! depends on nothing else: not on what else is generated, in which order, or how many tokens are computed at once. Two
//! models that share the noise mostly draw the same token where their probabilities are alike (Daliri, Musco and Suresh,
//! arXiv 2408.07978), which is what lets a draft model guess what the other one will draw.

mod along;
mod draw;
mod noise;
mod penalties;
mod select;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use along::Draws;

pub(crate) use draw::{Alone, Exchange, Memory, Row, draw};

/// How the next token is chosen. The options apply in the order in which they stand here, those of `transformers`:
/// penalties, temperature, `top_k`, `top_p`, `min_p`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Logits of tokens that occur in the prompt or the generated text are divided (positive ones) or multiplied
    /// (negative ones) by this (CTRL, arXiv 1909.05858); 1 changes nothing.
    pub repetition_penalty: f64,
    /// Subtracted from the logits of tokens that were generated.
    pub presence_penalty: f64,
    /// Subtracted from the logits of tokens once for each time that they were generated.
    pub frequency_penalty: f64,
    /// Divisor of the logits; 0 is greedy decoding, where the smallest id wins among equals.
    pub temperature: f64,
    /// Number of most probable tokens to sample from; 0 means all.
    pub top_k: usize,
    /// Samples from the smallest set of most probable tokens whose total probability reaches this value (nucleus
    /// sampling, arXiv 1904.09751); 1 means all.
    pub top_p: f64,
    /// Drops tokens whose probability is below this share of the most probable one's (arXiv 2407.01082); 0 means none.
    pub min_p: f64,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            temperature: 0.8,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// The likeliest token each time.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }
}

impl Sampling {
    /// Whether what is drawn depends on which tokens occurred, and not only on how many were generated.
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

/// Chooses tokens from logits. It keeps memory to work in, and nothing of what it chose.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    memory: Memory,
}

impl Sampler {
    /// A sampler with these options.
    pub fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            memory: Memory::default(),
        }
    }

    /// The token that follows a prompt and what was generated after it. NaN counts as a probability of 0.
    ///
    /// # Panics
    ///
    /// When there are no logits.
    pub fn sample(&mut self, logits: &[f32], prompt: &[u32], generated: &[u32]) -> u32 {
        assert!(!logits.is_empty(), "a vocabulary is not empty");
        let row = Row {
            logits,
            sampling: self.sampling,
            prompt,
            generated,
            position: generated.len(),
        };
        draw(&[row], 0, &mut self.memory, &mut Alone)[0]
    }
}
