//! The router: scores and selects experts, and computes their weights.

use burn::module::{Module, Param};
use burn::tensor::activation::{log_sigmoid, sigmoid, softmax};
use burn::tensor::{Bool, Int, Tensor};

use crate::config::{ModelConfig, MoeConfig, Scores};
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::dispatch::DispatchPlan;
use firebox_kernels::{Precision, linear};

/// Top-k router: Mixtral's (arXiv 2401.04088, with the softmax over all experts first), or DeepSeek-V3's
/// (arXiv 2412.19437, eqs. 13–16).
///
/// `s` is the softmax of the logits `x W`, or of `x W + b`, or the sigmoid of each of them; the k experts with the
/// largest `s + bias` are selected, from the groups of experts whose two best are best together, if there are groups;
/// their weights are `s`, divided by its sum over the selected experts if `normalize` is set, times `scaling`.
#[derive(Module, Debug)]
pub struct Router {
    /// `[d_model, experts]`
    pub weight: Param<Tensor<2>>,
    /// b, `[experts]`
    pub logit_bias: Option<Param<Tensor<1>>>,
    /// Added to the scores for the selection only (DeepSeek, arXiv 2408.15664); not trained by gradients.
    /// `[experts]`; empty if bias balancing was never on.
    #[module(skip)]
    pub bias: Vec<f32>,
    top_k: usize,
    #[module(skip)]
    scores: Scores,
    normalize: bool,
    scaling: f64,
    groups: usize,
    top_groups: usize,
}

/// The output of a router for some tokens.
#[derive(Debug, Clone)]
pub struct RouterOutput {
    /// `[tokens, experts]`
    pub logits: Tensor<2>,
    /// The scores divided by their sum over all experts, without the bias, `[tokens, experts]`.
    pub probabilities: Tensor<2>,
    /// Weights of the selected experts' outputs, `[tokens, top_k]`.
    pub weights: Tensor<2>,
    /// The assignment of tokens to experts.
    pub plan: DispatchPlan,
}

impl Router {
    /// Takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        MoeConfig { experts, router }: &MoeConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let weight = ParameterSpec::new(
            format!("{path}.weight"),
            Role::Router,
            [
                (Axis::Model, config.d_model),
                (Axis::Experts, experts.count),
            ],
            Initializer::Normal(config.initializer_range),
        );
        let logit_bias = || {
            let path = format!("{path}.logit_bias");
            let experts = [(Axis::Experts, experts.count)];
            ParameterSpec::new(path, Role::RouterBias, experts, Initializer::Zeros)
        };
        Ok(Self {
            weight: source.parameter(weight)?,
            logit_bias: match router.logit_bias {
                true => Some(source.parameter(logit_bias())?),
                false => None,
            },
            bias: Vec::new(),
            top_k: experts.top_k,
            scores: router.scores,
            normalize: router.normalize,
            scaling: router.scaling,
            groups: router.groups,
            top_groups: router.top_groups,
        })
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.weight.lazy_shape()[1]
    }

    /// How the logits become scores.
    pub fn scores(&self) -> Scores {
        self.scores
    }

    /// Scores and selects experts, without a device-to-host read.
    ///
    /// # Shapes
    ///
    /// - `x`: `[tokens, d_model]`
    pub fn forward(&self, x: Tensor<2>) -> RouterOutput {
        // In f32 always: rounding must not choose experts.
        let logits = linear(x, self.weight.val(), Precision::F32);
        let logits = match &self.logit_bias {
            Some(bias) => logits + bias.val().unsqueeze(),
            None => logits,
        };
        let probabilities = softmax(log_scores(self.scores, logits.clone()), 1);
        let scores = match self.scores {
            Scores::Softmax => probabilities.clone(),
            Scores::Sigmoid => sigmoid(logits.clone()),
        };
        let plan = if self.groups == 1 {
            DispatchPlan::choose(&scores, &self.bias, self.top_k)
        } else {
            DispatchPlan::choose(&self.in_top_groups(scores.clone()), &[], self.top_k)
        };
        let weights = self.weighted(scores.gather(1, plan.chosen()));
        RouterOutput {
            logits,
            probabilities,
            weights,
            plan,
        }
    }

    /// Scores plus bias; −∞ for the experts of all but the best groups. A group's own score is the sum of its two
    /// largest ones, and of equal groups the first is better.
    fn in_top_groups(&self, scores: Tensor<2>) -> Tensor<2> {
        let scores = scores.inner();
        let [tokens, experts] = scores.dims();
        let device = scores.device();
        let (groups, size) = (self.groups, experts / self.groups);
        let scores = match self.bias.as_slice() {
            [] => scores,
            bias => scores + Tensor::<1>::from_floats(bias, &device).unsqueeze(),
        };
        let by_group = scores.reshape([tokens, groups, size]);
        let (largest, place) = by_group.clone().max_dim_with_indices(2);
        let places = Tensor::<1, Int>::arange(0..size as i64, &device).unsqueeze::<3>();
        let others = by_group
            .clone()
            .mask_fill(place.equal(places), f32::NEG_INFINITY);
        let group_scores = (largest + others.max_dim(2)).squeeze_dim::<2>(2);

        // A group's rank is the number of better groups.
        let own = group_scores.clone().unsqueeze_dim::<3>(2);
        let other = group_scores.unsqueeze_dim::<3>(1);
        let earlier = Tensor::<2, Bool>::tril_mask([groups, groups], -1, &device).bool_not();
        let better = other
            .clone()
            .greater(own.clone())
            .bool_or(other.equal(own).bool_and(earlier.unsqueeze()));
        let hidden = better
            .int()
            .sum_dim(2)
            .greater_equal_elem(self.top_groups as i64);
        by_group
            .mask_fill(hidden, f32::NEG_INFINITY)
            .reshape([tokens, experts])
    }

    fn weighted(&self, weights: Tensor<2>) -> Tensor<2> {
        let weights = match (self.normalize, self.scores) {
            (false, _) => weights,
            (true, Scores::Softmax) => weights.clone() / weights.sum_dim(1),
            // Sigmoids may all underflow.
            (true, Scores::Sigmoid) => weights.clone() / weights.sum_dim(1).add_scalar(1e-20),
        };
        if self.scaling == 1.0 {
            return weights;
        }
        weights.mul_scalar(self.scaling)
    }
}

/// The logarithms of the scores, up to a constant per token.
///
/// # Shapes
///
/// - `logits`, output: `[tokens, experts]`
pub(super) fn log_scores(scores: Scores, logits: Tensor<2>) -> Tensor<2> {
    match scores {
        Scores::Softmax => logits,
        Scores::Sigmoid => log_sigmoid(logits),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::parameters::RandomParameters;
    use crate::testing::{ByHand, moe, with_experts};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values, wave};

    on_every_device!(
        one_of_eight_two_of_eight_and_five_of_eight,
        equal_scores_go_to_the_first,
        sigmoids_by_hand,
        a_bias_of_the_logits_and_a_softmax_over_the_chosen,
        two_groups_of_four,
        groups_select_as_the_formula_says,
    );

    /// Three experts, two a token, of a d_model of 1.
    fn router(scores: &[f32], normalize: bool, device: &Device) -> Router {
        let mut config = with_experts(3, 2);
        config.d_model = 1;
        moe(&mut config).router.normalize = normalize;
        let values: &[(&str, &[f32])] = &[("weight", scores)];
        let moe = moe(&mut config).clone();
        let Ok(router) = Router::new(&config, &moe, "router", &mut ByHand { device, values });
        router
    }

    fn chosen(choice: &RouterOutput) -> Vec<i64> {
        choice.plan.chosen().into_data().iter::<i64>().collect()
    }

    fn one_of_eight_two_of_eight_and_five_of_eight(device: Device) {
        let scores = [0.0, 2f32.ln(), 5f32.ln()];
        let x = || Tensor::<2>::ones([1, 1], &device);
        let choice = router(&scores, true, &device).forward(x());
        assert_close("logits", &values(choice.logits.clone()), &scores, 1e-6).unwrap();
        let probabilities = values(choice.probabilities.clone());
        assert_close("probabilities", &probabilities, &[0.125, 0.25, 0.625], 1e-6).unwrap();
        assert_eq!(chosen(&choice), [2, 1]);
        let weights = [5.0 / 7.0, 2.0 / 7.0];
        assert_close("weights", &values(choice.weights), &weights, 1e-6).unwrap();

        let choice = router(&scores, false, &device).forward(x());
        assert_close("as they are", &values(choice.weights), &[0.625, 0.25], 1e-6).unwrap();

        // The bias has a say in the choice, 1.125 before 0.625, and none in the weights.
        let mut biased = router(&scores, true, &device);
        biased.bias = vec![1.0, 0.0, 0.0];
        let choice = biased.forward(x());
        assert_eq!(chosen(&choice), [0, 2]);
        let weights = [1.0 / 6.0, 5.0 / 6.0];
        assert_close("biased", &values(choice.weights), &weights, 1e-6).unwrap();
    }

    fn a_bias_of_the_logits_and_a_softmax_over_the_chosen(device: Device) {
        let mut config = with_experts(9, 3);
        moe(&mut config).router.logit_bias = true;
        let mut source = RandomParameters::new(5, &device);
        let moe = moe(&mut config).clone();
        let Ok(mut router) = Router::new(&config, &moe, "router", &mut source);
        let x = wave([50, config.d_model], 0.3, &device);
        let before = router.forward(x.clone()).logits;
        let bias = wave([1, 9], 0.7, &device).squeeze_dim::<1>(0);
        router.logit_bias = Some(Param::from_tensor(bias.clone()));
        let choice = router.forward(x);
        let expected = values(before + bias.unsqueeze());
        assert_eq!(values(choice.logits.clone()), expected);
        let of_chosen = softmax(choice.logits.gather(1, choice.plan.chosen()), 1);
        let expected = values(of_chosen);
        assert_close("weights", &values(choice.weights), &expected, 1e-6).unwrap();
    }

    fn sigmoids_by_hand(device: Device) {
        // 1/2, 2/3 and 5/6: of 2 in all.
        let logits = [0.0, 2f32.ln(), 5f32.ln()];
        let x = || Tensor::<2>::ones([1, 1], &device);
        let mut router = router(&logits, true, &device);
        (router.scores, router.scaling) = (Scores::Sigmoid, 2.5);
        let choice = router.forward(x());
        let probabilities = values(choice.probabilities.clone());
        let expected = [1.0 / 4.0, 1.0 / 3.0, 5.0 / 12.0];
        assert_close("probabilities", &probabilities, &expected, 1e-6).unwrap();
        assert_eq!(chosen(&choice), [2, 1]);
        let weights = [2.5 * 5.0 / 9.0, 2.5 * 4.0 / 9.0];
        assert_close("weights", &values(choice.weights), &weights, 1e-6).unwrap();
        (router.normalize, router.scaling) = (false, 1.0);
        let weights = values(router.forward(x()).weights);
        assert_close("as they are", &weights, &[5.0 / 6.0, 2.0 / 3.0], 1e-6).unwrap();
        // Where all sigmoids underflow, nothing is divided by zero.
        router.normalize = true;
        let weights = values(router.forward(x().mul_scalar(-1e4)).weights);
        assert!(
            weights.iter().all(|weight| weight.is_finite()),
            "{weights:?}"
        );
    }

    /// Eight experts of a d_model of 1.
    fn grouped(
        logits: &[f32],
        groups: usize,
        top_groups: usize,
        top_k: usize,
        device: &Device,
    ) -> Router {
        let mut config = with_experts(logits.len(), top_k);
        config.d_model = 1;
        let router = &mut moe(&mut config).router;
        (router.groups, router.top_groups) = (groups, top_groups);
        router.scores = Scores::Sigmoid;
        let values: &[(&str, &[f32])] = &[("weight", logits)];
        let moe = moe(&mut config).clone();
        let Ok(router) = Router::new(&config, &moe, "router", &mut ByHand { device, values });
        router
    }

    fn two_groups_of_four(device: Device) {
        // The largest score of all is in the group whose two best are not the best together.
        let logits = [9.0, -9.0, -9.0, -9.0, 1.0, 2.0, 0.0, -1.0];
        let x = || Tensor::<2>::ones([1, 1], &device);
        let found = |router: &Router| chosen(&router.forward(x()));
        assert_eq!(found(&grouped(&logits, 1, 1, 3, &device)), [0, 5, 4]);
        assert_eq!(found(&grouped(&logits, 2, 1, 3, &device)), [5, 4, 6]);
        assert_eq!(found(&grouped(&logits, 2, 2, 3, &device)), [0, 5, 4]);
        // The bias counts in the scores of groups, and not in the weights.
        let mut biased = grouped(&logits, 2, 1, 3, &device);
        biased.bias = vec![0.0, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let choice = biased.forward(x());
        assert_eq!(chosen(&choice), [1, 0, 2]);
        let weights = values(choice.weights);
        assert!(weights[1] > 0.99 && weights[0] < 0.01, "{weights:?}");
        // Of equal groups the first.
        assert_eq!(found(&grouped(&[0.0; 8], 4, 1, 2, &device)), [0, 1]);
    }

    fn groups_select_as_the_formula_says(device: Device) {
        let tokens = 200;
        for (groups, top_groups, top_k) in [(2, 1, 2), (3, 2, 5), (6, 3, 4), (4, 4, 7)] {
            let experts = 12;
            let mut config = with_experts(experts, top_k);
            let router = &mut moe(&mut config).router;
            (router.groups, router.top_groups) = (groups, top_groups);
            router.scores = Scores::Sigmoid;
            let mut source = RandomParameters::new(5, &device);
            let moe = moe(&mut config).clone();
            let Ok(mut router) = Router::new(&config, &moe, "router", &mut source);
            router.bias = (0..experts).map(|e| (e as f32 * 1.7).sin() * 0.2).collect();
            let choice = router.forward(wave([tokens, config.d_model], 0.3, &device));
            let found = chosen(&choice);
            let size = experts / groups;
            for (token, logits) in values(choice.logits).chunks(experts).enumerate() {
                let scores: Vec<f32> = logits
                    .iter()
                    .zip(&router.bias)
                    .map(|(logit, bias)| 1.0 / (1.0 + (-logit).exp()) + bias)
                    .collect();
                let descending = |of: &dyn Fn(usize) -> f32, count: usize| {
                    let mut order: Vec<usize> = (0..count).collect();
                    order.sort_by(|&a, &b| of(b).total_cmp(&of(a)));
                    order
                };
                let of_group = |group: usize| {
                    let mut scores = scores[group * size..][..size].to_vec();
                    scores.sort_by(|a, b| b.total_cmp(a));
                    scores[0] + scores[1]
                };
                let best = descending(&of_group, groups)[..top_groups].to_vec();
                let allowed = |e: usize| {
                    if best.contains(&(e / size)) {
                        scores[e]
                    } else {
                        f32::MIN
                    }
                };
                let expected = descending(&allowed, experts);
                let found = &found[token * top_k..][..top_k];
                assert!(
                    found
                        .iter()
                        .map(|&e| e as usize)
                        .eq(expected[..top_k].iter().copied()),
                    "token {token} of {groups}, {top_groups}, {top_k}: {found:?}, expected {expected:?}"
                );
            }
        }
    }

    fn equal_scores_go_to_the_first(device: Device) {
        let choice = router(&[0.0; 3], true, &device).forward(Tensor::ones([2, 1], &device));
        assert_eq!(chosen(&choice), [0, 1, 0, 1]);
        assert_close("weights", &values(choice.weights), &[0.5; 4], 1e-6).unwrap();
    }
}
