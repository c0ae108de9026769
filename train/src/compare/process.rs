//! Runs one process per device, one after the other, so that no two compete for the machine.

use std::collections::BTreeSet;
use std::env;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use firebox_runtime::device::{DeviceError, select};
use indicatif::{ProgressBar, ProgressStyle};

use super::{CompareError, CompareOptions, Comparison, DeviceRun, StepRecord};
use crate::config::RunConfig;
use crate::data::prepare;

/// The hidden command with which this program starts a device's process.
pub const COMMAND: &str = "compare-device";

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
    let bar = progress_bar(options);
    let mut devices = Vec::new();
    let run = |device: &String, perturbed: bool| {
        let process = Process {
            options,
            device,
            perturbed,
        };
        process.run(&bar).map_err(|source| CompareError::Process {
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
    bar.finish_and_clear();
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
    fn run(self, bar: &ProgressBar) -> io::Result<DeviceRun> {
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
        bar.set_message(format!("{name}: first step"));
        let started = Instant::now();
        let mut child = self.start()?;
        let (output, mut errors) = (child.stdout.take(), child.stderr.take());
        // Both pipes are read concurrently, so that neither fills up and blocks the process.
        let messages = thread::spawn(move || {
            let mut text = Vec::new();
            // Text that cannot be read is missing from the message.
            let _ = errors.as_mut().map(|errors| errors.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        });
        let (mut steps, mut first_step_seconds) = (Vec::<StepRecord>::new(), None);
        for line in output
            .map(BufReader::new)
            .into_iter()
            .flat_map(BufRead::lines)
        {
            // A process that is killed may leave an incomplete line.
            let Ok(record) = serde_json::from_str::<StepRecord>(&line?) else {
                continue;
            };
            first_step_seconds.get_or_insert_with(|| started.elapsed().as_secs_f64());
            bar.set_message(format!(
                "{name}: step {}/{}, loss {:.4}",
                record.step, options.steps, record.loss
            ));
            bar.inc(1);
            steps.push(record);
        }
        let status = child.wait()?;
        let messages = messages.join().unwrap_or_default();
        bar.inc(options.steps - steps.len() as u64);
        let failure = (!status.success()).then(|| reason(status, &messages));
        Ok(DeviceRun {
            first_step_seconds,
            ..DeviceRun::new(&name, steps, failure)
        })
    }

    fn start(self) -> io::Result<Child> {
        let Self {
            options,
            device,
            perturbed,
        } = self;
        let mut command = Command::new(env::current_exe()?);
        command
            .arg(COMMAND)
            .arg(&options.config)
            .args(["--device", device]);
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
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }
}

/// Why a process failed: its error message, or else its exit status.
fn reason(status: ExitStatus, messages: &str) -> String {
    let sentence = messages
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: "));
    match sentence {
        Some(sentence) => sentence.to_owned(),
        None if status.code().is_none() => {
            format!("the process was killed ({status}); the system may be out of memory")
        }
        None => format!("the process ended with {status} and without an error message"),
    }
}

fn progress_bar(options: &CompareOptions) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {percent}%  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar =
        ProgressBar::new(options.steps * (options.devices.len() as u64 + 1)).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
