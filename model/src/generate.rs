//! Sampling and autoregressive generation.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::cache::KeyValueCache;
use crate::language_model::{LanguageModel, token_tensor};

/// How the next token is sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divisor of the logits; 0 is greedy decoding.
    pub temperature: f64,
    /// Number of most probable tokens to sample from; 0 means all.
    pub top_k: usize,
    /// Samples from the smallest set of most probable tokens whose total probability reaches this value (nucleus
    /// sampling, arXiv 1904.09751); 1 means all.
    pub top_p: f64,
    /// Seed of the random generator.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

/// Samples tokens from logits; the same seed and logits give the same tokens on every device.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    generator: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    pub fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            generator: ChaCha8Rng::seed_from_u64(sampling.seed),
        }
    }

    /// Samples the next token.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let Sampling {
            temperature,
            top_k,
            top_p,
            ..
        } = self.sampling;
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let descending = |&a: &u32, &b: &u32| {
            logits[b as usize]
                .total_cmp(&logits[a as usize])
                .then(a.cmp(&b))
        };
        if temperature == 0.0 {
            return order
                .into_iter()
                .min_by(descending)
                .expect("a vocabulary is not empty");
        }
        order.sort_unstable_by(descending);
        if top_k > 0 {
            order.truncate(top_k);
        }
        let largest = f64::from(logits[order[0] as usize]);
        let mut weights: Vec<f64> = order
            .iter()
            .map(|&id| ((f64::from(logits[id as usize]) - largest) / temperature).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        let mut reached = 0.0;
        let nucleus = weights.iter().position(|weight| {
            reached += weight;
            reached >= top_p * total
        });
        weights.truncate(nucleus.map_or(weights.len(), |last| last + 1));

        let uniform = (self.generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut point = uniform * weights.iter().sum::<f64>();
        let sampled = weights.iter().position(|weight| {
            point -= weight;
            point < 0.0
        });
        order[sampled.unwrap_or(weights.len() - 1)]
    }
}

/// Continues `prompt` by up to `count` tokens, and calls `emit` with each, which stops the generation by returning
/// false. Generation also stops at any of `eos_ids`, which are not emitted.
///
/// When the text exceeds the context, its oldest half is dropped and the cache is refilled with the newest half, since
/// rotary positions are relative to the start of the cache. Returns the number of tokens that had been emitted when this
/// first happened, `None` if it did not.
///
/// # Panics
///
/// When the prompt is empty or a token of it is not in the vocabulary.
pub fn generate(
    model: &LanguageModel,
    prompt: &[u32],
    count: usize,
    eos_ids: &[u32],
    sampler: &mut Sampler,
    mut emit: impl FnMut(u32) -> bool,
) -> Option<usize> {
    assert!(!prompt.is_empty(), "a prompt has at least one token");
    let config = model.config();
    let context = config.context_length;
    let device = model.embedding.lazy_device();
    let mut text = prompt[prompt.len().saturating_sub(context)..].to_vec();
    let mut cache = KeyValueCache::new(config, 1, context, &device);
    let mut cached = 0; // number of tokens of `text` in the cache
    let mut cut = None;
    for emitted in 0..count {
        if text.len() - cached > cache.remaining() {
            text.drain(..text.len() - (context / 2).max(1));
            cache = KeyValueCache::new(config, 1, context, &device);
            cached = 0;
            cut = cut.or(Some(emitted));
        }
        let new = token_tensor([&text[cached..]].into_iter(), &device);
        let logits: Vec<f32> = model
            .decode(new, &mut cache)
            .into_data()
            .iter::<f32>()
            .collect();
        cached = text.len();
        let next = sampler.sample(&logits);
        if eos_ids.contains(&next) || !emit(next) {
            break;
        }
        text.push(next);
    }
    cut
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::tiny;
    use firebox_runtime::device::{default_name, select};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::values;

    fn draws(sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        (0..count).map(|_| sampler.sample(logits)).collect()
    }

    on_every_device!(
        past_the_context_the_newest_half_is_read_again,
        a_prompt_beyond_the_context_loses_its_beginning,
    );

    fn greedy() -> Sampler {
        Sampler::new(Sampling {
            temperature: 0.0,
            ..Sampling::default()
        })
    }

    /// Of a context of 8.
    fn model(device: &Device) -> LanguageModel {
        let mut config = tiny();
        config.context_length = 8;
        LanguageModel::random(&config, 3, device)
    }

    fn continued(model: &LanguageModel, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut text = Vec::new();
        let cut = generate(model, prompt, count, &[], &mut greedy(), |id| {
            text.push(id);
            true
        });
        // The token after the first one that does not fit.
        let full = 8 - prompt.len().min(8) + 1;
        assert_eq!(cut, (full < count).then_some(full));
        text
    }

    /// The likeliest token after a window.
    fn following(model: &LanguageModel, window: &[u32], device: &Device) -> u32 {
        let tokens = token_tensor([window].into_iter(), device);
        let logits = model.forward(tokens).logits.narrow(1, window.len() - 1, 1);
        greedy().sample(&values(logits))
    }

    /// Of each of `windows`, the likeliest token after that many of the newest ones, to which it is added.
    fn expected(
        model: &LanguageModel,
        prompt: &[u32],
        windows: &[usize],
        device: &Device,
    ) -> Vec<u32> {
        let mut text = prompt.to_vec();
        for &window in windows {
            text.push(following(model, &text[text.len() - window..], device));
        }
        text[prompt.len()..].to_vec()
    }

    fn past_the_context_the_newest_half_is_read_again(device: Device) {
        let model = model(&device);
        let prompt = [1, 2, 3];
        // The cache is full at 8; then the newest four of nine tokens are the text.
        let windows = [3, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8, 4, 5, 6, 7];
        let found = continued(&model, &prompt, windows.len());
        assert_eq!(found, expected(&model, &prompt, &windows, &device));
        // Another window gives another text.
        let sliding = [&windows[..6], &[8; 14]].concat();
        assert_ne!(found, expected(&model, &prompt, &sliding, &device));
    }

    fn a_prompt_beyond_the_context_loses_its_beginning(device: Device) {
        let model = model(&device);
        let prompt: Vec<u32> = (0..20).map(|place| place * 7 % 37).collect();
        let windows = [8, 4, 5, 6, 7, 8, 4];
        let found = continued(&model, &prompt, windows.len());
        assert_eq!(found, expected(&model, &prompt, &windows, &device));
        assert_eq!(found, continued(&model, &prompt[12..], windows.len()));
    }

    #[test]
    fn a_stop_is_not_handed_on_and_emit_may_end_the_text() {
        let device = select(default_name()).unwrap();
        let model = model(&device);
        let text = continued(&model, &[1, 2, 3], 5);
        let stop = text.iter().position(|id| *id == text[3]).unwrap();
        let with = |stops: &[u32], most: usize| {
            let mut found = Vec::new();
            generate(&model, &[1, 2, 3], 5, stops, &mut greedy(), |id| {
                found.push(id);
                found.len() < most
            });
            found
        };
        assert_eq!(with(&text[3..4], 99), text[..stop]);
        assert_eq!(with(&[], 2), text[..2]);
    }

    #[test]
    #[should_panic(expected = "a prompt has at least one token")]
    fn a_prompt_is_not_empty() {
        let model = model(&select(default_name()).unwrap());
        let _ = continued(&model, &[], 1);
    }

    #[test]
    fn temperature_zero_is_greedy_and_ties_go_to_the_first() {
        let greedy = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        assert_eq!(draws(greedy, &[0.0, 3.0, -1.0, 3.0], 2), [1, 1]);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [0.1f32.ln(), 0.6f32.ln(), 0.3f32.ln()];
        let drawn = draws(
            Sampling {
                temperature: 1.0,
                ..Sampling::default()
            },
            &logits,
            20_000,
        );
        for (id, probability) in [0.1, 0.6, 0.3].into_iter().enumerate() {
            let share = drawn.iter().filter(|&&drawn| drawn == id as u32).count() as f64 / 20_000.0;
            assert!(
                (share - probability).abs() < 0.015,
                "token {id}: {share}, expected {probability}"
            );
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let top_k = Sampling {
            temperature: 1.0,
            top_k: 1,
            ..Sampling::default()
        };
        assert!(draws(top_k, &logits, 100).iter().all(|&id| id == 0));
        let top_p = Sampling {
            temperature: 1.0,
            top_p: 0.6,
            ..Sampling::default()
        };
        let drawn = draws(top_p, &logits, 500);
        assert!(drawn.iter().all(|&id| id < 2) && drawn.contains(&0) && drawn.contains(&1));
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let with = |seed| {
            draws(
                Sampling {
                    seed,
                    ..Sampling::default()
                },
                &logits,
                30,
            )
        };
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
    }
}
