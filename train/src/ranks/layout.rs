//! How ranks divide a training run among themselves.

use std::fmt;

use firebox_console::advice::{Advice, Advise};
use firebox_console::numbers::counted;
use firebox_model::parallel::MOST_RANKS;
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;

/// How ranks divide a training run.
///
/// Rank `d · expert + e` has the e-th part of the experts, so that the ranks that exchange tokens are adjacent. All ranks
/// divide the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainLayout {
    /// Copies of the model.
    pub data: usize,
    /// Ranks that each have a part of the experts of a copy, and all of the rest (expert parallelism).
    pub expert: usize,
}

impl Default for TrainLayout {
    /// A single rank.
    fn default() -> Self {
        Self { data: 1, expert: 1 }
    }
}

/// Why a layout does not fit a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// More ranks than are supported, or none.
    #[error("{layout}: the number of ranks must lie between 1 and {MOST_RANKS}")]
    Ranks {
        /// The layout.
        layout: TrainLayout,
    },
    /// A batch has fewer sequences than there are ranks.
    #[error(
        "{layout}: the batch of step {step} has {}, fewer than there are ranks",
        counted(u128::from(*rows), "sequence")
    )]
    TooFewRows {
        /// The layout.
        layout: TrainLayout,
        /// The step, from 1.
        step: u64,
        /// Sequences of its batch.
        rows: u64,
    },
    /// The experts cannot be divided so.
    #[error("{layout}: {expert} must divide the {experts} experts of a layer", expert = layout.expert)]
    Experts {
        /// The layout.
        layout: TrainLayout,
        /// Experts of a layer.
        experts: usize,
    },
    /// There are no experts to be divided.
    #[error("{layout}: the model has no experts to be divided")]
    Dense {
        /// The layout.
        layout: TrainLayout,
    },
    /// A launcher has started another number of processes.
    #[error(
        "{layout} makes {}, and the launcher has started {processes} processes",
        counted(layout.ranks() as u128, "rank")
    )]
    Processes {
        /// The layout.
        layout: TrainLayout,
        /// Processes that there are.
        processes: usize,
    },
}

impl Advise for LayoutError {
    fn advice(&self) -> Advice {
        Advice::USAGE.hint(match self {
            Self::Ranks { .. } => "1 means undivided".to_owned(),
            Self::Experts { experts, .. } => {
                let divisors = (1..=*experts).filter(|divisor| experts.is_multiple_of(*divisor));
                let divisors: Vec<String> = divisors.map(|divisor| divisor.to_string()).collect();
                format!("allowed values: {}", divisors.join(", "))
            }
            Self::Dense { layout } => format!("use --data {}", layout.ranks()),
            Self::TooFewRows { rows, .. } => format!(
                "use at most {}, or raise schedule.batch_tokens, of which each sequence takes model.context_length",
                counted(u128::from(*rows), "rank")
            ),
            Self::Processes { layout, processes } => format!(
                "start {0} (mpirun -n {0}), or give the run another number of ranks, such as --data {processes}",
                layout.ranks()
            ),
        })
    }
}

impl TrainLayout {
    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.data * self.expert
    }

    /// Checks the number of ranks.
    ///
    /// # Errors
    ///
    /// When there are more than are supported, or none.
    pub fn check_ranks(&self) -> Result<(), LayoutError> {
        match (1..=MOST_RANKS).contains(&self.ranks()) {
            true => Ok(()),
            false => Err(LayoutError::Ranks { layout: *self }),
        }
    }

    /// Checks that a run can be divided so.
    ///
    /// # Errors
    ///
    /// When it cannot.
    pub fn check(&self, config: &RunConfig) -> Result<(), LayoutError> {
        let layout = *self;
        self.check_ranks()?;
        match &config.model.moe {
            None if self.expert > 1 => return Err(LayoutError::Dense { layout }),
            Some(moe) if !moe.experts.count.is_multiple_of(self.expert) => {
                let experts = moe.experts.count;
                return Err(LayoutError::Experts { layout, experts });
            }
            _ => {}
        }
        let context = config.model.context_length;
        let batches = &config.schedule.batch_tokens;
        // Batches are of one size, or grow from the first to the last.
        let step = config.train.steps;
        for step in [1, step] {
            let rows = batches.sequences_at(step.saturating_sub(1), context);
            if rows < self.ranks() as u64 {
                return Err(LayoutError::TooFewRows { layout, step, rows });
            }
        }
        Ok(())
    }
}

impl fmt::Display for TrainLayout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "--data {}", self.data)?;
        match self.expert {
            1 => Ok(()),
            expert => write!(formatter, " --expert {expert}"),
        }
    }
}
