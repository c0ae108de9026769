//! The command line of `cargo infer`.

mod bench;
mod compare;
mod eval;
mod export;
mod generate;
mod trace;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use firebox_console::process::COMPARE_DEVICE;
use firebox_console::terminal::print;
use firebox_kernels::dtype::WeightDtype;
use firebox_runtime::control::Control;
use firebox_runtime::device;
use firebox_runtime::failure::guard;
use serde::Serialize;

use crate::InferError;
use crate::devices::Devices;
use crate::engine::Engine;

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
    #[command(after_help = eval::HELP)]
    Eval(eval::EvalArgs),
    /// Continue a text; it is shown while it is written.
    #[command(after_help = generate::HELP)]
    Generate(generate::GenerateArgs),
    /// Write down all that a checkpoint computes for given tokens: hidden states, router scores, logits, losses,
    /// gradients.
    #[command(after_help = trace::HELP)]
    Trace(trace::TraceArgs),
    /// Store a checkpoint anew: in another type, in shards, under the names that transformers writes.
    #[command(after_help = export::HELP)]
    Export(export::ExportArgs),
    /// Measure how fast a checkpoint reads a prompt and writes what follows.
    #[command(after_help = bench::HELP)]
    Bench(bench::BenchArgs),
    /// Run the same tokens on several devices, and show what differs: by layer and part, in routing, in speed.
    #[command(after_help = compare::HELP)]
    Compare(compare::CompareArgs),
    /// What one device does for `compare`.
    #[command(name = COMPARE_DEVICE, hide = true)]
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
struct DtypeArgs {
    /// What the weights are held in: f32, bf16 or f16.
    ///
    /// Whatever it is, everything is computed in f32, and the router's weights stay f32. bf16 and f16 halve the
    /// memory, and so the time that writing a token takes. Weights that are stored in the type stay the same; others are
    /// rounded, to 3 digits in bf16 and to 4 in f16, which has no number above 65504. On ndarray, which has f32
    /// alone, only the numbers are rounded.
    #[arg(long, value_name = "TYPE", default_value_t)]
    dtype: WeightDtype,
}

impl ModelArgs {
    fn open(&self, held: DtypeArgs) -> Result<Engine, InferError> {
        Engine::open(&self.checkpoint, &self.device, held.dtype)
    }
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
    pub fn execute(self, control: &Control) -> Result<(), InferError> {
        let Some(device) = self.device().map(str::to_owned) else {
            return self.command.execute(self.threads, control);
        };
        guard(&device, || self.command.execute(self.threads, control))?
    }

    /// Threads of the CPU backends, where `--threads` gives them.
    pub fn threads(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// The device that this process computes on; `None` for commands that compute nothing themselves.
    pub fn device(&self) -> Option<&str> {
        self.command.device()
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

    fn execute(self, threads: Option<u16>, control: &Control) -> Result<(), InferError> {
        match self {
            Command::Eval(args) => args.execute(),
            Command::Generate(args) => args.execute(control),
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

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err("must be a whole number of at least 1".to_owned()),
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
