//! The command line of `cargo infer`.

mod compare;

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use firebox_model::allocator;
use firebox_model::checkpoint::Precision;
use firebox_model::device;
use firebox_model::evaluate::ROWS;
use firebox_model::failure::guard;
use firebox_model::generate::Sampling;
use firebox_model::terminal::print;
use firebox_model::tokenizer::text::TEXT_FIELD;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::InferError;
use crate::bench::{BenchOptions, bench};
use crate::devices::Devices;
use crate::engine::Engine;
use crate::error::LESS_MEMORY;
use crate::eval::{Text, default_context, evaluate};
use crate::export::Export;
use crate::generate::{Generated, Request, generate};
use crate::trace::trace;

/// The exit code of a process that an interrupt ended (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// Evaluates, samples and traces checkpoints: those of `cargo train`, and Hugging Face's Mixtral, OLMoE,
/// Qwen3-MoE, Qwen3 and Llama ones.
#[derive(Debug, Parser)]
#[command(
    name = "cargo infer",
    bin_name = "cargo infer",
    version,
    after_help = "Examples:\n  \
        cargo infer eval runs/quickstart --data notes.txt         how well the newest checkpoint predicts a text\n  \
        cargo infer generate runs/quickstart --prompt \"fn main\"   let it write\n  \
        cargo infer compare runs/quickstart                       what changes from device to device\n  \
        cargo infer devices                                       what can compute here\n\n\
        CHECKPOINT is a folder with config.json, model.safetensors and tokenizer.json, or a run such as\n\
        runs/NAME, which stands for its newest checkpoint. Results go to standard output, all else to standard\n\
        error. The exit code is 0 when done, 1 when that failed, and 2 when the command line is at fault."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Threads of the CPU backends [default: one for each physical core].
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure a checkpoint on text: loss, perplexity, bits per byte, and the health of its routers.
    #[command(after_help = "Examples:\n  \
        cargo infer eval runs/quickstart --data notes.txt\n  \
        cargo infer eval runs/quickstart --data held-out.jsonl --field content --json\n  \
        cargo infer eval runs/quickstart/checkpoints/step-0000100 --data a.txt b.txt --max-tokens 10000\n\n\
        The same text gives the same number as the validation of `cargo train`, as long as --batch and\n\
        --context are left alone and the model's context is not above 2048.")]
    Eval(EvalArgs),
    /// Continue a text; it is shown while it is written.
    #[command(after_help = "Examples:\n  \
        cargo infer generate runs/quickstart --prompt \"fn main\"\n  \
        cargo infer generate runs/quickstart --prompt \"\" --temperature 0\n  \
        cargo infer generate runs/quickstart --prompt - --max-tokens 50 < beginning.txt > whole.txt\n\n\
        The same seed gives the same text. Ctrl-C ends it early; twice, at once.")]
    Generate(GenerateArgs),
    /// Write down all that a checkpoint computes for given tokens: hidden states, router scores, logits, losses,
    /// gradients.
    #[command(after_help = "Examples:\n  \
        cargo infer trace runs/quickstart --input tokens.safetensors --output trace.safetensors\n  \
        cargo infer trace OLMoE-1B-7B --input tokens.safetensors --output trace.safetensors --gradients --device wgpu\n\n\
        tokens.safetensors holds input_ids [batch, sequence] and, where there is padding, attention_mask of the\n\
        same shape. tests/fixtures/compare.py compares a trace with what transformers computes for the same folder.")]
    Trace(TraceArgs),
    /// Store a checkpoint anew: in another type, in shards, under the names that transformers writes.
    #[command(after_help = "Examples:\n  \
        cargo infer export runs/quickstart --output quickstart-bf16 --dtype bf16\n  \
        cargo infer export Mixtral-8x7B --output resharded --shard-size 2GB")]
    Export(ExportArgs),
    /// Measure how fast a checkpoint reads a prompt and writes what follows.
    #[command(after_help = "Examples:\n  \
        cargo infer bench runs/quickstart\n  \
        cargo infer bench runs/quickstart --batch 8 --prompt-tokens 100 --new-tokens 20 --json")]
    Bench(BenchArgs),
    /// Run the same tokens on several devices, and show what differs: by layer and part, in routing, in speed.
    #[command(after_help = compare::HELP)]
    Compare(compare::CompareArgs),
    /// What one device does for `compare`.
    #[command(name = crate::compare::process::COMMAND, hide = true)]
    CompareDevice(compare::DeviceArgs),
    /// List what can compute: the backends of this build, their devices, and how to get the others.
    #[command(after_help = "Example:\n  cargo infer devices --json")]
    Devices(DevicesArgs),
}

/// Which model, and where.
#[derive(Debug, Args)]
struct ModelArgs {
    /// A checkpoint's folder, or a run's folder for its newest checkpoint.
    checkpoint: PathBuf,
    /// What computes, such as flex, ndarray, wgpu or cuda:0; `cargo infer devices` lists them.
    #[arg(long, default_value = device::default_name())]
    device: String,
}

/// What the weights are held in.
#[derive(Debug, Clone, Copy, Args)]
struct PrecisionArgs {
    /// What the weights are held in: f32, bf16 or f16.
    ///
    /// Whatever it is, everything is computed in f32, and the router's weights stay f32. bf16 and f16 halve the
    /// memory, and so the time that writing a token takes. Weights that are stored in the type stay the same; others are
    /// rounded, to 3 digits in bf16 and to 4 in f16, which has no number above 65504. On ndarray, which has f32
    /// alone, only the numbers are rounded.
    #[arg(long, value_name = "TYPE", default_value_t)]
    dtype: Precision,
}

impl ModelArgs {
    fn open(&self, held: PrecisionArgs) -> Result<Engine, InferError> {
        Engine::open(&self.checkpoint, &self.device, held.dtype)
    }
}

#[derive(Debug, Args)]
struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    held: PrecisionArgs,
    /// Text files; each is one document, and a .jsonl file has one a line.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    data: Vec<PathBuf>,
    /// The field of a .jsonl line that holds the text.
    #[arg(long, value_name = "NAME", default_value = TEXT_FIELD)]
    field: String,
    /// Tokens of a sequence [default: the model's context, but at most 2048].
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    context: Option<usize>,
    /// Sequences that are computed at once; fewer take less memory.
    #[arg(long, value_name = "ROWS", default_value_t = ROWS, value_parser = at_least_one)]
    batch: usize,
    /// Stop after so many predicted tokens.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_tokens: Option<u64>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    held: PrecisionArgs,
    /// How the text begins; - reads it from standard input, as it is. Empty, the model begins a document.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Most tokens to add.
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_tokens: usize,
    /// Below 1 the likelier tokens gain, above 1 the others; 0 always takes the likeliest.
    #[arg(long, value_name = "T", default_value_t = Sampling::default().temperature,
        value_parser = temperature, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the K likeliest tokens only [default: all].
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    top_k: Option<usize>,
    /// Draw only from the likeliest tokens that together have this probability, above 0 and up to 1.
    #[arg(long, value_name = "P", default_value_t = Sampling::default().top_p,
        value_parser = probability, allow_negative_numbers = true)]
    top_p: f64,
    /// Decides what is drawn.
    #[arg(long, value_name = "S", default_value_t = Sampling::default().seed, allow_negative_numbers = true)]
    seed: u64,
}

#[derive(Debug, Args)]
struct TraceArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// A safetensors file with input_ids and attention_mask.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The safetensors file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Also the gradient of the total loss for every parameter.
    #[arg(long)]
    gradients: bool,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// A checkpoint's folder, or a run's folder for its newest checkpoint.
    checkpoint: PathBuf,
    /// The folder to write; it must be empty or absent.
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// f32, f16 or bf16 [default: as the checkpoint has it].
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Precision>,
    /// The largest size of one file of weights, such as 5GB or 500MiB [default: all in one].
    #[arg(long, value_name = "SIZE", value_parser = shard_size)]
    shard_size: Option<ByteSize>,
}

#[derive(Debug, Args)]
struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    held: PrecisionArgs,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    prompt_tokens: usize,
    /// Tokens that are written after it.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    new_tokens: usize,
    /// Sequences at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    batch: usize,
    /// How often; the best time counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    repeats: usize,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DevicesArgs {
    /// Print a JSON array instead of a table.
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    ///
    /// What went wrong, with an exit code and often a hint.
    pub fn execute(self) -> Result<(), InferError> {
        device::set_threads(self.threads.map(usize::from));
        let Some(device) = self.command.device().map(str::to_owned) else {
            return self.command.execute(self.threads);
        };
        allocator::working(&device, LESS_MEMORY);
        guard(&device, || self.command.execute(self.threads))?
    }
}

impl Command {
    /// The device on which this computes.
    fn device(&self) -> Option<&str> {
        let model = match self {
            Self::Eval(args) => &args.model,
            Self::Generate(args) => &args.model,
            Self::Trace(args) => &args.model,
            Self::Bench(args) => &args.model,
            Self::CompareDevice(args) => return Some(&args.device),
            Self::Compare(_) | Self::Export(_) | Self::Devices(_) => return None,
        };
        Some(&model.device)
    }

    fn execute(self, threads: Option<u16>) -> Result<(), InferError> {
        match self {
            Command::Eval(args) => args.execute(),
            Command::Generate(args) => args.execute(),
            Command::Trace(args) => args.execute(),
            Command::Export(args) => args.execute(),
            Command::Bench(args) => args.execute(),
            Command::Compare(args) => args.execute(threads),
            Command::CompareDevice(args) => args.execute(),
            Command::Devices(DevicesArgs { json: true }) => print_json(&Devices::find()?),
            Command::Devices(DevicesArgs { json: false }) => {
                print(&Devices::find()?.to_string()).map_err(InferError::Output)
            }
        }
    }
}

impl EvalArgs {
    fn execute(self) -> Result<(), InferError> {
        let text = Text {
            files: self.data,
            field: self.field,
            max_tokens: self.max_tokens,
        };
        text.check()?;
        let engine = self.model.open(self.held)?;
        let packed = text.pack(&engine)?;
        let context = self.context.unwrap_or_else(|| default_context(&engine));
        let bar = progress_bar(packed.targets());
        let report = evaluate(&engine, &packed, context, self.batch, |tokens| {
            bar.set_position(tokens)
        });
        bar.finish_and_clear();
        let report = report?;
        if let Some(warning) = report.warning() {
            tracing::warn!("{warning}");
        }
        if self.json {
            return print_json(&report);
        }
        print(&report.to_string()).map_err(InferError::Output)
    }
}

impl GenerateArgs {
    fn execute(self) -> Result<(), InferError> {
        let engine = self.model.open(self.held)?;
        let prompt = match self.prompt.as_str() {
            "-" => {
                let mut text = String::new();
                io::stdin()
                    .read_to_string(&mut text)
                    .map_err(InferError::Input)?;
                text
            }
            _ => self.prompt,
        };
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p,
            seed: self.seed,
        };
        let request = Request {
            prompt,
            max_tokens: self.max_tokens,
            sampling,
        };
        let stop = stop_on_interrupt();
        let stopped = || stop.load(Ordering::Relaxed);
        let Generated { tokens, seconds } =
            generate(&engine, &request, &mut io::stdout().lock(), stopped)?;
        tracing::info!(
            "{tokens} tokens in {seconds:.2} s ({:.0} tokens/s on {})",
            tokens as f64 / seconds,
            engine.device
        );
        Ok(())
    }
}

impl TraceArgs {
    fn execute(self) -> Result<(), InferError> {
        let started = Instant::now();
        let ModelArgs { checkpoint, device } = &self.model;
        let losses = trace(
            checkpoint,
            device,
            &self.input,
            &self.output,
            self.gradients,
        )?;
        tracing::info!(
            "{} tensors in {}: cross-entropy {:.6}, total loss {:.6}, on {device} after {:.2} s",
            losses.tensors,
            self.output.display(),
            losses.cross_entropy,
            losses.total,
            started.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

impl ExportArgs {
    fn execute(self) -> Result<(), InferError> {
        let started = Instant::now();
        let export = Export {
            precision: self.dtype,
            shard_bytes: self.shard_size.map(|size| size.as_u64()),
        };
        let bar = ProgressBar::new(0).with_style(
            ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {eta} left")
                .expect("a well-formed template"),
        );
        let precision = export.write(&self.checkpoint, &self.output, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        tracing::info!(
            "{} in {}, after {:.2} s",
            self.output.display(),
            precision?,
            started.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

impl BenchArgs {
    fn execute(self) -> Result<(), InferError> {
        let options = BenchOptions {
            prompt: self.prompt_tokens,
            new: self.new_tokens,
            batch: self.batch,
            repeats: self.repeats,
        };
        let found = bench(
            &self.model.checkpoint,
            &self.model.device,
            self.held.dtype,
            options,
        )?;
        if self.json {
            return print_json(&found);
        }
        print(&found.to_string()).map_err(InferError::Output)
    }
}

/// Becomes true at the first Ctrl-C; the second one ends the process.
fn stop_on_interrupt() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let installed = ctrlc::set_handler(move || {
        if told.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
    });
    if let Err(error) = installed {
        tracing::debug!("Ctrl-C ends the process at once: {error}");
    }
    stop
}

/// On standard error, and only where that is a terminal.
fn progress_bar(tokens: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {percent}% of {len} tokens, {eta} left")
        .expect("a well-formed template");
    ProgressBar::new(tokens).with_style(style)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err("must be a whole number of at least 1".to_owned()),
    }
}

fn shard_size(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Ok(size),
        _ => Err("must be a size above 0, such as 5GB or 500MiB".to_owned()),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("must be a number of 0 or above".to_owned()),
    }
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("must be a number above 0 and up to 1".to_owned()),
    }
}

fn print_json(value: &impl Serialize) -> Result<(), InferError> {
    let json =
        serde_json::to_string_pretty(value).map_err(|error| InferError::Output(error.into()))?;
    print(&format!("{json}\n")).map_err(InferError::Output)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_prompt_may_begin_with_a_hyphen() {
        let cli = Cli::parse_from(["infer", "generate", "folder", "--prompt", "-- a comment"]);
        assert!(matches!(cli.command, Command::Generate(args) if args.prompt == "-- a comment"));
    }

    #[test]
    fn ranges_are_checked() {
        for (option, value) in [
            ("--temperature", "-0.1"),
            ("--temperature", "nan"),
            ("--temperature", "inf"),
            ("--top-p", "0"),
            ("--top-p", "1.01"),
            ("--top-k", "0"),
            ("--seed", "-1"),
        ] {
            let line = [
                "infer", "generate", "folder", "--prompt", "a", option, value,
            ];
            let error = Cli::try_parse_from(line).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(option), "{error}");
        }
    }
}
