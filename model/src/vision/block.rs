//! A layer that attends to pictures: norm → cross-attention → norm → feed-forward, each added to the residual stream.

use burn::module::Module;
use burn::tensor::Tensor;

use super::cross_attention::CrossAttention;
use super::gates::{Gates, open};
use super::sight::Sight;
use crate::config::ModelConfig;
use crate::feed_forward::DenseFeedForward;
use crate::norm::RmsNorm;
use crate::observer::Observer;
use crate::parameters::{Axis, Initializer, ParameterSource, Role};
use crate::parts::{LayerPart, Part};

/// A layer between those of a text model, through which a text sees pictures (Llama 3.2; arXiv 2407.21783, section 7.2):
///
/// ```text
/// x ← x + tanh(g₁) · see · attention(norm(x), pictures)
/// x ← x + tanh(g₂) · see · feed_forward(norm(x))
/// ```
///
/// where see is 1 for a token that sees a tile and 0 for others, which the layer leaves as they are. That is the reference
/// implementation's; `transformers` has no see in the first line, and lets such a token see all tiles.
#[derive(Module, Debug)]
pub struct CrossBlock {
    /// Before attention.
    pub attention_norm: RmsNorm,
    /// Attention to the pictures.
    pub cross_attention: CrossAttention,
    /// Before the feed-forward.
    pub feed_forward_norm: RmsNorm,
    /// One SwiGLU.
    pub feed_forward: DenseFeedForward,
    /// g₁ and g₂, 0 at birth.
    pub gates: Gates,
}

impl CrossBlock {
    /// Takes the parameters of a layer from `source`, under `blocks.{layer}`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        layer: usize,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let path = |part: &str| format!("blocks.{layer}.{part}");
        let width = (Axis::Model, config.d_model);
        let d_ff = config.dense_d_ff(layer);
        let d_ff = d_ff.expect("a layer that attends to pictures is dense");
        Ok(Self {
            attention_norm: RmsNorm::new(config, width, &path("attention_norm"), source)?,
            cross_attention: CrossAttention::new(config, &path("cross_attention"), source)?,
            feed_forward_norm: RmsNorm::new(config, width, &path("feed_forward_norm"), source)?,
            feed_forward: DenseFeedForward::new(
                config,
                Role::FeedForward,
                d_ff,
                &path("feed_forward"),
                source,
            )?,
            gates: Gates::new(Initializer::Zeros, &path("gates"), source)?,
        })
    }

    /// The residual stream after this layer.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    pub fn forward(
        &self,
        x: Tensor<2>,
        layer: usize,
        sight: &Sight,
        observer: &mut impl Observer,
    ) -> Tensor<2> {
        let part = |part| LayerPart::of_layer(layer, part);
        let normed = self.attention_norm.forward(x.clone());
        let normed = observer.output(part(Part::AttentionNorm), normed);
        let attended = self.cross_attention.forward(normed, layer, sight);
        let attended = observer.output(part(Part::CrossAttention), attended);
        let x = x + attended * sight.see.clone() * open(&self.gates.attention);
        let normed = self.feed_forward_norm.forward(x.clone());
        let normed = observer.output(part(Part::FeedForwardNorm), normed);
        let output = self.feed_forward.forward(normed);
        let output = observer.output(part(Part::FeedForward), output);
        x + output * sight.see.clone() * open(&self.gates.feed_forward)
    }
}
