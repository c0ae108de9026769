//! The experts: feed-forwards with stacked weights.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::config::{ExpertsConfig, ModelConfig};
use crate::matrix::Matrix;
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::dispatch::DispatchPlan;
use firebox_kernels::{Activation, ExpertWeights, Precision};

/// E feed-forwards with stacked weights: SwiGLUs (see [`DenseFeedForward`](crate::feed_forward::DenseFeedForward)), or as
/// the configuration says.
#[derive(Module, Debug)]
pub struct Experts {
    /// `[experts, d_model, d_ff]`
    pub gate: Matrix<3>,
    /// `[experts, d_model, d_ff]`
    pub up: Matrix<3>,
    /// `[experts, d_ff, d_model]`
    pub down: Matrix<3>,
    /// Of the products with these.
    pub biases: Option<ExpertBiases>,
    #[module(skip)]
    activation: Activation,
    /// Of their products.
    #[module(skip)]
    pub precision: Precision,
}

/// The biases of stacked experts.
#[derive(Module, Debug)]
pub struct ExpertBiases {
    /// `[experts, d_ff]`
    pub gate: Param<Tensor<2>>,
    /// `[experts, d_ff]`
    pub up: Param<Tensor<2>>,
    /// `[experts, d_model]`
    pub down: Param<Tensor<2>>,
}

impl ExpertBiases {
    /// Takes them from `source`, under `path`; experts, hidden width and width of the residual stream.
    fn new<S: ParameterSource>(
        [count, inner, model]: [(Axis, usize); 3],
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let mut bias = |name: &str, width| {
            let path = format!("{path}.{name}");
            let dimensions = [count, width];
            source.parameter(ParameterSpec::new(
                path,
                Role::Bias,
                dimensions,
                Initializer::Zeros,
            ))
        };
        Ok(Self {
            gate: bias("gate", inner)?,
            up: bias("up", inner)?,
            down: bias("down", model)?,
        })
    }
}

impl Experts {
    /// Takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        experts: &ExpertsConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let count = (Axis::Experts, experts.count);
        let (model, inner) = (
            (Axis::Model, config.d_model),
            (Axis::FeedForward, experts.d_ff),
        );
        let initializer = Initializer::Normal(config.initializer_range);
        let stack = |name: &str, dimensions| {
            let path = format!("{path}.{name}");
            ParameterSpec::new(path, Role::Experts, dimensions, initializer)
        };
        Ok(Self {
            gate: source.matrix(stack("gate", [count, model, inner]))?,
            up: source.matrix(stack("up", [count, model, inner]))?,
            down: source.matrix(ParameterSpec {
                initializer: Initializer::Output(config.residual_initializer_range()),
                ..stack("down", [count, inner, model])
            })?,
            biases: match experts.biases {
                true => Some(ExpertBiases::new(
                    [count, inner, model],
                    &format!("{path}.biases"),
                    source,
                )?),
                false => None,
            },
            activation: experts.activation.into(),
            precision: Precision::F32,
        })
    }

    /// The weighted sum of the outputs of each token's experts.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    /// - `weights`: `[tokens, top_k]`
    pub fn forward(&self, x: Tensor<2>, weights: Tensor<2>, plan: &DispatchPlan) -> Tensor<2> {
        let biases = self
            .biases
            .as_ref()
            .map(|biases| firebox_kernels::ExpertBiases {
                gate: biases.gate.val(),
                up: biases.up.val(),
                down: biases.down.val(),
            });
        let experts = ExpertWeights {
            gate: self.gate.weight(),
            up: self.up.weight(),
            down: self.down.weight(),
            biases,
        };
        firebox_kernels::experts(x, weights, experts, plan, self.activation, self.precision)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::config::ExpertActivation;
    use crate::testing::{ByHand, moe, rows, with_experts};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(answers_by_hand, clamps_and_biases_by_hand);

    fn clamps_and_biases_by_hand(device: Device) {
        let mut config = with_experts(2, 1);
        config.d_model = 1;
        let shape = &mut moe(&mut config).experts;
        (shape.d_ff, shape.biases) = (1, true);
        shape.activation = ExpertActivation::ClampedSwiglu {
            alpha: 1.0,
            limit: 2.0,
        };
        let shape = *shape;
        let three = 3f32.ln();
        let mut source = ByHand {
            device: &device,
            values: &[
                ("experts.gate", &[three, 0.0]),
                ("experts.up", &[0.0, 9.0]),
                ("experts.down", &[4.0 / three; 2]),
                ("biases.gate", &[0.0, three]),
                ("biases.up", &[1.0, 0.0]),
                ("biases.down", &[10.0, -1.0]),
            ],
        };
        let Ok(experts) = Experts::new(&config, &shape, "experts", &mut source);
        // silu(ln 3) = ln 3 · 3/4, times 1 + 1 and times 2 + 1.
        let plan = DispatchPlan::new(&[0, 1], 2, 1, &device);
        let weights = rows(&[[0.5], [2.0]], &device);
        let found = values(experts.forward(Tensor::ones([2, 1], &device), weights, &plan));
        assert_close("two tokens", &found, &[8.0, 16.0], 1e-6).unwrap();
    }

    fn answers_by_hand(device: Device) {
        let mut config = with_experts(3, 2);
        config.d_model = 1;
        let shape = &mut moe(&mut config).experts;
        shape.d_ff = 1;
        let shape = *shape;
        let three = 3f32.ln();
        let mut source = ByHand {
            device: &device,
            values: &[
                ("gate", &[three; 3]),
                ("up", &[1.0, 2.0, 3.0]),
                ("down", &[4.0 / three; 3]),
            ],
        };
        let Ok(experts) = Experts::new(&config, &shape, "experts", &mut source);
        // silu(ln 3) = ln 3 · 3/4, so that the experts answer 3, 6 and 9 to a token of 1.
        let answer = |chosen: &[u32], weights: &[[f32; 2]]| {
            let plan = DispatchPlan::new(chosen, 3, 2, &device);
            let x = Tensor::ones([weights.len(), 1], &device);
            values(experts.forward(x, rows(weights, &device), &plan))
        };
        let found = answer(&[2, 0, 0, 1], &[[0.5, 1.0], [2.0, 1.0]]);
        assert_close("two tokens", &found, &[7.5, 12.0], 1e-6).unwrap();
    }
}
