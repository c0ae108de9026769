//! A comparison in sentences, the most important results first.

use firebox_console::numbers::{grouped, magnitude};
use firebox_console::report::Verdict;

use super::{Comparison, Differences, Outcome, Row};

/// Maximum number of faults per device in the summary.
const LISTED_FAULTS: usize = 3;

impl Comparison {
    /// The sentences with their verdicts.
    pub fn summary(&self) -> Vec<(Verdict, String)> {
        let Some(reference) = &self.reference else {
            let failed = (Verdict::Bad, "no device could be measured".to_owned());
            return self
                .rows
                .iter()
                .filter_map(failed_row)
                .chain([failed])
                .collect();
        };
        let mut sentences = Vec::new();
        for row in &self.rows {
            sentences.extend(failed_row(row));
            if let Some(differences) = row.differences() {
                sentences.extend(agreement(&row.name, reference, differences));
                sentences.extend(flips(&row.name, differences));
            }
        }
        sentences.extend(self.speed());
        sentences
    }

    /// Which device is fastest, if there are several.
    fn speed(&self) -> Option<(Verdict, String)> {
        let measured = self
            .rows
            .iter()
            .filter_map(|row| Some((row, &row.measured()?.timings)));
        let fastest = |speed: fn(&super::Timings) -> f64| {
            measured
                .clone()
                .max_by(|a, b| speed(a.1).total_cmp(&speed(b.1)))
                .map(|(row, timings)| {
                    format!(
                        "{} ({} tokens/s)",
                        row.name,
                        grouped(speed(timings).round() as u64)
                    )
                })
        };
        if measured.clone().count() < 2 {
            return None;
        }
        let prefill = fastest(|timings| timings.prefill_tokens_per_second)?;
        let decode = fastest(|timings| timings.decode_tokens_per_second.unwrap_or_default())?;
        Some((
            Verdict::Notable,
            format!("fastest prefill: {prefill}; fastest decode: {decode}"),
        ))
    }
}

fn failed_row(row: &Row) -> Option<(Verdict, String)> {
    match &row.outcome {
        Outcome::Failed(failure) => Some((
            Verdict::Bad,
            format!("{} failed: {}", row.name, failure.reason),
        )),
        Outcome::Measured(_) => None,
    }
}

/// Whether a device agrees with the reference, and where it does not.
fn agreement(name: &str, reference: &str, differences: &Differences) -> Vec<(Verdict, String)> {
    let faults = &differences.faults;
    if faults.is_empty() {
        let same = [
            largest_differences(differences),
            best_token(differences),
            unflipped(differences),
            gradients(differences),
        ];
        let same: Vec<String> = same.into_iter().flatten().collect();
        let text = format!("{name} agrees with {reference}: {}", same.join("; "));
        return vec![(Verdict::Good, text)];
    }
    let listed = faults.iter().take(LISTED_FAULTS).map(|fault| {
        let text = format!("{name} differs from {reference} in {fault}");
        (Verdict::Bad, text)
    });
    let more = faults.len().saturating_sub(LISTED_FAULTS);
    let more = (more > 0).then(|| {
        let text = format!(
            "{name} exceeds the tolerance in {} more places, which may follow from the first",
            grouped(more as u64)
        );
        (Verdict::Bad, text)
    });
    listed.chain(more).collect()
}

fn largest_differences(differences: &Differences) -> Option<String> {
    let worst = differences
        .worst_part()
        .map_or(0.0, |part| part.difference.relative);
    let logits = differences.logits.untouched.relative;
    Some(match logits.max(worst) {
        0.0 => "bit-identical".to_owned(),
        _ => format!(
            "relative difference {} of the logits, at most {} of any part alone",
            magnitude(logits),
            magnitude(worst)
        ),
    })
}

fn best_token(differences: &Differences) -> Option<String> {
    let greedy = &differences.greedy;
    Some(match greedy.differing {
        0 => "the greedy next token is always the same".to_owned(),
        differing => format!(
            "the greedy next token differs for {} of {} tokens, where it led by at most {} in probability",
            grouped(differing as u64),
            grouped(greedy.tokens as u64),
            magnitude(greedy.largest_lead)
        ),
    })
}

fn unflipped(differences: &Differences) -> Option<String> {
    match differences.flips() {
        (0, choices) if choices > 0 => Some(format!(
            "none of {} expert selections flipped",
            grouped(choices as u64)
        )),
        _ => None,
    }
}

fn gradients(differences: &Differences) -> Option<String> {
    let worst = differences.worst_gradient()?;
    Some(format!(
        "gradients differ by at most {}",
        magnitude(worst.difference.relative)
    ))
}

/// How to judge the tokens that were routed to other experts.
fn flips(name: &str, differences: &Differences) -> Option<(Verdict, String)> {
    let (flipped, choices) = differences.flips();
    if flipped == 0 {
        return None;
    }
    let all = differences
        .layers
        .iter()
        .filter_map(|layer| layer.flips.as_ref());
    let gap = all
        .clone()
        .map(|flips| flips.largest_gap)
        .fold(0.0, f64::max);
    let first: usize = all.map(|flips| flips.first).sum();
    let (verdict, meaning) = if gap <= differences.tolerances.gap {
        (
            Verdict::Notable,
            "these were near-ties, which rounding explains",
        )
    } else {
        (Verdict::Bad, "rounding does not explain this")
    };
    let text = format!(
        "{name}: {} of {} expert selections flipped. {} of them do not follow from earlier flips, across a probability \
        gap of at most {}: {meaning}. The others follow from those",
        grouped(flipped as u64),
        grouped(choices as u64),
        grouped(first as u64),
        magnitude(gap)
    );
    Some((verdict, text))
}
