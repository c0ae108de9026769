//! A checkpoint that is divided among ranks: a folder for each, with its part of every tensor under the tensor's own name.
//!
//! ```text
//! layout.json            how it is divided, and a hash of every tensor of every rank
//! config.json …          the checkpoint's own files, unchanged, but for weights, training state, hidden files and folders
//! rank-000/model.safetensors …
//! original/              what unsharding needs besides: headers of the weights' files, their index, tensors of no rank
//! ```
//!
//! [`shard`] writes one, [`unshard`] makes these files again, byte by byte, and [`verify`] says what is wrong with one.
//! [`ShardedCheckpoint::parameters`] is how a rank reads its part.

mod manifest;
mod original;
mod others;
mod parts;
mod progress;
mod ranks;
mod summary;
mod unshard;
mod verify;
mod write;

use std::path::{Path, PathBuf};

use burn::tensor::Device;

pub use summary::{RankSummary, Summary};
pub use unshard::unshard;
pub use verify::{Fault, Verified, verify};
pub use write::{Sharding, shard};

use self::manifest::Manifest;
use super::{Accept, CheckpointConfig, CheckpointError, CheckpointParameters, read_config};
use firebox_kernels::dtype::WeightFormat;
use firebox_model::parallel::{RankLayout, Shard};

/// File name of the description of a sharded checkpoint.
pub const LAYOUT_FILE: &str = "layout.json";

/// A sharded checkpoint that is open for reading.
#[derive(Debug, Clone)]
pub struct ShardedCheckpoint {
    folder: PathBuf,
    config: CheckpointConfig,
    manifest: Manifest,
}

impl ShardedCheckpoint {
    /// Whether a folder is a sharded checkpoint, rather than a whole one.
    pub fn is_one(folder: &Path) -> bool {
        folder.join(LAYOUT_FILE).is_file()
    }

    /// Reads `layout.json` and `config.json` of a folder, not the weights; see [`read_config`] for `accept`.
    ///
    /// # Errors
    ///
    /// When one of them is missing or damaged, or they do not fit each other.
    pub fn open(folder: &Path, accept: Accept) -> Result<Self, CheckpointError> {
        let manifest = Manifest::read(folder)?;
        let config = read_config(folder, accept)?;
        manifest.check(folder, &config.model)?;
        Ok(Self {
            folder: folder.to_owned(),
            config,
            manifest,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What config.json says.
    pub fn config(&self) -> &CheckpointConfig {
        &self.config
    }

    /// How the model is divided.
    pub fn layout(&self) -> RankLayout {
        self.manifest.layout
    }

    /// One of the ranks.
    ///
    /// # Errors
    ///
    /// When the layout has no such rank.
    pub fn shard(&self, rank: usize) -> Result<Shard, CheckpointError> {
        let Manifest { layout, .. } = self.manifest;
        let stages = self.manifest.stages();
        Ok(Shard::with_stages(
            &self.config.model,
            layout,
            &stages,
            rank,
        )?)
    }

    /// The folder of a rank.
    pub fn rank_folder(&self, rank: usize) -> PathBuf {
        self.folder.join(rank_name(rank))
    }

    /// The parameters of a rank, from its own folder; see [`CheckpointParameters::open`] for device and format.
    ///
    /// # Errors
    ///
    /// When the layout has no such rank, a file is missing or damaged, the tensors are not exactly those of the rank, or the
    /// device does not hold such weights.
    pub fn parameters<'a>(
        &self,
        rank: usize,
        device: &'a Device,
        format: impl Into<WeightFormat>,
    ) -> Result<CheckpointParameters<'a>, CheckpointError> {
        let CheckpointConfig { model, family, .. } = &self.config;
        let (folder, shard) = (self.rank_folder(rank), self.shard(rank)?);
        CheckpointParameters::open_rank(&folder, model, family, device, format, &shard)
    }
}

/// The name of a rank's folder.
fn rank_name(rank: usize) -> String {
    format!("rank-{rank:03}")
}
