//! The mixture of experts: router, dispatch plan and experts, each in a module of its own.

pub mod balance;
pub mod exchange;
pub mod experts;
pub mod loads;
pub mod quantile;
pub mod router;
pub mod stats;

use std::ops::Range;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

use crate::config::{ModelConfig, MoeConfig, Scores};
use crate::feed_forward::DenseFeedForward;
use crate::observer::Observer;
use crate::parallel::{Shard, TensorGroup};
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use crate::parts::{LayerPart, Part};
use exchange::ExpertGroup;
use experts::Experts;
use firebox_kernels::dispatch::DispatchPlan;
use firebox_kernels::{Precision, linear};
use router::Router;

/// Routes each token to its top-k experts and returns the weighted sum of their outputs.
#[derive(Module, Debug)]
pub struct MixtureOfExperts {
    /// Scores and selects experts.
    pub router: Router,
    /// Stacked expert weights.
    pub experts: Experts,
    /// The experts that every token passes through, as one SwiGLU.
    pub shared: Option<DenseFeedForward>,
    /// `[d_model, 1]`: the sigmoid of its product with a token is a factor of the shared experts' output (Qwen2-MoE).
    pub shared_gate: Option<Param<Tensor<2>>>,
    #[module(skip)]
    ranks: Option<Ranks>,
    /// The ranks that have the other experts, and tokens of their own.
    #[module(skip)]
    exchange: Option<ExpertGroup>,
}

/// What a mixture needs to know of the other ranks that share its experts.
#[derive(Debug, Clone)]
struct Ranks {
    /// Those that its output is added up over.
    group: TensorGroup,
    /// The experts that this rank has, or has parts of; `None` for all.
    experts: Option<Range<usize>>,
}

/// The routing of some tokens in one layer. Auxiliary losses and statistics are functions of this; the model keeps no
/// state.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Index of the layer, from 0; dense layers count too.
    pub layer: usize,
    /// How the router's logits become scores.
    pub scores: Scores,
    /// Router logits, `[tokens, experts]`.
    pub logits: Tensor<2>,
    /// The scores divided by their sum over all experts, without the bias, `[tokens, experts]`: for softmax scores, the
    /// scores themselves.
    pub probabilities: Tensor<2>,
    /// The assignment of tokens to experts.
    pub plan: DispatchPlan,
}

impl Routing {
    /// The scores that the experts are selected by, without the bias and without gradients, `[tokens, experts]`.
    pub fn selection_scores(&self) -> Tensor<2> {
        match self.scores {
            Scores::Softmax => self.probabilities.clone().inner(),
            Scores::Sigmoid => sigmoid(self.logits.clone().inner()),
        }
    }
}

impl MixtureOfExperts {
    /// Takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        moe: &MoeConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        Ok(Self {
            router: Router::new(config, moe, &format!("{path}.router"), source)?,
            experts: Experts::new(config, &moe.experts, &format!("{path}.experts"), source)?,
            shared: match moe.experts.shared_d_ff {
                0 => None,
                d_ff => {
                    let path = format!("{path}.shared");
                    Some(DenseFeedForward::new(
                        config,
                        Role::SharedExperts,
                        d_ff,
                        &path,
                        source,
                    )?)
                }
            },
            shared_gate: match moe.experts.shared_gate {
                true => Some(source.parameter(ParameterSpec::new(
                    format!("{path}.shared_gate"),
                    Role::Router,
                    [(Axis::Model, config.d_model), (Axis::Single, 1)],
                    Initializer::Normal(config.initializer_range),
                ))?),
                false => None,
            },
            ranks: None,
            exchange: None,
        })
    }

    /// The factor of the shared experts' output for each token, `[tokens, 1]`, where there is one.
    fn shared_factor(&self, x: &Tensor<2>) -> Option<Tensor<2>> {
        let gate = self.shared_gate.as_ref()?;
        // In f32 as a router, since a single number decides over all values of a token.
        Some(sigmoid(linear(x.clone(), gate.val(), Precision::F32)))
    }

    /// Makes this one rank of a tensor-parallel group, with its share of the experts. Each rank routes all tokens.
    pub(crate) fn join(&mut self, group: &TensorGroup, shard: &Shard) {
        let experts = shard.experts(self.router.experts());
        self.ranks = Some(Ranks {
            group: group.clone(),
            experts: (experts.len() < self.router.experts()).then_some(experts),
        });
    }

    /// Makes this one rank of a group that has different experts, and different tokens.
    pub(crate) fn exchange_among(&mut self, group: &ExpertGroup) {
        self.exchange = Some(group.clone());
    }

    /// Dropless: all `tokens · top_k` assignments are computed, however unevenly they are distributed.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    pub fn forward(
        &self,
        x: Tensor<2>,
        layer: usize,
        observer: &mut impl Observer,
    ) -> (Tensor<2>, Routing) {
        let routed = observer.routing(layer, self.router.forward(x.clone()));
        let part = |part| LayerPart::of_layer(layer, part);
        let group = self.ranks.as_ref().map(|ranks| &ranks.group);
        // All ranks route alike, and each computes a part of what comes of it.
        let entering = |x: Tensor<2>| match group {
            Some(group) => group.enter(x),
            None => x,
        };
        let factor = self.shared_factor(&x).map(entering);
        let (x, weights) = (entering(x), entering(routed.weights));
        let output = match &self.exchange {
            None => {
                let own = self.ranks.as_ref().and_then(|ranks| ranks.experts.clone());
                let own = own.map(|experts| routed.plan.part(experts));
                let plan = own.as_ref().unwrap_or(&routed.plan);
                self.experts.forward(x.clone(), weights, plan)
            }
            Some(exchange) => exchange.forward(x.clone(), weights, &routed.plan, &self.experts),
        };
        let shared = |shared: &DenseFeedForward| match factor {
            None => shared.forward(x),
            Some(factor) => shared.forward(x) * factor,
        };
        let whole = |output: Tensor<2>| match group {
            Some(group) => group.sum(output),
            None => output,
        };
        let output = match &self.shared {
            None => observer.output(part(Part::Experts), whole(output)),
            // One sum over the ranks serves both where nobody looks at each.
            Some(experts) if group.is_some() && !observer.sees_parts() => {
                whole(output + shared(experts))
            }
            Some(experts) => {
                let output = observer.output(part(Part::Experts), whole(output));
                output + observer.output(part(Part::SharedExperts), whole(shared(experts)))
            }
        };
        (
            output,
            Routing {
                layer,
                scores: self.router.scores(),
                logits: routed.logits,
                probabilities: routed.probabilities,
                plan: routed.plan,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::Device;

    use super::*;
    use crate::feed_forward::FeedForward;
    use crate::matrix::Matrix;
    use crate::observer::Unobserved;
    use crate::parameters::RandomParameters;
    use crate::testing::{moe, with_experts};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values, wave};

    on_every_device!(
        every_k_is_the_weighted_sum_of_the_chosen_experts_and_k_equal_e_the_dense_sum,
        one_expert_is_the_dense_feed_forward_with_the_same_weights,
        shared_experts_add_their_output,
        a_gate_multiplies_the_shared_experts,
    );

    fn mixture(config: &ModelConfig, device: &Device) -> MixtureOfExperts {
        let mut source = RandomParameters::new(3, device);
        let moe = config.moe.as_ref().expect("a mixture");
        let Ok(mixture) = MixtureOfExperts::new(config, moe, "mixture", &mut source);
        mixture
    }

    /// Expert `e` of a mixture as a feed-forward by itself.
    fn expert(mixture: &MixtureOfExperts, e: usize) -> DenseFeedForward {
        let of = |stack: &Matrix<3>| {
            let matrix = stack.weight().dequantized().narrow(0, e, 1);
            Param::from_tensor(matrix.squeeze_dim::<2>(0)).into()
        };
        let experts = &mixture.experts;
        DenseFeedForward {
            gate: of(&experts.gate),
            up: of(&experts.up),
            down: of(&experts.down),
            precision: experts.precision,
            group: None,
        }
    }

    fn every_k_is_the_weighted_sum_of_the_chosen_experts_and_k_equal_e_the_dense_sum(
        device: Device,
    ) {
        for (experts, top_k) in [(1, 1), (5, 1), (5, 2), (5, 4), (5, 5), (8, 8)] {
            for normalize in [true, false] {
                let mut config = with_experts(experts, top_k);
                moe(&mut config).router.normalize = normalize;
                let mixture = mixture(&config, &device);
                let x = wave([13, config.d_model], 0.1, &device);
                let (output, routing) = mixture.forward(x.clone(), 0, &mut Unobserved);
                let probabilities = values(routing.probabilities);
                let chosen = routing.plan.chosen().into_data();
                let chosen: Vec<usize> = chosen.iter::<i32>().map(|e| e as usize).collect();
                let answers: Vec<Vec<f32>> = (0..experts)
                    .map(|e| values(expert(&mixture, e).forward(x.clone())))
                    .collect();
                let mut expected = vec![0.0f32; 13 * config.d_model];
                for token in 0..13 {
                    let chosen = &chosen[token * top_k..][..top_k];
                    let probability = |e: usize| probabilities[token * experts + e];
                    let sum: f32 = if normalize {
                        chosen.iter().map(|&e| probability(e)).sum()
                    } else {
                        1.0
                    };
                    for &e in chosen {
                        for i in token * config.d_model..(token + 1) * config.d_model {
                            expected[i] += probability(e) / sum * answers[e][i];
                        }
                    }
                }
                let what = format!("{top_k} of {experts}");
                assert_close(&what, &values(output), &expected, 5e-6).unwrap();
            }
        }
    }

    fn shared_experts_add_their_output(device: Device) {
        let mut config = with_experts(5, 2);
        moe(&mut config).experts.shared_d_ff = 7;
        let with = mixture(&config, &device);
        let shared = with.shared.clone().expect("shared experts");
        assert_eq!(shared.gate.dims(), [config.d_model, 7]);
        let without = MixtureOfExperts {
            shared: None,
            ..with.clone()
        };
        let x = wave([13, config.d_model], 0.1, &device);
        let output = |mixture: &MixtureOfExperts| mixture.forward(x.clone(), 0, &mut Unobserved).0;
        let expected = values(output(&without) + shared.forward(x.clone()));
        assert_eq!(values(output(&with)), expected);
    }

    fn a_gate_multiplies_the_shared_experts(device: Device) {
        let mut config = with_experts(5, 2);
        moe(&mut config).experts.shared_d_ff = 7;
        moe(&mut config).experts.shared_gate = true;
        let with = mixture(&config, &device);
        let (shared, gate) = (
            with.shared.clone().unwrap(),
            with.shared_gate.clone().unwrap(),
        );
        let without = MixtureOfExperts {
            shared: None,
            shared_gate: None,
            ..with.clone()
        };
        let x = wave([13, config.d_model], 0.1, &device);
        let output = |mixture: &MixtureOfExperts| mixture.forward(x.clone(), 0, &mut Unobserved).0;
        let scores = values(x.clone().matmul(gate.val()));
        let factors: Vec<f32> = scores.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect();
        let (rest, shared) = (values(output(&without)), values(shared.forward(x.clone())));
        let each = rest.iter().zip(&shared).enumerate();
        let expected = each.map(|(i, (rest, shared))| rest + factors[i / config.d_model] * shared);
        let expected: Vec<f32> = expected.collect();
        assert_close("gated", &values(output(&with)), &expected, 1e-6).unwrap();
    }

    fn one_expert_is_the_dense_feed_forward_with_the_same_weights(device: Device) {
        let config = with_experts(1, 1);
        let mixture = mixture(&config, &device);
        let x = wave([9, config.d_model], 0.2, &device);
        let (output, _) = FeedForward::Moe(mixture.clone()).forward(x.clone(), 0, &mut Unobserved);
        let (expected, none) =
            FeedForward::Dense(expert(&mixture, 0)).forward(x, 0, &mut Unobserved);
        assert!(none.is_none());
        assert_close("output", &values(output), &values(expected), 5e-6).unwrap();
    }

    /// On a CPU there is nothing to read back.
    #[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm", feature = "cpu"))]
    mod on_a_gpu {
        use super::*;
        use firebox_runtime::on_every_gpu;
        use firebox_runtime::testing::reads_nothing;

        on_every_gpu!(nothing_is_read_back_in_the_forward_and_backward_pass);

        fn nothing_is_read_back_in_the_forward_and_backward_pass(device: Device) {
            let config = with_experts(4, 2);
            let autodiff = device.clone().autodiff();
            let mixture = mixture(&config, &autodiff).train();
            let x = wave([40, config.d_model], 0.1, &autodiff).require_grad();
            let pass = || {
                let (output, routing) = mixture.forward(x.clone(), 0, &mut Unobserved);
                let load = routing.plan.load(None);
                drop((output.sum() + load.sum()).backward());
            };
            assert!(reads_nothing(&device, pass));
            let reading = || {
                let data = x.clone().inner().sum().into_data();
                assert_eq!(data.iter::<f32>().count(), 1);
            };
            assert!(!reads_nothing(&device, reading), "a read is detected");
        }
    }
}
