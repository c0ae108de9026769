//! The tables of a comparison, for the terminal and the HTML report.

use firebox_console::numbers::{brief, bytes, grouped, magnitude};
use firebox_console::report::{Cell, Table, Verdict};
use firebox_model::parts::Part;

use super::{Comparison, Differences, Outcome, PartDifference, Row};

/// Maximum number of gradients in the table.
const GRADIENTS: usize = 10;

/// The meaning of the tables by layer.
pub(super) const LAYERS: &str = "Norms, attention, router, experts and dense feed-forwards are each given the \
reference's inputs, so that a difference is their own. The hidden state and the router logits are those of the \
whole network up to the layer, over the tokens that no flip has touched: a token that is routed to other experts \
legitimately differs from then on, and so do the later tokens of its sequence. All values are ‖a − b‖ / ‖b‖.";

impl Comparison {
    /// Speed and memory of each device.
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
            "of which loading",
            "prefill, tokens/s",
            "decode, tokens/s",
            "peak memory",
        ]);
        self.rows
            .iter()
            .fold(table, |table, row| {
                let Some(measured) = row.measured() else {
                    return table.row([row.name.clone().into(), Cell::judged("failed", Verdict::Bad)]);
                };
                let timings = &measured.timings;
                table.row([
                    row.name.clone().into(),
                    format!("{:.6}", measured.bits_per_byte.unwrap_or(measured.nats_per_token)).into(),
                    format!("{} s", brief(timings.first_result_seconds)).into(),
                    format!("{} s", brief(timings.load_seconds)).into(),
                    speed(Some(timings.prefill_tokens_per_second)),
                    speed(timings.decode_tokens_per_second),
                    timings.peak_memory.map_or("unknown".to_owned(), |memory| bytes(memory.into())).into(),
                ])
            })
            .note(
                "The first result includes loading and, on a GPU, kernel compilation. Prefill is a warm forward pass over \
                all tokens; decode is one sequence, token by token.",
            )
    }

    /// The differences of each device from the reference.
    pub(super) fn agreement_table(&self) -> Table {
        let title = format!(
            "Differences from {}",
            self.reference.as_deref().unwrap_or("the reference")
        );
        let table = Table::new(title).texts(["device"]).numbers([
            "logits",
            "KL mean",
            "KL max",
            "greedy token differs",
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
                    fraction(differences.greedy.differing, differences.greedy.tokens),
                    if choices == 0 { "".into() } else { fraction(flipped, choices) },
                    if flipped == 0 { "".into() } else { judged(gap.fold(0.0, f64::max), tolerances.gap) },
                    differences.decoded.map_or(Cell::from(""), |decoded| match flipped {
                        0 => judged(decoded.relative, tolerances.whole),
                        _ => magnitude(decoded.relative).into(),
                    }),
                ])
            })
            .note(
                "Logits: ‖a − b‖ / ‖b‖. KL: divergence of the next token's distribution, in nats. Flips: tokens that a \
                layer routed to other experts; the gap is the probability lead of the experts selected on the \
                reference. With the cache: logits of tokens that were decoded one at a time.",
            )
    }

    /// The candidates that were compared with the reference.
    pub(super) fn compared(&self) -> impl Iterator<Item = (&Row, &Differences)> {
        self.rows
            .iter()
            .filter_map(|row| Some((row, row.differences()?)))
    }

    /// The candidates that failed.
    pub(super) fn failed(&self) -> impl Iterator<Item = (&Row, &super::Failure)> {
        self.rows.iter().filter_map(|row| match &row.outcome {
            Outcome::Failed(failure) => Some((row, failure)),
            Outcome::Measured(_) => None,
        })
    }
}

/// A device's layers: each part alone, and the whole network up to the layer.
pub(super) fn layer_table(name: &str, differences: &Differences) -> Table {
    let moe_layers = differences
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
    let cross = Part::CrossAttention.to_string();
    if differences.parts.iter().any(|part| part.part == cross) {
        parts.push(("cross-attention", vec![Part::CrossAttention]));
    }
    if moe_layers {
        parts.push(("router", vec![Part::Router, Part::RoutingWeights]));
        parts.push(("experts", vec![Part::Experts]));
    }
    if dense {
        parts.push(("feed-forward", vec![Part::FeedForward]));
    }
    let mut table = Table::new(format!("{name}, by layer"))
        .numbers(["layer"])
        .numbers(parts.iter().map(|part| part.0))
        .numbers(["hidden state"]);
    if moe_layers {
        table = table.numbers(["router logits", "flips", "largest gap", "untouched tokens"]);
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

/// The parameters whose gradients differ most; `None` without gradients.
pub(super) fn gradient_table(name: &str, differences: &Differences) -> Option<Table> {
    let mut gradients: Vec<_> = differences.gradients.as_ref()?.iter().collect();
    gradients.sort_by(|a, b| b.difference.relative.total_cmp(&a.difference.relative));
    let table = Table::new(format!("{name}, largest gradient differences"))
        .texts(["parameter"])
        .numbers(["relative", "absolute"]);
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

fn fraction(some: usize, all: usize) -> Cell {
    format!("{} of {}", grouped(some as u64), grouped(all as u64)).into()
}
