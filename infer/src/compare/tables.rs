//! The tables of a comparison, the same on a terminal and on a page.

use firebox_console::numbers::{brief, bytes, grouped, magnitude};
use firebox_console::report::{Cell, Table, Verdict};
use firebox_model::parts::Part;

use super::{Comparison, Differences, Outcome, PartDifference, Row};

/// Gradients that are listed, the worst ones.
const GRADIENTS: usize = 10;

/// What the tables by layer mean.
pub(super) const LAYERS: &str = "Norms, attention, router, experts and dense feed-forwards are each given what the \
    reference computed before them, so that a difference is their own. The state after a layer and the router's \
    scores are those of the whole network so far, over the tokens that no flip has touched: a token that goes to \
    other experts differs from then on for a good reason, and so do those after it in its sequence. All are \
    ‖a − b‖ / ‖b‖.";

impl Comparison {
    /// Each device by itself.
    pub(super) fn speed_table(&self) -> Table {
        let bits = self.rows.iter().any(|row| {
            row.measured()
                .is_some_and(|measured| measured.bits_per_byte.is_some())
        });
        let loss = if bits {
            "bits per byte"
        } else {
            "nats per token"
        };
        let table = Table::new("Each device").texts(["device"]).numbers([
            loss,
            "first result",
            "of it loading",
            "reads, tokens/s",
            "writes, tokens/s",
            "peak memory",
        ]);
        self.rows
            .iter()
            .fold(table, |table, row| {
                let Some(measured) = row.measured() else {
                    return table.row([row.name.clone().into(), Cell::judged("failed", Verdict::Bad)]);
                };
                let facts = &measured.facts;
                table.row([
                    row.name.clone().into(),
                    format!("{:.6}", measured.bits_per_byte.unwrap_or(measured.nats_per_token)).into(),
                    format!("{} s", brief(facts.first_result_seconds)).into(),
                    format!("{} s", brief(facts.load_seconds)).into(),
                    speed(Some(facts.prefill_tokens_per_second)),
                    speed(facts.decode_tokens_per_second),
                    facts.peak_memory.map_or("unknown".to_owned(), |memory| bytes(memory.into())).into(),
                ])
            })
            .note(
                "The first result comes from a cold start: loading and, on a GPU, compiling kernels. Reading is a warm \
                 forward pass over all tokens, writing is one sequence token by token.",
            )
    }

    /// Each device beside the reference.
    pub(super) fn agreement_table(&self) -> Table {
        let title = format!(
            "Differences from {}",
            self.reference.as_deref().unwrap_or("nothing")
        );
        let table = Table::new(title).texts(["device"]).numbers([
            "scores",
            "KL mean",
            "KL max",
            "other best token",
            "flips",
            "largest gap",
            "with the cache",
        ]);
        self.compared()
            .fold(table, |table, (row, differences)| {
                let (flipped, choices) = differences.flips();
                let gap = differences.layers.iter().filter_map(|layer| Some(layer.flips.as_ref()?.largest_gap));
                let tolerances = &differences.tolerances;
                table.row([
                    row.name.clone().into(),
                    judged(differences.logits.untouched.relative, tolerances.whole),
                    magnitude(differences.divergence_mean).into(),
                    magnitude(differences.divergence_max).into(),
                    share(differences.greedy.differing, differences.greedy.tokens),
                    if choices == 0 { "".into() } else { share(flipped, choices) },
                    if flipped == 0 { "".into() } else { judged(gap.fold(0.0, f64::max), tolerances.gap) },
                    differences.decoded.map_or(Cell::from(""), |decoded| match flipped {
                        0 => judged(decoded.relative, tolerances.whole),
                        _ => magnitude(decoded.relative).into(),
                    }),
                ])
            })
            .note(
                "Scores of the next token: ‖a − b‖ / ‖b‖. KL: divergence of the next token's distribution, in nats. \
                 Flips: tokens that a layer sent to other experts; the gap is how far apart, in probability, the \
                 experts were that it chose between.",
            )
    }

    /// The devices that were compared with the reference.
    pub(super) fn compared(&self) -> impl Iterator<Item = (&Row, &Differences)> {
        self.rows
            .iter()
            .filter_map(|row| Some((row, row.differences()?)))
    }

    /// Devices that failed, and what they wrote.
    pub(super) fn failed(&self) -> impl Iterator<Item = (&Row, &super::Failure)> {
        self.rows.iter().filter_map(|row| match &row.outcome {
            Outcome::Failed(failure) => Some((row, failure)),
            Outcome::Measured(_) => None,
        })
    }
}

/// A device's layers: each part by itself, and the whole so far.
pub(super) fn layer_table(name: &str, differences: &Differences) -> Table {
    let mixtures = differences
        .layers
        .iter()
        .any(|layer| layer.router.is_some());
    let dense = differences
        .layers
        .iter()
        .any(|layer| layer.router.is_none());
    let mut parts = vec![
        ("norms", vec![Part::AttentionNorm, Part::FeedForwardNorm]),
        ("attention", vec![Part::Attention]),
    ];
    if mixtures {
        parts.push(("router", vec![Part::Router, Part::Weights]));
        parts.push(("experts", vec![Part::Experts]));
    }
    if dense {
        parts.push(("feed-forward", vec![Part::FeedForward]));
    }
    let mut table = Table::new(format!("{name}, by layer"))
        .numbers(["layer"])
        .numbers(parts.iter().map(|part| part.0))
        .numbers(["state after it"]);
    if mixtures {
        table = table.numbers([
            "router's scores",
            "flips",
            "largest gap",
            "untouched tokens",
        ]);
    }
    let tolerances = &differences.tolerances;
    let part_cell = |layer, names: &[Part]| {
        let names: Vec<String> = names.iter().map(Part::to_string).collect();
        let of = |part: &&PartDifference| part.layer == Some(layer) && names.contains(&part.part);
        let largest = differences
            .parts
            .iter()
            .filter(of)
            .map(|part| part.difference.relative)
            .reduce(f64::max);
        largest.map_or(Cell::from(""), |largest| judged(largest, tolerances.part))
    };
    for layer in &differences.layers {
        let mut cells = vec![Cell::from(layer.layer.to_string())];
        cells.extend(parts.iter().map(|(_, names)| part_cell(layer.layer, names)));
        cells.push(judged(layer.hidden.untouched.relative, tolerances.whole));
        if let (Some(router), Some(flips)) = (&layer.router, &layer.flips) {
            cells.push(judged(router.untouched.relative, tolerances.whole));
            cells.push(grouped(flips.flipped as u64).into());
            cells.push(if flips.first == 0 {
                "".into()
            } else {
                judged(flips.largest_gap, tolerances.gap)
            });
            cells.push(grouped(layer.hidden.untouched_tokens as u64).into());
        }
        table = table.row(cells);
    }
    let outside: Vec<String> = differences
        .parts
        .iter()
        .filter(|part| part.layer.is_none())
        .map(|part| format!("{} {}", part.part, magnitude(part.difference.relative)))
        .collect();
    table.note(format!("Outside the layers: {}.", outside.join(", ")))
}

/// The parameters whose gradients differ most; none where there are no gradients.
pub(super) fn gradient_table(name: &str, differences: &Differences) -> Option<Table> {
    let mut gradients: Vec<_> = differences.gradients.as_ref()?.iter().collect();
    gradients.sort_by(|a, b| b.difference.relative.total_cmp(&a.difference.relative));
    let table = Table::new(format!("{name}, the gradients that differ most"))
        .texts(["parameter"])
        .numbers(["relative", "largest"]);
    let unflipped = differences.flips().0 == 0;
    let table = gradients
        .iter()
        .take(GRADIENTS)
        .fold(table, |table, gradient| {
            let relative = gradient.difference.relative;
            let relative = match unflipped {
                true => judged(relative, differences.tolerances.gradient),
                false => magnitude(relative).into(),
            };
            table.row([
                gradient.name.clone().into(),
                relative,
                magnitude(gradient.difference.absolute).into(),
            ])
        });
    Some(table.note(format!("Of {} parameters.", gradients.len())))
}

fn judged(figure: f64, tolerance: f64) -> Cell {
    match figure <= tolerance {
        true => magnitude(figure).into(),
        false => Cell::judged(magnitude(figure), Verdict::Bad),
    }
}

fn speed(tokens_per_second: Option<f64>) -> Cell {
    tokens_per_second.map_or(String::new(), brief).into()
}

fn share(some: usize, all: usize) -> Cell {
    format!("{} of {}", grouped(some as u64), grouped(all as u64)).into()
}
