//! The options of `cargo infer bench --serve`.

use std::path::{Path, PathBuf};

use clap::Args;
use firebox_console::report::page_path;
use firebox_console::terminal::print;
use firebox_runtime::control::Control;
use firebox_serve::route::Address;

use super::serve::{EngineArgs, given_key, key, not_empty};
use super::values::{not_negative, positive, share};
use super::{DtypeArgs, ModelArgs, at_least_one, print_json};
use crate::InferError;
use crate::generate::read_prompts;
use crate::load::{self, Goodput, Lengths, Load, LoadError, LoadOptions, LoadReport, Prompts};
use crate::serve::serve_while;

/// Requests at once where nothing is said.
const CONCURRENCY: [usize; 3] = [1, 8, 32];

/// Options that say something only with --serve.
#[derive(Debug, Args)]
#[command(next_help_heading = "With --serve")]
pub(super) struct LoadArgs {
    /// Numbers of requests to keep under way at once, one load after the other [default: 1,8,32].
    #[arg(long, value_name = "N,N…", value_delimiter = ',', requires = "serve", conflicts_with = "rate", value_parser = at_least_one)]
    concurrency: Vec<usize>,
    /// Requests per second, at random times, one load after the other; inf sends all at once.
    #[arg(long, value_name = "R,R…", value_delimiter = ',', requires = "serve", value_parser = rate)]
    rate: Vec<f64>,
    /// Number of requests of each load [default: four for each that is under way at once, at least 32].
    #[arg(long, value_name = "N", requires = "serve", value_parser = at_least_one)]
    requests: Option<usize>,
    /// Seconds after which a load sends no more requests.
    #[arg(long, value_name = "S", requires = "serve", value_parser = positive)]
    seconds: Option<f64>,
    /// Number of requests before each load that do not count [default: as many as are under way at once].
    #[arg(long, value_name = "N", requires = "serve")]
    warmup: Option<usize>,
    /// File of prompts, as `cargo infer generate --prompts` reads it, instead of random ones.
    #[arg(long, value_name = "FILE", requires = "serve", conflicts_with_all = ["prompt_tokens", "prefix"])]
    prompts: Option<PathBuf>,
    /// Share of each prompt, at its beginning, that all prompts have in common.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, requires = "serve", value_parser = share)]
    prefix: f64,
    /// Temperature of the draws; 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 1.0, requires = "serve", value_parser = not_negative)]
    temperature: f64,
    /// Seed of prompts, lengths, draws and times of arrival.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "serve")]
    seed: u64,
    /// Count the requests per second that were fast enough, in milliseconds: ttft, to the first token; tpot, per output token;
    /// e2e, end to end.
    #[arg(long, value_name = "NAME:MS,NAME:MS…", requires = "serve")]
    goodput: Option<Goodput>,
    /// Model to ask for [default: the first one that the server names].
    #[arg(long, value_name = "NAME", requires = "serve", value_parser = not_empty)]
    model: Option<String>,
    /// Key of the server. Other users of this machine can see it; see --api-key-file.
    #[arg(long, value_name = "KEY", requires = "serve", conflicts_with = "api_key_file", value_parser = key)]
    api_key: Option<String>,
    /// File with the key.
    #[arg(long, value_name = "FILE", requires = "serve")]
    api_key_file: Option<PathBuf>,
    /// Also write an HTML page with charts.
    #[arg(long, value_name = "FILE", requires = "serve", value_parser = page_path)]
    pub(super) html: Option<PathBuf>,
}

impl LoadArgs {
    /// What is to be measured.
    pub(super) fn options(
        &self,
        prompt_tokens: Lengths,
        new_tokens: Lengths,
    ) -> Result<LoadOptions, InferError> {
        let at_once = match self.concurrency.as_slice() {
            [] if self.rate.is_empty() => &CONCURRENCY,
            given => given,
        };
        let loads = at_once.iter().map(|&requests| Load::Concurrency(requests));
        let rates = self.rate.iter().map(|&rate| Load::Rate(rate));
        Ok(LoadOptions {
            key: given_key(self.api_key.as_deref(), self.api_key_file.as_deref())?,
            model: self.model.clone(),
            loads: loads.chain(rates).collect(),
            requests: self.requests,
            seconds: self.seconds,
            prompts: match &self.prompts {
                Some(file) => Prompts::Given(read_prompts(file)?),
                None => Prompts::Random {
                    lengths: prompt_tokens,
                    prefix: self.prefix,
                },
            },
            new_tokens,
            temperature: self.temperature,
            seed: self.seed,
            warmup: self.warmup,
            goodput: self.goodput,
        })
    }
}

/// Measures a running server.
pub(super) fn measure(
    address: &Address,
    options: &LoadOptions,
    html: Option<&Path>,
    json: bool,
    control: &Control,
) -> Result<(), InferError> {
    control.heed_stop();
    let report = load::measure(address, options, || control.stop_requested())?;
    tell(&report, html, json, control)
}

/// Serves a checkpoint and measures the server.
pub(super) fn measure_checkpoint(
    (model, weights, engine): (ModelArgs, DtypeArgs, EngineArgs),
    options: LoadOptions,
    html: Option<&Path>,
    json: bool,
    control: &Control,
) -> Result<(), InferError> {
    let (opened, control) = (model.open(weights)?, control.clone());
    let speculation = engine.speculation(&opened, &model, weights)?;
    let path = &model.source.checkpoint;
    let report = serve_while(&opened, path, &speculation, &engine.options(), |address| {
        let address = address.to_string().parse();
        let address: Address = address.expect("an address of this machine");
        control.heed_stop();
        Ok(load::measure(&address, &options, || {
            control.stop_requested()
        })?)
    })?;
    tell(&report, html, json, &control)
}

/// Writes and prints a report, and says whether it is whole.
fn tell(
    report: &LoadReport,
    html: Option<&Path>,
    json: bool,
    control: &Control,
) -> Result<(), InferError> {
    if let Some(path) = html {
        report.page().write(path)?;
        tracing::info!("wrote the report to {}", path.display());
    }
    match json {
        true => print_json(report)?,
        false => print(&report.to_string()).map_err(InferError::Output)?,
    }
    match control.stop_requested() {
        true => Err(LoadError::Interrupted {
            answered: report.answered(),
        }
        .into()),
        false => Ok(()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text {
        "inf" => Ok(f64::INFINITY),
        text => positive(text).map_err(|_| "must be a number greater than 0, or inf".to_owned()),
    }
}
