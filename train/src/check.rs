//! `cargo train check`: size, memory, FLOPs and cost of a run, without allocating it.

mod ranks;
mod text;

use firebox_model::accounting::Accounting;
use serde::Serialize;

use crate::config::{Frozen, PlanConfig, RunConfig};
use crate::learned::Learned;
use crate::optimizer;
use crate::ranks::{LayoutError, TrainLayout};
pub use ranks::RankPlan;

const SECONDS_PER_DAY: f64 = 86_400.0;
const HOURS_PER_DAY: f64 = 24.0;

/// The report of `check`: text through `Display`, JSON through serde.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The resolved configuration.
    pub config: RunConfig,
    /// Parameters, FLOPs per token, and bytes.
    pub model: Accounting,
    /// Tokens and FLOPs of the whole run.
    pub training: TrainingTotals,
    /// Time and money on the accelerators of `[plan]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Cost>,
    /// What each of several ranks holds and sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<RankPlan>,
    /// The run that is done first, if this one starts from another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Box<Report>>,
}

/// Tokens and FLOPs of a whole run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrainingTotals {
    /// Tokens of all steps. Every batch consists of whole sequences.
    pub tokens: u128,
    /// Tokens of the first step and of the last.
    pub tokens_per_step: [u128; 2],
    /// Tokens per expert in the first step and in the last, under balanced routing: batch · top_k / experts.
    /// `None` for a dense model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_expert_per_step: Option<[f64; 2]>,
    /// FLOPs of all steps: three times the forward pass, without attention scores of text. Where the text is frozen, twice the
    /// forward pass of the text model, of whose backward pass only the gradients of its inputs are left.
    pub operations: f64,
    /// What of them is for pictures: one of most tiles for each sequence, which all of its tokens see. `None` for a model of
    /// text alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_pictures: Option<f64>,
}

/// Sequences of the first step and of the last, which has most.
fn sequences(config: &RunConfig) -> [u64; 2] {
    let last = config.train.steps.saturating_sub(1);
    let batches = &config.schedule.batch_tokens;
    [0, last].map(|step| batches.sequences_at(step, config.model.context_length))
}

/// How many gradients of a weight are in memory at once, where so many sequences are computed: that of a micro-batch, and the
/// sum of those before.
fn gradients_at_once(config: &RunConfig, sequences: u64) -> u128 {
    match sequences > config.train.micro_batch as u64 {
        true => 2,
        false => 1,
    }
}

/// Time and price, each at the highest and at the lowest utilization.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Duration in days.
    pub days: [f64; 2],
    /// Price in dollars.
    pub dollars: [f64; 2],
}

impl Report {
    /// Computes the report of a run.
    pub fn of(config: &RunConfig) -> Self {
        let mut model = Accounting::of(&config.model);
        let learned = Learned::of(&config.model, config.train.frozen);
        let [_, sequences] = sequences(config);
        model.memory.gradients =
            4 * learned.count(&config.model) * gradients_at_once(config, sequences);
        model.memory.moments =
            4 * optimizer::kept_values(&config.model, config.optimizer.muon, &learned);
        let training = TrainingTotals::of(config, &model);
        let plan = config
            .plan
            .as_ref()
            .map(|plan| Cost::of(plan, training.operations));
        Self {
            config: config.clone(),
            model,
            training,
            plan,
            ranks: None,
            first: None,
        }
    }

    /// The report of the same run on many ranks.
    ///
    /// # Errors
    ///
    /// When it cannot be divided so.
    pub fn on(self, layout: TrainLayout) -> Result<Self, LayoutError> {
        let ranks = RankPlan::of(&self.config, layout)?;
        Ok(Self {
            ranks: (layout.ranks() > 1).then_some(ranks),
            ..self
        })
    }

    /// The report of the same run, which starts from another one.
    #[must_use]
    pub fn after(self, first: Self) -> Self {
        Self {
            first: Some(Box::new(first)),
            ..self
        }
    }
}

impl TrainingTotals {
    fn of(config: &RunConfig, model: &Accounting) -> Self {
        let (context, steps) = (config.model.context_length, config.train.steps);
        let ramp = config.schedule.batch_tokens;
        let tokens = ramp.total_tokens(steps, context);
        let tokens_per_step =
            sequences(config).map(|sequences| u128::from(sequences) * context as u128);
        let experts = config.model.moe.as_ref().map(|moe| moe.experts);
        let per_expert = experts.map(|experts| experts.top_k as f64 / experts.count as f64);
        let passes = match config.train.frozen {
            Some(Frozen::Text) => 2.0,
            _ => model.operations.training / model.operations.forward,
        };
        let text = passes * model.operations.forward * tokens as f64;
        let of_pictures = model.pictures.map(|pictures| {
            let sequences = (tokens / context.max(1) as u128) as f64;
            3.0 * (sequences * (pictures.encoder + pictures.keys) + tokens as f64 * pictures.token)
        });
        Self {
            tokens,
            tokens_per_step,
            tokens_per_expert_per_step: per_expert
                .map(|share| tokens_per_step.map(|tokens| tokens as f64 * share)),
            operations: text + of_pictures.unwrap_or(0.0),
            of_pictures,
        }
    }
}

impl Cost {
    fn of(plan: &PlanConfig, operations: f64) -> Self {
        let [lowest, highest] = plan.utilization;
        let days = [highest, lowest].map(|share| {
            operations / (plan.count as f64 * plan.peak_flops * share) / SECONDS_PER_DAY
        });
        let dollars =
            days.map(|days| days * HOURS_PER_DAY * plan.count as f64 * plan.dollars_per_hour);
        Self { days, dollars }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{load, load_planned};

    fn report(name: &str, set: &[&str]) -> Report {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../configs")
            .join(name);
        let set: Vec<String> = set.iter().map(|argument| (*argument).to_owned()).collect();
        Report::of(&load(&path, &set).unwrap())
    }

    #[test]
    fn the_described_run_takes_the_described_time_and_price() {
        let report = report("gpt4.toml", &[]);
        assert_eq!(format!("{:.2e}", report.training.tokens as f64), "1.30e13");
        assert_eq!(format!("{:.1e}", report.training.operations), "2.2e25");
        let per_expert = report.training.tokens_per_expert_per_step.unwrap();
        assert_eq!(format!("{:.1e}", per_expert[1]), "7.5e6");
        let cost = report.plan.unwrap();
        assert_eq!(cost.days.map(f64::round), [90.0, 101.0]);
        assert_eq!(
            cost.dollars.map(|dollars| (dollars / 1e6).round()),
            [54.0, 61.0]
        );
    }

    #[test]
    fn the_vision_stage_comes_after_the_text() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let set = [format!(
            "train.init={}",
            folder.join("configs/gpt4.toml").display()
        )];
        let config = load_planned(&folder.join("configs/gpt4-vision.toml"), &set).unwrap();
        assert_eq!(config.train.frozen, Some(Frozen::Text));
        let first = Report::of(&load(config.train.first_run().unwrap(), &[]).unwrap());
        let report = Report::of(&config).after(first);
        let TrainingTotals {
            tokens,
            operations,
            of_pictures,
            ..
        } = report.training;
        assert_eq!(format!("{:.2e}", tokens as f64), "2.00e12");
        // The text model's forward pass, and the gradients of its inputs.
        let text = 2.0 * report.model.operations.forward * tokens as f64;
        assert_eq!(operations, text + of_pictures.unwrap());
        // The embedding table is one parameter, whose text rows have gradients of zero.
        let parameters = &report.model.parameters;
        let trained = parameters.cross_attention + parameters.tower + parameters.projector;
        let memory = &report.model.memory;
        // A batch is many micro-batches.
        assert_eq!(memory.gradients, 8 * (trained + parameters.embedding));
        assert_eq!(memory.moments, memory.gradients);
        let text = report.to_string();
        for part in [
            "the run of ",
            "training FLOPs of the runs before",
            "1.88 T",
            "of them for pictures",
            "the text is frozen",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
        // The number of parameters does not depend on the first stage having a checkpoint.
        let parameters = &report.model.parameters;
        assert_eq!(parameters.tower, 863_567_379);
    }

    #[test]
    fn a_dense_model_has_no_tokens_per_expert() {
        let report = report("quickstart.toml", &["model.feed_forward=dense"]);
        assert_eq!(report.training.tokens_per_expert_per_step, None);
        assert_eq!(report.model.parameters.router, 0);
    }

    #[test]
    fn a_ramp_is_summed_step_by_step() {
        let ramp = "schedule.batch_tokens={ start = 1000, end = 3000, ramp_steps = 4 }";
        let report = report(
            "quickstart.toml",
            &[
                "train.steps=6",
                "schedule.warmup_steps=0",
                "model.context_length=100",
                ramp,
            ],
        );
        assert_eq!(report.training.tokens_per_step, [1000, 3000]);
        assert_eq!(
            report.training.tokens,
            1000 + 1500 + 2000 + 2500 + 3000 + 3000
        );
    }

    #[test]
    fn dense_layers_have_a_row_and_the_rows_sum_to_the_total() {
        let text = report(
            "quickstart.toml",
            &["model.dense.layers=[0, 3]", "model.qk_norm=head"],
        )
        .to_string();
        for part in ["layers 0, 3 dense with d_ff 1,024", "per-head QK norm"] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
        let table = text.split("\nparameters\n").nth(1).unwrap();
        let (parts, rest) = table.split_once("  total ").unwrap();
        let count = |line: &str| -> u128 {
            let mut counts = line.split_whitespace().filter(|word| word.contains(','));
            counts
                .next_back()
                .unwrap()
                .replace(',', "")
                .parse()
                .unwrap()
        };
        assert!(parts.contains("  dense layers "), "{text}");
        let total = count(rest.lines().next().unwrap());
        assert_eq!(parts.lines().map(count).sum::<u128>(), total, "{text}");
    }

    #[test]
    fn the_text_names_the_totals() {
        let text = report("gpt4.toml", &[]).to_string();
        for part in [
            "1.83 T",
            "279 B",
            "558 GFLOP",
            "3.67 TFLOP",
            "25,000 × A100",
            "wrong by a factor of 1000",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
    }
}
