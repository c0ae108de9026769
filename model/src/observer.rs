//! What can be seen and replaced in a forward pass.
//!
//! There is one forward pass, [`LanguageModel::observed`](crate::language_model::LanguageModel::observed), and it tells
//! an [`Observer`] what each part computes. Plain inference and training run with [`Unobserved`], which the compiler
//! removes; a trace records the residual stream; a comparison of devices gives each part another device's inputs, so
//! that its output shows its own error and not that of its inputs.

use burn::tensor::Tensor;

use crate::moe::router::RouterOutput;
use crate::parts::LayerPart;

/// Sees the output of every part of a forward pass, and decides what the later parts are given.
///
/// Every method returns its argument unchanged unless it is implemented.
pub trait Observer {
    /// Called with the output of a part, `[tokens, width]`; returns the input of the later parts, of the same shape.
    /// Routers are followed by [`routing`](Self::routing) instead.
    fn output(&mut self, _: LayerPart, computed: Tensor<2>) -> Tensor<2> {
        computed
    }

    /// Called with what a layer's router computed; returns what its experts are given.
    fn routing(&mut self, _layer: usize, computed: RouterOutput) -> RouterOutput {
        computed
    }

    /// Whether it looks at the outputs of single parts, or replaces them. Ranks that share a layer's matrices then add up each
    /// part by itself.
    fn sees_parts(&self) -> bool {
        true
    }

    /// Called with the residual stream, `[tokens, d_model]`, before each block and after the final norm.
    fn residual(&mut self, _: &Tensor<2>) {}
}

/// Changes nothing and records nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn sees_parts(&self) -> bool {
        false
    }
}

/// Records the residual stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct ResidualStream(pub Vec<Tensor<2>>);

impl Observer for ResidualStream {
    fn sees_parts(&self) -> bool {
        false
    }

    fn residual(&mut self, stream: &Tensor<2>) {
        self.0.push(stream.clone());
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::language_model::{LanguageModel, token_tensor};
    use crate::layout::Placement;
    use crate::parts::{Part, layer_parts};
    use crate::testing::{text, tiny};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(
        the_parts_one_by_one_are_the_whole,
        later_parts_get_what_the_observer_returns,
    );

    /// Records the parts that it sees, and changes nothing.
    struct Seen(Vec<LayerPart>);

    impl Observer for Seen {
        fn output(&mut self, layer_part: LayerPart, computed: Tensor<2>) -> Tensor<2> {
            self.0.push(layer_part);
            computed
        }

        fn routing(&mut self, layer: usize, computed: RouterOutput) -> RouterOutput {
            let parts = [Part::Router, Part::Selection, Part::RoutingWeights];
            self.0
                .extend(parts.map(|part| LayerPart::of_layer(layer, part)));
            computed
        }
    }

    fn the_parts_one_by_one_are_the_whole(device: Device) {
        for config in [tiny(), tiny().dense_baseline()] {
            let model = LanguageModel::random(&config, 7, &device);
            let rows = text(3, 12, config.vocab_size);
            let tokens = token_tensor(rows.iter().map(Vec::as_slice), &device);
            let mut seen = Seen(Vec::new());
            let parts = model
                .observed(tokens.clone(), &Placement::causal(), &mut seen)
                .logits;
            assert_eq!(seen.0, layer_parts(&config, false));
            let whole = values(model.forward(tokens.clone()).logits);
            assert_eq!(values(parts), whole);
            // No padding is no placement at all.
            let placed = Placement::padded(&[true; 36], 12, &device);
            assert_eq!(values(model.trace(tokens, &placed).output.logits), whole);
        }
    }

    /// Replaces the values of one part by zeros.
    struct Without(LayerPart);

    impl Observer for Without {
        fn output(&mut self, layer_part: LayerPart, computed: Tensor<2>) -> Tensor<2> {
            if layer_part == self.0 {
                computed.zeros_like()
            } else {
                computed
            }
        }
    }

    fn later_parts_get_what_the_observer_returns(device: Device) {
        let config = tiny();
        let model = LanguageModel::random(&config, 7, &device);
        let tokens = || token_tensor([[1, 2, 3, 4].as_slice()].into_iter(), &device);
        let whole = values(model.forward(tokens()).logits);
        for layer_part in layer_parts(&config, false) {
            let replaceable = !matches!(
                layer_part.part,
                Part::Router | Part::Selection | Part::RoutingWeights
            );
            let found = values(
                model
                    .observed(tokens(), &Placement::causal(), &mut Without(layer_part))
                    .logits,
            );
            assert_eq!(
                assert_close("logits", &found, &whole, 1e-3).is_err(),
                replaceable,
                "{layer_part}"
            );
        }
        let mut no_norm = Without(LayerPart::outside(Part::Norm));
        let found = values(
            model
                .observed(tokens(), &Placement::causal(), &mut no_norm)
                .logits,
        );
        assert!(found.iter().all(|&logit| logit == 0.0), "the head of zeros");
    }
}
