//! A run, and before it the run that it starts from, if `train.init` names the configuration of one.
//!
//! The run before is one like any other, in its [default](run_folder::default_folder) folder: it is done, or continued if it has
//! begun, or taken as it is if it is finished. A run that has a checkpoint itself does not look at it again.

use std::path::{Path, PathBuf, absolute};

use firebox_runtime::control::Control;

use crate::config::{RunConfig, load, load_planned, load_resumed};
use crate::error::TrainError;
use crate::ranks::{Team, TrainLayout};
use crate::run_folder;
use crate::state;
use crate::trainer::{self, Outcome, Resume, RunOptions};

/// Loads a configuration file with these overrides, does the run that it starts from where that is to be done, and the run
/// itself. Overrides and the folder are those of the last run; the runs before it have neither. Every rank of a team calls
/// this.
///
/// # Errors
///
/// As [`load`] and [`trainer::run`]; when the run before it has another configuration by now, or has not begun and all is to
/// be resumed; when two of the runs have the same folder.
pub fn run(
    file: &Path,
    overrides: &[String],
    options: &RunOptions,
    team: &Team,
    control: &Control,
) -> Result<Outcome, TrainError> {
    link(file, overrides, options, (team, control), &[])
}

/// Checks, before any rank starts, that a run and those that it starts from can be loaded, and divided among ranks so.
///
/// # Errors
///
/// When a configuration is invalid, or does not fit the layout.
pub fn check(
    file: &Path,
    overrides: &[String],
    options: &RunOptions,
    layout: TrainLayout,
) -> Result<(), TrainError> {
    let is_new = run_folder::newest(&options.out)?.is_none();
    let config = match options.resume == Resume::Never || is_new {
        true => load_planned(file, overrides)?,
        false => load_resumed(file, overrides, &run_folder::config(&options.out))?,
    };
    if layout.ranks() > 1 {
        layout
            .check(&config)
            .map_err(|source| TrainError::Divided {
                file: file.to_owned(),
                source,
            })?;
    }
    match config.train.first_run().filter(|_| is_new) {
        Some(first) => {
            let before = RunOptions {
                out: run_folder::default_folder(first),
                resume: Resume::Auto,
                ..options.clone()
            };
            check(first, &[], &before, layout)
        }
        None => Ok(()),
    }
}

/// One run of a chain, and those before it. `later` are the folders of the runs after it.
fn link(
    file: &Path,
    overrides: &[String],
    options: &RunOptions,
    (team, control): (&Team, &Control),
    later: &[PathBuf],
) -> Result<Outcome, TrainError> {
    let out = &options.out;
    // The configuration of a run without a checkpoint does not restrict a new start.
    if run_folder::newest(out)?.is_some() && options.resume != Resume::Never {
        let config = load_resumed(file, overrides, &run_folder::config(out))?;
        return trainer::run(&config, options, team, control);
    }
    let planned = load_planned(file, overrides)?;
    let is_new = run_folder::newest(out)?.is_none();
    let Some(first) = planned.train.first_run().filter(|_| is_new) else {
        return trainer::run(&planned, options, team, control);
    };
    if options.resume == Resume::Required && !has_begun(first)? {
        return Err(TrainError::NothingToResume {
            folder: out.clone(),
        });
    }
    let folders = [later, std::slice::from_ref(out)].concat();
    finish(first, options, (team, control), &folders)?;
    tracing::info!("now the run of {}, in {}", file.display(), out.display());
    let options = RunOptions {
        resume: Resume::Never,
        ..options.clone()
    };
    // What the run before has given is known by now.
    trainer::run(&load(file, overrides)?, &options, team, control)
}

/// Whether the run of a configuration, or the one that it starts from, has a checkpoint.
fn has_begun(file: &Path) -> Result<bool, TrainError> {
    if run_folder::newest(&run_folder::default_folder(file))?.is_some() {
        return Ok(true);
    }
    match load_planned(file, &[])?.train.first_run() {
        Some(first) => has_begun(first),
        None => Ok(false),
    }
}

/// Does the run of a configuration, unless it is finished. `later` are the folders of the runs that start from it.
fn finish(
    file: &Path,
    options: &RunOptions,
    (team, control): (&Team, &Control),
    later: &[PathBuf],
) -> Result<(), TrainError> {
    let out = run_folder::default_folder(file);
    let place = |folder: &Path| absolute(folder).unwrap_or_else(|_| folder.to_owned());
    if later.iter().any(|folder| place(folder) == place(&out)) {
        return Err(TrainError::SameFolder {
            file: file.to_owned(),
            folder: out,
        });
    }
    let newest = run_folder::newest(&out)?;
    match newest {
        Some(step) if step >= check_unchanged(file, &out)?.train.steps => {
            tracing::info!(
                "starting from the run of {}, finished in {}",
                file.display(),
                out.display()
            );
            return Ok(());
        }
        Some(step) => tracing::info!(
            "first the run of {}, in {}, after step {step}",
            file.display(),
            out.display()
        ),
        None => tracing::info!("first the run of {}, in {}", file.display(), out.display()),
    }
    let first = RunOptions {
        out,
        device: options.device.clone(),
        resume: match newest {
            Some(_) => Resume::Required,
            None => Resume::Never,
        },
    };
    let outcome = link(file, &[], &first, (team, control), later)?;
    let whole = &outcome.validation.whole;
    tracing::info!(
        "{}: {:.4} nats/token, {:.4} bits/byte on {} tokens of validation",
        outcome.checkpoint.display(),
        whole.nats_per_token,
        whole.bits_per_byte,
        whole.tokens
    );
    match team.any(control.stop_requested()) {
        true => Err(TrainError::Interrupted {
            step: run_folder::newest(&first.out)?.unwrap_or(0),
            checkpoint: outcome.checkpoint,
        }),
        false => Ok(()),
    }
}

/// Checks that a run which others start from has the configuration that the file has by now.
fn check_unchanged(file: &Path, out: &Path) -> Result<RunConfig, TrainError> {
    let config = load_resumed(file, &[], &run_folder::config(out))?;
    let saved = trainer::saved_config(&config, out)?;
    match state::differences(&saved, &config) {
        changes if changes.is_empty() => Ok(config),
        changes => Err(TrainError::FirstRunChanged {
            file: file.to_owned(),
            folder: out.to_owned(),
            changes,
        }),
    }
}
