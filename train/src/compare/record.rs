//! The process of one device: trains the first steps of a run and prints a record of each.

use std::io;

use burn::tensor::{Tensor, TensorData};
use firebox_console::terminal::print;
use firebox_model::moe::stats::LayerHealth;
use firebox_model::parameters::{MapParameter, map};
use firebox_runtime::control::Control;
use firebox_runtime::failure::guard;
use firebox_runtime::memory;
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;
use crate::data::prepare;
use crate::error::TrainError;
use crate::learned::Learned;
use crate::optimizer::Optimizer;
use crate::ranks::Team;
use crate::rows::Rows;
use crate::start::{select_device, starting_model};
use crate::state::Progress;
use crate::step::TrainingState;

/// One step on one device; a device's process sends it as a line of JSON to the process that compares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step, from 1.
    pub step: u64,
    /// Cross-entropy of the batch in nats per token.
    pub loss: f64,
    /// The loss plus the auxiliary terms.
    pub total_loss: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Number of tokens in the batch.
    pub tokens: u64,
    /// Duration of the step.
    pub seconds: f64,
    /// Peak resident memory of the process so far, in bytes; `None` if the operating system does not report it.
    pub peak_memory: Option<u64>,
    /// Router health per layer; empty for a dense model.
    pub layers: Vec<LayerHealth>,
}

/// Trains the first `steps` steps of a run on a device, without checkpoints and validations, and calls `done` with a
/// record of each. The learning rate follows the schedule of the whole run. A perturbed run starts from weights that
/// are changed by a relative 1e-6. Records the current step in `control`.
///
/// # Errors
///
/// When the device or the text is not available, when the device fails, when the loss is not finite, or when `done`
/// returns an error.
pub fn record(
    config: &RunConfig,
    device: &str,
    steps: u64,
    perturbed: bool,
    control: &Control,
    mut done: impl FnMut(&StepRecord) -> io::Result<()>,
) -> Result<(), TrainError> {
    let selected = select_device(device, config)?;
    let prepared = prepare(config, false)?;
    let mut config = config.clone();
    if config.train.init.is_none() {
        config.model.vocab_size = prepared.tokenizer.vocab_size();
    }
    let rows = Rows::of(&prepared, &config)?;
    let work = || {
        let model = starting_model(&config, &Team::default(), &selected)?;
        let model = if perturbed {
            map(model, &mut Perturb)
        } else {
            model
        };
        let progress = Progress::default();
        let learned = Learned::of(&config.model, config.train.frozen);
        let muon = config.optimizer.muon;
        let optimizer = Optimizer::new(&config.model, muon, learned, &Team::default());
        let mut training = TrainingState::new(model, optimizer, progress, &selected);
        for number in 1..=steps {
            control.set_step(number);
            let result;
            (training, result) = rows.step(training, &config)?;
            let record = StepRecord {
                step: number,
                loss: result.loss,
                total_loss: result.total_loss,
                gradient_norm: result.gradient_norm,
                learning_rate: result.learning_rate,
                tokens: result.tokens,
                seconds: result.seconds,
                peak_memory: memory::peak(),
                layers: result.layers,
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

/// Changes each weight, up or down, by 2⁻²⁰ (about 1e-6) of itself. That is the relative error that rounding gives
/// values and gradients in a whole forward and backward pass on any device (`tests/golden.rs`).
struct Perturb;

const PERTURBATION: f32 = 8.0 * f32::EPSILON;

impl MapParameter for Perturb {
    fn map<const D: usize>(&mut self, _: &str, value: Tensor<D>) -> Tensor<D> {
        // Fibonacci hashing gives signs without a pattern that would cancel in a sum over rows.
        let change = |index: usize| match (index as u32).wrapping_mul(0x9e37_79b9) >> 31 {
            0 => PERTURBATION,
            _ => -PERTURBATION,
        };
        let (shape, device) = (value.shape(), value.device());
        let changes: Vec<f32> = (0..shape.num_elements()).map(change).collect();
        let changes = Tensor::from_data(TensorData::new(changes, shape), &device);
        value.clone() + value * changes
    }
}

/// Writes a record as one line of JSON to standard output.
///
/// # Errors
///
/// When standard output cannot be written.
pub fn print_line(record: &StepRecord) -> io::Result<()> {
    print(&format!("{}\n", serde_json::to_string(record)?))
}
