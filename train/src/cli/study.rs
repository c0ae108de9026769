//! `cargo train study`.

use std::path::PathBuf;

use clap::Args;

use firebox_console::durable::check_writable;
use firebox_console::report::page_path;
use firebox_runtime::control::Control;
use firebox_runtime::device;

use super::{CliError, positive, present};
use crate::run_folder;
use crate::study::{self, Equal, StudyError, StudyOptions};

#[derive(Debug, Args)]
pub(super) struct StudyArgs {
    /// File of the study (TOML).
    study: PathBuf,
    /// Compare at equal seconds of training, whatever the file says.
    #[arg(long, value_name = "N", value_parser = positive)]
    seconds: Option<f64>,
    /// Compare at equal tokens of training, whatever the file says.
    #[arg(long, value_name = "N", value_parser = count, conflicts_with = "seconds")]
    tokens: Option<u64>,
    /// Compare at equal operations of training, whatever the file says, such as 1e15.
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with_all = ["seconds", "tokens"])]
    flops: Option<f64>,
    /// Folder of the study [default: runs/ plus the file's name].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Device to run on, such as flex, ndarray, wgpu or cuda:0; `cargo infer devices` lists them.
    #[arg(long, default_value = device::default_name())]
    pub(super) device: String,
    /// Also write an HTML page with charts.
    #[arg(long, value_name = "FILE", value_parser = page_path)]
    html: Option<PathBuf>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

impl StudyArgs {
    pub(super) fn execute(self, control: &Control) -> Result<(), CliError> {
        let seconds = self.seconds.map(Equal::Seconds);
        let tokens = self.tokens.map(Equal::Tokens);
        let equal = seconds.or(tokens).or(self.flops.map(Equal::Flops));
        let study = study::load(&self.study, equal)?;
        if let Some(path) = &self.html {
            check_writable(path).map_err(StudyError::from)?;
        }
        let options = StudyOptions {
            out: self
                .out
                .unwrap_or_else(|| run_folder::default_folder(&self.study)),
            device: self.device,
        };
        let result = study::run(&study, &options, control)?;
        if let Some(path) = self.html {
            result.page().write(&path).map_err(StudyError::from)?;
        }
        present(&result, self.json)
    }
}

/// Parses a count above zero, whose digits may be apart.
fn count(text: &str) -> Result<u64, String> {
    match text.replace('_', "").parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("expected a whole number above 0, such as 400_000".to_owned()),
    }
}
