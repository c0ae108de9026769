//! A comparison in sentences: what a reader wants to know first.

use firebox_console::numbers::{grouped, magnitude};
use firebox_console::report::Verdict;

use super::{Comparison, Differences, Outcome, Row};

/// Faults of a device that are told; the tables have all of them.
const TOLD: usize = 3;

impl Comparison {
    /// Sentences, and what to think of them.
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

    /// Which is fastest, where there is a choice.
    fn speed(&self) -> Option<(Verdict, String)> {
        let measured = self
            .rows
            .iter()
            .filter_map(|row| Some((row, &row.measured()?.facts)));
        let fastest = |speed: fn(&super::Facts) -> f64| {
            measured
                .clone()
                .max_by(|a, b| speed(a.1).total_cmp(&speed(b.1)))
                .map(|(row, facts)| {
                    format!(
                        "{} ({} tokens/s)",
                        row.name,
                        grouped(speed(facts).round() as u64)
                    )
                })
        };
        if measured.clone().count() < 2 {
            return None;
        }
        let reads = fastest(|facts| facts.prefill_tokens_per_second)?;
        let writes = fastest(|facts| facts.decode_tokens_per_second.unwrap_or_default())?;
        Some((
            Verdict::Notable,
            format!("fastest at reading: {reads}; at writing: {writes}"),
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

/// That a device does the same, or where it does not.
fn agreement(name: &str, reference: &str, differences: &Differences) -> Vec<(Verdict, String)> {
    let faults = &differences.faults;
    if faults.is_empty() {
        let same = [
            numbers(differences),
            best_token(differences),
            unflipped(differences),
            gradients(differences),
        ];
        let same: Vec<String> = same.into_iter().flatten().collect();
        let text = format!("{name} agrees with {reference}: {}", same.join("; "));
        return vec![(Verdict::Good, text)];
    }
    let told = faults.iter().take(TOLD).map(|fault| {
        let text = format!("{name} differs from {reference} in {fault}");
        (Verdict::Bad, text)
    });
    let more = faults.len().saturating_sub(TOLD);
    let more = (more > 0).then(|| {
        let text = format!(
            "{name} exceeds the tolerance in {} more places, of which what comes later may follow from what comes first",
            grouped(more as u64)
        );
        (Verdict::Bad, text)
    });
    told.chain(more).collect()
}

fn numbers(differences: &Differences) -> Option<String> {
    let worst = differences
        .worst_part()
        .map_or(0.0, |part| part.difference.relative);
    let scores = differences.logits.untouched.relative;
    Some(match scores.max(worst) {
        0.0 => "not a bit differs".to_owned(),
        _ => format!(
            "the scores of the next token differ by {}, and no part by itself by more than {}",
            magnitude(scores),
            magnitude(worst)
        ),
    })
}

fn best_token(differences: &Differences) -> Option<String> {
    let greedy = &differences.greedy;
    Some(match greedy.differing {
        0 => "the likeliest next token is always the same".to_owned(),
        differing => format!(
            "the likeliest next token differs for {} of {}, where it led by {} at most",
            grouped(differing as u64),
            grouped(greedy.tokens as u64),
            magnitude(greedy.largest_lead)
        ),
    })
}

fn unflipped(differences: &Differences) -> Option<String> {
    match differences.flips() {
        (0, choices) if choices > 0 => Some(format!(
            "none of {} choices of experts flipped",
            grouped(choices as u64)
        )),
        _ => None,
    }
}

fn gradients(differences: &Differences) -> Option<String> {
    let worst = differences.worst_gradient()?;
    Some(format!(
        "gradients differ by {} at most",
        magnitude(worst.difference.relative)
    ))
}

/// What a user should think of tokens that went to other experts.
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
    let (verdict, meaning) = match gap <= differences.tolerances.gap {
        true => (
            Verdict::Notable,
            "those were too close to call, which is rounding and no fault",
        ),
        false => (Verdict::Bad, "no rounding explains that"),
    };
    let text = format!(
        "{name}: {} of {} choices of experts flipped. {} of them follow from none before, across a gap of {} in \
         probability at most: {meaning}. The others follow from those",
        grouped(flipped as u64),
        grouped(choices as u64),
        grouped(first as u64),
        magnitude(gap)
    );
    Some((verdict, text))
}
