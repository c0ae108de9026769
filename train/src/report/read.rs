//! Reads what runs have recorded.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use firebox_console::durable::FileError;
use firebox_model::moe::stats::warning;

use super::{Recorded, Report, ReportError};
use crate::check::RankPlan;
use crate::config::{RunConfig, load_saved};
use crate::metrics::{Record, TrainRecord};
use crate::run_folder;
use crate::state::differences;

impl Report {
    /// Reads the records of runs; those of a run that is still going end where they end.
    ///
    /// # Errors
    ///
    /// When a folder is not a run's, is named twice, or its files cannot be read.
    pub fn read(folders: &[PathBuf]) -> Result<Self, ReportError> {
        let mut seen = HashSet::new();
        if let Some(folder) = folders.iter().find(|folder| !seen.insert(whole(folder))) {
            return Err(ReportError::Twice(folder.clone()));
        }
        let mut runs: Vec<Recorded> = Vec::new();
        let mut first = None;
        for folder in folders {
            let name = last_part(folder);
            let same = folders.iter().filter(|other| last_part(other) == name);
            let name = match same.count() {
                1 => name,
                _ => folder.display().to_string(),
            };
            let config = config(folder)?;
            let first = first.get_or_insert_with(|| config.clone());
            let differences = differences(first, &config);
            runs.push(read(folder, name, &config, differences)?);
        }
        Ok(Self { runs })
    }
}

/// The path without links and dots, if there is something.
fn whole(folder: &Path) -> PathBuf {
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
}

fn last_part(folder: &Path) -> String {
    let folder = whole(folder);
    let part = folder.file_name().unwrap_or(folder.as_os_str());
    part.to_string_lossy().into_owned()
}

fn config(folder: &Path) -> Result<RunConfig, ReportError> {
    let path = run_folder::config(folder);
    match path.is_file() {
        true => load_saved(&path).map_err(ReportError::Config),
        false => Err(ReportError::NoRun {
            folder: folder.to_owned(),
            missing: "config.toml",
        }),
    }
}

fn read(
    folder: &Path,
    name: String,
    config: &RunConfig,
    differences: Vec<String>,
) -> Result<Recorded, ReportError> {
    let path = run_folder::metrics(folder);
    let cannot_read = FileError::of("read", &path);
    let file = File::open(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => ReportError::NotBegun(folder.to_owned()),
        _ => cannot_read(error).into(),
    })?;
    let mut records = records(BufReader::new(file), &path)?.into_iter();
    let (parameters, active_parameters, sources) = match records.next() {
        Some(Record::Start(start)) => (start.parameters, start.active_parameters, start.sources),
        Some(_) => return Err(ReportError::Start(path)),
        None => return Err(ReportError::NotBegun(folder.to_owned())),
    };
    let mut run = Recorded {
        name,
        folder: folder.to_owned(),
        steps: config.train.steps,
        parameters,
        active_parameters,
        differences,
        sources,
        training: Vec::new(),
        plan: None,
        validations: Vec::new(),
        samples: Vec::new(),
        warnings: Vec::new(),
    };
    for record in records {
        match record {
            Record::Train(record) => {
                let warning = (record.step > config.schedule.warmup_steps)
                    .then(|| warning(&record.layers, assignments(&record)))
                    .flatten();
                run.warnings.extend(warning.map(|text| (record.step, text)));
                run.training.push(record);
            }
            Record::Validation(record) => run.validations.push(record),
            Record::Sample(record) => run.samples.push(record),
            Record::Start(_) => return Err(ReportError::Start(path)),
        }
    }
    let layout = run.last().and_then(|record| record.layout);
    run.plan = layout.and_then(|layout| RankPlan::of(config, layout).ok());
    if let Some(plan) = &mut run.plan
        && config.model.vision.is_some()
    {
        // Rows with pictures send more than their tokens.
        (plan.bytes_per_token, plan.sum_bytes_per_token) = (None, None);
    }
    Ok(run)
}

/// Choices of an expert by a token, per layer.
fn assignments(record: &TrainRecord) -> u64 {
    let experts = record.layers.first().map_or(0, |layer| layer.load.len());
    (record.tokens_per_expert.unwrap_or(0.0) * experts as f64).round() as u64
}

/// The records of a file. What follows the last line's end is being written.
fn records(mut file: impl BufRead, path: &Path) -> Result<Vec<Record>, ReportError> {
    let (mut line, mut records) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        file.read_until(b'\n', &mut line)
            .map_err(FileError::of("read", path))?;
        if line.pop() != Some(b'\n') {
            return Ok(records);
        }
        let record = serde_json::from_slice(&line).map_err(|error| ReportError::Line {
            file: path.to_owned(),
            line: records.len() + 1,
            what: error.to_string(),
        })?;
        records.push(record);
    }
}
