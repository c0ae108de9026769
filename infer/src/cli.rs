//! The command line of `cargo infer`.

mod bench;
mod compare;
mod eval;
mod export;
mod generate;
mod load;
mod plan;
mod serve;
mod shard;
mod trace;
mod values;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use firebox_comm::{Comm, mpi};
use firebox_console::durable;
use firebox_console::process::COMPARE_DEVICE;
use firebox_console::terminal::print;
use firebox_kernels::Precision;
use firebox_kernels::dtype::WeightFormat;
use firebox_model::parallel::RankLayout;
use firebox_runtime::control::Control;
use firebox_runtime::device;
use firebox_runtime::failure::guard;
use serde::Serialize;

use self::values::at_least_one;
use crate::InferError;
use crate::devices::Devices;
use crate::engine::Engine;
use crate::error::LESS_MEMORY;
use crate::processes;
use crate::ranks::RankOptions;

/// Evaluate, sample, benchmark and compare language-model checkpoints.
///
/// Reads checkpoints written by `cargo train` and Hugging Face checkpoints of Mixtral, OLMoE, Qwen3-MoE, dots.llm1,
/// GLM-4-MoE and gpt-oss, and of the dense Llama, Mistral, Qwen2, Qwen3 and SmolLM3; and GGUF files of these.
#[derive(Debug, Parser)]
#[command(
    name = "cargo infer",
    bin_name = "cargo infer",
    version,
    max_term_width = 120,
    after_help = "Examples:\n  \
        cargo infer eval runs/quickstart --data notes.txt         loss on a text, newest checkpoint of the run\n  \
        cargo infer generate runs/quickstart --prompt \"fn main\"   continue a prompt\n  \
        cargo infer serve runs/quickstart                         an HTTP server with OpenAI's interface\n  \
        cargo infer compare runs/quickstart                       differences between devices\n  \
        cargo infer shard runs/quickstart --tensor 2 --output D   a folder for each of two ranks\n  \
        cargo infer devices                                       available devices\n\n\
        CHECKPOINT is a folder with config.json, model.safetensors and tokenizer.json, a GGUF file, or a run folder such\n\
        as runs/NAME, which selects its newest checkpoint. Results go to standard output; logs and progress go to\n\
        standard error. Exit codes: 0 success, 1 failure, 2 wrong usage or configuration,\n\
        130 after Ctrl-C."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Number of threads for the CPU backends [default: one per physical core].
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure loss, perplexity, bits per byte and router health on text.
    #[command(after_help = eval::HELP)]
    Eval(eval::EvalArgs),
    /// Generate a continuation of a prompt.
    #[command(after_help = generate::HELP)]
    Generate(generate::GenerateArgs),
    /// Serve a checkpoint over HTTP, with OpenAI's interface.
    #[command(after_help = serve::HELP)]
    Serve(serve::ServeArgs),
    /// Write hidden states, router logits, logits, losses and gradients to a safetensors file.
    #[command(after_help = trace::HELP)]
    Trace(trace::TraceArgs),
    /// Convert a checkpoint to another dtype, or split it into shards.
    #[command(after_help = export::HELP)]
    Export(export::ExportArgs),
    /// Divide a checkpoint among ranks, into a folder for each.
    #[command(after_help = shard::HELP)]
    Shard(shard::ShardArgs),
    /// Reassemble a sharded checkpoint.
    #[command(after_help = shard::UNSHARD_HELP)]
    Unshard(shard::UnshardArgs),
    /// Check every tensor of every rank of a sharded checkpoint.
    #[command(after_help = shard::VERIFY_HELP)]
    Verify(shard::VerifyArgs),
    /// Estimate bytes, speed and cost of a model on many ranks, without running it.
    #[command(after_help = plan::HELP)]
    Plan(plan::PlanArgs),
    /// Measure prefill and decode speed, or a server under load.
    #[command(after_help = bench::HELP)]
    Bench(bench::BenchArgs),
    /// Run the same tokens on several devices and report how results, routing and speed differ.
    #[command(after_help = compare::HELP)]
    Compare(compare::CompareArgs),
    /// The worker process of `compare`, one per device.
    #[command(name = COMPARE_DEVICE, hide = true)]
    CompareDevice(compare::DeviceArgs),
    /// List the backends and devices of this build, and how to get the others.
    #[command(after_help = "Example:\n  cargo infer devices --json")]
    Devices(DevicesArgs),
}

/// The checkpoint.
#[derive(Debug, Clone, Args)]
struct CheckpointArgs {
    /// Checkpoint folder, GGUF file, or run folder for its newest checkpoint.
    checkpoint: PathBuf,
    /// Unknown field of config.json (or key of a GGUF file) to ignore; may be given several times.
    ///
    /// For fields that do not affect what the network computes, such as notes of other tools. A checkpoint written from
    /// this one keeps them and no longer needs the option.
    #[arg(long, value_name = "FIELD")]
    accept: Vec<String>,
}

/// How ranks divide a model.
#[derive(Debug, Clone, Copy, Args)]
struct LayoutArgs {
    /// Tensor parallelism: ranks per stage, which split heads, feed-forward width and vocabulary.
    ///
    /// Sizes that they do not divide evenly differ by one. Key/value heads that are fewer than the ranks are copied.
    #[arg(long, value_name = "N", default_value_t = 1)]
    tensor: usize,
    /// Pipeline parallelism: stages, each with a run of layers of about equal bytes and operations.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pipeline: usize,
    /// Expert parallelism: number of groups that a stage's ranks form; each holds whole experts. Must divide --tensor.
    ///
    /// With 1, each rank has a part of every expert, so that all ranks work on every token.
    #[arg(long, value_name = "N", default_value_t = 1)]
    expert: usize,
}

impl LayoutArgs {
    fn layout(self) -> RankLayout {
        let Self {
            tensor,
            pipeline,
            expert,
        } = self;
        RankLayout {
            pipeline,
            tensor,
            expert,
        }
    }
}

/// Where it is written when each pipeline stage computes.
#[derive(Debug, Clone, Args)]
struct TimelineArgs {
    /// Write when each pipeline stage computes and waits, step by step, in the trace event format (chrome://tracing,
    /// Perfetto), and log the busy share of each.
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
}

impl TimelineArgs {
    /// Checks that the file can be written, before the work whose result it gets.
    fn check(&self) -> Result<(), InferError> {
        match &self.timeline {
            Some(path) => Ok(durable::check_writable(path).map_err(InferError::Place)?),
            None => Ok(()),
        }
    }
}

/// The checkpoint and the device that it runs on.
#[derive(Debug, Clone, Args)]
struct ModelArgs {
    #[command(flatten)]
    source: CheckpointArgs,
    /// Device to run on, such as flex, ndarray, wgpu or cuda:0; `cargo infer devices` lists them.
    #[arg(long, default_value = device::default_name())]
    device: String,
}

/// The storage type of the weights, and the precision of products with them.
#[derive(Debug, Clone, Copy, Args)]
struct DtypeArgs {
    /// Type to keep the weights in: f32, bf16, f16 or int8.
    ///
    /// Computation is in f32 (see --precision), and router weights stay in f32. bf16 and f16 halve the memory and thereby
    /// the decode time. Weights that the checkpoint stores in this type are unchanged; others are rounded, to 3
    /// significant digits in bf16 and 4 in f16, whose largest value is 65504. int8 nearly halves both once more, on CPUs:
    /// matrices are quantized to integers from -127 to 127 with a scale for every 32 of them, which is what llama.cpp's q8_0
    /// files hold already. The embedding, a head that is tied to it, and keys and values of latent attention stay in bf16. Each
    /// of several ranks quantizes what it has, in blocks of its own. ndarray has no bf16 and f16: there, weights are
    /// rounded to them but kept in f32.
    #[arg(long, value_name = "TYPE", default_value_t)]
    dtype: WeightFormat,
    /// Precision of the factors of matrix products: f32 or bf16.
    ///
    /// bf16 rounds them to 3 significant digits; sums, routers, norms and softmax stay in f32. On a CPU with AMX, and on
    /// AMD's with AVX-512 BF16 (`cargo infer devices` says so), long prompts and texts take less time. On the device flex only.
    #[arg(long, value_name = "TYPE", default_value_t)]
    precision: Precision,
}

/// This process: the number of its threads, and the others that run the same command with it.
#[derive(Debug, Clone)]
struct Process {
    /// `--threads`.
    threads: Option<usize>,
    /// The ranks that MPI has started as processes, this one among them.
    processes: Option<Arc<dyn Comm>>,
}

/// Opens a checkpoint.
type Opener = Box<dyn FnOnce() -> Result<Engine, InferError>>;

impl ModelArgs {
    fn open(&self, weights: DtypeArgs) -> Result<Engine, InferError> {
        let CheckpointArgs { checkpoint, accept } = &self.source;
        Engine::open(checkpoint, accept, &self.device, weights.dtype)?
            .at_precision(weights.precision)
    }

    fn on_ranks(&self, weights: DtypeArgs, ranks: LayoutArgs, process: &Process) -> RankOptions {
        RankOptions {
            checkpoint: self.source.checkpoint.clone(),
            accept: self.source.accept.clone(),
            device: self.device.clone(),
            dtype: weights.dtype,
            precision: weights.precision,
            layout: ranks.layout(),
            threads: process.threads,
            processes: process.processes.clone(),
        }
    }

    /// Does `work`, which is given how to open the checkpoint: one rank holds it, or many do.
    fn with_engine(
        &self,
        weights: DtypeArgs,
        ranks: LayoutArgs,
        process: &Process,
        work: impl FnOnce(Opener) -> Result<(), InferError> + Send + 'static,
    ) -> Result<(), InferError> {
        let options = self.on_ranks(weights, ranks, process);
        if !options.are_ranks() {
            let model = self.clone();
            return work(Box::new(move || model.open(weights)));
        }
        let of_first = options.clone();
        options.run(move |part| work(Box::new(move || Engine::on_ranks(&of_first, part))))
    }
}

#[derive(Debug, Args)]
struct DevicesArgs {
    /// Print a JSON array instead of a table.
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// Reads the command line. The process ends here if it asks for help, or has something wrong.
    ///
    /// # Errors
    ///
    /// [`InferError::Reported`] in place of that end, where this is one of several processes under MPI: the first has printed
    /// the help, or what is wrong.
    pub fn read() -> Result<Self, InferError> {
        Self::try_parse().map_err(|error| match mpi::launched() {
            true => processes::reported(error),
            false => error.exit(),
        })
    }

    /// Runs the command, or this process's part of it where a launcher has started several.
    ///
    /// # Errors
    ///
    /// The command's error, with an exit code and often a hint.
    pub fn execute(self, control: &Control) -> Result<(), InferError> {
        let threads = self.threads();
        if mpi::launched() {
            let control = control.clone();
            return processes::run(threads, move |world| {
                self.command.on_rank(threads, world, &control)
            });
        }
        let process = Process {
            threads,
            processes: None,
        };
        let Some(device) = self.device().map(str::to_owned) else {
            return self.command.execute(process, control);
        };
        guard(&device, || self.command.execute(process, control))?
    }

    /// Number of threads for the CPU backends, if `--threads` is given.
    pub fn threads(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// How to reduce the memory that the command takes.
    pub fn less_memory(&self) -> &'static str {
        match self.command {
            Command::Serve(_) => serve::LESS_MEMORY,
            _ => LESS_MEMORY,
        }
    }

    /// Whether the command itself says what SIGTERM and SIGINT do.
    pub fn takes_signals(&self) -> bool {
        matches!(self.command, Command::Serve(_))
    }

    /// The device that this process runs on; `None` for commands that run no model themselves.
    pub fn device(&self) -> Option<&str> {
        self.command.device()
    }
}

impl Command {
    /// The device that this command runs on.
    fn device(&self) -> Option<&str> {
        let model = match self {
            Self::Eval(args) => &args.model,
            Self::Generate(args) => &args.model,
            Self::Serve(args) if args.runs_model() => &args.model,
            Self::Trace(args) => &args.model,
            Self::Bench(args) if args.runs_model() => &args.model,
            Self::CompareDevice(args) => return Some(&args.device),
            Self::Bench(_)
            | Self::Compare(_)
            | Self::Export(_)
            | Self::Plan(_)
            | Self::Serve(_)
            | Self::Shard(_)
            | Self::Unshard(_)
            | Self::Verify(_)
            | Self::Devices(_) => return None,
        };
        Some(&model.device)
    }

    /// Runs the command on the first of several processes, and what it takes of the others on these.
    fn on_rank(
        self,
        threads: Option<usize>,
        world: Arc<dyn Comm>,
        control: &Control,
    ) -> Result<(), InferError> {
        let (rank, processes) = (world.rank(), world.size());
        let process = Process {
            threads,
            processes: Some(world),
        };
        let options = match &self {
            Self::Eval(args) => Some(args.on_ranks(&process)),
            Self::Generate(args) => Some(args.on_ranks(&process)),
            Self::Serve(args) if args.runs_model() => Some(args.on_ranks(&process)),
            Self::Trace(args) => Some(args.on_ranks(&process)),
            _ => None,
        };
        match (rank, options) {
            (0, Some(_)) => self.execute(process, control),
            (0, None) => Err(InferError::SingleProcess { processes }),
            (_, Some(options)) => {
                // Ctrl-C reaches all of them, and it is for the first one to end the work.
                control.heed_stop();
                options.serve()
            }
            (_, None) => Ok(()),
        }
    }

    fn execute(self, process: Process, control: &Control) -> Result<(), InferError> {
        let threads = process.threads;
        match self {
            Command::Eval(args) => args.execute(&process),
            Command::Generate(args) => args.execute(&process, control),
            Command::Serve(args) => args.execute(&process),
            Command::Trace(args) => args.execute(&process),
            Command::Export(args) => args.execute(),
            Command::Plan(args) => args.execute(),
            Command::Shard(args) => args.execute(control),
            Command::Unshard(args) => args.execute(control),
            Command::Verify(args) => args.execute(control),
            Command::Bench(args) => args.execute(control),
            Command::Compare(args) => args.execute(threads),
            Command::CompareDevice(args) => args.execute(threads),
            Command::Devices(DevicesArgs { json: true }) => print_json(&Devices::find()?),
            Command::Devices(DevicesArgs { json: false }) => {
                print(&Devices::find()?.to_string()).map_err(InferError::Output)
            }
        }
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
        assert!(
            matches!(cli.command, Command::Generate(args) if args.prompt.as_deref() == Some("-- a comment"))
        );
    }

    #[test]
    fn a_server_has_a_checkpoint_or_others_behind_it() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.command);
        let Ok(Command::Serve(args)) = parse("infer serve --route http://a:1,b:2 --port 0") else {
            panic!("--route needs no checkpoint");
        };
        assert!(!args.runs_model());
        assert!(
            matches!(parse("infer serve folder"), Ok(Command::Serve(args)) if args.runs_model())
        );
        for (line, words) in [
            ("infer serve", "CHECKPOINT"),
            ("infer serve folder --route a:1", "cannot be used with"),
            ("infer serve --route a:1 --device flex", "--device"),
            ("infer serve folder --replicas 65", "from 1 to 64"),
            ("infer serve folder --api-key a\u{7f}b", "visible ASCII"),
            ("infer serve folder --host=", "must not be empty"),
            ("infer serve --route a:1 --speculate off", "--speculate"),
            (
                "infer serve --route a:1,https://b:2",
                "must be like http://HOST:PORT",
            ),
            (
                "infer serve --route a:1,,b:1",
                "must be like http://HOST:PORT",
            ),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn a_server_is_measured_by_its_address_or_its_checkpoint() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.command);
        for (line, runs_model) in [
            ("infer bench folder", true),
            (
                "infer bench folder --serve --concurrency 1,2 --speculate prompt",
                true,
            ),
            ("infer bench folder --rate 1,inf --serve", true),
            ("infer bench --serve http://a:1 --prompt-tokens 3-9", false),
            ("infer bench --concurrency 4 --serve a:1", false),
        ] {
            match parse(line) {
                Ok(Command::Bench(args)) => assert_eq!(args.runs_model(), runs_model, "{line}"),
                other => panic!("{line}: {other:?}"),
            }
        }
        for (line, words) in [
            ("infer bench", "CHECKPOINT"),
            ("infer bench folder --concurrency 3", "--serve"),
            ("infer bench folder --max-queue 3", "--serve"),
            (
                "infer bench folder --serve --batch 3",
                "cannot be used with",
            ),
            ("infer bench --serve a:1 --rate 0", "or inf"),
            (
                "infer bench --serve a:1 --rate 1 --concurrency 1",
                "cannot be used with",
            ),
            ("infer bench --serve folder", "CHECKPOINT stands before"),
            (
                "infer bench --serve https://a:1",
                "must be like http://HOST:PORT",
            ),
            (
                "infer bench --serve a:1 --prompt-tokens 9-3",
                "a range such as",
            ),
            ("infer bench --serve a:1 --goodput itl:3", "none of ttft"),
            (
                "infer bench --serve a:1 --html load.txt",
                "must end in .html",
            ),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(words), "{line}: {error}");
        }
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
            ("--min-p", "-0.1"),
            ("--min-p", "1.5"),
            ("--repetition-penalty", "0"),
            ("--presence-penalty", "2.1"),
            ("--frequency-penalty", "-2.5"),
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
