//! One layer: norm → attention → norm → feed-forward, each added to the residual stream.

use burn::module::Module;
use burn::tensor::{Bool, Tensor};

use crate::attention::Attention;
use crate::cache::LayerCache;
use crate::config::ModelConfig;
use crate::feed_forward::FeedForward;
use crate::moe::Routing;
use crate::norm::RmsNorm;
use crate::parameters::ParameterSource;
use firebox_kernels::rope::Rotary;

/// A transformer block with its norms in front (pre-norm).
#[derive(Module, Debug)]
pub struct Block {
    /// Before attention.
    pub attention_norm: RmsNorm,
    /// Attention.
    pub attention: Attention,
    /// Before the feed-forward.
    pub feed_forward_norm: RmsNorm,
    /// The feed-forward.
    pub feed_forward: FeedForward,
}

impl Block {
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
        let width = config.d_model;
        Ok(Self {
            attention_norm: RmsNorm::new(config, width, &path("attention_norm"), source)?,
            attention: Attention::new(config, &path("attention"), source)?,
            feed_forward_norm: RmsNorm::new(config, width, &path("feed_forward_norm"), source)?,
            feed_forward: FeedForward::new(config, layer, &path("feed_forward"), source)?,
        })
    }

    /// See [`Attention::forward`] for the arguments.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[batch · new, d_model]`
    pub fn forward(
        &self,
        x: Tensor<2>,
        batch: usize,
        rotary: &Rotary,
        mask: Option<&Tensor<4, Bool>>,
        cache: Option<&mut LayerCache>,
    ) -> (Tensor<2>, Option<Routing>) {
        let normed = self.attention_norm.forward(x.clone());
        let x = x + self.attention.forward(normed, batch, rotary, mask, cache);
        let (output, routing) = self
            .feed_forward
            .forward(self.feed_forward_norm.forward(x.clone()));
        (x + output, routing)
    }
}
