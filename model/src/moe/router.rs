//! The router: scores, the choice of experts, and their weights.

use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor, TensorData};

use crate::config::ModelConfig;
use crate::kernels::linear;
use crate::parameters::{Initial, ParameterSource};

/// Softmax top-k router (Mixtral, arXiv 2401.04088, with the softmax over all experts first).
///
/// `p = softmax(x W)`; the k experts with the largest `p + bias` are chosen; their weights are `p`,
/// divided by its sum over the chosen ones when `normalize` is set.
#[derive(Module, Debug)]
pub struct Router {
    /// `[d_model, experts]`
    pub weight: Param<Tensor<2>>,
    /// Added to the scores for the choice alone (DeepSeek, arXiv 2408.15664); not trained by gradients.
    /// `[experts]`; empty when bias balancing was never on.
    #[module(skip)]
    pub bias: Vec<f32>,
    per_token: usize,
    normalize: bool,
}

/// What a router decides for some tokens.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Scores before the softmax, `[tokens, experts]`.
    pub logits: Tensor<2>,
    /// `[tokens, experts]`
    pub probabilities: Tensor<2>,
    /// Factor of each chosen expert's answer, `[tokens, per_token]`.
    pub weights: Tensor<2>,
    /// The chosen experts, token by token, `tokens · per_token` of them.
    pub experts: Vec<u32>,
}

impl Router {
    /// Takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// Those of the source.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let shape = [config.d_model, config.experts.count];
        Ok(Self {
            weight: source.parameter(
                &format!("{path}.weight"),
                shape,
                Initial::Normal(config.initializer_range),
            )?,
            bias: Vec::new(),
            per_token: config.experts.per_token,
            normalize: config.router.normalize,
        })
    }

    /// Number of experts (E).
    pub fn experts(&self) -> usize {
        self.weight.lazy_shape()[1]
    }

    /// Experts that each token visits (k).
    pub fn per_token(&self) -> usize {
        self.per_token
    }

    /// Chooses experts. Reads the choice back to the host, which lays out the experts' work.
    ///
    /// # Shapes
    ///
    /// - `x`: `[tokens, d_model]`
    pub fn forward(&self, x: Tensor<2>) -> Choice {
        let [tokens, _] = x.dims();
        let logits = linear(x, self.weight.val());
        let probabilities = softmax(logits.clone(), 1);
        let scores: Vec<f32> = probabilities.to_data().iter::<f32>().collect();
        let chosen = choose(&scores, &self.bias, self.experts(), self.per_token);
        let indices: Vec<i32> = chosen.iter().map(|&expert| expert as i32).collect();
        let indices = TensorData::new(indices, [tokens, self.per_token]);
        let indices = Tensor::<2, Int>::from_data(indices, &probabilities.device());
        let weights = self.normalized(probabilities.clone().gather(1, indices));
        Choice {
            logits,
            probabilities,
            weights,
            experts: chosen,
        }
    }

    fn normalized(&self, weights: Tensor<2>) -> Tensor<2> {
        if !self.normalize {
            return weights;
        }
        let sum = weights.clone().sum_dim(1);
        weights / sum
    }
}

/// The `per_token` experts with the largest `score + bias` of each token, largest first; of equal ones
/// the lower number. Done on the host, where the dispatch plan needs the choice anyway, so that every
/// backend breaks ties in the same way and k = E is no special case.
///
/// `scores` holds `experts` values a token; `bias` as many, or none.
fn choose(scores: &[f32], bias: &[f32], experts: usize, per_token: usize) -> Vec<u32> {
    let mut chosen = Vec::with_capacity(scores.len() / experts * per_token);
    let mut order: Vec<u32> = Vec::with_capacity(experts);
    for scores in scores.chunks_exact(experts) {
        let score = |expert: u32| {
            let expert = expert as usize;
            scores[expert] + bias.get(expert).copied().unwrap_or(0.0)
        };
        order.clear();
        order.extend(0..experts as u32);
        let by_score = |&a: &u32, &b: &u32| score(b).total_cmp(&score(a)).then(a.cmp(&b));
        if per_token < experts {
            order.select_nth_unstable_by(per_token, by_score);
        }
        order[..per_token].sort_unstable_by(by_score);
        chosen.extend_from_slice(&order[..per_token]);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_choice_is_that_of_a_full_sort(
            (experts, per_token, scores, bias) in (1usize..12).prop_flat_map(|experts| (
                Just(experts),
                1..=experts,
                (0usize..6).prop_flat_map(move |tokens| proptest::collection::vec(0u8..4, tokens * experts)),
                prop_oneof![Just(vec![]), proptest::collection::vec(-1i8..2, experts)],
            ))
        ) {
            // Small whole numbers, so that ties are common.
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let bias: Vec<f32> = bias.into_iter().map(f32::from).collect();
            let chosen = choose(&scores, &bias, experts, per_token);
            let mut expected = Vec::new();
            for scores in scores.chunks(experts) {
                let mut order: Vec<usize> = (0..experts).collect();
                let biased = |e: usize| scores[e] + bias.get(e).unwrap_or(&0.0);
                order.sort_by(|&a, &b| biased(b).total_cmp(&biased(a)));
                expected.extend(order[..per_token].iter().map(|&e| e as u32));
            }
            prop_assert_eq!(chosen, expected);
        }
    }
}
