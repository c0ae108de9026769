//! Runs one process per device, one after the other, so that no two compete for the machine.

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

/// Prepares the text once, then trains the same steps on every device. `config` is the configuration that the options
/// name. The failure of a device is part of the result and does not affect the other devices.
///
/// # Errors
///
/// When the options are invalid, when the text cannot be prepared, or when a process cannot be started.
pub fn compare(config: &RunConfig, options: &CompareOptions) -> Result<Comparison, CompareError> {
    check(config, options)?;
    // Done here, so that it does not count in the first device's time.
    prepare(config, true)?;
    let runs = options.devices.len() as u64 + 1;
    let progress = Progress::new("comparing", options.steps * runs);
    let mut devices = Vec::new();
    let run = |device: &String, perturbed: bool| {
        let process = Process {
            options,
            device,
            perturbed,
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
    let perturbed = match (options.devices.first(), devices.first()) {
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
        perturbed,
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
        // A device that this build or this machine lacks is reported in its row.
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

/// The process of one device, or of the perturbed run.
#[derive(Clone, Copy)]
struct Process<'a> {
    options: &'a CompareOptions,
    device: &'a str,
    perturbed: bool,
}

impl Process<'_> {
    fn run(self, progress: &Progress) -> io::Result<DeviceRun> {
        let Self {
            options,
            device,
            perturbed,
        } = self;
        let name = if perturbed {
            format!("{device} (perturbed)")
        } else {
            device.to_owned()
        };
        progress.tell(format!("{name}: first step"));
        let started = Instant::now();
        let (mut steps, mut first_step_seconds) = (Vec::<StepRecord>::new(), None);
        let ended = process::run(self.command()?, LESS_MEMORY, |line| {
            // A process that is killed may leave an incomplete line.
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
            perturbed,
        } = self;
        let mut command = hidden_command(COMPARE_DEVICE)?;
        command.arg(&options.config).args(["--device", device]);
        command.args(["--steps", &options.steps.to_string()]);
        if perturbed {
            command.arg("--perturbed");
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
