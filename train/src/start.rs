//! The model that a run starts with.

use burn::tensor::Device;
use firebox_model::accounting::Parameters;
use firebox_model::checkpoint::{checkpoint_folder, load_weights, read_config, upcycle};
use firebox_model::config::FeedForwardKind;
use firebox_model::language_model::LanguageModel;

use crate::check::numbers::scaled;
use crate::config::RunConfig;
use crate::error::TrainError;

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
