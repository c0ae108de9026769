//! Probabilities worked out plainly, and a test of draws against them.

use super::Sampling;

/// The probabilities that tokens are to be drawn with.
pub fn processed(
    logits: &[f32],
    sampling: &Sampling,
    prompt: &[u32],
    generated: &[u32],
) -> Vec<f64> {
    let mut logits: Vec<f64> = logits.iter().map(|&logit| logit.into()).collect();
    for (id, logit) in logits.iter_mut().enumerate() {
        let among = |text: &[u32]| text.iter().filter(|&&other| other as usize == id).count();
        let (before, count) = (among(prompt), among(generated));
        if before + count > 0 {
            *logit *= match *logit > 0.0 {
                true => 1.0 / sampling.repetition_penalty,
                false => sampling.repetition_penalty,
            };
        }
        if count > 0 {
            *logit -= sampling.presence_penalty + sampling.frequency_penalty * count as f64;
        }
        *logit /= sampling.temperature;
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let softmax = |kept: &[usize]| {
        let mut probabilities = vec![0.0; logits.len()];
        let total: f64 = kept.iter().map(|&id| logits[id].exp()).sum();
        for &id in kept {
            probabilities[id] = logits[id].exp() / total;
        }
        probabilities
    };
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let probabilities = softmax(&order);
    let mut before = 0.0;
    order.retain(|&id| {
        let kept = before < sampling.top_p;
        before += probabilities[id];
        kept
    });
    let probabilities = softmax(&order);
    let least = sampling.min_p * probabilities[order[0]];
    order.retain(|&id| probabilities[id] >= least);
    softmax(&order)
}

/// By how many standard deviations the chi-square statistic of these counts exceeds what is expected of draws with these
/// probabilities (Wilson and Hilferty 1931): beyond 4 three times in 100,000. Infinite if something was drawn that has
/// none.
pub fn deviate(counts: &[u64], probabilities: &[f64]) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let (mut chi_square, mut bins) = (0.0, 0.0);
    // Bins in which little is expected count together.
    let mut rare = (0.0, 0.0);
    let mut add = |count: f64, expected: f64| {
        chi_square += (count - expected).powi(2) / expected;
        bins += 1.0;
    };
    for (&count, &probability) in counts.iter().zip(probabilities) {
        let (count, expected) = (count as f64, probability * total);
        if expected >= 10.0 {
            add(count, expected);
        } else if probability > 0.0 {
            rare = (rare.0 + count, rare.1 + expected);
        } else if count > 0.0 {
            return f64::INFINITY;
        }
    }
    if rare.1 > 0.0 {
        add(rare.0, rare.1);
    }
    if bins < 2.0 {
        return 0.0;
    }
    let variance = 2.0 / (9.0 * (bins - 1.0));
    ((chi_square / (bins - 1.0)).cbrt() - (1.0 - variance)) / variance.sqrt()
}
