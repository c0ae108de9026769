//! Choosing the next token.
//!
//! A token is drawn by Gumbel noise: it is the argmax of `ln p(token) + g(token)`, which is an exact draw from `p`. The
//! noise is a pure function of the seed, the number of the text, the position and the token (`noise`), so that a text
//! depends on nothing else: not on what else is generated, in which order, or how many tokens are computed at once. Two
//! models that share the noise mostly draw the same token where their probabilities are alike (Daliri, Musco and Suresh,
//! arXiv 2408.07978), which is what lets a draft model guess what the other one will draw.

mod noise;
mod penalties;
mod select;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

use noise::Noise;
use penalties::Penalties;
use select::Candidates;

/// How the next token is chosen. The options apply in the order in which they stand here, those of `transformers`:
/// penalties, temperature, `top_k`, `top_p`, `min_p`.
#[derive(Debug, Clone, Copy, PartialEq)]
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

/// Chooses tokens from logits. It keeps memory to work in, and nothing of what it chose.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    penalties: Penalties,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler with these options.
    pub fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            penalties: Penalties::default(),
            candidates: Candidates::default(),
        }
    }

    /// The token that follows a prompt and what was generated after it. NaN counts as a probability of 0.
    ///
    /// # Panics
    ///
    /// When there are no logits.
    pub fn sample(&mut self, logits: &[f32], prompt: &[u32], generated: &[u32]) -> u32 {
        let Self {
            sampling,
            penalties,
            candidates,
        } = self;
        let logits = penalties.apply(logits, sampling, prompt, generated);
        let likeliest = likeliest(logits);
        let largest = f64::from(logits[likeliest as usize]);
        if sampling.temperature == 0.0 || !largest.is_finite() {
            return likeliest;
        }
        let scores = select::Scores {
            logits,
            largest,
            temperature: sampling.temperature,
        };
        let noise = Noise::new(sampling.seed, 0, generated.len() as u64);
        // The smallest −ln(u) / p is the largest ln p + g. It begins with the likeliest token, so that for most others
        // 1 − u ≤ −ln(u) is too large already.
        let mut best = (noise.exponential(likeliest), likeliest);
        let mut consider = |id: u32| {
            let uniform = noise.uniform(id);
            if 1.0 - uniform < best.0 {
                let cost = -uniform.ln() / scores.weight(id);
                if cost < best.0 {
                    best = (cost, id);
                }
            }
        };
        match candidates.select(&scores, sampling) {
            Some(kept) => kept.iter().copied().for_each(&mut consider),
            None => (0..logits.len() as u32).for_each(&mut consider),
        }
        best.1
    }
}

/// The id of the largest logit, the smallest one among equals.
fn likeliest(logits: &[f32]) -> u32 {
    assert!(!logits.is_empty(), "a vocabulary is not empty");
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, id as u32);
        }
    }
    best.1
}
