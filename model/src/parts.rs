//! A forward pass part by part. Each part can be given another device's inputs, so that its output shows its own error
//! and not that of its inputs.

use std::fmt;

use burn::tensor::{Int, Tensor};

use crate::config::ModelConfig;
use crate::feed_forward::FeedForward;
use crate::language_model::LanguageModel;
use crate::moe::MixtureOfExperts;
use firebox_kernels::dispatch::DispatchPlan;

/// A kind of part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The embedding.
    Embedding,
    /// The norm before attention.
    AttentionNorm,
    /// Attention, before its output is added to the residual stream.
    Attention,
    /// The norm before the feed-forward.
    FeedForwardNorm,
    /// The router's logits.
    Router,
    /// The experts that each token is routed to.
    Selection,
    /// The weights of the selected experts' outputs.
    RoutingWeights,
    /// The weighted sum of the selected experts' outputs, before it is added to the residual stream.
    Experts,
    /// The dense feed-forward, before its output is added to the residual stream.
    FeedForward,
    /// The final norm, before the head.
    Norm,
    /// The logits.
    Head,
}

/// A part of a network: its kind and its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerPart {
    /// Index of the layer, from 0; `None` for the parts before and after the layers.
    pub layer: Option<usize>,
    /// Its kind.
    pub part: Part,
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Embedding => "embedding",
            Self::AttentionNorm => "norm before attention",
            Self::Attention => "attention",
            Self::FeedForwardNorm => "norm before the feed-forward",
            Self::Router => "router",
            Self::Selection => "expert selection",
            Self::RoutingWeights => "routing weights",
            Self::Experts => "experts",
            Self::FeedForward => "feed-forward",
            Self::Norm => "final norm",
            Self::Head => "head",
        })
    }
}

impl fmt::Display for LayerPart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(formatter, "layer {layer}, {}", self.part),
            None => write!(formatter, "{}", self.part),
        }
    }
}

/// Observes the output of every part, and decides what the later parts are given.
pub trait Observer {
    /// Called with the output of a part, `[tokens, width]`; returns the input of the later parts, of the same shape.
    fn values(&mut self, layer_part: LayerPart, computed: Tensor<2>) -> Tensor<2>;

    /// Called with the `tokens · top_k` experts that a layer's router selected, and their weights,
    /// `[tokens, top_k]`; returns the experts and weights to use.
    fn selection(
        &mut self,
        layer: usize,
        experts: Vec<u32>,
        weights: Tensor<2>,
    ) -> (Vec<u32>, Tensor<2>);
}

/// All parts of a network, in execution order.
pub fn layer_parts(config: &ModelConfig) -> Vec<LayerPart> {
    let outside = |part| LayerPart { layer: None, part };
    let layers = (0..config.layers).flat_map(|layer| {
        let attention = [Part::AttentionNorm, Part::Attention, Part::FeedForwardNorm];
        let feed_forward: &[Part] = match config.dense_d_ff(layer) {
            Some(_) => &[Part::FeedForward],
            None => &[
                Part::Router,
                Part::Selection,
                Part::RoutingWeights,
                Part::Experts,
            ],
        };
        let parts = attention.into_iter().chain(feed_forward.iter().copied());
        parts.map(move |part| LayerPart {
            layer: Some(layer),
            part,
        })
    });
    [outside(Part::Embedding)]
        .into_iter()
        .chain(layers)
        .chain([outside(Part::Norm), outside(Part::Head)])
        .collect()
}

/// Runs the network part by part over sequences without padding. With an observer that returns its arguments
/// unchanged, the arithmetic is that of [`LanguageModel::forward`].
///
/// # Shapes
///
/// - `tokens`: `[batch, sequence]`, each below `vocab_size`
/// - output: `[batch · sequence, vocab_size]`, the logits
///
/// # Panics
///
/// When a sequence is longer than the context.
pub fn forward_observed(
    model: &LanguageModel,
    tokens: Tensor<2, Int>,
    observer: &mut impl Observer,
) -> Tensor<2> {
    let [batch, sequence] = tokens.dims();
    let config = model.config();
    assert!(
        sequence <= config.context_length,
        "{sequence} tokens exceed the context of {}",
        config.context_length
    );
    let rotary = model.rotary(sequence, &tokens.device()).range(0, sequence);
    let outside = |part| LayerPart { layer: None, part };

    let mut x = observer.values(outside(Part::Embedding), model.embedded(tokens));
    for (layer, block) in model.blocks.iter().enumerate() {
        let inside = |part| LayerPart {
            layer: Some(layer),
            part,
        };
        let normed = block.attention_norm.forward(x.clone());
        let normed = observer.values(inside(Part::AttentionNorm), normed);
        let attended = block.attention.forward(normed, batch, &rotary, None, None);
        x = x + observer.values(inside(Part::Attention), attended);
        let normed = block.feed_forward_norm.forward(x.clone());
        let normed = observer.values(inside(Part::FeedForwardNorm), normed);
        x = x + match &block.feed_forward {
            FeedForward::Dense(dense) => {
                observer.values(inside(Part::FeedForward), dense.forward(normed))
            }
            FeedForward::Moe(moe) => routed(moe, layer, normed, observer),
        };
    }
    let normed = observer.values(outside(Part::Norm), model.norm.forward(x));
    observer.values(outside(Part::Head), model.logits(normed))
}

/// Runs the router and the experts of a layer.
fn routed(
    moe: &MixtureOfExperts,
    layer: usize,
    normed: Tensor<2>,
    observer: &mut impl Observer,
) -> Tensor<2> {
    let inside = |part| LayerPart {
        layer: Some(layer),
        part,
    };
    let routed = moe.router.forward(normed.clone());
    // The selection has already been made from these logits, so replacing them has no effect.
    let _ = observer.values(inside(Part::Router), routed.logits);
    let (count, top_k) = (routed.plan.experts(), routed.plan.top_k());
    let chosen = routed.plan.chosen().into_data();
    let chosen = chosen.iter::<i32>().map(|expert| expert as u32).collect();
    let (experts, weights) = observer.selection(layer, chosen, routed.weights);
    let plan = DispatchPlan::new(&experts, count, top_k, &weights.device());
    let output = moe.experts.forward(normed, weights, &plan);
    observer.values(inside(Part::Experts), output)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::language_model::token_tensor;
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
        fn values(&mut self, layer_part: LayerPart, computed: Tensor<2>) -> Tensor<2> {
            self.0.push(layer_part);
            computed
        }

        fn selection(
            &mut self,
            layer: usize,
            experts: Vec<u32>,
            weights: Tensor<2>,
        ) -> (Vec<u32>, Tensor<2>) {
            let layer = Some(layer);
            self.0.extend(
                [Part::Selection, Part::RoutingWeights].map(|part| LayerPart { layer, part }),
            );
            (experts, weights)
        }
    }

    fn the_parts_one_by_one_are_the_whole(device: Device) {
        for config in [tiny(), tiny().dense_baseline()] {
            let model = LanguageModel::random(&config, 7, &device);
            let rows = text(3, 12, config.vocab_size);
            let tokens = token_tensor(rows.iter().map(Vec::as_slice), &device);
            let mut seen = Seen(Vec::new());
            let parts = forward_observed(&model, tokens.clone(), &mut seen);
            assert_eq!(seen.0, layer_parts(&config));
            let whole = values(model.forward(tokens.clone()).logits);
            assert_close("parts", &values(parts), &whole, 5e-6).unwrap();
            let trace = values(model.trace(tokens, None).output.logits);
            assert_eq!(trace, whole, "a trace without padding");
        }
    }

    /// Replaces the values of one part by zeros.
    struct Without(LayerPart);

    impl Observer for Without {
        fn values(&mut self, layer_part: LayerPart, computed: Tensor<2>) -> Tensor<2> {
            if layer_part == self.0 {
                computed.zeros_like()
            } else {
                computed
            }
        }

        fn selection(
            &mut self,
            _: usize,
            experts: Vec<u32>,
            weights: Tensor<2>,
        ) -> (Vec<u32>, Tensor<2>) {
            (experts, weights)
        }
    }

    fn later_parts_get_what_the_observer_returns(device: Device) {
        let config = tiny();
        let model = LanguageModel::random(&config, 7, &device);
        let tokens = || token_tensor([[1, 2, 3, 4].as_slice()].into_iter(), &device);
        let whole = values(model.forward(tokens()).logits);
        for layer_part in layer_parts(&config) {
            let replaceable = !matches!(
                layer_part.part,
                Part::Router | Part::Selection | Part::RoutingWeights
            );
            let found = values(forward_observed(&model, tokens(), &mut Without(layer_part)));
            assert_eq!(
                assert_close("logits", &found, &whole, 1e-3).is_err(),
                replaceable,
                "{layer_part}"
            );
        }
        let no_norm = LayerPart {
            layer: None,
            part: Part::Norm,
        };
        let found = values(forward_observed(&model, tokens(), &mut Without(no_norm)));
        assert!(found.iter().all(|&logit| logit == 0.0), "the head of zeros");
    }
}
