//! The initial weights of a run, random or from a checkpoint, and its tokenizer after a resume.

use std::path::Path;

use burn::tensor::Device;
use firebox_checkpoint::{checkpoint_folder, load_weights, read_config, upcycle};
use firebox_model::accounting::Parameters;
use firebox_model::config::FeedForwardKind;
use firebox_model::language_model::LanguageModel;
use firebox_text::TOKENIZER_FILE;

use crate::config::{RunConfig, TokenizerConfig};
use crate::error::TrainError;
use firebox_console::numbers::scaled;

/// Random weights, or those of the checkpoint `train.init`, in f32. A dense checkpoint is upcycled if the configuration
/// asks for an MoE model.
///
/// # Errors
///
/// When the checkpoint does not exist, cannot be read, or does not fit `config.model`.
pub fn starting_model(config: &RunConfig, device: &Device) -> Result<LanguageModel, TrainError> {
    let seed = config.train.seed;
    let Some(init) = &config.train.init else {
        return Ok(LanguageModel::random(&config.model, seed, device));
    };
    let folder = checkpoint_folder(init)?;
    let origin = read_config(&folder)?;
    let source = format!(
        "starting from {}: {}, {} parameters",
        folder.display(),
        origin.family.model_type,
        scaled(Parameters::of(&origin.model).total() as f64)
    );
    let kinds = (origin.model.feed_forward, config.model.feed_forward);
    if kinds != (FeedForwardKind::Dense, FeedForwardKind::Moe) {
        tracing::info!("{source}");
        return Ok(load_weights(&folder, &config.model, device)?);
    }
    let experts = &config.model.experts;
    tracing::info!(
        "{source}; upcycled to {} experts, {} per token",
        experts.count,
        experts.per_token
    );
    Ok(upcycle(&folder, &config.model, seed, device)?)
}

/// The configuration with a checkpoint's own tokenizer in place of the original file, which may have changed or no
/// longer exist.
pub fn with_own_tokenizer(config: &RunConfig, checkpoint: &Path) -> RunConfig {
    let mut config = config.clone();
    if let TokenizerConfig::File { path, .. } = &mut config.tokenizer {
        *path = checkpoint.join(TOKENIZER_FILE);
    }
    config
}
