//! Checkpoints: folders that Hugging Face's `transformers` loads as they stand.
//!
//! `config.json` and `model.safetensors` are written here, `tokenizer.json` by whoever has the tokenizer.
//! Which tensor has which name is data: see [`layout`].

mod config_json;
mod error;
pub mod layout;
mod reader;
mod tensor_file;
mod writer;

use std::path::Path;

use burn::tensor::Device;

pub use config_json::{HuggingFaceConfig, read_config};
pub use error::CheckpointError;
pub use reader::CheckpointParameters;
pub use tensor_file::{NamedTensor, TensorFile, TensorValues, write_tensors};
pub use writer::save;

use crate::config::ModelConfig;
use crate::language_model::LanguageModel;

/// Name of the weights' file in a checkpoint folder.
pub const MODEL_FILE: &str = "model.safetensors";
/// Name of the configuration's file in a checkpoint folder.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the tokenizer's file in a checkpoint folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// A model as it was read.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The network on its device, without gradients.
    pub model: LanguageModel,
    /// The token that ends a document, where the configuration names one.
    pub end_of_text: Option<u32>,
}

/// Reads the checkpoint in a folder.
///
/// # Errors
///
/// When a file is absent or damaged, the configuration asks for what Firebox does not compute, or a tensor
/// is missing, superfluous, of another shape, or not finite.
pub fn load(folder: &Path, device: &Device) -> Result<Checkpoint, CheckpointError> {
    let HuggingFaceConfig {
        model: config,
        end_of_text,
    } = read_config(folder)?;
    let model = load_weights(folder, &config, device)?;
    Ok(Checkpoint { model, end_of_text })
}

/// Reads the weights in a folder into a model of a known shape.
///
/// # Errors
///
/// See [`load`].
pub fn load_weights(
    folder: &Path,
    config: &ModelConfig,
    device: &Device,
) -> Result<LanguageModel, CheckpointError> {
    let mut source = CheckpointParameters::open(folder, config, device)?;
    let mut model = LanguageModel::new(config, &mut source)?;
    model.set_router_bias(&source.router_bias()?);
    source.finish()?;
    Ok(model)
}
