//! A comparison in sentences: what a reader wants to know first.

use firebox_model::report::{Verdict, grouped, magnitude};

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
                sentences.extend(gradients(&row.name, differences));
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

/// Whether a device does the same, or where it does not.
fn agreement(name: &str, reference: &str, differences: &Differences) -> Vec<(Verdict, String)> {
    let Differences {
        logits,
        greedy,
        faults,
        ..
    } = differences;
    if faults.is_empty() {
        let worst = differences
            .worst_part()
            .map_or(0.0, |part| part.difference.relative);
        let mut text = match logits.all.relative.max(worst) {
            0.0 => format!("{name} gives the very numbers of {reference}"),
            _ => format!(
                "{name} agrees with {reference}: the scores of the next token differ by {}, and no part by itself by more than {}",
                magnitude(logits.all.relative),
                magnitude(worst)
            ),
        };
        text += &match greedy.differing {
            0 => "; the likeliest next token is always the same".to_owned(),
            differing => format!(
                "; the likeliest next token differs for {} of {} tokens, where it led by {} at most",
                grouped(differing as u64),
                grouped(greedy.tokens as u64),
                magnitude(greedy.largest_lead)
            ),
        };
        return vec![(Verdict::Good, text)];
    }
    let told = faults.iter().take(TOLD).map(|fault| {
        (
            Verdict::Bad,
            format!("{name} differs from {reference} in {fault}"),
        )
    });
    let more = faults.len().saturating_sub(TOLD);
    let more = (more > 0).then(|| {
        let text = format!("{name} exceeds the tolerance in {} more places, of which what comes later may follow from what comes first", grouped(more as u64));
        (Verdict::Bad, text)
    });
    told.chain(more).collect()
}

/// What a user should think of tokens that went to other experts.
fn flips(name: &str, differences: &Differences) -> Option<(Verdict, String)> {
    let (flipped, choices) = differences.flips();
    if choices == 0 {
        return None;
    }
    let choices = grouped(choices as u64);
    if flipped == 0 {
        return Some((
            Verdict::Good,
            format!("{name}: no token went to other experts in {choices} choices"),
        ));
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
            "too close to call, so this is rounding and no fault",
        ),
        false => (Verdict::Bad, "which no rounding explains"),
    };
    let text = format!(
        "{name}: {} of {choices} choices went to other experts, {} of them for no earlier reason, across a gap of {} in probability at most: {meaning}",
        grouped(flipped as u64),
        grouped(first as u64),
        magnitude(gap)
    );
    Some((verdict, text))
}

fn gradients(name: &str, differences: &Differences) -> Option<(Verdict, String)> {
    let worst = differences.worst_gradient()?;
    let relative = worst.difference.relative;
    let verdict = match relative <= differences.tolerances.gradient {
        true => Verdict::Good,
        // A flip changes gradients for a good reason, which is said above.
        false if differences.flips().0 > 0 => Verdict::Notable,
        false => Verdict::Bad,
    };
    let text = format!(
        "{name}: gradients differ by {} at most, that of {}",
        magnitude(relative),
        worst.name
    );
    Some((verdict, text))
}
