//! One layer: norm → attention → norm → feed-forward, each added to the residual stream.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::attention::SelfAttention;
use crate::cache::LayerStep;
use crate::config::ModelConfig;
use crate::feed_forward::FeedForward;
use crate::layout::Layout;
use crate::moe::Routing;
use crate::norm::RmsNorm;
use crate::observer::Observer;
use crate::parameters::{Axis, ParameterSource};
use crate::parts::{LayerPart, Part};

/// A transformer block with its norms in front (pre-norm).
#[derive(Module, Debug)]
pub struct Block {
    /// Before attention.
    pub attention_norm: RmsNorm,
    /// Attention.
    pub attention: SelfAttention,
    /// Before the feed-forward.
    pub feed_forward_norm: RmsNorm,
    /// The feed-forward.
    pub feed_forward: FeedForward,
    /// Factor of what both add to the residual stream.
    residual: f64,
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
        let width = (Axis::Model, config.d_model);
        Ok(Self {
            attention_norm: RmsNorm::new(config, width, &path("attention_norm"), source)?,
            attention: SelfAttention::new(
                config,
                config.layers[layer].attention,
                &path("attention"),
                source,
            )?,
            feed_forward_norm: RmsNorm::new(config, width, &path("feed_forward_norm"), source)?,
            feed_forward: FeedForward::new(config, layer, &path("feed_forward"), source)?,
            residual: config.multipliers.residual,
        })
    }

    /// Returns the residual stream after this layer, the routing of an MoE layer with it.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[batch · new, d_model]`, the layout's tokens in order
    pub fn forward(
        &self,
        x: Tensor<2>,
        layer: usize,
        layout: &Layout,
        cache: Option<LayerStep>,
        observer: &mut impl Observer,
    ) -> (Tensor<2>, Option<Routing>) {
        let part = |part| LayerPart::of_layer(layer, part);
        let normed = self.attention_norm.forward(x.clone());
        let normed = observer.output(part(Part::AttentionNorm), normed);
        let attended = self.attention.forward(normed, layout, cache);
        let x = x + self.multiplied(observer.output(part(Part::Attention), attended));
        let normed = self.feed_forward_norm.forward(x.clone());
        let normed = observer.output(part(Part::FeedForwardNorm), normed);
        let (output, routing) = self.feed_forward.forward(normed, layer, observer);
        (x + self.multiplied(output), routing)
    }

    fn multiplied(&self, branch: Tensor<2>) -> Tensor<2> {
        match self.residual {
            1.0 => branch,
            factor => branch.mul_scalar(factor),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::observer::Unobserved;
    use crate::testing::{ByHand, rows, smallest};
    use firebox_kernels::rope::Rotary;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(each_part_adds_to_the_stream);

    fn each_part_adds_to_the_stream(device: Device) {
        let identity: &[f32] = &[1.0, 0.0, 0.0, 1.0];
        let attention = [
            ("attention.value.weight", identity),
            ("attention.output.weight", identity),
        ];
        let three = 3f32.ln();
        // Of the norm [0.6, 0.8]: silu(ln 3) · 1 · [4, 8] / ln 3 = [3, 6].
        let (gate, up, down) = ([three / 0.6, 0.0], [0.0, 1.25], [4.0 / three, 8.0 / three]);
        let feed_forward: [(&str, &[f32]); 3] = [
            ("feed_forward.gate", &gate),
            ("feed_forward.up", &up),
            ("feed_forward.down", &down),
        ];
        let output = |config: &ModelConfig, parameters: &[(&str, &[f32])]| {
            let mut source = ByHand {
                device: &device,
                values: parameters,
            };
            let Ok(block) = Block::new(config, 0, &mut source);
            let layout = Layout::causal(1, Rotary::new(0, 1, 2, 1e4, &device));
            let x = rows(&[[3.0, 4.0]], &device);
            let (output, routing) = block.forward(x, 0, &layout, None, &mut Unobserved);
            assert_eq!(routing.is_some(), config.dense_d_ff(0).is_none());
            values(output)
        };
        let dense = smallest().dense_baseline();
        let check = |what: &str, found: Vec<f32>, expected: [f32; 2]| {
            assert_close(what, &found, &expected, 1e-6).unwrap();
        };
        check("zeros", output(&smallest(), &[]), [3.0, 4.0]);
        check("zeros of a dense layer", output(&dense, &[]), [3.0, 4.0]);
        check("attention", output(&dense, &attention), [3.6, 4.8]);
        check(
            "the feed-forward",
            output(&dense, &feed_forward),
            [6.0, 10.0],
        );
    }
}
