//! How ranks divide a training run among themselves.

use std::fmt;

use firebox_console::advice::{Advice, Advise};
use firebox_console::numbers::counted;
use firebox_model::config::ModelConfig;
use firebox_model::parallel::{self, MOST_RANKS, RankLayout, Shard};
use serde::{Deserialize, Serialize};

use crate::config::RunConfig;

/// How ranks divide a training run.
///
/// Rank `(d · expert + e) · tensor + t` has the t-th part of the matrices, and of the e-th part of the experts, so that the
/// ranks that communicate most are adjacent. The copies of the model, and in each the ranks that have different experts, divide
/// the batch; tensor ranks compute the same share of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainLayout {
    /// Copies of the model.
    pub data: usize,
    /// Parts of the experts of a copy, each with all of the rest (expert parallelism).
    pub expert: usize,
    /// Ranks that divide the matrices of each of these (tensor parallelism).
    pub tensor: usize,
}

impl Default for TrainLayout {
    /// A single rank.
    fn default() -> Self {
        Self {
            data: 1,
            expert: 1,
            tensor: 1,
        }
    }
}

/// Ranks that have the same values of a parameter: all that have the same part of what is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holders {
    /// Whether the experts are divided.
    pub experts: bool,
    /// Whether the matrices are.
    pub matrices: bool,
}

impl Holders {
    /// All ranks.
    pub const ALL: Self = Self {
        experts: false,
        matrices: false,
    };
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
    /// A batch has fewer sequences than ranks divide it.
    #[error(
        "{layout}: the batch of step {step} has {}, fewer than the ranks that divide it",
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
    /// The matrices cannot be divided so.
    #[error("{cause}")]
    Matrices {
        /// Why.
        cause: parallel::LayoutError,
        /// The largest number of tensor ranks that is allowed.
        most: usize,
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
            Self::Matrices { most, .. } => format!(
                "use --tensor {most} or fewer; other ranks can divide the batch, by --data"
            ),
            Self::Dense { layout } => format!("use --data {}", layout.shares()),
            Self::TooFewRows { rows, .. } => format!(
                "let at most {} divide it, or raise schedule.batch_tokens, of which each sequence takes model.context_length",
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
        self.shares() * self.tensor
    }

    /// Number of shares of a batch.
    pub fn shares(&self) -> usize {
        self.data * self.expert
    }

    /// Number of ranks that have a copy of the model together: those with the smallest numbers, and so on.
    pub fn ranks_of_copy(&self) -> usize {
        self.expert * self.tensor
    }

    /// The share of a batch that a rank computes.
    pub fn share_of(&self, rank: usize) -> usize {
        rank / self.tensor
    }

    /// The part of a model that a rank has; `None` for all of it.
    ///
    /// # Panics
    ///
    /// When the layout does not [fit](Self::check).
    pub fn shard(&self, config: &ModelConfig, rank: usize) -> Option<Shard> {
        (self.ranks_of_copy() > 1).then(|| {
            let tensor = (rank % self.tensor, self.tensor);
            let experts = (self.share_of(rank) % self.expert, self.expert);
            let shard = Shard::of_training(config, tensor, experts);
            shard.expect("a layout that was checked")
        })
    }

    /// Number of parts that are divided among such holders.
    pub fn parts(&self, holders: Holders) -> usize {
        self.part(holders, self.ranks_of_copy() - 1) + 1
    }

    /// The part of a rank, of those that are divided among such holders.
    pub fn part(&self, holders: Holders, rank: usize) -> usize {
        let (expert, tensor) = (self.share_of(rank) % self.expert, rank % self.tensor);
        match (holders.experts, holders.matrices) {
            (false, false) => 0,
            (true, false) => expert,
            (false, true) => tensor,
            (true, true) => expert * self.tensor + tensor,
        }
    }

    /// The ranks that have the same part, in order.
    pub fn holders(&self, holders: Holders, part: usize) -> impl Iterator<Item = usize> {
        let layout = *self;
        (0..self.ranks()).filter(move |&rank| layout.part(holders, rank) == part)
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
        let of_tensor = |tensor| RankLayout {
            tensor,
            ..RankLayout::ONE
        };
        let fits = |tensor: usize| of_tensor(tensor).check(&config.model);
        if let Err(cause) = fits(self.tensor) {
            let fewer = (1..self.tensor).rev().find(|&tensor| fits(tensor).is_ok());
            let most = fewer.unwrap_or(1);
            return Err(LayoutError::Matrices { cause, most });
        }
        let context = config.model.context_length;
        let batches = &config.schedule.batch_tokens;
        // Batches are of one size, or grow from the first to the last.
        let step = config.train.steps;
        for step in [1, step] {
            let rows = batches.sequences_at(step.saturating_sub(1), context);
            if rows < self.shares() as u64 {
                return Err(LayoutError::TooFewRows { layout, step, rows });
            }
        }
        Ok(())
    }
}

impl fmt::Display for TrainLayout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "--data {}", self.data)?;
        for (option, count) in [("expert", self.expert), ("tensor", self.tensor)] {
            if count > 1 {
                write!(formatter, " --{option} {count}")?;
            }
        }
        Ok(())
    }
}
