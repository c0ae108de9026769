//! Which part of which tensor each rank has.

use std::collections::BTreeMap;

use super::summary::RankSummary;
use crate::plan::{Files, Plan};
use crate::{CheckpointConfig, CheckpointError, TensorStore};
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::{Shard, Slice};

/// The tensors of a rank, under their names in the checkpoint.
#[derive(Debug)]
pub(super) struct RankTensors {
    /// What the rank has of each, as a part of the whole tensor.
    pub parts: BTreeMap<String, Slice>,
    /// What they amount to.
    pub summary: RankSummary,
}

impl RankTensors {
    /// Those of the rank of these files, which are the checkpoint's or the rank's own.
    ///
    /// # Errors
    ///
    /// When the tensors in the files are not exactly those of the model or of the rank.
    pub fn find(
        store: &TensorStore,
        config: &CheckpointConfig,
        shard: &Shard,
        files: Files<'_>,
    ) -> Result<Self, CheckpointError> {
        let plan = Plan::new(store, &config.model, &config.family, files)?;
        let width = |name: &str| {
            let info = store.info(name).expect("a tensor of the plan");
            info.dtype.bytes() as u64
        };
        let mut parts = BTreeMap::new();
        let mut copied = 0;
        for parameter in LanguageModel::parameter_list(&config.model) {
            let Some(planned) = plan.parameters.get(&parameter.path) else {
                continue;
            };
            let tensors = planned.tensors();
            let (name, _) = tensors.first().expect("a tensor of each parameter");
            copied += shard.copies(&parameter) as u64 * width(name);
            parts.extend(tensors);
        }
        for name in &plan.biases {
            let info = store.info(name).expect("a tensor of the plan");
            if shard.at().tensor > 0 {
                copied += info.elements() as u64 * width(name);
            }
            parts.insert(name.clone(), Slice::whole(info.shape.clone()));
        }
        let bytes = parts
            .iter()
            .map(|(name, part)| part.elements() as u64 * width(name));
        let summary = RankSummary {
            rank: shard.rank(),
            layers: [shard.layers().start, shard.layers().end],
            bytes: bytes.sum(),
            copied_bytes: copied,
        };
        Ok(Self { parts, summary })
    }
}
