//! What differs between what two devices found.

use firebox_model::parts::{Part, Place};
use serde::Serialize;

use super::difference::{Difference, divergence, greedy, nats};
use super::findings::{self, Findings, Matrix};
use super::flips::{Flips, Touched, flipped, gaps};
use super::tokens::Tokens;
use super::tolerance::{Fault, Tolerances};
use crate::InferError;

/// How a device differs from the reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Differences {
    /// Every part by itself, in the order in which they run.
    pub parts: Vec<PartDifference>,
    /// Within the whole network, by layer.
    pub layers: Vec<LayerDifference>,
    /// Scores of the next token, from the whole network.
    pub logits: Through,
    /// The same of the last tokens of the first sequence, one at a time with the cache; none where it is too short.
    pub decoded: Option<Difference>,
    /// Mean over the tokens of the Kullback–Leibler divergence of the next token's distribution, in nats.
    pub divergence_mean: f64,
    /// Its maximum.
    pub divergence_max: f64,
    /// The likeliest next token.
    pub greedy: Greedy,
    /// By parameter, in the order of their names; none where they were not asked for.
    pub gradients: Option<Vec<Gradient>>,
    /// What was allowed.
    pub tolerances: Tolerances,
    /// What exceeds it: first the parts by themselves, in the order in which they run, then the whole.
    pub faults: Vec<Fault>,
}

/// How a part differs that was given what the reference computed before it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartDifference {
    /// Number of the layer, from 0; none for what stands before and after the layers.
    pub layer: Option<usize>,
    /// Such as `attention` or `experts`.
    pub part: String,
    /// By how much; of the choice of experts, the largest gap across which it chose otherwise.
    #[serde(flatten)]
    pub difference: Difference,
}

/// How what the whole network computes differs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Through {
    /// Over all tokens.
    pub all: Difference,
    /// Over those that no flip of experts has touched: neither they nor a token before them in their sequence went
    /// to other experts in an earlier layer.
    pub untouched: Difference,
    /// How many those are.
    pub untouched_tokens: usize,
}

/// How a layer differs within the whole network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerDifference {
    /// Its number, from 0.
    pub layer: usize,
    /// The residual stream after it; after the last layer, behind the last norm.
    pub hidden: Through,
    /// The router's scores; none for a dense layer.
    pub router: Option<Through>,
    /// The router's choices; none for a dense layer.
    pub flips: Option<Flips>,
}

/// Where the likeliest next token is another.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Greedy {
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Where the likeliest is another one.
    pub differing: usize,
    /// Among those, the largest lead in probability that the reference's likeliest had over its second. 0 without one.
    pub largest_lead: f64,
}

/// How a parameter's gradient differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gradient {
    /// The parameter, as transformers calls it.
    pub name: String,
    /// Its layer, if it is in one.
    pub layer: Option<usize>,
    /// By how much.
    #[serde(flatten)]
    pub difference: Difference,
}

/// A relative difference, in the words of a [`Fault`].
const RELATIVE: &str = "a relative difference";

/// Compares what a device found with what the reference found for the same tokens.
///
/// `places` are all parts of the network ([`parts::places`](firebox_model::parts::places)).
///
/// # Errors
///
/// When one of them lacks what it should have.
pub fn compare_findings(
    reference: &Findings,
    found: &Findings,
    tokens: &Tokens,
    places: &[Place],
    tolerances: &Tolerances,
) -> Result<Differences, InferError> {
    let both = |name: &str| Ok::<_, InferError>((found.matrix(name)?, reference.matrix(name)?));
    let router_bias = |mixture: usize| {
        reference
            .facts()
            .router_bias
            .get(mixture)
            .map_or(&[][..], Vec::as_slice)
    };

    let mut parts = Vec::with_capacity(places.len() + 1);
    let mut faults = Vec::new();
    let mut mixtures = 0;
    for &place in places {
        let name = findings::alone(place);
        let mut allowed = (RELATIVE, tolerances.part);
        let difference = match place.part {
            Part::Choice => {
                allowed = ("another choice across a gap", tolerances.gap);
                let (chosen, expected) = both(&name)?;
                let scores = reference.matrix(&findings::alone(Place {
                    part: Part::Router,
                    ..place
                }))?;
                let gaps = gaps(&scores, router_bias(mixtures), expected.columns());
                mixtures += 1;
                widest_flip(&flipped(&chosen, &expected), &gaps)
            }
            Part::Weights => {
                let choice = findings::alone(Place {
                    part: Part::Choice,
                    ..place
                });
                difference_of_weights(both(&choice)?, both(&name)?)
            }
            _ => {
                let (a, b) = both(&name)?;
                Difference::of(&a, &b)
            }
        };
        faults.extend(Fault::check(
            place.to_string(),
            allowed.0,
            difference.relative,
            allowed.1,
        ));
        parts.push(PartDifference {
            layer: place.layer,
            part: place.part.to_string(),
            difference,
        });
    }
    let scores = reference.matrix(&findings::alone(Place {
        layer: None,
        part: Part::Head,
    }))?;
    let expected = nats(&scores, tokens.targets());
    let loss = found
        .matrix(findings::LOSS)?
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
    let count = places
        .iter()
        .filter_map(|place| place.layer)
        .max()
        .map_or(0, |last| last + 1);
    let mut mixtures = 0;
    for layer in 0..count {
        // Attention comes first.
        touched.spread();
        let (mut router, mut flips) = (None, None);
        if let Some(scores) = found.find(&findings::router(layer)) {
            let expected = reference.matrix(&findings::router(layer))?;
            let difference = Through::of(&scores, &expected, &touched);
            let place = format!("through layer {layer}, router");
            faults.extend(Fault::check(
                place,
                RELATIVE,
                difference.untouched.relative,
                tolerances.whole,
            ));
            let (chosen, before) = both(&findings::chosen(layer))?;
            let gaps = gaps(&expected, router_bias(mixtures), before.columns());
            mixtures += 1;
            let found = touched.flip(&flipped(&chosen, &before), &gaps);
            let place = format!("through layer {layer}, choice of experts");
            faults.extend(Fault::check(
                place,
                "another choice across a gap",
                found.largest_gap,
                tolerances.gap,
            ));
            (router, flips) = (Some(difference), Some(found));
        }
        let (a, b) = both(&findings::hidden(layer + 1))?;
        let hidden = Through::of(&a, &b, &touched);
        let place = format!("through layer {layer}, hidden state");
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
    let (a, b) = both(findings::LOGITS)?;
    let logits = Through::of(&a, &b, &touched);
    faults.extend(Fault::check(
        "scores of the next token",
        RELATIVE,
        logits.untouched.relative,
        tolerances.whole,
    ));
    let (divergence_mean, divergence_max) = divergence(&a, &b);

    let unflipped = layers
        .iter()
        .all(|layer| layer.flips.as_ref().is_none_or(|flips| flips.flipped == 0));
    let decoded = match found.find(findings::DECODED) {
        Some(scores) => Some(Difference::of(
            &scores,
            &reference.matrix(findings::DECODED)?,
        )),
        None => None,
    };
    let gradients = gradients(reference, found)?;
    // A flip changes both for a good reason.
    if unflipped {
        let place = "scores of the next token, one token at a time with the cache";
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
    /// Tokens times layers whose experts are others, and how many of them there are.
    pub fn flips(&self) -> (usize, usize) {
        let flips = self.layers.iter().filter_map(|layer| layer.flips.as_ref());
        flips.fold((0, 0), |(flipped, all), flips| {
            (flipped + flips.flipped, all + flips.tokens)
        })
    }

    /// The part that differs most by itself, of those that are no choice.
    pub fn worst_part(&self) -> Option<&PartDifference> {
        let choice = Part::Choice.to_string();
        let parts = self.parts.iter().filter(|part| part.part != choice);
        parts.max_by(|a, b| a.difference.relative.total_cmp(&b.difference.relative))
    }

    /// The parameter whose gradient differs most.
    pub fn worst_gradient(&self) -> Option<&Gradient> {
        let gradients = self.gradients.iter().flatten();
        gradients.max_by(|a, b| a.difference.relative.total_cmp(&b.difference.relative))
    }
}

impl PartDifference {
    /// Where it is, in words.
    pub fn place(&self) -> String {
        match self.layer {
            Some(layer) => format!("layer {layer}, {}", self.part),
            None => self.part.clone(),
        }
    }
}

impl Through {
    fn of(found: &Matrix, reference: &Matrix, touched: &Touched) -> Self {
        Self {
            all: Difference::of(found, reference),
            untouched: Difference::over(found, reference, |token| !touched.is(token)),
            untouched_tokens: touched.untouched(),
        }
    }
}

impl Greedy {
    fn of(found: &Matrix, reference: &Matrix) -> Self {
        let mut all = Self::default();
        for (a, b) in found.rows().zip(reference.rows()) {
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

/// The largest gap across which a token chose otherwise.
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

/// Of the weights of the same experts, of those tokens that chose the same ones.
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

fn gradients(reference: &Findings, found: &Findings) -> Result<Option<Vec<Gradient>>, InferError> {
    let mut gradients = Vec::new();
    for name in found.names(findings::GRADIENT) {
        let Some(expected) = reference.find(name) else {
            continue;
        };
        let parameter = name.trim_start_matches(findings::GRADIENT);
        gradients.push(Gradient {
            layer: layer_of(parameter),
            name: parameter.to_owned(),
            difference: Difference::of(&found.matrix(name)?, &expected),
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
    fn a_parameters_name_tells_its_layer() {
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
        // The first token lists the same experts in another order; the second one chose others.
        assert_eq!(
            difference_of_weights(experts, weights),
            Difference::default()
        );
    }
}
