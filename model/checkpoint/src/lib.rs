//! Reads and writes checkpoint folders in the format of Hugging Face's `transformers`, and GGUF files.
//!
//! A folder contains `config.json`, the weights (`model.safetensors`, or shards and their index), and
//! `tokenizer.json`, which the crate `firebox-text` reads and writes. The families and their tensor names are data: see
//! [`families`] and [`layout`].

mod accept;
mod config_json;
mod dialect;
mod dtype;
mod error;
pub mod families;
mod fields;
mod folder;
mod gguf;
pub mod layout;
mod mismatch;
mod mxfp4;
mod notes;
mod plan;
mod preprocessor;
mod reader;
pub mod sharded;
mod store;
mod tensor_file;
mod tensor_writer;
#[cfg(test)]
mod tests;
mod upcycle;
mod value_file;
mod writer;

use std::path::Path;

use burn::tensor::Device;

pub use accept::Accept;
pub use config_json::{CheckpointConfig, config_json, planned_config, read_config};
pub use error::CheckpointError;
pub use folder::{
    CHECKPOINTS, FolderError, LATEST, checkpoint_folder, checkpoint_place, require_free,
};
pub use gguf::tokenizer_keys;
pub use gguf::{
    BlockType, GgufOptions, Number, NumberKind, Value as GgufValue, check_exportable,
    gguf_metadata, gguf_types, is_gguf, save_gguf,
};
pub use mismatch::Mismatch;
pub use notes::{GENERATION_FILE, Notes};
pub use preprocessor::PREPROCESSOR_FILE;
pub use reader::CheckpointParameters;
pub use store::TensorStore;
pub use tensor_file::{TensorFile, TensorInfo};
pub use tensor_writer::{NamedTensor, Values, write_tensors};
pub use upcycle::upcycle;
pub use writer::{Elsewhere, SaveOptions, named_gradients, save, save_part};

use firebox_kernels::dtype::{WeightDtype, WeightFormat};
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::Shard;
use sharded::ShardedCheckpoint;
use tensor_file::finite;

/// File name of the weights in a checkpoint folder.
pub const MODEL_FILE: &str = "model.safetensors";
/// File name of the index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// File name of the configuration in a checkpoint folder.
pub const CONFIG_FILE: &str = "config.json";

/// A checkpoint that was read.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The network on its device, without gradients.
    pub model: LanguageModel,
    /// `eos_token_id` of config.json and generation_config.json, empty if absent; the first id ends a document, each of
    /// them ends generated text.
    pub eos_ids: Vec<u32>,
    /// What config.json says besides what is computed.
    pub notes: Notes,
    /// The type of the stored weights; `None` if there are several.
    pub dtype: Option<WeightDtype>,
}

/// Reads the checkpoint in a folder; see [`read_config`] for `accept`, and [`CheckpointParameters::open`] for `format`.
///
/// # Errors
///
/// When a file is missing or damaged, Firebox does not support the configuration, the tensors are not exactly those of
/// the model, or the device does not hold such weights.
pub fn load(
    folder: &Path,
    accept: Accept,
    device: &Device,
    format: impl Into<WeightFormat>,
) -> Result<Checkpoint, CheckpointError> {
    let config = read_config(folder, accept)?;
    load_as(folder, &config, &config.model, device, format)
}

/// Reads the weights in a folder, whose config.json is `config`, in f32, into a model with another configuration, which
/// may differ from the folder's in fields that no tensor depends on, such as the context or the coefficients of the
/// losses; of a rank, what it has of them.
///
/// # Errors
///
/// See [`load`].
pub fn load_weights(
    folder: &Path,
    config: &CheckpointConfig,
    model: &ModelConfig,
    shard: Option<&Shard>,
    device: &Device,
) -> Result<LanguageModel, CheckpointError> {
    let format = WeightDtype::F32;
    let Some(shard) = shard else {
        return Ok(load_as(folder, config, model, device, format)?.model);
    };
    let family = &config.family;
    let source = CheckpointParameters::open_shard(folder, model, family, device, format, shard)?;
    part_of(source, model)
}

/// Reads a rank's part of the weights in a folder, whose config.json is `config`, and nothing else of its files but their
/// headers.
///
/// # Errors
///
/// See [`load`].
pub fn load_shard(
    folder: &Path,
    config: &CheckpointConfig,
    device: &Device,
    format: impl Into<WeightFormat>,
    shard: &Shard,
) -> Result<LanguageModel, CheckpointError> {
    let (model, family) = (&config.model, &config.family);
    let source = CheckpointParameters::open_shard(folder, model, family, device, format, shard)?;
    part_of(source, &config.model)
}

/// Reads a rank's part of a checkpoint that is divided among ranks, from the rank's own folder.
///
/// # Errors
///
/// See [`load`]; and when there is no such rank.
pub fn load_rank(
    checkpoint: &ShardedCheckpoint,
    rank: usize,
    device: &Device,
    format: impl Into<WeightFormat>,
) -> Result<LanguageModel, CheckpointError> {
    let source = checkpoint.parameters(rank, device, format)?;
    part_of(source, &checkpoint.config().model)
}

fn part_of(
    mut source: CheckpointParameters,
    config: &ModelConfig,
) -> Result<LanguageModel, CheckpointError> {
    let mut model = LanguageModel::new(config, &mut source)?;
    model.set_router_bias(&source.router_bias()?);
    Ok(model)
}

fn load_as(
    folder: &Path,
    config: &CheckpointConfig,
    model: &ModelConfig,
    device: &Device,
    format: impl Into<WeightFormat>,
) -> Result<Checkpoint, CheckpointError> {
    let mut source = CheckpointParameters::open(folder, model, &config.family, device, format)?;
    let mut model = LanguageModel::new(model, &mut source)?;
    model.set_router_bias(&source.router_bias()?);
    Ok(Checkpoint {
        model,
        eos_ids: config.eos_ids.clone(),
        notes: config.notes.clone(),
        dtype: source.dtype(),
    })
}
