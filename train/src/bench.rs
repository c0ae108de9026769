//! `cargo train bench`: the training speed of a run's model on this machine, compared with its dense baseline of
//! equal FLOPs per token (iso-FLOP) and with the device's matmul peak.

mod text;
mod vary;

use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use firebox_kernels::{Bf16Unit, Precision, matrix_peak};
use firebox_model::accounting::Accounting;
use firebox_model::batch::Sequence;
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_runtime::device;
use firebox_runtime::memory;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::gradient::gradient_of;
use crate::learned::Learned;
use crate::optimizer::{Optimizer, clip_scale};
use crate::ranks::Team;
use crate::start::select_device;
pub use vary::{Row, Variation, vary};

/// Options of a benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchOptions {
    /// The device's name.
    pub device: String,
    /// Number of measured steps, after three warm-up steps.
    pub steps: usize,
    /// Whether to measure the dense baseline too.
    pub baseline: bool,
}

/// The result of a benchmark: text through `Display`, JSON through serde.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bench {
    /// The device's name.
    pub device: String,
    /// Number of threads for CPU backends.
    pub threads: usize,
    /// Precision of the products.
    pub precision: Precision,
    /// What multiplies in bf16, if that is the precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bf16_unit: Option<Bf16Unit>,
    /// The fastest of several large matrix products of this precision on this device, in FLOP/s.
    pub matmul_peak: f64,
    /// The configured model.
    pub model: Speed,
    /// The dense baseline of equal FLOPs per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense_baseline: Option<Speed>,
    /// Step time of the MoE model over that of the dense baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moe_overhead: Option<f64>,
}

/// The training speed of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// Number of parameters.
    pub parameters: u128,
    /// Number of active parameters per token.
    pub active: u128,
    /// Tokens per step.
    pub tokens_per_step: usize,
    /// Median duration of a step: forward and backward pass, clipping and optimizer.
    pub step_seconds: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// FLOP/s: three times the FLOPs of the forward pass, including the causal half of the attention scores.
    pub flops_per_second: f64,
    /// `flops_per_second` over the matmul peak (MFU, relative to the measured peak).
    pub fraction_of_matmul_peak: f64,
    /// Peak resident memory of the process up to the end of this measurement, in bytes; `None` if the
    /// operating system does not report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
}

/// Number of steps before the measurement, in which caches, allocator and clock frequency settle.
const WARM_UP: usize = 3;

/// Trains on random tokens and measures speed and memory.
///
/// # Errors
///
/// When the device cannot be used.
pub fn bench(config: &RunConfig, options: &BenchOptions) -> Result<Bench, TrainError> {
    if config.model.vision.is_some() {
        return Err(TrainError::Pictures);
    }
    let selected = select_device(&options.device, config)?;
    let first = first_batch(config);
    let model = measure(config, &config.model, first, options.steps, &selected);
    let is_moe = config.model.moe.is_some();
    let dense_baseline = (options.baseline && is_moe).then(|| {
        let baseline = config.model.dense_baseline();
        measure(config, &baseline, first, options.steps, &selected)
    });
    // Measured last, so that its matrices do not count in the models' peak memory.
    let precision = config.train.precision;
    let matmul_peak = matrix_peak(&selected, precision);
    let model = model.speed(matmul_peak);
    let dense_baseline = dense_baseline.map(|baseline| baseline.speed(matmul_peak));
    Ok(Bench {
        device: options.device.clone(),
        threads: device::threads(),
        precision,
        bf16_unit: (precision == Precision::Bf16).then(Bf16Unit::of_this_machine),
        matmul_peak,
        moe_overhead: dense_baseline
            .as_ref()
            .map(|baseline| model.step_seconds / baseline.step_seconds),
        model,
        dense_baseline,
    })
}

/// Sequences of the first step's batch.
fn first_batch(config: &RunConfig) -> u64 {
    let batches = &config.schedule.batch_tokens;
    batches.sequences_at(0, config.model.context_length)
}

/// Seconds of a training step of so many sequences: the median of a few.
///
/// # Errors
///
/// When the device cannot be used, or the model sees pictures.
pub(crate) fn step_seconds(
    config: &RunConfig,
    sequences: u64,
    device: &str,
) -> Result<f64, TrainError> {
    /// Steps that are measured.
    const STEPS: usize = 5;
    if config.model.vision.is_some() {
        return Err(TrainError::Pictures);
    }
    let selected = select_device(device, config)?;
    let measured = measure(config, &config.model, sequences, STEPS, &selected);
    Ok(measured.step_seconds)
}

/// The measured steps of one model.
struct Measured {
    accounting: Accounting,
    tokens: usize,
    step_seconds: f64,
    peak_memory: Option<u64>,
}

fn measure(
    config: &RunConfig,
    model: &ModelConfig,
    count: u64,
    steps: usize,
    device: &Device,
) -> Measured {
    let mut generator = ChaCha8Rng::seed_from_u64(config.train.seed);
    let mut trained = LanguageModel::random(model, config.train.seed, device)
        .at_precision(config.train.precision)
        .train();
    let autodiff = device.clone().autodiff();
    let muon = config.optimizer.muon;
    let mut optimizer = Optimizer::new(model, muon, Learned::Everything, &Team::default());
    let mut seconds = Vec::with_capacity(steps);
    for step in 0..WARM_UP + steps {
        let sequences: Vec<Sequence> = (0..count)
            .map(|_| random_sequence(model, &mut generator))
            .collect();
        let started = Instant::now();
        let micro_batch = config.train.micro_batch;
        let result = gradient_of(&optimizer, &trained, &sequences, micro_batch, &autodiff);
        let scale = clip_scale(result.gradient_norm, config.optimizer.clip_norm);
        let rate = config.optimizer.learning_rate;
        trained = optimizer.step(trained, result.gradients, scale, rate, &config.optimizer);
        device::finish(trained.norm.as_ref().expect("a whole model").gamma.val());
        if step >= WARM_UP {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    Measured {
        accounting: Accounting::of(model),
        tokens: count as usize * model.context_length,
        step_seconds: median(seconds),
        peak_memory: memory::peak(),
    }
}

impl Measured {
    /// The speed of the model; `matmul_peak` is in FLOP/s.
    fn speed(self, matmul_peak: f64) -> Speed {
        let operations = &self.accounting.operations;
        let flops_per_token = operations.training + 3.0 * operations.attention_scores;
        let tokens_per_second = self.tokens as f64 / self.step_seconds;
        Speed {
            parameters: self.accounting.total,
            active: self.accounting.active,
            tokens_per_step: self.tokens,
            step_seconds: self.step_seconds,
            tokens_per_second,
            flops_per_second: flops_per_token * tokens_per_second,
            fraction_of_matmul_peak: flops_per_token * tokens_per_second / matmul_peak,
            peak_memory: self.peak_memory,
        }
    }
}

fn random_sequence(model: &ModelConfig, generator: &mut ChaCha8Rng) -> Sequence {
    let mut tokens: Vec<u32> = (0..=model.context_length)
        .map(|_| generator.next_u32() % model.vocab_size as u32)
        .collect();
    let targets = tokens[1..].to_vec();
    tokens.pop();
    Sequence {
        tokens,
        targets,
        valid: model.context_length,
        positions: None,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    #[test]
    fn the_reference_model_matches_the_readme() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/reference.toml");
        let config = load(path.as_ref(), &[]).unwrap();
        let accounting = Accounting::of(&config.model);
        assert_eq!(accounting.total, 13_510_912);
        let dense = Accounting::of(&config.model.dense_baseline());
        assert_eq!(
            accounting.active - accounting.parameters.router,
            dense.active
        );
        let sequences = config.schedule.batch_tokens.sequences_at(0, 256);
        assert_eq!((sequences, config.train.micro_batch), (8, 8));
    }

    #[test]
    fn a_small_model_is_measured() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/reference.toml");
        let smaller = [
            "model.layers=1",
            "model.d_model=32",
            "model.context_length=8",
            "schedule.batch_tokens=16",
        ]
        .map(str::to_owned);
        let config = load(path.as_ref(), &smaller).unwrap();
        let options = BenchOptions {
            device: device::default_name().to_owned(),
            steps: 2,
            baseline: true,
        };
        let started = Instant::now();
        let bench = bench(&config, &options).unwrap();
        let elapsed = started.elapsed().as_secs_f64();
        let twin = bench.dense_baseline.as_ref().unwrap();
        let models = [&config.model, &config.model.dense_baseline()];
        for (speed, model) in [&bench.model, twin].into_iter().zip(models) {
            assert!(
                speed.step_seconds > 0.0 && 2.0 * speed.step_seconds < elapsed,
                "{speed:?} in {elapsed} s"
            );
            // Of two sequences of eight tokens, three times the operations of the forward pass.
            let operations = Accounting::of(model).operations;
            let expected = 16.0 * 3.0 * (operations.forward + operations.attention_scores);
            let found = speed.flops_per_second * speed.step_seconds;
            assert!((found / expected - 1.0).abs() < 1e-9, "{speed:?}");
        }
        let text = bench.to_string();
        assert!(
            text.contains("tokens/s") && text.contains("MoE overhead"),
            "{text}"
        );
    }
}
