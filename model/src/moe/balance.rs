//! Load balancing: auxiliary losses and the bias update, as pure functions.
//!
//! A batch may be split into micro-batches. Each loss here is the micro-batch's contribution to the loss of the whole
//! batch: contributions and their gradients add up to those of the whole batch, for every split. The fractions of
//! tokens per expert, which carry no gradient, are therefore those of the whole batch and are passed in.

use burn::tensor::Tensor;

use super::Routing;
use firebox_kernels::sum_in_blocks;

/// The tokens per expert of the whole batch, on the device.
#[derive(Debug, Clone, Default)]
pub struct TokensPerExpert {
    /// Number of valid tokens per expert, one `[experts]` per layer, without gradients. Exact up to 2²⁴ tokens per
    /// expert; the described GPT-4 has half of that.
    pub counts: Vec<Tensor<1>>,
    /// Valid tokens (T).
    pub tokens: u64,
}

impl TokensPerExpert {
    /// Adds a micro-batch of `tokens` valid tokens.
    ///
    /// # Shapes
    ///
    /// - `valid`: `[tokens]`, 1 for a token and 0 for padding; `None` without padding
    pub fn add(&mut self, routing: &[Routing], valid: Option<&Tensor<1>>, tokens: u64) {
        self.tokens += tokens;
        let mut before = std::mem::take(&mut self.counts).into_iter();
        let counts = routing.iter().map(|layer| {
            let new = layer.plan.load(valid);
            match before.next() {
                Some(counts) => counts + new,
                None => new,
            }
        });
        self.counts = counts.collect();
    }
}

/// Load-balancing loss of each layer: `E · Σ_e (count_e / (T·k)) · mean_t p_e(t)`, 1 when balanced, for
/// every k (Switch Transformer, arXiv 2101.03961, eq. 4, divided by k for top-k).
///
/// # Shapes
///
/// - `valid`: `[tokens]`, 1 for a token and 0 for padding; `None` without padding
/// - output: one `[1]` per layer
pub fn per_layer(
    routing: &[Routing],
    valid: Option<&Tensor<1>>,
    batch: &TokensPerExpert,
) -> Vec<Tensor<1>> {
    let tokens = batch.tokens as f64;
    let layers = routing.iter().zip(&batch.counts);
    layers
        .map(|(layer, counts)| {
            let (experts, top_k) = (layer.plan.experts(), layer.plan.top_k());
            let scale = experts as f64 / (tokens * top_k as f64 * tokens);
            weighted_probabilities(layer, valid, counts.clone().mul_scalar(scale))
        })
        .collect()
}

/// Hugging Face's `load_balancing_loss_func`: `E · Σ_e f_e · p_e` with f and p means over the tokens of
/// all layers, f not divided by k: k when balanced.
///
/// # Shapes
///
/// - `valid`: as for [`per_layer`]
/// - output: `[1]`; `None` for a dense model
pub fn pooled(
    routing: &[Routing],
    valid: Option<&Tensor<1>>,
    batch: &TokensPerExpert,
) -> Option<Tensor<1>> {
    let experts = routing.first()?.plan.experts();
    let rows = batch.tokens as f64 * routing.len() as f64;
    let counts = batch.counts.iter().cloned();
    let counts = counts.reduce(|sum, layer| sum + layer)?;
    let factors = counts.mul_scalar(experts as f64 / (rows * rows));
    let layers = routing
        .iter()
        .map(|layer| weighted_probabilities(layer, valid, factors.clone()));
    layers.reduce(|sum, layer| sum + layer)
}

/// Router z-loss of each layer: the mean over valid tokens of `logsumexp(logits)²`
/// (ST-MoE, arXiv 2202.08906, eq. 5).
///
/// # Shapes
///
/// - `valid`: as for [`per_layer`]
/// - output: one `[1]` per layer
pub fn z_loss(
    routing: &[Routing],
    valid: Option<&Tensor<1>>,
    batch: &TokensPerExpert,
) -> Vec<Tensor<1>> {
    let layers = routing.iter();
    layers
        .map(|layer| {
            let largest = layer.logits.clone().detach().max_dim(1);
            let sum = (layer.logits.clone() - largest.clone()).exp().sum_dim(1);
            let squares = (sum.log() + largest).square().squeeze_dim::<1>(1);
            sum_in_blocks(masked(squares, valid)).div_scalar(batch.tokens as f64)
        })
        .collect()
}

/// One step of bias balancing (DeepSeek, arXiv 2408.15664): `b_e += u · sign(mean count − count_e)`,
/// then recentred to a mean of zero, which changes no selection and keeps the values small.
pub fn update_bias(bias: &mut Vec<f32>, counts: &[u64], rate: f64) {
    bias.resize(counts.len(), 0.0);
    let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    for (bias, &count) in bias.iter_mut().zip(counts) {
        let difference = mean - count as f64;
        if difference != 0.0 {
            *bias += (rate * difference.signum()) as f32;
        }
    }
    let centre = bias.iter().sum::<f32>() / bias.len() as f32;
    bias.iter_mut().for_each(|bias| *bias -= centre);
}

/// `Σ_t valid_t Σ_e factor_e · p_e(t)`
fn weighted_probabilities(
    layer: &Routing,
    valid: Option<&Tensor<1>>,
    factors: Tensor<1>,
) -> Tensor<1> {
    let by_token = layer
        .probabilities
        .clone()
        .matmul(factors.unsqueeze_dim(1))
        .squeeze_dim::<1>(1);
    sum_in_blocks(masked(by_token, valid))
}

fn masked(by_token: Tensor<1>, valid: Option<&Tensor<1>>) -> Tensor<1> {
    match valid {
        Some(valid) => by_token * valid.clone(),
        None => by_token,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::activation::softmax;
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::config::Scores;
    use firebox_kernels::dispatch::DispatchPlan;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values, wave};

    on_every_device!(
        a_mixture_whose_router_is_indifferent_is_balanced_at_one_for_every_k,
        padding_is_no_load,
        losses_of_many_tokens_and_their_gradients,
    );

    fn a_mixture_whose_router_is_indifferent_is_balanced_at_one_for_every_k(device: Device) {
        for top_k in 1..=4 {
            // Token t chooses experts t, t + 1 …: an even load with even probabilities.
            let chosen: Vec<u32> = (0..8u32)
                .flat_map(|t| (0..top_k as u32).map(move |choice| (t + choice) % 4))
                .collect();
            let routing = [Routing {
                layer: 0,
                scores: Scores::Softmax,
                logits: Tensor::zeros([8, 4], &device),
                probabilities: Tensor::full([8, 4], 0.25, &device),
                plan: DispatchPlan::new(&chosen, 4, top_k, &device),
            }];
            let mut load = TokensPerExpert::default();
            load.add(&routing, None, 8);
            let balance = values(per_layer(&routing, None, &load).remove(0))[0];
            assert!((balance - 1.0).abs() < 1e-6, "k = {top_k}: {balance}");
            let balance = values(pooled(&routing, None, &load).unwrap())[0];
            assert!(
                (balance - top_k as f32).abs() < 1e-5,
                "pooled, k = {top_k}: {balance}"
            );
        }
    }

    fn padding_is_no_load(device: Device) {
        // Both tokens that count go to expert 0, with probabilities of 3/4 and 1/4; padding goes to expert 1.
        let logits = Tensor::from_floats([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]], &device);
        let probabilities = [[0.75, 0.25], [0.0, 1.0], [0.25, 0.75]];
        let routing = [Routing {
            layer: 0,
            scores: Scores::Softmax,
            logits,
            probabilities: Tensor::from_floats(probabilities, &device),
            plan: DispatchPlan::new(&[0, 1, 0], 2, 1, &device),
        }];
        let valid = Tensor::from_floats([1.0, 0.0, 1.0], &device);
        let mut load = TokensPerExpert::default();
        load.add(&routing, Some(&valid), 2);
        assert_eq!(load.tokens, 2);
        assert_eq!(values(load.counts[0].clone()), [2.0, 0.0]);
        // 2 · (1 · (3/4 + 1/4) / 2)
        let balance = values(per_layer(&routing, Some(&valid), &load).remove(0));
        assert_close("balance", &balance, &[1.0], 1e-6).unwrap();
        let z = values(z_loss(&routing, Some(&valid), &load).remove(0));
        assert_close("z", &z, &[2f32.ln().powi(2)], 1e-6).unwrap();
    }

    fn losses_of_many_tokens_and_their_gradients(device: Device) {
        let device = device.autodiff();
        let tokens = 70_000;
        let logits = wave([tokens, 2], 0.1, &device).require_grad();
        let probabilities = softmax(logits.clone(), 1);
        let plan = DispatchPlan::choose(&probabilities, &[], 1);
        let routing = [Routing {
            layer: 0,
            scores: Scores::Softmax,
            logits: logits.clone(),
            probabilities,
            plan,
        }];
        let counts = [0.75, 0.25].map(|share| share * tokens as f32);
        let counts = Tensor::from_data(TensorData::from(counts), &device);
        let batch = TokensPerExpert {
            counts: vec![counts],
            tokens: tokens as u64,
        };
        let balance = per_layer(&routing, None, &batch).remove(0);
        let z = z_loss(&routing, None, &batch).remove(0);
        let loss = balance.clone() + z.clone();
        let gradient = values(logits.grad(&loss.backward()).unwrap());

        let (mut sums, mut gradients) = ([0.0; 2], Vec::with_capacity(2 * tokens));
        for token in values(logits).chunks(2) {
            let logits = [0, 1].map(|expert| f64::from(token[expert]));
            let logsumexp = logits.map(f64::exp).iter().sum::<f64>().ln();
            let [p, q] = logits.map(|logit| (logit - logsumexp).exp());
            let by_load = 2.0 * (0.75 * p + 0.25 * q);
            sums[0] += by_load;
            sums[1] += logsumexp.powi(2);
            for (p, share) in [(p, 0.75), (q, 0.25)] {
                let gradient = p * (2.0 * share - by_load) + 2.0 * logsumexp * p;
                gradients.push((gradient / tokens as f64) as f32);
            }
        }
        let sums = sums.map(|sum| (sum / tokens as f64) as f32);
        let losses = [balance, z].map(|loss| values(loss)[0]);
        assert_close("losses", &losses, &sums, 1e-6).unwrap();
        assert_close("d(logits)", &gradient, &gradients, 1e-6).unwrap();
    }

    #[test]
    fn the_bias_moves_towards_underused_experts_and_stays_centred() {
        let mut bias = Vec::new();
        update_bias(&mut bias, &[10, 2, 0, 0], 0.001);
        assert!(bias[0] < bias[1] && bias[1] < 0.0015 && bias[2] == bias[3] && bias[3] > bias[0]);
        assert!(bias.iter().sum::<f32>().abs() < 1e-7);
        let before = bias.clone();
        update_bias(&mut bias, &[3, 3, 3, 3], 0.001);
        assert!(
            bias.iter()
                .zip(&before)
                .all(|(after, before)| (after - before).abs() < 1e-9)
        );
    }
}
