//! How ranks divide a model among themselves.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;

/// The largest number of ranks.
pub const MOST_RANKS: usize = 1 << 12;

/// How ranks divide a model: runs of layers over the pipeline, the matrices of a layer over the tensor ranks of a stage.
///
/// Rank `stage · tensor + t` is tensor rank `t` of a stage, so that the ranks that communicate most are adjacent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankLayout {
    /// Pipeline stages, each a run of layers.
    pub pipeline: usize,
    /// Tensor ranks of a stage, which share its heads, hidden widths and vocabulary.
    pub tensor: usize,
    /// Groups of tensor ranks that share the experts: each group has whole experts, and its ranks share their hidden width.
    /// Divides `tensor`; 1 is a share of every expert on every rank.
    pub expert: usize,
}

/// Where a rank stands in a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coordinates {
    /// Its pipeline stage.
    pub stage: usize,
    /// Its number among the tensor ranks of the stage.
    pub tensor: usize,
    /// The group of tensor ranks that it shares its experts with.
    pub group: usize,
    /// Its number in that group.
    pub within_group: usize,
}

/// Why a layout does not fit a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--{key} {value} {rule}")]
pub struct LayoutError {
    /// `pipeline`, `tensor`, `expert` or `rank`, which are options of commands.
    pub key: &'static str,
    /// Its value.
    pub value: usize,
    /// What is allowed; the rest of a sentence that begins with the option and its value.
    pub rule: String,
    /// What to do about it.
    pub hint: String,
}

impl RankLayout {
    /// A single rank that holds everything.
    pub const ONE: Self = Self {
        pipeline: 1,
        tensor: 1,
        expert: 1,
    };

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.pipeline * self.tensor
    }

    /// Tensor ranks that share the hidden width of the same experts.
    pub fn group_size(&self) -> usize {
        self.tensor / self.expert
    }

    /// Where a rank stands.
    ///
    /// # Panics
    ///
    /// When the layout has no such rank.
    pub fn coordinates(&self, rank: usize) -> Coordinates {
        assert!(rank < self.ranks(), "rank {rank} of {self}");
        let tensor = rank % self.tensor;
        Coordinates {
            stage: rank / self.tensor,
            tensor,
            group: tensor / self.group_size(),
            within_group: tensor % self.group_size(),
        }
    }

    /// The rank at a stage and tensor rank.
    ///
    /// # Panics
    ///
    /// When the layout has no such rank.
    pub fn rank(&self, stage: usize, tensor: usize) -> usize {
        assert!(
            stage < self.pipeline && tensor < self.tensor,
            "tensor rank {tensor} of stage {stage} of {self}"
        );
        stage * self.tensor + tensor
    }

    /// Checks that a model, which is valid itself, can be laid out so: every stage has a layer, and every rank a part of
    /// everything that the ranks of a stage share.
    ///
    /// # Errors
    ///
    /// The first number that does not fit, with what is allowed.
    pub fn check(&self, config: &ModelConfig) -> Result<(), LayoutError> {
        let Self {
            pipeline,
            tensor,
            expert,
        } = *self;
        for (key, value) in [
            ("pipeline", pipeline),
            ("tensor", tensor),
            ("expert", expert),
        ] {
            let rule = format!("must lie between 1 and {MOST_RANKS}");
            let hint = "1 means undivided";
            require((1..=MOST_RANKS).contains(&value), key, value, rule, hint)?;
        }
        require(
            self.ranks() <= MOST_RANKS,
            "pipeline",
            pipeline,
            format!(
                "and --tensor {tensor} make {} ranks; at most {MOST_RANKS} are supported",
                self.ranks()
            ),
            "use fewer of either",
        )?;
        let layers = config.layers.len();
        require(
            pipeline <= layers,
            "pipeline",
            pipeline,
            format!("is more stages than the model's {layers} layers"),
            format!("use {layers} or fewer; the other ranks can be tensor ranks"),
        )?;
        self.check_tensor("query heads", config.heads)?;
        self.check_tensor("token ids", config.vocab_size)?;
        for (_, d_ff) in config.dense_layers() {
            self.check_tensor("values between the matrices of a dense feed-forward", d_ff)?;
        }
        require(
            tensor.is_multiple_of(expert),
            "expert",
            expert,
            format!("must divide --tensor {tensor}: the tensor ranks of a stage form the groups"),
            format!("allowed values: {}", divisors(tensor)),
        )?;
        let Some(moe) = &config.moe else {
            return require(
                expert == 1,
                "expert",
                expert,
                "divides the experts, and the model has none",
                "omit it",
            );
        };
        let count = moe.experts.count;
        require(
            expert <= count,
            "expert",
            expert,
            format!("is more groups than the {count} experts of a layer"),
            format!("use {count} or fewer"),
        )?;
        if moe.experts.shared_d_ff > 0 {
            self.check_tensor("values of the shared experts", moe.experts.shared_d_ff)?;
        }
        let (group, d_ff) = (self.group_size(), moe.experts.d_ff);
        require(
            group <= d_ff,
            "tensor",
            tensor,
            format!("puts {group} ranks on an expert, which is only {d_ff} wide"),
            format!("use {} or fewer, or more groups of experts", d_ff * expert),
        )
    }

    fn check_tensor(&self, what: &str, size: usize) -> Result<(), LayoutError> {
        require(
            self.tensor <= size,
            "tensor",
            self.tensor,
            format!("is more ranks than the model's {size} {what}, which they share"),
            format!("use {size} or fewer; the other ranks can be pipeline stages"),
        )
    }
}

impl fmt::Display for RankLayout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = |count: usize| if count == 1 { "" } else { "s" };
        let Self {
            pipeline, tensor, ..
        } = *self;
        write!(
            formatter,
            "{pipeline} pipeline stage{} × {tensor} tensor rank{}",
            many(pipeline),
            many(tensor)
        )?;
        match self.expert {
            1 => Ok(()),
            groups => write!(formatter, " in {groups} groups of experts"),
        }
    }
}

/// Part `index` of `size` things that are divided into so many runs, whose sizes differ by at most one; the larger ones
/// come first.
///
/// # Panics
///
/// When there is no such part.
pub fn share(size: usize, parts: usize, index: usize) -> Range<usize> {
    assert!(index < parts, "part {index} of {parts}");
    let (each, larger) = (size / parts, size % parts);
    let start = index * each + index.min(larger);
    start..start + each + usize::from(index < larger)
}

fn divisors(of: usize) -> String {
    let divisors = (1..=of).filter(|divisor| of.is_multiple_of(*divisor));
    let divisors: Vec<String> = divisors.map(|divisor| divisor.to_string()).collect();
    divisors.join(", ")
}

pub(super) fn require(
    holds: bool,
    key: &'static str,
    value: usize,
    rule: impl Into<String>,
    hint: impl Into<String>,
) -> Result<(), LayoutError> {
    if holds {
        return Ok(());
    }
    Err(LayoutError {
        key,
        value,
        rule: rule.into(),
        hint: hint.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{moe, tiny, windowed};

    #[test]
    fn tensor_ranks_of_a_stage_are_neighbours() {
        let layout = RankLayout {
            pipeline: 3,
            tensor: 4,
            expert: 2,
        };
        assert_eq!(layout.ranks(), 12);
        for rank in 0..12 {
            let at = layout.coordinates(rank);
            assert_eq!(layout.rank(at.stage, at.tensor), rank);
            assert_eq!(at.group * 2 + at.within_group, at.tensor);
        }
        let last = layout.coordinates(11);
        assert_eq!((last.stage, last.tensor, last.group), (2, 3, 1));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let check = |[pipeline, tensor, expert]: [usize; 3], config: &ModelConfig| {
            let layout = RankLayout {
                pipeline,
                tensor,
                expert,
            };
            let error = layout.check(config).expect_err("a layout that cannot be");
            format!("{error} ({})", error.hint)
        };
        let tiny = tiny();
        for (layout, expected) in [
            (
                [0, 1, 1],
                "--pipeline 0 must lie between 1 and 4096 (1 means undivided)",
            ),
            (
                [4000, 2, 1],
                "--pipeline 4000 and --tensor 2 make 8000 ranks; at most 4096 are supported (use fewer of either)",
            ),
            (
                [3, 1, 1],
                "--pipeline 3 is more stages than the model's 2 layers (use 2 or fewer; the other ranks can be tensor ranks)",
            ),
            (
                [1, 5, 1],
                "--tensor 5 is more ranks than the model's 4 query heads, which they share (use 4 or fewer; the other ranks can be pipeline stages)",
            ),
            (
                [1, 4, 3],
                "--expert 3 must divide --tensor 4: the tensor ranks of a stage form the groups (allowed values: 1, 2, 4)",
            ),
        ] {
            assert_eq!(check(layout, &tiny), expected);
        }
        assert_eq!(
            check([1, 2, 2], &tiny.dense_baseline()),
            "--expert 2 divides the experts, and the model has none (omit it)"
        );
        let mut narrow = tiny.clone();
        moe(&mut narrow).experts.d_ff = 1;
        assert_eq!(
            check([1, 4, 2], &narrow),
            "--tensor 4 puts 2 ranks on an expert, which is only 1 wide (use 2 or fewer, or more groups of experts)"
        );
        let mut few = tiny.clone();
        moe(&mut few).experts.count = 2;
        assert!(check([1, 4, 4], &few).starts_with("--expert 4 is more groups than the 2 experts"));
        let mut shared = tiny;
        moe(&mut shared).experts.shared_d_ff = 3;
        assert!(check([1, 4, 1], &shared).contains("3 values of the shared experts"));
        let mut vocabulary = windowed();
        vocabulary.vocab_size = 3;
        assert!(check([1, 4, 1], &vocabulary).contains("3 token ids"));
        let mut dense = windowed();
        dense.layers[0] = crate::config::LayerConfig::dense(2);
        assert!(check([1, 4, 1], &dense).contains("2 values between the matrices"));
    }

    proptest! {
        #[test]
        fn shares_follow_each_other_and_differ_by_at_most_one(size in 0usize..500, parts in 1usize..40) {
            let shares: Vec<_> = (0..parts).map(|index| share(size, parts, index)).collect();
            prop_assert_eq!(shares[0].start, 0);
            prop_assert_eq!(shares[parts - 1].end, size);
            prop_assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            let sizes = || shares.iter().map(|share| share.len());
            prop_assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
        }
    }
}
