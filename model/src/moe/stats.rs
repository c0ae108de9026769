//! Router health: statistics and warnings.

use serde::{Deserialize, Serialize};

use super::Routing;
use super::router::log_scores;
use crate::config::Scores;
use burn::tensor::Tensor;
use firebox_kernels::sum_of_rows;

/// Statistics of one layer's router over some tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerHealth {
    /// Index of the layer, from 0; dense layers count too.
    pub layer: usize,
    /// Fraction of the assignments that each expert receives; the fractions sum to 1.
    pub load: Vec<f64>,
    /// Most tokens per expert divided by the mean: 1 when even, E when one expert receives everything.
    pub max_over_mean: f64,
    /// Number of experts that receive less than a twentieth of the mean.
    pub dead_experts: usize,
    /// Mean entropy of a token's router probabilities, in nats; ln E when uniform.
    pub entropy: f64,
    /// Load-balancing loss (per layer, balanced at 1).
    pub balance: f64,
    /// Router z-loss.
    pub z: f64,
}

/// An expert that receives less than this fraction of the mean counts as dead.
const DEAD_BELOW: f64 = 0.05;

/// Sums over tokens, from which [`LayerHealth`] is computed; accumulated over micro-batches, so that the health of a
/// batch does not depend on its split into micro-batches.
#[derive(Debug, Clone, Default)]
pub struct HealthSums {
    tokens: u64,
    layers: Vec<LayerSums>,
}

#[derive(Debug, Clone, Default)]
struct LayerSums {
    layer: usize,
    tokens_per_expert: Vec<u64>,
    probabilities: Vec<f64>,
    entropy: f64,
    z: f64,
}

impl HealthSums {
    /// This micro-batch's contribution to the sums, as one tensor, so that it is read back at once: for every layer the
    /// tokens and probabilities per expert, the entropy and the z-loss, `[layers · (2 · experts + 2)]`. `None` for a
    /// dense model.
    ///
    /// # Shapes
    ///
    /// - `valid`: `[tokens]`, 1 for a token and 0 for padding; `None` without padding
    pub fn terms(routing: &[Routing], valid: Option<&Tensor<1>>) -> Option<Tensor<1>> {
        let terms = routing.iter().flat_map(|layer| {
            let (logits, probabilities) = (
                layer.logits.clone().inner(),
                layer.probabilities.clone().inner(),
            );
            let logsumexp = |values: &Tensor<2>| {
                let largest = values.clone().max_dim(1);
                (values.clone() - largest.clone()).exp().sum_dim(1).log() + largest
            };
            let of_logits = logsumexp(&logits);
            let (log_scores, of_scores) = match layer.scores {
                Scores::Softmax => (logits, of_logits.clone()),
                Scores::Sigmoid => {
                    let log_scores = log_scores(Scores::Sigmoid, logits);
                    let sum = logsumexp(&log_scores);
                    (log_scores, sum)
                }
            };
            // −Σ p ln p, with ln p = ln score − ln Σ score, which stays finite as p → 0.
            let entropy = of_scores - (probabilities.clone() * log_scores).sum_dim(1);
            let by_token = Tensor::cat(vec![probabilities, entropy, of_logits.square()], 1);
            let by_token = match valid {
                Some(valid) => by_token * valid.clone().inner().unsqueeze_dim(1),
                None => by_token,
            };
            [layer.plan.load(valid), sum_of_rows(by_token)]
        });
        let terms: Vec<Tensor<1>> = terms.collect();
        (!terms.is_empty()).then(|| Tensor::cat(terms, 0))
    }

    /// Adds a micro-batch: the indices of its MoE layers, its number of valid tokens, and the values of its
    /// [`terms`](Self::terms).
    pub fn add(&mut self, layers: &[usize], tokens: u64, terms: &[f32]) {
        self.tokens += tokens;
        if layers.is_empty() {
            return; // a dense model
        }
        self.layers.resize_with(layers.len(), LayerSums::default);
        let terms = terms.chunks(terms.len() / layers.len());
        for ((sums, &layer), terms) in self.layers.iter_mut().zip(layers).zip(terms) {
            sums.layer = layer;
            let (by_expert, rest) = terms.split_at(terms.len() - 2);
            let (tokens_per_expert, probabilities) = by_expert.split_at(by_expert.len() / 2);
            sums.tokens_per_expert.resize(tokens_per_expert.len(), 0);
            let pairs = sums.tokens_per_expert.iter_mut().zip(tokens_per_expert);
            pairs.for_each(|(sum, &count)| *sum += count as u64);
            sums.probabilities.resize(probabilities.len(), 0.0);
            let pairs = sums.probabilities.iter_mut().zip(probabilities);
            pairs.for_each(|(sum, &value)| *sum += f64::from(value));
            sums.entropy += f64::from(rest[0]);
            sums.z += f64::from(rest[1]);
        }
    }

    /// Number of valid tokens per expert so far, layer by layer.
    pub fn tokens_per_expert(&self) -> impl Iterator<Item = &[u64]> {
        self.layers
            .iter()
            .map(|layer| layer.tokens_per_expert.as_slice())
    }

    /// The health of every layer over everything that was added.
    pub fn health(&self) -> Vec<LayerHealth> {
        let tokens = self.tokens.max(1) as f64;
        self.layers
            .iter()
            .map(|sums| {
                let experts = sums.tokens_per_expert.len() as f64;
                let total = sums.tokens_per_expert.iter().sum::<u64>().max(1) as f64;
                let load: Vec<f64> = sums
                    .tokens_per_expert
                    .iter()
                    .map(|&count| count as f64 / total)
                    .collect();
                let pairs = load.iter().zip(&sums.probabilities);
                LayerHealth {
                    layer: sums.layer,
                    max_over_mean: load.iter().copied().fold(0.0, f64::max) * experts,
                    dead_experts: load
                        .iter()
                        .filter(|&&share| share * experts < DEAD_BELOW)
                        .count(),
                    entropy: sums.entropy / tokens,
                    balance: experts * pairs.map(|(share, sum)| share * sum / tokens).sum::<f64>(),
                    z: sums.z / tokens,
                    load,
                }
            })
            .collect()
    }
}

/// A warning if experts collapse: if some are dead, or one receives more than three times the mean (for fewer than
/// five experts, more than halfway between the mean and everything). None for so few `assignments` of tokens to experts per
/// layer that a dead expert may be chance: below 20 per expert, of which one is a twentieth. Of many layers it describes the
/// worst.
pub fn warning(health: &[LayerHealth], assignments: u64) -> Option<String> {
    let is_sick = |health: &&LayerHealth| {
        let experts = health.load.len();
        let most = 3.0_f64.min(0.5 * experts as f64 + 0.5);
        let overloaded = experts > 1 && health.max_over_mean > most;
        let judged = DEAD_BELOW * assignments as f64 >= experts as f64;
        judged && (health.dead_experts > 0 || overloaded)
    };
    let mut sick: Vec<&LayerHealth> = health.iter().filter(is_sick).collect();
    let what = match sick.iter().any(|health| health.dead_experts > 0) {
        true => "experts are collapsing",
        false => "experts are unevenly used",
    };
    let count = sick.len();
    let which = match count {
        0 => return None,
        1..=MOST_NAMED => String::new(),
        _ => format!(
            " in {count} of {} layers, of which these are the worst",
            health.len()
        ),
    };
    if count > MOST_NAMED {
        sick.sort_by(|a, b| {
            let dead = b.dead_experts.cmp(&a.dead_experts);
            dead.then(b.max_over_mean.total_cmp(&a.max_over_mean))
        });
        sick.truncate(MOST_NAMED);
    }
    let layers: Vec<String> = sick.into_iter().map(described).collect();
    Some(format!("{what}{which}; {}", layers.join("; ")))
}

/// The most layers that a warning describes.
const MOST_NAMED: usize = 4;

fn described(health: &LayerHealth) -> String {
    let LayerHealth {
        layer,
        dead_experts: dead,
        ..
    } = health;
    let experts = health.load.len();
    let busiest = format!(
        "the busiest receives {:.1} times the mean",
        health.max_over_mean
    );
    match dead {
        0 => format!("layer {layer}: {busiest}"),
        _ => format!(
            "layer {layer}: {dead} of {experts} experts receive less than 5 % of the mean tokens per expert, {busiest}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use burn::tensor::activation::softmax;

    use super::*;
    use firebox_kernels::dispatch::DispatchPlan;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{values, wave};

    on_every_device!(terms_of_many_tokens);

    fn terms_of_many_tokens(device: Device) {
        for scores in [Scores::Softmax, Scores::Sigmoid] {
            check_terms(scores, &device);
        }
    }

    fn check_terms(scores: Scores, device: &Device) {
        let tokens = 70_000;
        let logits = wave([tokens, 2], 0.1, device);
        let probabilities = softmax(log_scores(scores, logits.clone()), 1);
        let plan = DispatchPlan::choose(&probabilities, &[], 1);
        let flags: Vec<f32> = (0..tokens).map(|token| f32::from(token % 5 != 0)).collect();
        let valid = Tensor::from_floats(flags.as_slice(), device);
        let routing = Routing {
            layer: 0,
            scores,
            logits: logits.clone(),
            probabilities,
            plan,
        };
        let found = values(HealthSums::terms(&[routing], Some(&valid)).unwrap());

        // Tokens per expert, probabilities, entropy and z-loss.
        let mut expected = [0.0f64; 6];
        for (token, flag) in values(logits).chunks(2).zip(flags) {
            let logits = [0, 1].map(|expert| f64::from(token[expert]));
            let logsumexp = logits.map(f64::exp).iter().sum::<f64>().ln();
            let shares = logits.map(|logit| match scores {
                Scores::Softmax => logit.exp(),
                Scores::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
            });
            let [p, q] = shares.map(|share| share / (shares[0] + shares[1]));
            let second = f64::from(logits[1] > logits[0]);
            let entropy = -p * p.ln() - q * q.ln();
            let terms = [1.0 - second, second, p, q, entropy, logsumexp.powi(2)];
            let pairs = expected.iter_mut().zip(terms);
            pairs.for_each(|(sum, term)| *sum += f64::from(flag) * term);
        }
        assert_eq!(found[..2], expected.map(|sum| sum as f32)[..2]);
        for (&found, expected) in found[2..].iter().zip(&expected[2..]) {
            let error = (f64::from(found) / expected - 1.0).abs();
            assert!(error < 1e-6, "{found}, expected {expected}");
        }
    }

    fn health(counts: &[u64]) -> Vec<LayerHealth> {
        let mut sums = HealthSums::default();
        let by_expert = counts.iter().map(|&count| count as f32);
        let terms = by_expert.clone().chain(by_expert).chain([0.0, 0.0]);
        sums.add(&[0], counts.iter().sum(), &terms.collect::<Vec<f32>>());
        sums.health()
    }

    #[test]
    fn an_even_distribution_is_healthy() {
        let health = health(&[5, 5, 5, 5]);
        assert_eq!(
            (
                health[0].max_over_mean,
                health[0].dead_experts,
                health[0].balance
            ),
            (1.0, 0, 1.0)
        );
        assert_eq!(warning(&health, 1000), None);
    }

    #[test]
    fn a_few_tokens_prove_nothing() {
        let health = health(&[2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(warning(&health, 159), None);
        assert!(warning(&health, 160).is_some());
    }

    #[test]
    fn a_dead_expert_is_reported() {
        let health = health(&[50, 48, 1, 60]);
        assert_eq!(health[0].dead_experts, 1);
        assert!(
            warning(&health, 1000)
                .unwrap()
                .contains("layer 0: 1 of 4 experts")
        );
    }

    #[test]
    fn the_worst_of_many_layers_are_reported() {
        let layers = (0..9).map(|layer| LayerHealth {
            layer,
            ..health(&[10 + layer as u64, 10, 10, 10, 10, 10, 10, 100]).remove(0)
        });
        let mut layers: Vec<LayerHealth> = layers.collect();
        layers[7].dead_experts = 1;
        let warning = warning(&layers, 1000).unwrap();
        let expected = "experts are collapsing in 9 of 9 layers, of which these are the worst; layer 7: 1 of 8 experts";
        assert!(warning.starts_with(expected), "{warning}");
        assert_eq!(warning.matches("layer ").count(), 4, "{warning}");
        assert!(
            warning.contains("; layer 0: the busiest receives 4.7 times"),
            "{warning}"
        );
    }

    #[test]
    fn an_overloaded_expert_is_reported() {
        let health = health(&[10, 10, 10, 10, 10, 10, 10, 100]);
        assert_eq!(health[0].dead_experts, 0);
        assert!(
            warning(&health, 1000)
                .unwrap()
                .contains("4.7 times the mean")
        );
    }
}
