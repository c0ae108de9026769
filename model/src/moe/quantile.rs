//! Quantile balancing: the selection biases with which the last batch would have been balanced.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::Routing;
use crate::config::ExpertsConfig;

/// The scores that experts are selected by, of a batch, layer by layer; gathered over its micro-batches.
#[derive(Debug, Clone, Default)]
pub struct BatchScores {
    layers: Vec<LayerScores>,
}

/// The scores of the tokens of one layer.
#[derive(Debug, Clone, PartialEq)]
struct LayerScores {
    experts: usize,
    top_k: usize,
    /// `[tokens, experts]`, without the bias.
    scores: Vec<f32>,
}

/// The score of padding, which no token has.
const PADDING: f32 = -1.0;

/// How often the scores of a batch are passed over. Cutoffs follow biases and the other way round, so that one pass is
/// exact only for the cutoffs of the biases before it; four take a batch whose busiest expert has 3.5 times the mean to
/// about 1.03 times of it, and one of 7 times to 1.1.
const PASSES: usize = 4;

impl BatchScores {
    /// A micro-batch's scores as one tensor, to be read back with others, `[layers · tokens · experts]`; `None` for a
    /// dense model. Those of padding are −1.
    ///
    /// # Shapes
    ///
    /// - `valid`: `[tokens]`, 1 for a token and 0 for padding; `None` without padding
    pub fn terms(routing: &[Routing], valid: Option<&Tensor<1>>) -> Option<Tensor<1>> {
        let layers = routing.iter().map(|layer| {
            let scores = layer.selection_scores();
            let scores = match valid {
                Some(valid) => {
                    let padding = valid.clone().inner().equal_elem(0.0).unsqueeze_dim::<2>(1);
                    let padding = padding.expand(scores.dims());
                    scores.mask_fill(padding, PADDING)
                }
                None => scores,
            };
            scores.flatten(0, 1)
        });
        let layers: Vec<Tensor<1>> = layers.collect();
        (!layers.is_empty()).then(|| Tensor::cat(layers, 0))
    }

    /// Adds a micro-batch of a model with these experts in so many layers: the values of its [`terms`](Self::terms).
    pub fn add(&mut self, experts: &ExpertsConfig, layers: usize, terms: &[f32]) {
        self.layers.resize_with(layers, || LayerScores {
            experts: experts.count,
            top_k: experts.top_k,
            scores: Vec::new(),
        });
        let terms = terms.chunks(terms.len() / layers);
        for (layer, terms) in self.layers.iter_mut().zip(terms) {
            let tokens = terms.chunks(layer.experts);
            let tokens = tokens.filter(|token| token[0] != PADDING);
            layer.scores.extend(tokens.flatten());
        }
    }

    /// The selection biases of all layers with which each expert would have been selected by `T·k/E` of the batch's T
    /// tokens, from the `biases` that the tokens were routed with (empty ones are zeros). Without tokens these are left as
    /// they are.
    ///
    /// A token t selects the k experts with the largest `s_te + b_e`. Between the k-th and the (k+1)-th of them lies its
    /// cutoff c_t, here halfway. To be selected by t, expert e needs a bias above `c_t − s_te`; so its new one is the
    /// quantile of these numbers over all tokens at `k/E`:
    ///
    /// `c_t ← (largest_k(s_t + b) + largest_{k+1}(s_t + b)) / 2`, `b_e ← quantile_{k/E} over t of (c_t − s_te)`
    ///
    /// Both halves minimize the same function, the dual of the assignment of tokens to experts with the largest sum of
    /// scores of which each expert gets the same number (Su, "quantile balancing", kexue.fm/archives/11619; Megatron-LM,
    /// pull request 5349, which takes the (k+1)-th score for the cutoff, and passes once). The quantile is halfway between
    /// the numbers of rank `T·k/E` and the next one, interpolated where this is no integer, so that a batch that is balanced stays as it
    /// is. In the end biases are shifted to a mean of zero, which changes no selection.
    pub fn balancing_biases(&self, biases: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let layers = self.layers.par_iter().enumerate();
        let layers = layers.map(|(index, layer)| {
            let mut biases = biases.get(index).cloned().unwrap_or_default();
            biases.resize(layer.experts, 0.0);
            layer.balanced(biases)
        });
        layers.collect()
    }
}

impl LayerScores {
    /// The biases after all passes.
    fn balanced(&self, mut biases: Vec<f32>) -> Vec<f32> {
        // A token that selects all experts has no cutoff, whatever their biases.
        if self.top_k == self.experts || self.scores.is_empty() {
            return biases;
        }
        for _ in 0..PASSES {
            biases = self.next(&biases);
            let centre = biases.iter().sum::<f32>() / biases.len() as f32;
            biases.iter_mut().for_each(|bias| *bias -= centre);
        }
        biases
    }

    /// The biases after a pass, from those before it; not centred.
    fn next(&self, biases: &[f32]) -> Vec<f32> {
        let cutoffs = self.cutoffs(biases);
        let share = self.top_k as f64 / self.experts as f64;
        let mut needed = Vec::with_capacity(cutoffs.len());
        let bias_of = |expert: usize| {
            let own = self.scores.iter().skip(expert).step_by(self.experts);
            needed.clear();
            needed.extend(own.zip(&cutoffs).map(|(score, cutoff)| cutoff - score));
            quantile(&mut needed, share)
        };
        (0..self.experts).map(bias_of).collect()
    }

    /// Each token's score with bias from which on it selects an expert.
    fn cutoffs(&self, biases: &[f32]) -> Vec<f32> {
        let mut biased = vec![0.0; self.experts];
        let cutoff = |token: &[f32]| {
            let sums = token.iter().zip(biases).map(|(score, bias)| score + bias);
            biased.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum);
            let descending = |a: &f32, b: &f32| b.total_cmp(a);
            let (above, &mut next, _) = biased.select_nth_unstable_by(self.top_k, descending);
            let last = above.iter().copied().fold(f32::INFINITY, f32::min);
            0.5 * (last + next)
        };
        self.scores.chunks(self.experts).map(cutoff).collect()
    }
}

/// The number that `share` of the values lie below: halfway between two of them where an integer number lie below, else
/// interpolated between the neighbouring halves; at the ends the smallest and the largest value.
fn quantile(values: &mut [f32], share: f64) -> f32 {
    let place = (values.len() as f64 * share - 0.5).clamp(0.0, (values.len() - 1) as f64);
    let (_, &mut lower, above) =
        values.select_nth_unstable_by(place.floor() as usize, f32::total_cmp);
    let upper = above.iter().copied().min_by(f32::total_cmp);
    let (lower, upper) = (f64::from(lower), f64::from(upper.unwrap_or(lower)));
    (lower + (upper - lower) * place.fract()) as f32
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation::sigmoid;
    use burn::tensor::{Device, TensorData};
    use proptest::prelude::*;

    use super::*;
    use crate::config::Scores;
    use crate::testing::with_experts;
    use firebox_kernels::dispatch::DispatchPlan;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{values, wave};

    on_every_device!(
        neither_the_cut_of_a_batch_nor_its_padding_matters,
        sigmoids_are_gathered_as_they_select,
    );

    fn layer(experts: usize, top_k: usize, scores: Vec<f32>) -> LayerScores {
        LayerScores {
            experts,
            top_k,
            scores,
        }
    }

    /// Tokens that select each expert, as a router does.
    fn counts(layer: &LayerScores, biases: &[f32]) -> Vec<usize> {
        let mut counts = vec![0; layer.experts];
        for token in layer.scores.chunks(layer.experts) {
            let biased: Vec<f32> = token.iter().zip(biases).map(|(s, b)| s + b).collect();
            let mut order: Vec<usize> = (0..layer.experts).collect();
            order.sort_by(|&a, &b| biased[b].total_cmp(&biased[a]));
            order[..layer.top_k].iter().for_each(|&e| counts[e] += 1);
        }
        counts
    }

    fn busiest(layer: &LayerScores, biases: &[f32]) -> f64 {
        let counts = counts(layer, biases);
        let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
        *counts.iter().max().unwrap() as f64 / mean
    }

    #[test]
    fn two_experts_share_four_tokens() {
        // The first expert is ahead by 0.8, 0.6, 0.4 and 0.2: with 0.5 less it gets two of them.
        let scores = vec![0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4];
        let biases = layer(2, 1, scores).balanced(vec![0.0; 2]);
        assert!((biases[0] + 0.25).abs() < 1e-6 && (biases[1] - 0.25).abs() < 1e-6);
    }

    #[test]
    fn a_quantile_lies_between_its_neighbours() {
        let of = |share: f64| quantile(&mut [30.0, 10.0, 40.0, 20.0], share);
        assert_eq!([0.25, 0.5, 0.75].map(of), [15.0, 25.0, 35.0]);
        // One and a half of four values: in the middle of the second one's place.
        assert_eq!([0.375, 0.3125].map(of), [20.0, 17.5]);
        assert_eq!([0.0, 0.125, 0.875, 1.0].map(of), [10.0, 10.0, 40.0, 40.0]);
    }

    #[test]
    fn who_selects_every_expert_needs_no_biases() {
        let all = layer(2, 2, vec![0.9, 0.1, 0.8, 0.2]);
        assert_eq!(all.balanced(vec![0.5, -0.5]), [0.5, -0.5]);
        assert_eq!(layer(4, 2, vec![]).balanced(vec![0.25; 4]), [0.25; 4]);
    }

    /// Scores like those of routers, some experts far ahead of others, and biases to begin with.
    fn batches() -> impl Strategy<Value = (LayerScores, Vec<f32>)> {
        let shape = (2usize..12, 1usize..200)
            .prop_flat_map(|(experts, tokens)| (Just(experts), 1..experts, Just(tokens)));
        shape.prop_flat_map(|(experts, top_k, tokens)| {
            let ahead = prop::collection::vec(-1.0f32..1.0, experts);
            let scores = prop::collection::vec(0.0f32..1.0, tokens * experts);
            let biases = prop::collection::vec(-0.5f32..0.5, experts);
            (ahead, scores, biases).prop_map(move |(ahead, mut scores, biases)| {
                for token in scores.chunks_mut(experts) {
                    token
                        .iter_mut()
                        .zip(&ahead)
                        .for_each(|(s, a)| *s += a + 1.0);
                }
                (layer(experts, top_k, scores), biases)
            })
        })
    }

    proptest! {
        /// What a pass guarantees: with the cutoffs as they are, each expert is selected by T·k/E tokens, rounded down or up;
        /// equal numbers may fall on either side.
        #[test]
        fn with_its_cutoffs_held_a_pass_balances_exactly((layer, biases) in batches()) {
            let cutoffs = layer.cutoffs(&biases);
            let share = (cutoffs.len() * layer.top_k) as f64 / layer.experts as f64;
            for (expert, bias) in layer.next(&biases).into_iter().enumerate() {
                let own = layer.scores.iter().skip(expert).step_by(layer.experts);
                let needed: Vec<f32> = own.zip(&cutoffs).map(|(s, c)| c - s).collect();
                let below = needed.iter().filter(|&&needed| needed < bias).count() as f64;
                let up_to = needed.iter().filter(|&&needed| needed <= bias).count() as f64;
                prop_assert!(below <= share.ceil() && up_to >= share.floor(), "{share}: {below}, {up_to}");
            }
        }

        /// A shift of all biases is none.
        #[test]
        fn biases_have_a_mean_of_zero((layer, biases) in batches()) {
            let shifted: Vec<f32> = biases.iter().map(|bias| bias + 0.25).collect();
            let (found, again) = (layer.balanced(biases), layer.balanced(shifted));
            prop_assert!(found.iter().sum::<f32>().abs() < 1e-4);
            for (a, b) in found.iter().zip(&again) {
                prop_assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    /// The load that follows when all biases have moved together.
    #[test]
    fn a_skewed_batch_becomes_balanced_and_stays_so() {
        for (experts, top_k, seed) in [(2, 1, 0), (8, 2, 1), (16, 2, 2), (8, 4, 3), (32, 8, 4)] {
            let tokens = 2048;
            let mut state = seed as u64 + 1;
            let mut uniform = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 24) as f32
            };
            let ahead: Vec<f32> = (0..experts)
                .map(|expert| 4.0 * expert as f32 / (experts - 1) as f32)
                .collect();
            let scores = (0..tokens * experts).map(|place| {
                let logit = ahead[place % experts] + 3.0 * (uniform() + uniform()) - 5.0;
                1.0 / (1.0 + (-logit).exp())
            });
            let layer = layer(experts, top_k, scores.collect());
            let what = format!("{top_k} of {experts}");
            let start = busiest(&layer, &vec![0.0; experts]);
            assert!(start > 1.3, "{what}: {start} from the start");
            let once = layer.balanced(vec![0.0; experts]);
            let after = busiest(&layer, &once);
            assert!(
                after < 1.0 + 0.2 * (start - 1.0),
                "{what}: {start} to {after}"
            );
            let settled = (0..5).fold(once, |biases, _| layer.balanced(biases));
            let after = busiest(&layer, &settled);
            assert!(after < 1.02, "{what}: {after} in the end");
        }
    }

    /// Routing of some tokens whose scores are the sigmoids of these logits.
    fn routing(logits: Tensor<2>) -> Routing {
        let scores = sigmoid(logits.clone());
        let probabilities = scores.clone() / scores.clone().sum_dim(1);
        let plan = DispatchPlan::choose(&scores, &[], 2);
        Routing {
            layer: 0,
            scores: Scores::Sigmoid,
            logits,
            probabilities,
            plan,
        }
    }

    fn gathered(parts: &[(Routing, Option<Tensor<1>>)]) -> BatchScores {
        let mut scores = BatchScores::default();
        for (routing, valid) in parts {
            let routing = std::slice::from_ref(routing);
            let terms = BatchScores::terms(routing, valid.as_ref()).unwrap();
            let experts = with_experts(4, 2).moe.unwrap().experts;
            scores.add(&experts, 1, &values(terms));
        }
        scores
    }

    fn neither_the_cut_of_a_batch_nor_its_padding_matters(device: Device) {
        let logits = wave([30, 4], 0.7, &device);
        let part = |from: usize, count: usize| routing(logits.clone().narrow(0, from, count));
        let biases = |parts: &[(Routing, Option<Tensor<1>>)]| {
            gathered(parts).balancing_biases(&[vec![0.1, 0.0, 0.0, -0.1]])
        };
        let whole = biases(&[(part(0, 30), None)]);
        assert_eq!(biases(&[(part(0, 7), None), (part(7, 23), None)]), whole);
        // The same tokens behind padding of any scores.
        let padded = Tensor::cat(vec![wave([2, 4], 0.2, &device), logits.clone()], 0);
        let valid = [&[0.0; 2][..], &[1.0; 30]].concat();
        let valid = Tensor::from_data(TensorData::new(valid, [32]), &device);
        assert_eq!(biases(&[(routing(padded), Some(valid))]), whole);
        assert_ne!(whole, [[0.1, 0.0, 0.0, -0.1]]);
    }

    fn sigmoids_are_gathered_as_they_select(device: Device) {
        let logits = wave([5, 4], 0.7, &device);
        let scores = gathered(&[(routing(logits.clone()), None)]);
        let expected = layer(4, 2, values(sigmoid(logits)));
        assert_eq!(scores.layers, [expected]);
    }
}
