//! A layer of the tower: norm → attention → norm → feed-forward, each added to the stream.

use std::f64::consts::FRAC_1_SQRT_2;

use burn::module::Module;
use burn::tensor::Tensor;

use super::attend::{attend, heads_of, rows_of};
use super::gates::{Gates, open};
use super::layer_norm::LayerNorm;
use crate::config::VisionConfig;
use crate::linear::Linear;
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::Precision;

/// A layer of a vision transformer (arXiv 2010.11929) with its norms in front; in the second encoder, both branches have
/// gates.
#[derive(Module, Debug)]
pub struct TowerLayer {
    /// Before attention.
    pub attention_norm: LayerNorm,
    /// Attention of all positions of a picture to each other.
    pub attention: TowerAttention,
    /// Before the feed-forward.
    pub feed_forward_norm: LayerNorm,
    /// The feed-forward.
    pub feed_forward: TowerFeedForward,
    /// Those of the second encoder.
    pub gates: Option<Gates>,
}

/// `softmax(q kᵀ / √head_dim) v` over the positions of a picture, without biases.
#[derive(Module, Debug)]
pub struct TowerAttention {
    /// `[width, heads · head_dim]`
    pub query: Linear,
    /// `[width, heads · head_dim]`
    pub key: Linear,
    /// `[width, heads · head_dim]`
    pub value: Linear,
    /// `[heads · head_dim, width]`
    pub output: Linear,
    heads: usize,
    /// Of its products with weights.
    #[module(skip)]
    pub precision: Precision,
}

/// `gelu(x W_up + b) W_down + b`, with the exact GELU (arXiv 1606.08415).
#[derive(Module, Debug)]
pub struct TowerFeedForward {
    /// `[width, d_ff]`
    pub up: Linear,
    /// `[d_ff, width]`
    pub down: Linear,
    /// Of its products.
    #[module(skip)]
    pub precision: Precision,
}

impl TowerLayer {
    /// Takes the parameters of a layer from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &VisionConfig,
        gated: bool,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let initializer = Initializer::Normal(config.initializer_range);
        let norm = |name: &str, source: &mut S| {
            let path = format!("{path}.{name}");
            LayerNorm::new(config.width, config.norm_epsilon, &path, source)
        };
        Ok(Self {
            attention_norm: norm("attention_norm", source)?,
            attention: TowerAttention::new(config, &format!("{path}.attention"), source)?,
            feed_forward_norm: norm("feed_forward_norm", source)?,
            feed_forward: TowerFeedForward::new(config, &format!("{path}.feed_forward"), source)?,
            gates: match gated {
                true => Some(Gates::new(initializer, &format!("{path}.gates"), source)?),
                false => None,
            },
        })
    }

    /// # Shapes
    ///
    /// - `x`, output: `[pictures · positions, width]`
    /// - `bias`: `[pictures, 1, positions, positions]`, what is added to the scores
    pub fn forward(&self, x: Tensor<2>, bias: &Tensor<4>) -> Tensor<2> {
        let attended = self
            .attention
            .forward(self.attention_norm.forward(x.clone()), bias);
        let x = x + match &self.gates {
            Some(gates) => attended * open(&gates.attention),
            None => attended,
        };
        let output = self
            .feed_forward
            .forward(self.feed_forward_norm.forward(x.clone()));
        x + match &self.gates {
            Some(gates) => output * open(&gates.feed_forward),
            None => output,
        }
    }
}

impl TowerAttention {
    fn new<S: ParameterSource>(
        config: &VisionConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let initializer = Initializer::Normal(config.initializer_range);
        let width = (Axis::Tower, config.width);
        let heads = (Axis::TowerHeads, config.heads * config.head_dim());
        let projection = |name: &str, dimensions, source: &mut S| {
            let path = format!("{path}.{name}");
            let spec = ParameterSpec::new(path, Role::Tower, dimensions, initializer);
            Linear::new(spec, false, source)
        };
        Ok(Self {
            query: projection("query", [width, heads], source)?,
            key: projection("key", [width, heads], source)?,
            value: projection("value", [width, heads], source)?,
            output: projection("output", [heads, width], source)?,
            heads: config.heads,
            precision: Precision::F32,
        })
    }

    fn forward(&self, x: Tensor<2>, bias: &Tensor<4>) -> Tensor<2> {
        let [pictures, ..] = bias.dims();
        let heads = |projection: &Linear| {
            let projected = projection.forward(x.clone(), self.precision);
            heads_of(projected, pictures, self.heads)
        };
        let attended = attend(
            heads(&self.query),
            heads(&self.key),
            heads(&self.value),
            bias,
        );
        self.output.forward(rows_of(attended), self.precision)
    }
}

impl TowerFeedForward {
    fn new<S: ParameterSource>(
        config: &VisionConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let initializer = Initializer::Normal(config.initializer_range);
        let (width, inner) = (
            (Axis::Tower, config.width),
            (Axis::TowerFeedForward, config.d_ff),
        );
        let matrix = |name: &str, dimensions, source: &mut S| {
            let path = format!("{path}.{name}");
            let spec = ParameterSpec::new(path, Role::Tower, dimensions, initializer);
            Linear::new(spec, true, source)
        };
        Ok(Self {
            up: matrix("up", [width, inner], source)?,
            down: matrix("down", [inner, width], source)?,
            precision: Precision::F32,
        })
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let inner = gelu(self.up.forward(x, self.precision));
        self.down.forward(inner, self.precision)
    }
}

/// `x Φ(x)` with the distribution function Φ of the standard normal distribution. Burn's own has, on backends that bring none,
/// the derivative of the approximation by tanh, which is off by up to 1e-3.
fn gelu(x: Tensor<2>) -> Tensor<2> {
    let twice = x.clone().mul_scalar(FRAC_1_SQRT_2).erf().add_scalar(1.0);
    x * twice.mul_scalar(0.5)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::rows;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(the_exact_gelu_and_its_derivative);

    fn the_exact_gelu_and_its_derivative(device: Device) {
        let x = rows(&[[1.0, -1.0], [2.0, 0.0]], &device.autodiff()).require_grad();
        let y = gelu(x.clone());
        // Φ(1) = 0.841345, Φ(2) = 0.977250.
        let expected = [0.841_344_7, -0.158_655_3, 1.954_499_7, 0.0];
        assert_close("values", &values(y.clone()), &expected, 1e-6).unwrap();
        // Φ(x) + x φ(x), with φ(1) = 0.241971 and φ(2) = 0.053991.
        let found = values(x.grad(&y.sum().backward()).unwrap());
        let expected = [1.083_315_5, -0.083_315_5, 1.085_231_8, 0.5];
        assert_close("derivatives", &found, &expected, 1e-6).unwrap();
    }
}
