//! A layer of the tower: norm → attention → norm → feed-forward, each added to the stream.

use burn::module::Module;
use burn::tensor::Tensor;

use super::gates::{Gates, open};
use super::layer_norm::LayerNorm;
use crate::config::VisionConfig;
use crate::linear::Linear;
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::{AttentionSpec, BiasedInput, Precision, biased_attention, gelu};

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
    #[module(skip)]
    spec: AttentionSpec,
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
    /// - `bias`: `[pictures, positions, positions]`, what is added to the scores
    pub fn forward(&self, x: Tensor<2>, bias: &Tensor<3>) -> Tensor<2> {
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
            spec: AttentionSpec::new(config.heads, config.heads, config.head_dim()),
            precision: Precision::F32,
        })
    }

    fn forward(&self, x: Tensor<2>, bias: &Tensor<3>) -> Tensor<2> {
        let projected = |projection: &Linear| projection.forward(x.clone(), self.precision);
        let attended = biased_attention(BiasedInput {
            query: projected(&self.query),
            key: projected(&self.key),
            value: projected(&self.value),
            bias,
            spec: self.spec,
        });
        self.output.forward(attended, self.precision)
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
