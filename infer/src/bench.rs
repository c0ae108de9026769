//! `cargo infer bench`: how fast a checkpoint reads a prompt and writes what follows, on this machine.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use burn::tensor::Tensor;
use firebox_console::report::Table;
use firebox_kernels::bandwidth::read_bandwidth;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::accounting::Accounting;
use firebox_model::cache::KeyValueCache;
use firebox_model::language_model::{LanguageModel, token_tensor};
use firebox_runtime::device;
use firebox_runtime::device::is_host;
use serde::Serialize;

use crate::InferError;
use crate::engine::open_model;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchOptions {
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens that are written after it.
    pub new: usize,
    /// Sequences at once.
    pub batch: usize,
    /// How often; the best time of each part counts.
    pub repeats: usize,
}

/// What was measured: as text through its `Display`, as JSON through serde.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bench {
    /// What computed.
    pub device: String,
    /// Threads of the CPU backends.
    pub threads: usize,
    /// What the weights are held in on this device: `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// What all threads together read from memory, in bytes a second; of the CPU backends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes_per_second: Option<f64>,
    /// Parameters.
    pub parameters: u128,
    /// Parameters that one token meets.
    pub active: u128,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens that were written after it.
    pub new_tokens: usize,
    /// Sequences at once.
    pub batch: usize,
    /// Seconds from the prompt to the scores of the first new token.
    pub seconds_to_first_token: f64,
    /// Tokens of prompts read in a second.
    pub prefill_tokens_per_second: f64,
    /// Tokens written in a second, all sequences together.
    pub decode_tokens_per_second: f64,
    /// Bytes of weights that a sequence's token needs, times its tokens a second: with one sequence, what the
    /// memory has to deliver.
    pub decode_bytes_per_second: f64,
    /// The same over what the memory delivers: of one sequence, how near its tokens are to the fastest possible. It can
    /// be above 1 where a part of the weights stays in cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_of_memory: Option<f64>,
}

/// Opens a checkpoint, or the newest one of a run, and measures it on token ids that only have to exist.
///
/// # Errors
///
/// When the checkpoint or the device cannot be used, or prompt and new tokens exceed the context.
pub fn bench(
    checkpoint: &Path,
    device: &str,
    dtype: WeightDtype,
    options: BenchOptions,
) -> Result<Bench, InferError> {
    let selected = device::select(device)?;
    let model = open_model(checkpoint, &selected, dtype)?.1.model;
    let BenchOptions {
        prompt,
        new,
        batch,
        repeats,
    } = options;
    let largest = model.config().context;
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
    let held = WeightDtype::of_tensor(model.embedding.val().dtype()).unwrap_or(dtype);
    let decode_bytes = held.bytes() as f64 * accounting.active as f64 * per_sequence;
    Ok(Bench {
        device: device.to_owned(),
        threads: device::threads(),
        dtype: held.to_string(),
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
        share_of_memory: memory.map(|memory| decode_bytes / memory),
    })
}

/// Seconds for the prompt, and for the tokens after it, each fed back greedily.
fn once(model: &LanguageModel, prompt: usize, new: usize, batch: usize) -> (f64, f64) {
    let config = model.config();
    let device = model.embedding.lazy_device();
    let mut cache = KeyValueCache::new(config, batch, prompt + new, &device);
    // Different rows and neighbours, so that tokens spread over experts as in a text.
    let ids: Vec<Vec<u32>> = (0..batch)
        .map(|row| {
            let id = |place: usize| ((place * 7919 + row * 104_729) % config.vocabulary) as u32;
            (0..prompt).map(id).collect()
        })
        .collect();
    let started = Instant::now();
    let logits = model.decode(
        token_tensor(ids.iter().map(Vec::as_slice), &device),
        &mut cache,
    );
    let mut next = greedy(logits);
    let first = started.elapsed().as_secs_f64();
    let started = Instant::now();
    for _ in 0..new {
        let rows = next.chunks(1);
        next = greedy(model.decode(token_tensor(rows, &device), &mut cache));
    }
    (first, started.elapsed().as_secs_f64())
}

fn greedy(logits: Tensor<2>) -> Vec<u32> {
    let best = logits.argmax(1).into_data();
    best.iter::<i64>().map(|id| id as u32).collect()
}

impl fmt::Display for Bench {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = match (self.share_of_memory, self.memory_bytes_per_second) {
            (Some(share), Some(memory)) => {
                format!(", {share:.2} of the memory's {:.1}", memory / 1e9)
            }
            _ => String::new(),
        };
        let rows = [
            (
                "device",
                format!("{}, {} threads", self.device, self.threads),
            ),
            (
                "parameters",
                format!(
                    "{} in {}, {} active",
                    self.parameters, self.dtype, self.active
                ),
            ),
            (
                "read",
                format!(
                    "{:.0} tokens/s ({} × {} tokens in {:.4} s)",
                    self.prefill_tokens_per_second,
                    self.batch,
                    self.prompt_tokens,
                    self.seconds_to_first_token
                ),
            ),
            (
                "write",
                format!(
                    "{:.1} tokens/s ({} × {} tokens; weights at {:.1} GB/s{})",
                    self.decode_tokens_per_second,
                    self.batch,
                    self.new_tokens,
                    self.decode_bytes_per_second / 1e9,
                    share
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
        };
        let found = bench(
            tiny.path(),
            device::default_name(),
            WeightDtype::F32,
            options,
        )
        .unwrap();
        assert_eq!(found.prompt_tokens * found.batch, 40);
        let seconds = found.seconds_to_first_token;
        assert_eq!(found.prefill_tokens_per_second, 40.0 / seconds);
        assert!(found.decode_tokens_per_second > 0.0);
        let longer = BenchOptions { new: 13, ..options };
        let error = bench(
            tiny.path(),
            device::default_name(),
            WeightDtype::F32,
            longer,
        )
        .unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("33 tokens"), "{error}");
    }
}
