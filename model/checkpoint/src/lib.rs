//! Checkpoints: folders that Hugging Face's `transformers` loads as they stand, and folders of its own.
//!
//! A folder has `config.json`, the weights (`model.safetensors`, or shards and their index), and
//! `tokenizer.json`, which is the business of whoever has the tokenizer. Which families there are and which
//! tensor has which name is data: see [`families`] and [`layout`].

mod config_json;
mod dtype;
mod error;
pub mod families;
mod fields;
mod folder;
pub mod layout;
mod mismatch;
mod reader;
mod store;
mod tensor_file;
mod tensor_writer;
#[cfg(test)]
mod tests;
mod upcycle;
mod writer;

use std::path::Path;

use burn::tensor::Device;

pub use config_json::{CheckpointConfig, read_config};
pub use error::CheckpointError;
pub use folder::{CHECKPOINTS, FolderError, LATEST, checkpoint_folder};
pub use mismatch::Mismatch;
pub use reader::CheckpointParameters;
pub use store::TensorStore;
pub use tensor_file::{TensorFile, TensorInfo};
pub use tensor_writer::{NamedTensor, Values, write_tensors};
pub use upcycle::upcycle;
pub use writer::{SaveOptions, named_gradients, save};

use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;

/// Name of the weights' file in a checkpoint folder.
pub const MODEL_FILE: &str = "model.safetensors";
/// Name of the index of a checkpoint whose weights are in several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Name of the configuration's file in a checkpoint folder.
pub const CONFIG_FILE: &str = "config.json";

/// A model as it was read.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The network on its device, without gradients.
    pub model: LanguageModel,
    /// The tokens that end a text, where the configuration names them; the first ends a document.
    pub end_of_text: Vec<u32>,
    /// The token that a document begins with, where the configuration names one.
    pub beginning_of_text: Option<u32>,
    /// The type of the stored weights, where they are all of one.
    pub dtype: Option<WeightDtype>,
}

/// Reads the checkpoint in a folder; what `dtype` means is said at [`CheckpointParameters::open`].
///
/// # Errors
///
/// When a file is absent or damaged, the configuration asks for what Firebox does not compute, the tensors
/// are not exactly those of the model, or the device cannot hold weights of that type.
pub fn load(
    folder: &Path,
    device: &Device,
    dtype: WeightDtype,
) -> Result<Checkpoint, CheckpointError> {
    let config = read_config(folder)?;
    load_as(folder, &config, &config.model, device, dtype)
}

/// Reads the weights in a folder, in f32, into a model of a known shape, which may differ from the one that the folder
/// names in what no tensor depends on, such as the context or the losses' coefficients.
///
/// # Errors
///
/// See [`load`].
pub fn load_weights(
    folder: &Path,
    model: &ModelConfig,
    device: &Device,
) -> Result<LanguageModel, CheckpointError> {
    let config = read_config(folder)?;
    Ok(load_as(folder, &config, model, device, WeightDtype::F32)?.model)
}

fn load_as(
    folder: &Path,
    config: &CheckpointConfig,
    model: &ModelConfig,
    device: &Device,
    dtype: WeightDtype,
) -> Result<Checkpoint, CheckpointError> {
    let mut source = CheckpointParameters::open(folder, model, &config.family, device, dtype)?;
    let mut model = LanguageModel::new(model, &mut source)?;
    model.set_router_bias(&source.router_bias()?);
    Ok(Checkpoint {
        model,
        end_of_text: config.end_of_text.clone(),
        beginning_of_text: config.beginning_of_text,
        dtype: source.dtype(),
    })
}
