//! `cargo train report`.

use std::path::PathBuf;

use clap::Args;

use firebox_console::durable::check_writable;
use firebox_console::report::page_path;

use super::{CliError, present};
use crate::report::{self, ReportError};

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Folders of runs, such as runs/quickstart; others are compared with the first.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Also write an HTML page with charts.
    #[arg(long, value_name = "FILE", value_parser = page_path)]
    html: Option<PathBuf>,
    /// Also write the runs for `tensorboard --logdir DIR`, a folder each.
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
    /// Print one JSON object with all records instead of tables.
    #[arg(long)]
    json: bool,
}

impl ReportArgs {
    pub(super) fn execute(self) -> Result<(), CliError> {
        if let Some(path) = &self.html {
            check_writable(path).map_err(ReportError::from)?;
        }
        let report = report::Report::read(&self.runs)?;
        if let Some(path) = self.html {
            report.page().write(&path).map_err(ReportError::from)?;
        }
        if let Some(folder) = self.tensorboard {
            report.write_events(&folder).map_err(ReportError::from)?;
        }
        present(&report, self.json)
    }
}
