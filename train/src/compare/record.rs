//! What one device's process does: the first steps of a run, each written down as it is done.

use std::io;

use burn::tensor::{Tensor, TensorData};
use firebox_console::terminal::print;
use firebox_model::moe::stats::LayerHealth;
use firebox_model::parameters::{MapParameter, map};
use firebox_runtime::control::Control;
use firebox_runtime::device;
use firebox_runtime::failure::guard;
use firebox_runtime::memory;
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::data::prepare;
use crate::error::TrainError;
use crate::optimizer::AdamW;
use crate::start::starting_model;
use crate::state::Progress;
use crate::step::Training;

/// One step on one device; a line of JSON between its process and the one that compares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step, from 1.
    pub step: u64,
    /// Cross-entropy of the batch in nats per token.
    pub loss: f64,
    /// The loss and the auxiliary terms.
    pub total_loss: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Tokens of the batch.
    pub tokens: u64,
    /// How long it took.
    pub seconds: f64,
    /// The largest memory of the process so far, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
    /// Router health by layer; empty for a dense model.
    pub layers: Vec<LayerHealth>,
}

/// Takes the first `steps` steps of a run on a device, without checkpoints and validations, and gives each to
/// `done`. The learning rate is that of the whole run. A perturbed run begins with weights that are
/// off by a rounding; `control` is told which step is being computed.
///
/// # Errors
///
/// When the device or the text is not there, when the device fails, when a loss is no finite number, or when `done`
/// fails.
pub fn record(
    config: &RunConfig,
    device: &str,
    steps: u64,
    perturbed: bool,
    control: &Control,
    mut done: impl FnMut(&StepRecord) -> io::Result<()>,
) -> Result<(), TrainError> {
    let selected = device::select(device)?;
    let prepared = prepare(config, false)?;
    let mut config = config.clone();
    if config.train.init.is_none() {
        config.model.vocabulary = prepared.tokenizer.vocabulary();
    }
    let stream =
        prepared.training_stream(config.model.context, config.train.seed, config.sequences())?;
    let work = || {
        let model = starting_model(&config, &selected)?;
        let model = match perturbed {
            true => map(model, &mut Rounding),
            false => model,
        };
        let progress = Progress::default();
        let mut training = Training::new(model, AdamW::default(), progress, &selected);
        for number in 1..=steps {
            control.set_step(number);
            let taken;
            (training, taken) = training.step(&config, &stream)?;
            let record = StepRecord {
                step: number,
                loss: taken.loss,
                total_loss: taken.total_loss,
                gradient_norm: taken.gradient_norm,
                learning_rate: taken.learning_rate,
                tokens: taken.tokens,
                seconds: taken.seconds,
                peak_memory: memory::peak(),
                layers: taken.layers,
            };
            done(&record).map_err(TrainError::Output)?;
        }
        Ok(())
    };
    guard(device, work).map_err(|failure| TrainError::Computation {
        step: control.step(),
        failure: failure.into(),
        checkpoint: None,
    })?
}

/// Changes each weight, up or down, by what the roundings of a whole pass come to: 2⁻²⁰ of it, or 1e-6, which is how
/// far a value or a gradient is off on any device (`tests/golden.rs`).
struct Rounding;

const ROUNDING: f32 = 8.0 * f32::EPSILON;

impl MapParameter for Rounding {
    fn map<const D: usize>(&mut self, _: &str, value: Tensor<D>) -> Tensor<D> {
        // Fibonacci hashing: signs without a pattern that a sum over rows would cancel.
        let change = |index: usize| match (index as u32).wrapping_mul(0x9e37_79b9) >> 31 {
            0 => ROUNDING,
            _ => -ROUNDING,
        };
        let (shape, device) = (value.shape(), value.device());
        let changes: Vec<f32> = (0..shape.num_elements()).map(change).collect();
        let changes = Tensor::from_data(TensorData::new(changes, shape), &device);
        value.clone() + value * changes
    }
}

/// Writes a record as a line of standard output.
///
/// # Errors
///
/// When that cannot be written.
pub fn print_line(record: &StepRecord) -> io::Result<()> {
    print(&format!("{}\n", serde_json::to_string(record)?))
}
