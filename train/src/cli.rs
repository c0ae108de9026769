//! The command line of `cargo train`.

mod report;
mod study;
mod summary;

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use firebox_comm::mpi::{self, ProgramError};
use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::check_writable;
use firebox_console::process::COMPARE_DEVICE;
use firebox_console::report::page_path;
use firebox_console::terminal::print;
use firebox_runtime::control::Control;
use firebox_runtime::device;
use firebox_runtime::failure::{DeviceFailure, guard};

use crate::bench::{BenchOptions, bench, vary};
use crate::chain;
use crate::check::Report;
use crate::compare::{CompareError, CompareOptions, TOLERANCE, compare, print_line, record};
use crate::config::{ConfigError, RunConfig, load, load_planned};
use crate::data::{self, DataError};
use crate::error::TrainError;
use crate::ranks::{TrainLayout, launch};
use crate::report::ReportError;
use crate::run_folder;
use crate::study::StudyError;
use crate::trainer::{Resume, RunOptions};
use report::ReportArgs;
use study::StudyArgs;
use summary::summary;

/// Train mixture-of-experts (MoE) language models from a configuration file and text.
#[derive(Debug, Parser)]
#[command(
    name = "cargo train",
    bin_name = "cargo train",
    version,
    max_term_width = 120,
    after_help = "Examples:\n  \
        cargo train check configs/quickstart.toml           show a run's size, memory and cost\n  \
        cargo train run configs/quickstart.toml             train, then generate a sample\n  \
        cargo train run configs/quickstart.toml --resume    continue an interrupted run\n  \
        cargo train run configs/quickstart.toml --resume=auto    start or continue, for jobs that restart\n  \
        cargo train report runs/quickstart --html report.html    show losses and experts over time\n  \
        cargo train study configs/study.toml                is the mixture better than a dense model? three seeds\n  \
        cargo train check configs/gpt4.toml                 plan a 1.8-trillion-parameter run\n  \
        cargo train compare configs/quickstart.toml         check that all backends train alike\n\n\
        configs/quickstart.toml explains every configuration key."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Number of threads for CPU backends [default: one per physical core].
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model and write checkpoints and metrics to a run folder.
    #[command(after_help = "Examples:\n  \
        cargo train run configs/quickstart.toml\n  \
        cargo train run configs/quickstart.toml --set train.steps=500 --out runs/longer\n  \
        cargo train run configs/quickstart.toml --set model.feed_forward=dense --out runs/dense\n  \
        cargo train run configs/upcycle.toml               upcycles the dense model in runs/dense to MoE\n  \
        cargo train run configs/vision.toml                trains a text model, then teaches it to see\n  \
        cargo train run configs/quickstart.toml --device wgpu\n  \
        cargo train run configs/quickstart.toml --data 2 --threads 2    on two ranks, each a thread here\n  \
        cargo train run configs/quickstart.toml --tensor 2    on two ranks that share the matrices of every layer\n  \
        mpirun -n 8 target/release/firebox-train run configs/quickstart.toml --data 2 --expert 4\n\n\
        If train.init names the configuration of a run, that run is done first, in its own folder.\n\
        Ctrl-C finishes the current step, writes a checkpoint and exits; --resume continues from it.\n\
        --resume --set train.steps=N continues a run beyond the steps it was started with: with the same data as a \
        run of N steps from the start, and with its learning rate from here on.")]
    Run(RunArgs),
    /// Prepare a run's tokenizer and token shards without training.
    #[command(after_help = "Example:\n  cargo train prepare configs/quickstart.toml")]
    Prepare(ConfigArgs),
    /// Show a run's resolved configuration, parameters, FLOPs, memory and tokens, without using a device.
    #[command(after_help = "Examples:\n  \
        cargo train check configs/gpt4.toml\n  \
        cargo train check configs/quickstart.toml --set model.experts.count=16\n  \
        cargo train check configs/quickstart.toml --data 2 --expert 4    what each of 8 ranks holds and sends\n  \
        cargo train check configs/gpt4.toml --json")]
    Check(CheckArgs),
    /// Show what runs have recorded: losses, experts over time, speed, samples.
    ///
    /// Reads the runs' folders alone; a run that is still going can be reported, too.
    #[command(after_help = "Examples:\n  \
        cargo train report runs/quickstart\n  \
        cargo train report runs/quickstart runs/dense --html report.html    both in the same charts\n  \
        cargo train report runs/quickstart --tensorboard events    then: tensorboard --logdir events")]
    Report(ReportArgs),
    /// Train variants of a run with several seeds, for equal time, and say which is better and how sure that is.
    ///
    /// An interrupted study continues with the same command.
    #[command(after_help = "Examples:\n  \
        cargo train study configs/study.toml --html study.html\n  \
        cargo train study configs/study.toml --tokens 400_000 --out runs/study-tokens    at equal tokens\n\n\
        configs/study.toml explains the keys of a study.")]
    Study(StudyArgs),
    /// Measure training speed on random tokens.
    ///
    /// Reports tokens per second, FLOP/s, the fraction of this device's matmul peak, and memory, for the run's model
    /// and for a dense baseline with the same FLOPs per token (iso-FLOP). The MoE overhead is the ratio of their step
    /// times.
    #[command(after_help = "Examples:\n  \
        cargo train bench configs/reference.toml\n  \
        cargo train bench configs/quickstart.toml --device wgpu --steps 3 --json\n  \
        cargo train bench configs/reference.toml --vary model.experts.count=4,8,16,32")]
    Bench(BenchArgs),
    /// Train the same steps on several devices and check that they agree.
    ///
    /// Compares loss, gradient norm and expert load per step, and reports speed and memory.
    #[command(after_help = "Examples:\n  \
        cargo train compare configs/quickstart.toml --devices flex,ndarray --steps 20\n  \
        cargo train compare configs/quickstart.toml --devices flex,wgpu --html compare.html\n  \
        cargo train compare configs/quickstart.toml --set train.micro_batch=2 --json\n\n\
        Initial weights and data are identical on every device, so results may differ by rounding only. \
        The exit code is 1 if a device fails, or if it diverges from the first by more than rounding explains.")]
    Compare(CompareArgs),
    /// Train on one device of a comparison and print one line of JSON per step.
    #[command(name = COMPARE_DEVICE, hide = true)]
    CompareDevice(CompareDeviceArgs),
}

/// The configuration file and the values that override it.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// Configuration file of the run (TOML).
    config: PathBuf,
    /// Override one value of the configuration, such as train.steps=200 or data.source.0.epochs=2. KEY is a dotted
    /// path with list items by index, VALUE is TOML. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn load(&self) -> Result<RunConfig, ConfigError> {
        load(&self.config, &self.set)
    }

    /// What the run costs, and those before it.
    fn plan(&self) -> Result<Report, ConfigError> {
        let config = load_planned(&self.config, &self.set)?;
        let report = Report::of(&config);
        Ok(match config.train.first_run() {
            Some(first) => {
                let first = Self {
                    config: first.to_owned(),
                    set: Vec::new(),
                };
                report.after(first.plan()?)
            }
            None => report,
        })
    }

    /// Loads the configuration with one more override.
    fn load_with(&self, set: String) -> Result<RunConfig, ConfigError> {
        let sets: Vec<String> = self.set.iter().cloned().chain([set]).collect();
        load(&self.config, &sets)
    }
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Run folder to write [default: runs/ plus the configuration file's name].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Device to run on, such as flex, ndarray, wgpu or cuda:0; `cargo infer devices` lists them.
    #[arg(long, default_value = device::default_name())]
    device: String,
    /// Continue from the newest checkpoint of the run folder; beyond the run's end with a larger train.steps.
    #[arg(long, value_enum, value_name = "WHEN", num_args = 0..=1, require_equals = true)]
    #[arg(
        default_value = "never",
        default_missing_value = "required",
        hide_default_value = true
    )]
    resume: Resume,
    #[command(flatten)]
    layout: LayoutArgs,
}

/// How ranks divide a run.
#[derive(Debug, Args)]
struct LayoutArgs {
    /// Ranks that each compute the gradient of a share of every batch, and update a share of the weights: threads of this
    /// process, or the processes that mpirun or srun has started.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    data: u16,
    /// Ranks in place of each of these that divide the experts: each has a part of the experts, a share of the batch, and a
    /// share of the updates, and tokens go where their experts are. Must divide model.experts.count.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    expert: u16,
    /// Ranks in place of each of these that divide the matrices: each has a part of the query heads, of the width of
    /// feed-forwards and experts, and of the vocabulary, and all of them compute the same share of the batch.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    tensor: u16,
}

impl LayoutArgs {
    fn layout(&self) -> TrainLayout {
        TrainLayout {
            data: self.data.into(),
            expert: self.expert.into(),
            tensor: self.tensor.into(),
        }
    }
}

impl RunArgs {
    /// Runs on every rank, and prints the result once.
    fn execute(self, threads: Option<usize>, control: &Control) -> Result<(), CliError> {
        let (layout, control) = (self.layout.layout(), control.clone());
        let args = Arc::new(self);
        let first = Arc::clone(&args);
        let check = move || {
            let ConfigArgs { config, set } = &first.config;
            chain::check(config, set, &first.options(), layout)
        };
        let outcome = launch::run(layout, threads, check, move |team| {
            let ConfigArgs { config, set } = &args.config;
            chain::run(config, set, &args.options(), team, &control)
        })?;
        match outcome {
            Some(outcome) => Ok(print(&summary(&outcome))?),
            None => Ok(()),
        }
    }

    fn options(&self) -> RunOptions {
        let default = || run_folder::default_folder(&self.config.config);
        RunOptions {
            out: self.out.clone().unwrap_or_else(default),
            device: self.device.clone(),
            resume: self.resume,
        }
    }
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    layout: LayoutArgs,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct BenchArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Device to run on, such as flex, ndarray, wgpu or cuda:0; `cargo infer devices` lists them.
    #[arg(long, default_value = device::default_name())]
    device: String,
    /// Number of steps to measure, after three warm-up steps.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Do not measure the dense baseline.
    #[arg(long)]
    no_baseline: bool,
    /// Measure once per value of a configuration key, without the dense baseline.
    #[arg(long, value_name = "KEY=VALUE,…", value_parser = variants)]
    vary: Option<Variants>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CompareArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Devices to compare, such as flex,ndarray,wgpu; the first is the reference [default: every backend of this
    /// build].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    devices: Vec<String>,
    /// Number of steps to train; the learning rate follows the schedule of the whole run.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Allowed relative error of the loss; ten times as much is allowed for the gradient norm. The limit rises to a
    /// hundred times the error of a second run of the first device from weights perturbed by 1e-6, if that is larger.
    #[arg(long, value_name = "RATIO", default_value_t = TOLERANCE, value_parser = positive)]
    tolerance: f64,
    /// Also write an HTML page with charts.
    #[arg(long, value_name = "FILE", value_parser = page_path)]
    html: Option<PathBuf>,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

impl CompareArgs {
    fn execute(self, threads: Option<u16>) -> Result<(), CliError> {
        let config = self.config.load()?;
        if let Some(path) = &self.html {
            check_writable(path).map_err(CompareError::from)?;
        }
        let devices = if self.devices.is_empty() {
            let backends = device::backends().into_iter();
            let compiled = backends.filter(|backend| backend.compiled);
            compiled.map(|backend| backend.name.to_owned()).collect()
        } else {
            self.devices
        };
        let options = CompareOptions {
            config: self.config.config,
            set: self.config.set,
            devices,
            steps: self.steps,
            tolerance: self.tolerance,
            threads,
        };
        let comparison = compare(&config, &options)?;
        if let Some(path) = self.html {
            comparison.page().write(&path).map_err(CompareError::from)?;
        }
        present(&comparison, self.json)?;
        Ok(comparison.verdict()?)
    }
}

/// A configuration key and the values to measure.
#[derive(Debug, Clone)]
struct Variants {
    key: String,
    values: Vec<String>,
}

fn variants(text: &str) -> Result<Variants, String> {
    let example = "expected a key and a list of values, such as model.experts.count=4,8,16";
    let (key, values) = text.split_once('=').ok_or(example)?;
    let values: Vec<String> = values
        .split(',')
        .map(|value| value.trim().to_owned())
        .collect();
    if values.iter().any(String::is_empty) {
        return Err(example.to_owned());
    }
    Ok(Variants {
        key: key.trim().to_owned(),
        values,
    })
}

/// Parses a finite number above zero.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && f64::is_finite(number) => Ok(number),
        _ => Err("expected a finite number above 0, such as 1e-3".to_owned()),
    }
}

#[derive(Debug, Args)]
struct CompareDeviceArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[arg(long)]
    device: String,
    #[arg(long)]
    steps: u64,
    #[arg(long)]
    perturbed: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The text cannot be prepared.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The run cannot start or continue.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Devices cannot be compared, or they diverge.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// Runs cannot be reported.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A study cannot be made.
    #[error(transparent)]
    Study(#[from] StudyError),
    /// MPI cannot be used, or one of several processes has printed what is wrong.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A command that takes one process is started as several.
    #[error("MPI has started several processes, and this command runs in one")]
    SingleProcess,
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

impl Advise for CliError {
    fn advice(&self) -> Advice {
        match self {
            Self::Config(error) => error.advice(),
            Self::Data(error) => error.advice(),
            Self::Train(error) => error.advice(),
            Self::Compare(error) => error.advice(),
            Self::Report(error) => error.advice(),
            Self::Study(error) => error.advice(),
            Self::Program(error) => error.advice(),
            Self::SingleProcess => Advice::USAGE
                .hint("start it without mpirun; `cargo train run` runs on many processes"),
            Self::Output(_) => Advice::FAILURE,
        }
    }
}

impl Cli {
    /// Reads the command line. The process ends here if it asks for help, or has something wrong.
    ///
    /// # Errors
    ///
    /// In place of that end, where this is one of several processes under MPI: the first has printed the help, or what is
    /// wrong.
    pub fn read() -> Result<Self, CliError> {
        Self::try_parse().map_err(|error| {
            if !mpi::launched() {
                error.exit();
            }
            // 0 for help, 2 for what is wrong.
            let exit_code = error.exit_code() as u8;
            match mpi::once(move || error.print().map_err(CliError::Output)) {
                Ok(()) => ProgramError::Reported { exit_code }.into(),
                Err(error) => error.into(),
            }
        })
    }

    /// Number of threads for CPU backends; `None` unless `--threads` is given.
    pub fn threads(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// The device that this process computes on; `None` for commands that do not compute in this process.
    pub fn device(&self) -> Option<&str> {
        match &self.command {
            Command::Run(args) => Some(&args.device),
            Command::Bench(args) => Some(&args.device),
            Command::Study(args) => Some(&args.device),
            Command::CompareDevice(args) => Some(&args.device),
            Command::Prepare(_) | Command::Check(_) | Command::Report(_) | Command::Compare(_) => {
                None
            }
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    ///
    /// Returns the command's error, with an exit code and, for most errors, a hint.
    pub fn execute(self, control: &Control) -> Result<(), CliError> {
        let threads = self.threads();
        if mpi::launched() && !matches!(self.command, Command::Run(_)) {
            return Ok(mpi::once(|| Err(CliError::SingleProcess))?);
        }
        match self.command {
            Command::Run(args) => args.execute(threads, control),
            Command::Prepare(args) => {
                let prepared = data::prepare(&args.load()?, true)?;
                Ok(print(&format!("{}\n", prepared.folder.display()))?)
            }
            Command::Check(args) => {
                let report = args.config.plan()?;
                let report = report.on(args.layout.layout()).map_err(TrainError::from)?;
                data::warn_of_planned_repetition(&report.config);
                present(&report, args.json)
            }
            Command::Report(args) => args.execute(),
            Command::Study(args) => args.execute(control),
            Command::Bench(args) => {
                let options = BenchOptions {
                    device: args.device,
                    steps: args.steps as usize,
                    baseline: !args.no_baseline,
                };
                let failed = |failure: DeviceFailure| TrainError::Computation {
                    step: None,
                    failure: failure.into(),
                    checkpoint: None,
                };
                if let Some(Variants { key, values }) = args.vary {
                    let configs = values.into_iter().map(|value| {
                        let config = args.config.load_with(format!("{key}={value}"))?;
                        Ok((value, config))
                    });
                    let configs = configs.collect::<Result<_, ConfigError>>()?;
                    let measured = guard(&options.device, || {
                        vary(&key, configs, &options.device, options.steps)
                    });
                    return present(&measured.map_err(failed)??, args.json);
                }
                let config = args.config.load()?;
                let measured = guard(&options.device, || bench(&config, &options));
                present(&measured.map_err(failed)??, args.json)
            }
            Command::Compare(args) => args.execute(self.threads),
            Command::CompareDevice(args) => {
                let config = args.config.load()?;
                Ok(record(
                    &config,
                    &args.device,
                    args.steps,
                    args.perturbed,
                    control,
                    print_line,
                )?)
            }
        }
    }
}

/// Prints a report as text or as JSON.
fn present(report: &(impl Display + Serialize), json: bool) -> Result<(), CliError> {
    if !json {
        return Ok(print(&report.to_string())?);
    }
    // A report contains only numbers, strings, lists and maps, so this cannot fail.
    let json = serde_json::to_string_pretty(report).map_err(io::Error::from)?;
    Ok(print(&format!("{json}\n"))?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
