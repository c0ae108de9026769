//! Predicted and measured times of a checkpoint on this machine, over ranks that are threads of it.
//!
//! The prediction is that of any plan, for hardware that is measured by itself (`machine`): nothing of the steps of the
//! model enters it.

mod machine;
mod report;
mod steps;

use std::path::PathBuf;

use firebox_comm::mpi;
use firebox_kernels::Precision;
use firebox_kernels::dtype::WeightFormat;
use firebox_model::config::ModelConfig;
use firebox_model::network::Local;
use firebox_model::parallel::{Driver, RankLayout};
use firebox_runtime::device;

pub use report::{Measured, Phase, Row};

use self::steps::{Seconds, time};
use super::{Plan, PlanError, Widths, Workload};
use crate::InferError;
use crate::engine::open_model;
use crate::ranks::RankOptions;

/// What is predicted and measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// A checkpoint folder or a run folder.
    pub checkpoint: PathBuf,
    /// Fields of its config.json that are accepted although Firebox does not know them.
    pub accept: Vec<String>,
    /// The type of the weights.
    pub dtype: WeightFormat,
    /// How ranks divide the model.
    pub layouts: Vec<RankLayout>,
    /// Numbers of texts at once.
    pub batches: Vec<usize>,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Tokens that are generated for it.
    pub output: usize,
}

/// Measures this machine, and then the checkpoint in every layout: the time to the first token of one prompt, and between
/// tokens with every number of texts at once. `stage` is told what is being measured.
///
/// # Errors
///
/// When a layout does not fit the model, before anything is measured; when the checkpoint cannot be read or a rank fails.
pub fn measure(
    options: &Options,
    config: &ModelConfig,
    stage: impl Fn(&str),
) -> Result<Measured, InferError> {
    if mpi::launched() {
        return Err(PlanError::Launched.into());
    }
    for layout in &options.layouts {
        layout.check(config)?;
    }
    let threads = device::threads();
    stage("this machine");
    let hardware = machine::measure(options.dtype, threads)?;
    let workload = |batch| Workload {
        batch,
        prompt: options.prompt,
        output: options.output,
        pictures: 0,
        // What `cargo infer` itself keeps and sends beside its weights is in f32.
        widths: Widths {
            cache: size_of::<f32>(),
            message: size_of::<f32>(),
            ..Widths::of(options.dtype)
        },
    };
    let mut rows = Vec::new();
    for &layout in &options.layouts {
        stage(&format!("{layout}"));
        // The first token is that of a prompt alone.
        let batches = [&[1][..], &options.batches].concat();
        let measured = on_ranks(options, layout, &batches, threads)?;
        let plan = |batch| Plan::of(config, layout, &hardware, workload(batch));
        rows.push(Row {
            layout,
            phase: Phase::FirstToken,
            batch: 1,
            predicted_seconds: plan(1)?.first_token_seconds,
            measured_seconds: measured[0].first,
        });
        for (&batch, seconds) in options.batches.iter().zip(&measured[1..]) {
            rows.push(Row {
                layout,
                phase: Phase::Token,
                batch,
                predicted_seconds: plan(batch)?.token_seconds,
                measured_seconds: seconds.between,
            });
        }
    }
    Ok(Measured {
        hardware,
        dtype: options.dtype.to_string(),
        prompt: options.prompt,
        output: options.output,
        rows,
    })
}

/// Generates with numbers of texts at once, as `cargo infer generate` does.
fn on_ranks(
    options: &Options,
    layout: RankLayout,
    batches: &[usize],
    threads: usize,
) -> Result<Vec<Seconds>, InferError> {
    let (prompt, output) = (options.prompt, options.output);
    if layout == RankLayout::ONE {
        let device = device::select(device::default_name())?;
        let opened = open_model(&options.checkpoint, &options.accept, &device, options.dtype)?;
        let network = &mut Local::new(&opened.1.model);
        let times = batches.iter();
        return Ok(times
            .map(|&batch| time(network, batch, prompt, output))
            .collect());
    }
    let ranks = RankOptions {
        checkpoint: options.checkpoint.clone(),
        accept: options.accept.clone(),
        device: device::default_name().to_owned(),
        dtype: options.dtype,
        precision: Precision::F32,
        layout,
        threads: Some(threads),
        processes: None,
    };
    let batches = batches.to_vec();
    ranks.run(move |part| {
        let network = &mut Driver::new(&part.model, &part.ranks);
        let times = batches.iter();
        Ok(times
            .map(|&batch| time(network, batch, prompt, output))
            .collect())
    })
}
