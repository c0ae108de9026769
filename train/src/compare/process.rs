//! A process for each device, one after the other, so that each has the machine to itself.

use std::collections::BTreeSet;
use std::io;
use std::process::Command;
use std::time::Instant;

use firebox_console::process::{self, COMPARE_DEVICE, hidden_command};
use firebox_console::progress::Progress;
use firebox_runtime::device::{DeviceError, select};

use super::{CompareError, CompareOptions, Comparison, DeviceRun, StepRecord};
use crate::config::RunConfig;
use crate::data::prepare;
use crate::error::LESS_MEMORY;

/// Takes the same steps on each device, after the text is prepared once. `config` is that of the options. A device
/// that fails has its reason in its row; the others stand.
///
/// # Errors
///
/// When the options make no sense, or no process can be started.
pub fn compare(config: &RunConfig, options: &CompareOptions) -> Result<Comparison, CompareError> {
    check(config, options)?;
    // Here and not in the first device's time.
    prepare(config, true)?;
    let runs = options.devices.len() as u64 + 1;
    let progress = Progress::new("comparing", options.steps * runs);
    let mut devices = Vec::new();
    let run = |device: &String, control: bool| {
        let process = Process {
            options,
            device,
            control,
        };
        process
            .run(&progress)
            .map_err(|source| CompareError::Process {
                device: device.clone(),
                source,
            })
    };
    for device in &options.devices {
        devices.push(run(device, false)?);
    }
    let control = match (options.devices.first(), devices.first()) {
        (Some(device), Some(first)) if first.failure.is_none() => Some(run(device, true)?),
        _ => None,
    };
    drop(progress);
    let mut comparison = Comparison {
        config: options.config.clone(),
        steps: options.steps,
        run_steps: config.train.steps,
        seed: config.train.seed,
        tolerance: options.tolerance,
        devices,
        control,
    };
    comparison.judge();
    Ok(comparison)
}

fn check(config: &RunConfig, options: &CompareOptions) -> Result<(), CompareError> {
    if let [device] = options.devices.as_slice() {
        return Err(CompareError::One(device.clone()));
    }
    let mut names = BTreeSet::new();
    for device in &options.devices {
        if !names.insert(device) {
            return Err(CompareError::Twice(device.clone()));
        }
        // One that this build or this machine lacks is a row that says so.
        if let Err(error @ DeviceError::Unknown { .. }) = select(device) {
            return Err(error.into());
        }
    }
    if options.steps > config.train.steps {
        return Err(CompareError::Steps {
            steps: options.steps,
            of: config.train.steps,
        });
    }
    Ok(())
}

/// One device, or the control on it.
#[derive(Clone, Copy)]
struct Process<'a> {
    options: &'a CompareOptions,
    device: &'a str,
    control: bool,
}

impl Process<'_> {
    fn run(self, progress: &Progress) -> io::Result<DeviceRun> {
        let Self {
            options,
            device,
            control,
        } = self;
        let name = match control {
            true => format!("{device} (control)"),
            false => device.to_owned(),
        };
        progress.tell(format!("{name}: first step"));
        let started = Instant::now();
        let (mut steps, mut first_step_seconds) = (Vec::<StepRecord>::new(), None);
        let ended = process::run(self.command()?, LESS_MEMORY, |line| {
            // A process that is killed may leave half a line.
            let Ok(record) = serde_json::from_str::<StepRecord>(line) else {
                return;
            };
            first_step_seconds.get_or_insert_with(|| started.elapsed().as_secs_f64());
            progress.tell(format!(
                "{name}: step {}/{}, loss {:.4}",
                record.step, options.steps, record.loss
            ));
            progress.advance(1);
            steps.push(record);
        })?;
        progress.advance(options.steps - steps.len() as u64);
        let failure = ended.err().map(|failure| failure.reason);
        Ok(DeviceRun {
            first_step_seconds,
            ..DeviceRun::new(&name, steps, failure)
        })
    }

    fn command(self) -> io::Result<Command> {
        let Self {
            options,
            device,
            control,
        } = self;
        let mut command = hidden_command(COMPARE_DEVICE)?;
        command.arg(&options.config).args(["--device", device]);
        command.args(["--steps", &options.steps.to_string()]);
        if control {
            command.arg("--control");
        }
        for set in &options.set {
            command.args(["--set", set]);
        }
        if let Some(threads) = options.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        Ok(command)
    }
}
