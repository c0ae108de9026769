//! A forward pass in its parts, each of which can be given what another device computed before it, so that its
//! own error shows, and not what it was handed.

use std::fmt;

use burn::tensor::{Int, Tensor};

use crate::config::ModelConfig;
use crate::feed_forward::FeedForward;
use crate::language_model::LanguageModel;
use crate::moe::MixtureOfExperts;
use firebox_kernels::dispatch::DispatchPlan;
use firebox_kernels::rope::Rotary;

/// What a part does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Token ids to vectors.
    Embedding,
    /// The norm before attention.
    AttentionNorm,
    /// Attention, of what that norm gave; before it is added to the residual stream.
    Attention,
    /// The norm before the feed-forward.
    FeedForwardNorm,
    /// The router's scores before the softmax.
    Router,
    /// Which experts a token goes to.
    Choice,
    /// The factors of the chosen experts' answers.
    Weights,
    /// The chosen experts' answers by the router's weights; before they are added to the residual stream.
    Experts,
    /// The dense feed-forward; before it is added to the residual stream.
    FeedForward,
    /// The norm before the head.
    Norm,
    /// Scores of the next token.
    Head,
}

/// A part of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Number of the layer, from 0; `None` for what stands before and after the layers.
    pub layer: Option<usize>,
    /// What it does there.
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
            Self::Choice => "choice of experts",
            Self::Weights => "weights of experts",
            Self::Experts => "experts",
            Self::FeedForward => "feed-forward",
            Self::Norm => "last norm",
            Self::Head => "head",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(formatter, "layer {layer}, {}", self.part),
            None => write!(formatter, "{}", self.part),
        }
    }
}

/// Sees what every part computes, and says what the parts after it are given.
pub trait Observer {
    /// What a part computed, `[tokens, width]`; returns what goes on from here, of the same shape.
    fn values(&mut self, place: Place, computed: Tensor<2>) -> Tensor<2>;

    /// The experts that a layer's router chose, `tokens · per_token` of them, and their weights,
    /// `[tokens, per_token]`; returns those that the tokens go to.
    fn choice(
        &mut self,
        layer: usize,
        experts: Vec<u32>,
        weights: Tensor<2>,
    ) -> (Vec<u32>, Tensor<2>);
}

/// All parts of a network in the order in which they run.
pub fn places(config: &ModelConfig) -> Vec<Place> {
    let outside = |part| Place { layer: None, part };
    let layers = (0..config.layers).flat_map(|layer| {
        let attention = [Part::AttentionNorm, Part::Attention, Part::FeedForwardNorm];
        let feed_forward: &[Part] = match config.dense_d_ff(layer) {
            Some(_) => &[Part::FeedForward],
            None => &[Part::Router, Part::Choice, Part::Weights, Part::Experts],
        };
        let parts = attention.into_iter().chain(feed_forward.iter().copied());
        parts.map(move |part| Place {
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

/// Runs the network part by part over whole sequences without padding. With an observer that returns what it is
/// given, the arithmetic is that of [`LanguageModel::forward`].
///
/// # Shapes
///
/// - `tokens`: `[batch, sequence]`, each below `vocabulary`
/// - output: `[batch · sequence, vocabulary]`, the scores of the next token
///
/// # Panics
///
/// When a sequence is longer than the context.
pub fn observed(
    model: &LanguageModel,
    tokens: Tensor<2, Int>,
    observer: &mut impl Observer,
) -> Tensor<2> {
    let [batch, sequence] = tokens.dims();
    let config = model.config();
    assert!(
        sequence <= config.context,
        "{sequence} tokens exceed the context of {}",
        config.context
    );
    let rotary = Rotary::new(
        0,
        sequence,
        config.head_dim,
        config.rope_theta,
        &tokens.device(),
    );
    let outside = |part| Place { layer: None, part };

    let mut x = observer.values(outside(Part::Embedding), model.embedded(tokens));
    for (layer, block) in model.blocks.iter().enumerate() {
        let inside = |part| Place {
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
            FeedForward::Moe(mixture) => routed(mixture, layer, normed, observer),
        };
    }
    let normed = observer.values(outside(Part::Norm), model.norm.forward(x));
    observer.values(outside(Part::Head), model.logits(normed))
}

/// Router and experts of a layer.
fn routed(
    mixture: &MixtureOfExperts,
    layer: usize,
    normed: Tensor<2>,
    observer: &mut impl Observer,
) -> Tensor<2> {
    let inside = |part| Place {
        layer: Some(layer),
        part,
    };
    let choice = mixture.router.forward(normed.clone());
    // What the choice was made from cannot be replaced after it.
    let _ = observer.values(inside(Part::Router), choice.logits);
    let (count, per_token) = (choice.plan.experts(), choice.plan.per_token());
    let chosen = choice.plan.chosen().into_data();
    let chosen = chosen.iter::<i32>().map(|expert| expert as u32).collect();
    let (experts, weights) = observer.choice(layer, chosen, choice.weights);
    let plan = DispatchPlan::new(&experts, count, per_token, &weights.device());
    let answer = mixture.experts.forward(normed, weights, &plan);
    observer.values(inside(Part::Experts), answer)
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
        what_an_observer_returns_goes_on,
    );

    /// Notes the places that it sees, and changes nothing.
    struct Places(Vec<Place>);

    impl Observer for Places {
        fn values(&mut self, place: Place, computed: Tensor<2>) -> Tensor<2> {
            self.0.push(place);
            computed
        }

        fn choice(
            &mut self,
            layer: usize,
            experts: Vec<u32>,
            weights: Tensor<2>,
        ) -> (Vec<u32>, Tensor<2>) {
            let layer = Some(layer);
            self.0
                .extend([Part::Choice, Part::Weights].map(|part| Place { layer, part }));
            (experts, weights)
        }
    }

    fn the_parts_one_by_one_are_the_whole(device: Device) {
        for config in [tiny(), tiny().dense_twin()] {
            let model = LanguageModel::random(&config, 7, &device);
            let rows = text(3, 12, config.vocabulary);
            let tokens = token_tensor(rows.iter().map(Vec::as_slice), &device);
            let mut seen = Places(Vec::new());
            let parts = observed(&model, tokens.clone(), &mut seen);
            assert_eq!(seen.0, places(&config));
            let whole = values(model.forward(tokens.clone()).logits);
            assert_close("parts", &values(parts), &whole, 5e-6).unwrap();
            let trace = values(model.trace(tokens, None).output.logits);
            assert_eq!(trace, whole, "a trace without padding");
        }
    }

    /// Puts zeros in the place of one part.
    struct Without(Place);

    impl Observer for Without {
        fn values(&mut self, place: Place, computed: Tensor<2>) -> Tensor<2> {
            if place == self.0 {
                computed.zeros_like()
            } else {
                computed
            }
        }

        fn choice(
            &mut self,
            _: usize,
            experts: Vec<u32>,
            weights: Tensor<2>,
        ) -> (Vec<u32>, Tensor<2>) {
            (experts, weights)
        }
    }

    fn what_an_observer_returns_goes_on(device: Device) {
        let config = tiny();
        let model = LanguageModel::random(&config, 7, &device);
        let tokens = || token_tensor([[1, 2, 3, 4].as_slice()].into_iter(), &device);
        let whole = values(model.forward(tokens()).logits);
        for place in places(&config) {
            let replaceable = !matches!(place.part, Part::Router | Part::Choice | Part::Weights);
            let found = values(observed(&model, tokens(), &mut Without(place)));
            assert_eq!(
                assert_close("logits", &found, &whole, 1e-3).is_err(),
                replaceable,
                "{place}"
            );
        }
        let no_norm = Place {
            layer: None,
            part: Part::Norm,
        };
        let found = values(observed(&model, tokens(), &mut Without(no_norm)));
        assert!(found.iter().all(|&logit| logit == 0.0), "the head of zeros");
    }
}
