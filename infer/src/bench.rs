//! `cargo infer bench`: prefill and decode speed of a checkpoint on this machine.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use burn::tensor::Tensor;
use firebox_console::report::Table;
use firebox_kernels::bandwidth::read_bandwidth;
use firebox_kernels::dtype::{WeightDtype, WeightFormat};
use firebox_kernels::{Bf16Unit, Precision};
use firebox_model::accounting::Accounting;
use firebox_model::cache::KeyValueCache;
use firebox_model::decode::Piece;
use firebox_model::language_model::LanguageModel;
use firebox_runtime::device;
use firebox_runtime::device::is_host;
use serde::Serialize;

use crate::InferError;
use crate::engine::{check_precision, open_model};

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchOptions {
    /// Length of each prompt, in tokens.
    pub prompt: usize,
    /// Number of tokens to decode after the prompt.
    pub new: usize,
    /// Number of sequences per batch.
    pub batch: usize,
    /// Number of repetitions; the best time of each phase is reported.
    pub repeats: usize,
    /// Precision of matrix products.
    pub precision: Precision,
}

/// The measurement: as text through its `Display`, as JSON through serde.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bench {
    /// The device's name.
    pub device: String,
    /// Number of threads of the CPU backends.
    pub threads: usize,
    /// The type of the weights on this device: `f32`, `bf16`, `f16` or `int8`.
    pub dtype: String,
    /// Precision of matrix products.
    pub precision: Precision,
    /// What multiplies in bf16, if that is the precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bf16_unit: Option<Bf16Unit>,
    /// Memory read bandwidth of all threads together, in bytes per second; CPU backends only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes_per_second: Option<f64>,
    /// Number of parameters.
    pub parameters: u128,
    /// Number of active parameters per token.
    pub active: u128,
    /// Length of each prompt, in tokens.
    pub prompt_tokens: usize,
    /// Number of tokens that were decoded after the prompt.
    pub new_tokens: usize,
    /// Number of sequences per batch.
    pub batch: usize,
    /// Seconds from the prompt to the logits of the first new token.
    pub seconds_to_first_token: f64,
    /// Prompt tokens per second.
    pub prefill_tokens_per_second: f64,
    /// Decoded tokens per second, all sequences together.
    pub decode_tokens_per_second: f64,
    /// Bytes of active weights per token, times the tokens per second of one sequence: with one sequence, the bandwidth
    /// that decoding needs.
    pub decode_bytes_per_second: f64,
    /// `decode_bytes_per_second` divided by the memory bandwidth: for one sequence, the fraction of the fastest possible
    /// decode speed. It can exceed 1 if some of the weights stay in cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bandwidth_fraction: Option<f64>,
}

/// Opens a checkpoint (see [`Engine::open`](crate::engine::Engine::open)), and measures its speed on synthetic token ids.
///
/// # Errors
///
/// If the checkpoint or the device cannot be used, or prompt plus new tokens exceed the context.
pub fn bench(
    checkpoint: &Path,
    accept: &[String],
    device: &str,
    dtype: impl Into<WeightFormat>,
    options: BenchOptions,
) -> Result<Bench, InferError> {
    let dtype = dtype.into();
    let selected = device::select(device)?;
    check_precision(options.precision, device)?;
    let model = open_model(checkpoint, accept, &selected, dtype)?.1.model;
    let model = model.at_precision(options.precision);
    let BenchOptions {
        prompt,
        new,
        batch,
        repeats,
        precision,
    } = options;
    let largest = model.config().context_length;
    if prompt + new > largest {
        return Err(InferError::BenchTooLong {
            tokens: prompt + new,
            largest,
        });
    }
    let memory = is_host(&selected).then(read_bandwidth);
    let (mut prefill, mut decode) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..repeats {
        let (first, rest) = once(&model, prompt, new, batch);
        prefill = prefill.min(first);
        decode = decode.min(rest);
    }
    let accounting = Accounting::of(model.config());
    let per_sequence = new as f64 / decode;
    // A device may hold them otherwise than it was asked to.
    let stored = WeightDtype::of_tensor(model.weight_type()).map_or(dtype, WeightFormat::from);
    // A head that is the embedding is held as that is.
    let config = model.config();
    let table = match config.tied_embeddings {
        true => (config.vocab_size * config.d_model) as f64,
        false => 0.0,
    };
    let matrices = accounting.active as f64 - table;
    let of_a_token = stored.bytes() * matrices + stored.plain().bytes() as f64 * table;
    let decode_bytes = of_a_token * per_sequence;
    Ok(Bench {
        device: device.to_owned(),
        threads: device::threads(),
        dtype: stored.to_string(),
        precision,
        bf16_unit: (precision == Precision::Bf16).then(Bf16Unit::of_this_machine),
        memory_bytes_per_second: memory,
        parameters: accounting.total,
        active: accounting.active,
        prompt_tokens: prompt,
        new_tokens: new,
        batch,
        seconds_to_first_token: prefill,
        prefill_tokens_per_second: (batch * prompt) as f64 / prefill,
        decode_tokens_per_second: batch as f64 * per_sequence,
        decode_bytes_per_second: decode_bytes,
        memory_bandwidth_fraction: memory.map(|memory| decode_bytes / memory),
    })
}

/// Token ids of a row, of which neighbours and rows differ, so that tokens spread over experts as in real text.
pub(crate) fn synthetic_ids(row: usize, count: usize, vocab_size: usize) -> Vec<u32> {
    let id = |index: usize| ((index * 7919 + row * 104_729) % vocab_size) as u32;
    (0..count).map(id).collect()
}

/// Seconds for the prefill, and for decoding the new tokens.
///
/// The tokens that follow are given, too: what a model continues synthetic prompts with soon repeats itself, and then
/// visits few experts, whose weights stay in the processor's cache.
fn once(model: &LanguageModel, prompt: usize, new: usize, batch: usize) -> (f64, f64) {
    let config = model.config();
    let device = model.device();
    let mut cache = KeyValueCache::new(config, batch, prompt + new, &device);
    let ids: Vec<Vec<u32>> = (0..batch)
        .map(|row| synthetic_ids(row, prompt + new, config.vocab_size))
        .collect();
    let mut step = |rows: Vec<Piece>| wait_for_next(model.decode(&rows, &mut cache));
    let prompts = Piece::of_all(ids.iter().map(|ids| &ids[..prompt]));
    let started = Instant::now();
    step(prompts);
    let first = started.elapsed().as_secs_f64();
    let started = Instant::now();
    for place in prompt..prompt + new {
        step(Piece::of_all(ids.iter().map(|ids| &ids[place..][..1])));
    }
    (first, started.elapsed().as_secs_f64())
}

/// Waits until the host has the likeliest next token of each row, as it does in each step that draws tokens.
fn wait_for_next(logits: Option<Tensor<2>>) {
    let logits = logits.expect("of every row");
    let _ = logits.argmax(1).into_data();
}

impl fmt::Display for Bench {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bandwidth = match (self.memory_bandwidth_fraction, self.memory_bytes_per_second) {
            (Some(fraction), Some(memory)) => {
                format!(
                    ", {fraction:.2} of the memory bandwidth of {:.1} GB/s",
                    memory / 1e9
                )
            }
            _ => String::new(),
        };
        let rows = [
            (
                "device",
                format!(
                    "{}, {} threads, products in {}{}",
                    self.device,
                    self.threads,
                    self.precision,
                    self.bf16_unit
                        .map_or_else(String::new, |unit| format!(" ({unit})")),
                ),
            ),
            (
                "parameters",
                format!(
                    "{} in {}, {} active",
                    self.parameters, self.dtype, self.active
                ),
            ),
            (
                "prefill",
                format!(
                    "{:.0} tokens/s ({} × {} tokens in {:.4} s)",
                    self.prefill_tokens_per_second,
                    self.batch,
                    self.prompt_tokens,
                    self.seconds_to_first_token
                ),
            ),
            (
                "decode",
                format!(
                    "{:.1} tokens/s ({} × {} tokens; weights at {:.1} GB/s{})",
                    self.decode_tokens_per_second,
                    self.batch,
                    self.new_tokens,
                    self.decode_bytes_per_second / 1e9,
                    bandwidth
                ),
            ),
        ];
        let list = rows
            .into_iter()
            .fold(Table::new("").texts(["", ""]), |list, (name, value)| {
                list.row([name.into(), value.into()])
            });
        write!(formatter, "{list}")
    }
}

#[cfg(test)]
mod tests {
    use firebox_console::advice::Advise as _;

    use super::*;
    use crate::testing::{TinyCheckpoint, tiny_config};

    #[test]
    fn a_checkpoint_is_measured() {
        let tiny = TinyCheckpoint::new(&tiny_config(), 3);
        let options = BenchOptions {
            prompt: 20,
            new: 5,
            batch: 2,
            repeats: 2,
            precision: Precision::F32,
        };
        let started = Instant::now();
        let found = bench(
            tiny.path(),
            &[],
            device::default_name(),
            WeightDtype::F32,
            options,
        )
        .unwrap();
        let elapsed = started.elapsed().as_secs_f64();
        // Of two rows: prompts of 20 tokens, and 5 that follow.
        let prefill = 40.0 / found.prefill_tokens_per_second;
        let decode = 10.0 / found.decode_tokens_per_second;
        assert!(prefill > 0.0 && decode > 0.0, "{found:?}");
        assert!(prefill + decode < elapsed, "{found:?} in {elapsed} s");
        let longer = BenchOptions { new: 13, ..options };
        let error = bench(
            tiny.path(),
            &[],
            device::default_name(),
            WeightDtype::F32,
            longer,
        )
        .unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("33 tokens"), "{error}");
    }
}
