//! Names of a network's parts, in execution order.

use std::fmt;

use crate::config::ModelConfig;

/// A kind of part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The embedding.
    Embedding,
    /// The norm before attention.
    AttentionNorm,
    /// Attention, before its output is added to the residual stream.
    Attention,
    /// Cross-attention to pictures, before its gate and before it is added to the residual stream.
    CrossAttention,
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
    /// The shared experts, before their output is added to the residual stream.
    SharedExperts,
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

impl LayerPart {
    /// A part before or after the layers.
    pub(crate) fn outside(part: Part) -> Self {
        Self { layer: None, part }
    }

    /// A part of a layer.
    pub fn of_layer(layer: usize, part: Part) -> Self {
        Self {
            layer: Some(layer),
            part,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Embedding => "embedding",
            Self::AttentionNorm => "norm before attention",
            Self::Attention => "attention",
            Self::CrossAttention => "cross-attention",
            Self::FeedForwardNorm => "norm before the feed-forward",
            Self::Router => "router",
            Self::Selection => "expert selection",
            Self::RoutingWeights => "routing weights",
            Self::Experts => "experts",
            Self::SharedExperts => "shared experts",
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

/// All parts of a network that a text passes through, in execution order; without pictures (`sees` false) these are not the
/// layers that attend to pictures.
pub fn layer_parts(config: &ModelConfig, sees: bool) -> Vec<LayerPart> {
    let is_cross = |layer: usize| config.layers[layer].is_cross();
    let layers = (0..config.layers.len()).filter(|&layer| sees || !is_cross(layer));
    let layers = layers.flat_map(|layer| {
        let attention = match is_cross(layer) {
            true => Part::CrossAttention,
            false => Part::Attention,
        };
        let attention = [Part::AttentionNorm, attention, Part::FeedForwardNorm];
        let feed_forward: &[Part] = match config.dense_d_ff(layer) {
            Some(_) => &[Part::FeedForward],
            None => &[
                Part::Router,
                Part::Selection,
                Part::RoutingWeights,
                Part::Experts,
            ],
        };
        let shared = config.dense_d_ff(layer).is_none()
            && config
                .moe
                .as_ref()
                .is_some_and(|moe| moe.experts.shared_d_ff > 0);
        let parts = attention.into_iter().chain(feed_forward.iter().copied());
        let parts = parts.chain(shared.then_some(Part::SharedExperts));
        parts.map(move |part| LayerPart::of_layer(layer, part))
    });
    [LayerPart::outside(Part::Embedding)]
        .into_iter()
        .chain(layers)
        .chain([Part::Norm, Part::Head].map(LayerPart::outside))
        .collect()
}
