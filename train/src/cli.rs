//! The command line of `cargo train`.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use firebox_console::advice::{Advice, Advise};
use firebox_console::process::COMPARE_DEVICE;
use firebox_console::terminal::print;
use firebox_runtime::control::Control;
use firebox_runtime::device;
use firebox_runtime::failure::{DeviceFailure, guard};

use crate::bench::{BenchOptions, bench, vary};
use crate::check::Report;
use crate::compare::{CompareError, CompareOptions, TOLERANCE, compare, print_line, record};
use crate::config::{ConfigError, RunConfig, load, load_resumed};
use crate::data::{self, DataError};
use crate::error::TrainError;
use crate::run_folder;
use crate::trainer::{self, Outcome, RunOptions};

/// Trains mixture-of-experts language models: a configuration file and text in, a checkpoint out.
#[derive(Debug, Parser)]
#[command(
    name = "cargo train",
    bin_name = "cargo train",
    version,
    after_help = "Examples:\n  \
        cargo train check configs/quickstart.toml           what the run is, and what it costs\n  \
        cargo train run configs/quickstart.toml             train, then sample\n  \
        cargo train run configs/quickstart.toml --resume    go on where it stopped\n  \
        cargo train check configs/gpt4.toml                 plan a 1.8-trillion-parameter run\n  \
        cargo train compare configs/quickstart.toml         the same steps on every backend of this build\n\n\
        Every key of a configuration is explained in configs/quickstart.toml."
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
    /// Train a model, writing checkpoints and metrics to a run folder.
    #[command(after_help = "Examples:\n  \
        cargo train run configs/quickstart.toml\n  \
        cargo train run configs/quickstart.toml --set train.steps=500 --out runs/longer\n  \
        cargo train run configs/quickstart.toml --set model.feed_forward=dense --out runs/dense\n  \
        cargo train run configs/upcycle.toml               makes a mixture of the dense model in runs/dense\n  \
        cargo train run configs/quickstart.toml --device wgpu\n\n\
        Ctrl-C finishes the step, writes a checkpoint, and says how to go on.")]
    Run(RunArgs),
    /// Make the tokenizer and the token shards of a run, and nothing more.
    #[command(after_help = "Example:\n  cargo train prepare configs/quickstart.toml")]
    Prepare(ConfigArgs),
    /// Show the resolved configuration, its parameters, operations, memory and tokens; touches no device.
    #[command(after_help = "Examples:\n  \
        cargo train check configs/gpt4.toml\n  \
        cargo train check configs/quickstart.toml --set model.experts.count=16\n  \
        cargo train check configs/gpt4.toml --json")]
    Check(CheckArgs),
    /// Measure how fast a run's model trains on this machine, on random tokens: tokens/s, FLOP/s, the share of the
    /// machine's matrix product, memory, and the same of the dense twin of equal active FLOPs.
    #[command(after_help = "Examples:\n  \
        cargo train bench configs/reference.toml\n  \
        cargo train bench configs/quickstart.toml --device wgpu --steps 3 --json\n  \
        cargo train bench configs/reference.toml --vary model.experts.count=4,8,16,32    what a token costs")]
    Bench(BenchArgs),
    /// Take the same steps on several devices, and show where they part: loss, gradient and router load by step,
    /// speed, memory.
    #[command(after_help = "Examples:\n  \
        cargo train compare configs/quickstart.toml --devices flex,ndarray --steps 20\n  \
        cargo train compare configs/quickstart.toml --devices flex,wgpu --html compare.html\n  \
        cargo train compare configs/quickstart.toml --set train.micro_batch=2 --json\n\n\
        Weights and data are the same on every device, so that nothing but rounding may differ. The exit code is 1\n\
        when a device fails, or parts from the first by more than rounding explains.")]
    Compare(CompareArgs),
    /// One device of a comparison: a line of JSON for each step.
    #[command(name = COMPARE_DEVICE, hide = true)]
    CompareDevice(CompareDeviceArgs),
}

/// Which configuration.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// The run's TOML file.
    config: PathBuf,
    /// Set one value over the file's: a dotted path and a TOML value, with list items by number, such as
    /// train.steps=200 or data.source.0.epochs=2. May be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn load(&self) -> Result<RunConfig, ConfigError> {
        load(&self.config, &self.set)
    }

    /// With one more value over the file's.
    fn load_with(&self, set: String) -> Result<RunConfig, ConfigError> {
        let sets: Vec<String> = self.set.iter().cloned().chain([set]).collect();
        load(&self.config, &sets)
    }
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where the run is written [default: runs/ and the name of the configuration file].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What computes, such as flex, ndarray, wgpu or cuda:0; `cargo infer devices` lists them.
    #[arg(long, default_value = device::default_name())]
    device: String,
    /// Go on from the newest checkpoint of the run folder.
    #[arg(long)]
    resume: bool,
}

impl RunArgs {
    fn load(&self) -> Result<RunConfig, ConfigError> {
        if !self.resume {
            return self.config.load();
        }
        let saved = run_folder::config(&self.options().out);
        load_resumed(&self.config.config, &self.config.set, &saved)
    }

    fn options(&self) -> RunOptions {
        let name = self.config.config.file_stem().unwrap_or("run".as_ref());
        let out = self
            .out
            .clone()
            .unwrap_or_else(|| Path::new("runs").join(name));
        RunOptions {
            out,
            device: self.device.clone(),
            resume: self.resume,
        }
    }
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct BenchArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// What computes, such as flex, ndarray, wgpu or cuda:0; `cargo infer devices` lists them.
    #[arg(long, default_value = device::default_name())]
    device: String,
    /// Steps that are measured, after three that are not.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Leave the dense twin out.
    #[arg(long)]
    no_twin: bool,
    /// Measure once for each of several values of a key, without the twin.
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
    /// What computes, such as flex,ndarray,wgpu; the others are compared with the first [default: every backend of
    /// this build].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    devices: Vec<String>,
    /// Steps to take; the learning rate follows the whole run.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// What a loss may be off, over the loss itself, and a tenth of what the gradient's norm may. Where rounding alone
    /// does more, as the first device shows with its weights changed by 1e-6 of themselves, a hundred times that.
    #[arg(long, value_name = "SHARE", default_value_t = TOLERANCE, value_parser = share)]
    tolerance: f64,
    /// Also write a page with curves, for a browser.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

impl CompareArgs {
    fn execute(self, threads: Option<u16>) -> Result<(), CliError> {
        let config = self.config.load()?;
        let devices = match self.devices.is_empty() {
            true => {
                let backends = device::backends().into_iter();
                let compiled = backends.filter(|backend| backend.compiled);
                compiled.map(|backend| backend.name.to_owned()).collect()
            }
            false => self.devices,
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

/// A key, and values for it.
#[derive(Debug, Clone)]
struct Variants {
    key: String,
    values: Vec<String>,
}

fn variants(text: &str) -> Result<Variants, String> {
    let example = "a key and values are needed, such as model.experts.count=4,8,16";
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

/// A number above zero.
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && f64::is_finite(share) => Ok(share),
        _ => Err("it must be a number above 0, such as 1e-3".to_owned()),
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
    control: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The text cannot be prepared.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The run cannot start or go on.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Devices cannot be compared, or differ.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// Standard output cannot be written.
    #[error("standard output cannot be written")]
    Output(#[from] io::Error),
}

impl Advise for CliError {
    fn advice(&self) -> Advice {
        match self {
            Self::Config(error) => error.advice(),
            Self::Data(error) => error.advice(),
            Self::Train(error) => error.advice(),
            Self::Compare(error) => error.advice(),
            Self::Output(_) => Advice::FAILURE,
        }
    }
}

impl Cli {
    /// Threads of the CPU backends, where `--threads` gives them.
    pub fn threads(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// The device that this process computes on; `None` for commands that compute nothing themselves.
    pub fn device(&self) -> Option<&str> {
        match &self.command {
            Command::Run(args) => Some(&args.device),
            Command::Bench(args) => Some(&args.device),
            Command::CompareDevice(args) => Some(&args.device),
            Command::Prepare(_) | Command::Check(_) | Command::Compare(_) => None,
        }
    }

    /// Does what the command line says.
    ///
    /// # Errors
    ///
    /// What went wrong, with an exit code and often a hint.
    pub fn execute(self, control: &Control) -> Result<(), CliError> {
        match self.command {
            Command::Run(args) => {
                let outcome = trainer::run(&args.load()?, &args.options(), control)?;
                Ok(print(&summary(&outcome))?)
            }
            Command::Prepare(args) => {
                let prepared = data::prepare(&args.load()?, true)?;
                Ok(print(&format!("{}\n", prepared.folder.display()))?)
            }
            Command::Check(args) => {
                let report = Report::of(&args.config.load()?);
                present(&report, args.json)
            }
            Command::Bench(args) => {
                let options = BenchOptions {
                    device: args.device,
                    steps: args.steps as usize,
                    twin: !args.no_twin,
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
                    args.control,
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
    // Numbers and strings alone: nothing in a report fails to be JSON.
    let json = serde_json::to_string_pretty(report).map_err(io::Error::from)?;
    Ok(print(&format!("{json}\n"))?)
}

/// What a run came to, for a person.
fn summary(outcome: &Outcome) -> String {
    let Outcome {
        validation,
        sample,
        checkpoint,
    } = outcome;
    let checkpoint = checkpoint.display();
    let mut text = String::new();
    if let Some(sample) = sample {
        text += &format!("sample:\n{sample}\n\n");
    }
    text + &format!(
        "validation: {:.6} nats per token, {:.6} bits per byte, on {} tokens\n\
         checkpoint: {checkpoint}\n\
         sample it:  cargo infer generate {checkpoint} --prompt \"…\"\n",
        validation.nats_per_token, validation.bits_per_byte, validation.tokens
    )
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
