//! What a run starts with: random weights or a checkpoint's; and what it goes on with when that is gone.

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

/// Random weights, or those of the checkpoint `train.init`, in f32. A dense checkpoint becomes a mixture where the
/// configuration has one.
///
/// # Errors
///
/// When the checkpoint is not there or cannot be read.
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
        "{source}; upcycled into {} experts, {} a token",
        experts.count,
        experts.per_token
    );
    Ok(upcycle(&folder, &config.model, seed, device)?)
}

/// The configuration with the tokenizer that is in a run's checkpoint, where the file that it came from is gone.
pub fn with_own_tokenizer(config: &RunConfig, checkpoint: &Path) -> RunConfig {
    let mut config = config.clone();
    if let TokenizerConfig::File { path, .. } = &mut config.tokenizer
        && !path.exists()
    {
        *path = checkpoint.join(TOKENIZER_FILE);
    }
    config
}
