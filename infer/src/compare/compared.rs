//! The differences between the traces of two devices.

use firebox_model::config::ModelConfig;
use firebox_model::parts::{LayerPart, Part, layer_parts};
use firebox_model::vision::TowerPart;
use serde::Serialize;

use super::difference::{Difference, divergence, greedy, nats};
use super::flips::{Flips, Touched, flipped, gaps};
use super::tokens::Tokens;
use super::tolerance::{Fault, Tolerances};
use super::trace_file::{self, Matrix, TraceFile};
use crate::InferError;

/// How a device differs from the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Differences {
    /// Each part alone, in execution order.
    pub parts: Vec<PartDifference>,
    /// The layers within the whole network.
    pub layers: Vec<LayerDifference>,
    /// Logits of the whole network.
    pub logits: NetworkDifference,
    /// Logits of the last tokens of the first sequence, decoded one at a time with the cache; `None` if it is too short.
    pub decoded: Option<Difference>,
    /// Kullback–Leibler divergence of the next token's distribution, mean over the tokens, in nats.
    pub divergence_mean: f64,
    /// The same, maximum over the tokens.
    pub divergence_max: f64,
    /// The greedy next token.
    pub greedy: Greedy,
    /// By parameter, sorted by layer and name; `None` if not requested.
    pub gradients: Option<Vec<Gradient>>,
    /// The tolerances.
    pub tolerances: Tolerances,
    /// What exceeds the tolerances: first the parts alone, in execution order, then the whole network.
    pub faults: Vec<Fault>,
}

/// The difference of a part that was given the reference's inputs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartDifference {
    /// Index of the layer, from 0; `None` for the parts before and after the layers.
    pub layer: Option<usize>,
    /// Such as `attention` or `experts`.
    pub part: String,
    /// By how much; for the expert selection, the largest probability gap of a flip.
    #[serde(flatten)]
    pub difference: Difference,
}

/// The difference of a value that the whole network up to there computes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NetworkDifference {
    /// Over all tokens.
    pub all: Difference,
    /// Over the tokens that no flip has touched: neither they nor an earlier token of their sequence were routed to
    /// different experts in an earlier layer.
    pub untouched: Difference,
    /// Number of untouched tokens.
    pub untouched_tokens: usize,
}

/// The difference of a layer within the whole network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerDifference {
    /// Its index, from 0.
    pub layer: usize,
    /// The residual stream after it; for the last layer, after the final norm.
    pub hidden: NetworkDifference,
    /// The router's logits; `None` for a dense layer.
    pub router: Option<NetworkDifference>,
    /// The router's flips; `None` for a dense layer.
    pub flips: Option<Flips>,
}

/// How often the greedy next token differs.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Greedy {
    /// Number of predicted tokens.
    pub tokens: usize,
    /// Number of tokens for which the greedy choice differs.
    pub differing: usize,
    /// Among those, the largest lead in probability of the reference's first choice over its second; 0 without one.
    pub largest_lead: f64,
}

/// The difference of a parameter's gradient.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gradient {
    /// The parameter's name in transformers.
    pub name: String,
    /// Its layer; `None` outside the layers.
    pub layer: Option<usize>,
    /// By how much.
    #[serde(flatten)]
    pub difference: Difference,
}

/// What a [`Fault`] calls a relative difference.
const RELATIVE: &str = "relative difference";
/// What a [`Fault`] calls the probability gap of a flip.
const FLIP: &str = "flip across a probability gap of";

/// Compares a device's trace with the reference's trace of the same tokens.
///
/// `model` is the configuration of both.
///
/// # Errors
///
/// When one of them lacks a matrix.
pub fn compare_traces(
    reference: &TraceFile,
    traced: &TraceFile,
    tokens: &Tokens,
    model: &ModelConfig,
    tolerances: &Tolerances,
) -> Result<Differences, InferError> {
    let both = |name: &str| Ok::<_, InferError>((traced.matrix(name)?, reference.matrix(name)?));
    let router_bias = |moe_layer: usize| {
        reference
            .timings()
            .router_bias
            .get(moe_layer)
            .map_or(&[][..], Vec::as_slice)
    };

    let gaps = |logits: &Matrix, moe_layer: usize| {
        let bias = router_bias(moe_layer);
        let moe = model.moe.as_ref().expect("a model with a router");
        gaps(logits, bias, &moe.router, moe.experts.top_k)
    };

    let sees = !tokens.images().is_empty();
    let layer_parts = layer_parts(model, sees);
    let mut parts = Vec::with_capacity(layer_parts.len() + 1);
    let mut faults = Vec::new();
    let tower = model.vision.as_ref().filter(|_| sees);
    for part in tower.map(TowerPart::all).unwrap_or_default() {
        let (a, b) = both(&trace_file::tower(part))?;
        let difference = Difference::of(&a, &b);
        faults.extend(Fault::check(
            part.to_string(),
            RELATIVE,
            difference.relative,
            tolerances.part,
        ));
        parts.push(PartDifference {
            layer: None,
            part: part.to_string(),
            difference,
        });
    }
    let mut moe_layers = 0;
    for &layer_part in &layer_parts {
        let name = trace_file::alone(layer_part);
        let mut allowed = (RELATIVE, tolerances.part);
        let difference = match layer_part.part {
            Part::Selection => {
                allowed = (FLIP, tolerances.gap);
                let (chosen, expected) = both(&name)?;
                let logits = reference.matrix(&trace_file::alone(LayerPart {
                    part: Part::Router,
                    ..layer_part
                }))?;
                let gaps = gaps(&logits, moe_layers);
                moe_layers += 1;
                widest_flip(&flipped(&chosen, &expected), &gaps)
            }
            Part::RoutingWeights => {
                let selection = trace_file::alone(LayerPart {
                    part: Part::Selection,
                    ..layer_part
                });
                difference_of_weights(both(&selection)?, both(&name)?)
            }
            _ => {
                let (a, b) = both(&name)?;
                Difference::of(&a, &b)
            }
        };
        faults.extend(Fault::check(
            layer_part.to_string(),
            allowed.0,
            difference.relative,
            allowed.1,
        ));
        parts.push(PartDifference {
            layer: layer_part.layer,
            part: layer_part.part.to_string(),
            difference,
        });
    }
    let logits = reference.matrix(&trace_file::alone(LayerPart {
        layer: None,
        part: Part::Head,
    }))?;
    let expected = nats(&logits, tokens.targets());
    let loss = traced
        .matrix(trace_file::LOSS)?
        .values
        .iter()
        .map(|&loss| f64::from(loss))
        .sum::<f64>();
    let difference = Difference {
        absolute: (loss - expected).abs(),
        relative: (loss - expected).abs() / expected,
    };
    faults.extend(Fault::check(
        "cross-entropy",
        RELATIVE,
        difference.relative,
        tolerances.part,
    ));
    parts.push(PartDifference {
        layer: None,
        part: "cross-entropy".to_owned(),
        difference,
    });

    let mut touched = Touched::none(tokens.count(), tokens.sequence());
    let mut layers = Vec::new();
    let mut computed: Vec<usize> = layer_parts
        .iter()
        .filter_map(|layer_part| layer_part.layer)
        .collect();
    computed.dedup();
    let mut moe_layers = 0;
    for (place, layer) in computed.into_iter().enumerate() {
        // Attention runs before the router.
        touched.spread();
        let (mut router, mut flips) = (None, None);
        if let Some(logits) = traced.find(&trace_file::router(layer)) {
            let expected = reference.matrix(&trace_file::router(layer))?;
            let difference = NetworkDifference::of(&logits, &expected, &touched);
            let place = format!("network up to layer {layer}, router");
            faults.extend(Fault::check(
                place,
                RELATIVE,
                difference.untouched.relative,
                tolerances.whole,
            ));
            let (chosen, before) = both(&trace_file::chosen(layer))?;
            let gaps = gaps(&expected, moe_layers);
            moe_layers += 1;
            let layer_flips = touched.flip(&flipped(&chosen, &before), &gaps);
            let place = format!("network up to layer {layer}, expert selection");
            faults.extend(Fault::check(
                place,
                FLIP,
                layer_flips.largest_gap,
                tolerances.gap,
            ));
            (router, flips) = (Some(difference), Some(layer_flips));
        }
        let (a, b) = both(&trace_file::hidden(place + 1))?;
        let hidden = NetworkDifference::of(&a, &b, &touched);
        let place = format!("network up to layer {layer}, hidden state");
        faults.extend(Fault::check(
            place,
            RELATIVE,
            hidden.untouched.relative,
            tolerances.whole,
        ));
        layers.push(LayerDifference {
            layer,
            hidden,
            router,
            flips,
        });
    }
    let (a, b) = both(trace_file::LOGITS)?;
    let logits = NetworkDifference::of(&a, &b, &touched);
    faults.extend(Fault::check(
        "logits",
        RELATIVE,
        logits.untouched.relative,
        tolerances.whole,
    ));
    let (divergence_mean, divergence_max) = divergence(&a, &b);

    let unflipped = layers
        .iter()
        .all(|layer| layer.flips.as_ref().is_none_or(|flips| flips.flipped == 0));
    // Many ranks together decode nothing here.
    let decoded = [traced, reference].map(|trace| trace.find(trace_file::DECODED));
    let decoded = match decoded {
        [Some(logits), Some(of_reference)] => Some(Difference::of(&logits, &of_reference)),
        _ => None,
    };
    let gradients = gradients(reference, traced)?;
    // A flip legitimately changes both.
    if unflipped {
        let place = "logits, decoded one token at a time with the cache";
        let difference = decoded.iter().map(|difference| (place, difference));
        faults.extend(
            difference.filter_map(|(place, d)| {
                Fault::check(place, RELATIVE, d.relative, tolerances.whole)
            }),
        );
        faults.extend(gradients.iter().flatten().filter_map(|gradient| {
            let place = format!("gradient of {}", gradient.name);
            Fault::check(
                place,
                RELATIVE,
                gradient.difference.relative,
                tolerances.gradient,
            )
        }));
    }
    Ok(Differences {
        parts,
        layers,
        logits,
        decoded,
        divergence_mean,
        divergence_max,
        greedy: Greedy::of(&a, &b),
        gradients,
        tolerances: *tolerances,
        faults,
    })
}

impl Differences {
    /// Number of flipped selections over all layers and tokens, and number of all selections.
    pub fn flips(&self) -> (usize, usize) {
        let flips = self.layers.iter().filter_map(|layer| layer.flips.as_ref());
        flips.fold((0, 0), |(flipped, all), flips| {
            (flipped + flips.flipped, all + flips.tokens)
        })
    }

    /// The part that differs most alone, the expert selection aside.
    pub fn worst_part(&self) -> Option<&PartDifference> {
        let selection = Part::Selection.to_string();
        let parts = self.parts.iter().filter(|part| part.part != selection);
        parts.max_by(|a, b| a.difference.relative.total_cmp(&b.difference.relative))
    }

    /// The parameter whose gradient differs most.
    pub fn worst_gradient(&self) -> Option<&Gradient> {
        let gradients = self.gradients.iter().flatten();
        gradients.max_by(|a, b| a.difference.relative.total_cmp(&b.difference.relative))
    }
}

impl PartDifference {
    /// The part's name, with its layer.
    pub fn place(&self) -> String {
        match self.layer {
            Some(layer) => format!("layer {layer}, {}", self.part),
            None => self.part.clone(),
        }
    }
}

impl NetworkDifference {
    fn of(traced: &Matrix, reference: &Matrix, touched: &Touched) -> Self {
        Self {
            all: Difference::of(traced, reference),
            untouched: Difference::over(traced, reference, |token| !touched.contains(token)),
            untouched_tokens: touched.untouched(),
        }
    }
}

impl Greedy {
    fn of(traced: &Matrix, reference: &Matrix) -> Self {
        let mut all = Self::default();
        for (a, b) in traced.rows().zip(reference.rows()) {
            let (expected, lead) = greedy(b);
            all.tokens += 1;
            if greedy(a).0 != expected {
                all.differing += 1;
                all.largest_lead = all.largest_lead.max(lead);
            }
        }
        all
    }
}

/// The largest probability gap of a flipped token.
fn widest_flip(flipped: &[bool], gaps: &[f64]) -> Difference {
    let gaps = flipped
        .iter()
        .zip(gaps)
        .filter_map(|(&flipped, &gap)| flipped.then_some(gap));
    let largest = gaps.fold(0.0, f64::max);
    Difference {
        absolute: largest,
        relative: largest,
    }
}

/// The difference of the routing weights, expert by expert, over the tokens with the same experts.
fn difference_of_weights(chosen: (Matrix, Matrix), weights: (Matrix, Matrix)) -> Difference {
    let other = flipped(&chosen.0, &chosen.1);
    let in_order = |experts: &Matrix, weights: &Matrix| {
        let rows = experts
            .rows()
            .zip(weights.rows())
            .flat_map(|(experts, weights)| {
                let mut pairs: Vec<(f32, f32)> = experts
                    .iter()
                    .copied()
                    .zip(weights.iter().copied())
                    .collect();
                pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
                pairs.into_iter().map(|(_, weight)| weight)
            });
        Matrix::new(weights.columns(), rows.collect())
    };
    let (a, b) = (
        in_order(&chosen.0, &weights.0),
        in_order(&chosen.1, &weights.1),
    );
    Difference::over(&a, &b, |token| !other[token])
}

/// The least norm that a gradient's difference is set beside, as a fraction of the norm of all gradients together. Some
/// gradients are zero but for rounding, such as that of a key's bias without rotary positions, which moves all scores of a
/// query alike.
const NEGLIGIBLE: f64 = 1e-2;

fn gradients(
    reference: &TraceFile,
    traced: &TraceFile,
) -> Result<Option<Vec<Gradient>>, InferError> {
    let mut squares = 0.0;
    for name in traced.names(trace_file::GRADIENT) {
        let expected = reference.find(name);
        squares += expected.map_or(0.0, |expected| expected.squares());
    }
    let negligible = NEGLIGIBLE * squares.sqrt();
    let mut gradients = Vec::new();
    for name in traced.names(trace_file::GRADIENT) {
        let Some(expected) = reference.find(name) else {
            continue;
        };
        let parameter = name.trim_start_matches(trace_file::GRADIENT);
        gradients.push(Gradient {
            layer: layer_of(parameter),
            name: parameter.to_owned(),
            difference: Difference::of_gradient(&traced.matrix(name)?, &expected, negligible),
        });
    }
    gradients.sort_by(|a, b| a.layer.cmp(&b.layer).then_with(|| a.name.cmp(&b.name)));
    Ok((!gradients.is_empty()).then_some(gradients))
}

/// The layer in a parameter's name, such as 3 in `model.layers.3.self_attn.q_proj.weight`.
fn layer_of(name: &str) -> Option<usize> {
    let (_, rest) = name.split_once("layers.")?;
    rest.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_is_parsed_from_a_parameters_name() {
        assert_eq!(
            layer_of("model.layers.12.self_attn.q_proj.weight"),
            Some(12)
        );
        assert_eq!(layer_of("lm_head.weight"), None);
    }

    #[test]
    fn weights_are_compared_expert_by_expert() {
        let experts = (
            Matrix::new(2, vec![1.0, 0.0, 2.0, 3.0]),
            Matrix::new(2, vec![0.0, 1.0, 2.0, 1.0]),
        );
        let weights = (
            Matrix::new(2, vec![0.3, 0.7, 0.5, 0.5]),
            Matrix::new(2, vec![0.7, 0.3, 0.9, 0.1]),
        );
        // The first token lists the same experts in another order; the second one has different experts.
        assert_eq!(
            difference_of_weights(experts, weights),
            Difference::default()
        );
    }
}
