//! Router health, in numbers and in words.

use serde::{Deserialize, Serialize};

use super::Routing;
use burn::tensor::Tensor;
use firebox_kernels::sum_of_rows;

/// The state of one layer's router over some tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerHealth {
    /// Number of the layer, from 0; dense layers count too.
    pub layer: usize,
    /// Share of the assignments that each expert got; they sum to 1.
    pub load: Vec<f64>,
    /// Largest load over the mean load: 1 when even, E when one expert gets everything.
    pub max_over_mean: f64,
    /// Experts that got less than a twentieth of the mean load.
    pub dead_experts: usize,
    /// Mean entropy of a token's probabilities, in nats; ln E when undecided.
    pub entropy: f64,
    /// Load-balancing loss (per layer, balanced at 1).
    pub balance: f64,
    /// Router z-loss.
    pub z: f64,
}

/// Below this share of the mean load an expert counts as dead.
const DEAD_BELOW: f64 = 0.05;

/// Sums over tokens from which [`LayerHealth`] is made; filled micro-batch by micro-batch, so that the
/// health of a batch does not depend on how it was cut.
#[derive(Debug, Clone, Default)]
pub struct HealthSums {
    tokens: u64,
    layers: Vec<LayerSums>,
}

#[derive(Debug, Clone, Default)]
struct LayerSums {
    layer: usize,
    load: Vec<u64>,
    probabilities: Vec<f64>,
    entropy: f64,
    z: f64,
}

impl HealthSums {
    /// This micro-batch's part of the sums, as one tensor to be read back together: of every layer the
    /// load and the probabilities by expert, the entropy and the z-loss, `[layers · (2 · experts + 2)]`.
    /// `None` for a model without routers.
    ///
    /// # Shapes
    ///
    /// - `valid`: `[tokens]`, 1 for a token and 0 for padding; `None` when all are tokens
    pub fn terms(routing: &[Routing], valid: Option<&Tensor<1>>) -> Option<Tensor<1>> {
        let terms = routing.iter().flat_map(|layer| {
            let (logits, probabilities) = (
                layer.logits.clone().inner(),
                layer.probabilities.clone().inner(),
            );
            let largest = logits.clone().max_dim(1);
            let logsumexp = (logits.clone() - largest.clone()).exp().sum_dim(1).log() + largest;
            // −Σ p ln p, with ln p = logit − logsumexp, which stays finite as p → 0.
            let entropy = logsumexp.clone() - (probabilities.clone() * logits).sum_dim(1);
            let by_token = Tensor::cat(vec![probabilities, entropy, logsumexp.square()], 1);
            let by_token = match valid {
                Some(valid) => by_token * valid.clone().inner().unsqueeze_dim(1),
                None => by_token,
            };
            [layer.plan.load(valid), sum_of_rows(by_token)]
        });
        let terms: Vec<Tensor<1>> = terms.collect();
        (!terms.is_empty()).then(|| Tensor::cat(terms, 0))
    }

    /// Adds a micro-batch: the numbers of its routers' layers, how many of its tokens count, and the values of
    /// its [`terms`](Self::terms).
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
            let (load, probabilities) = by_expert.split_at(by_expert.len() / 2);
            sums.load.resize(load.len(), 0);
            let pairs = sums.load.iter_mut().zip(load);
            pairs.for_each(|(sum, &count)| *sum += count as u64);
            sums.probabilities.resize(probabilities.len(), 0.0);
            let pairs = sums.probabilities.iter_mut().zip(probabilities);
            pairs.for_each(|(sum, &value)| *sum += f64::from(value));
            sums.entropy += f64::from(rest[0]);
            sums.z += f64::from(rest[1]);
        }
    }

    /// Assignments of valid tokens to each expert so far, layer by layer.
    pub fn load(&self) -> impl Iterator<Item = &[u64]> {
        self.layers.iter().map(|layer| layer.load.as_slice())
    }

    /// The health of every layer over all that was added.
    pub fn health(&self) -> Vec<LayerHealth> {
        let tokens = self.tokens.max(1) as f64;
        self.layers
            .iter()
            .map(|sums| {
                let experts = sums.load.len() as f64;
                let total = sums.load.iter().sum::<u64>().max(1) as f64;
                let load: Vec<f64> = sums
                    .load
                    .iter()
                    .map(|&count| count as f64 / total)
                    .collect();
                let shares = load.iter().zip(&sums.probabilities);
                LayerHealth {
                    layer: sums.layer,
                    max_over_mean: load.iter().copied().fold(0.0, f64::max) * experts,
                    dead_experts: load
                        .iter()
                        .filter(|&&share| share * experts < DEAD_BELOW)
                        .count(),
                    entropy: sums.entropy / tokens,
                    balance: experts * shares.map(|(share, sum)| share * sum / tokens).sum::<f64>(),
                    z: sums.z / tokens,
                    load,
                }
            })
            .collect()
    }
}

/// A warning in words when experts collapse: when some are dead, or one gets more than three times its
/// share (of few experts: more than half of the way to getting everything).
pub fn warning(health: &[LayerHealth]) -> Option<String> {
    let sick: Vec<String> = health
        .iter()
        .filter_map(|health| {
            let experts = health.load.len();
            let overloaded = experts > 1 && health.max_over_mean > 3.0_f64.min(0.5 * experts as f64 + 0.5);
            (health.dead_experts > 0 || overloaded).then(|| {
                format!(
                    "layer {}: {} of {experts} experts get less than 5 % of their share, the busiest {:.1} times its share",
                    health.layer, health.dead_experts, health.max_over_mean
                )
            })
        })
        .collect();
    (!sick.is_empty()).then(|| format!("experts are collapsing; {}", sick.join("; ")))
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
        let tokens = 70_000;
        let logits = wave([tokens, 2], 0.1, &device);
        let probabilities = softmax(logits.clone(), 1);
        let plan = DispatchPlan::choose(&probabilities, &[], 1);
        let flags: Vec<f32> = (0..tokens).map(|token| f32::from(token % 5 != 0)).collect();
        let valid = Tensor::from_floats(flags.as_slice(), &device);
        let routing = Routing {
            layer: 0,
            logits: logits.clone(),
            probabilities,
            plan,
        };
        let found = values(HealthSums::terms(&[routing], Some(&valid)).unwrap());

        // Loads, probabilities, entropy and z.
        let mut expected = [0.0f64; 6];
        for (token, flag) in values(logits).chunks(2).zip(flags) {
            let logits = [0, 1].map(|expert| f64::from(token[expert]));
            let logsumexp = logits.map(f64::exp).iter().sum::<f64>().ln();
            let [p, q] = logits.map(|logit| (logit - logsumexp).exp());
            let second = f64::from(logits[1] > logits[0]);
            let entropy = -p * p.ln() - q * q.ln();
            let terms = [1.0 - second, second, p, q, entropy, logsumexp.powi(2)];
            let pairs = expected.iter_mut().zip(terms);
            pairs.for_each(|(sum, term)| *sum += f64::from(flag) * term);
        }
        assert_eq!(found[..2], expected.map(|sum| sum as f32)[..2]);
        for (&found, expected) in found[2..].iter().zip(&expected[2..]) {
            let error = (f64::from(found) / expected - 1.0).abs();
            assert!(error < 1e-6, "{found} for {expected}");
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
    fn even_load_is_healthy() {
        let health = health(&[5, 5, 5, 5]);
        assert_eq!(
            (
                health[0].max_over_mean,
                health[0].dead_experts,
                health[0].balance
            ),
            (1.0, 0, 1.0)
        );
        assert_eq!(warning(&health), None);
    }

    #[test]
    fn a_dead_expert_is_named() {
        let health = health(&[50, 48, 1, 60]);
        assert_eq!(health[0].dead_experts, 1);
        assert!(
            warning(&health)
                .unwrap()
                .contains("layer 0: 1 of 4 experts")
        );
    }

    #[test]
    fn an_expert_that_takes_all_is_named() {
        let health = health(&[10, 10, 10, 10, 10, 10, 10, 100]);
        assert_eq!(health[0].dead_experts, 0);
        assert!(warning(&health).unwrap().contains("4.7 times its share"));
    }
}
