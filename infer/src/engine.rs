//! A checkpoint that is ready to be used: the model on its device, and its tokenizer.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use firebox_model::accounting::Parameters;
use firebox_model::checkpoint::{Checkpoint, TOKENIZER_FILE, checkpoint_folder, load};
use firebox_model::device;
use firebox_model::language_model::LanguageModel;
use firebox_model::tokenizer::Tokenizer;

use crate::InferError;

/// A model on a device, and the tokenizer that it was trained with.
#[derive(Debug)]
pub struct Engine {
    /// The network, without gradients.
    pub model: LanguageModel,
    /// Text to token ids and back.
    pub tokenizer: Tokenizer,
    /// The device's name, such as `flex` or `wgpu:1`.
    pub device: String,
}

impl Engine {
    /// Opens a checkpoint, or the newest one of a run (see [`checkpoint_folder`]), on a device of
    /// [`device::select`].
    ///
    /// # Errors
    ///
    /// When the device is not there, the path leads to no checkpoint, or the checkpoint cannot be read.
    pub fn open(checkpoint: &Path, device: &str) -> Result<Self, InferError> {
        let started = Instant::now();
        let selected = device::select(device)?;
        let (folder, opened) = open_model(checkpoint, &selected)?;
        let Checkpoint {
            model, end_of_text, ..
        } = opened;
        let path = folder.join(TOKENIZER_FILE);
        if !path.exists() {
            return Err(InferError::NoTokenizer { folder });
        }
        let engine = Self {
            tokenizer: Tokenizer::load(&path, end_of_text.first().copied())?,
            model,
            device: device.to_owned(),
        };
        engine.check(&[engine.tokenizer.end_of_text()])?;
        tracing::info!(
            "{}: {} parameters, on {device} after {:.2} s",
            folder.display(),
            Parameters::of(engine.model.config()).total(),
            started.elapsed().as_secs_f64(),
        );
        Ok(engine)
    }

    /// Token ids of some texts, each of which the model has an embedding for.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot encode a text, or gives an id beyond the model's vocabulary.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, InferError> {
        let encoded = self.tokenizer.encode_batch(texts)?;
        encoded.iter().try_for_each(|ids| self.check(ids))?;
        Ok(encoded)
    }

    /// Checks token ids against the model's vocabulary. A tokenizer may be larger than the model, as long as
    /// nothing beyond is used.
    ///
    /// # Errors
    ///
    /// The first id that the model has no embedding for.
    pub fn check(&self, ids: &[u32]) -> Result<(), InferError> {
        let model = self.model.config().vocabulary;
        match ids.iter().find(|&&id| id as usize >= model) {
            Some(&id) => Err(InferError::Vocabulary {
                id,
                tokenizer: self.tokenizer.vocabulary(),
                model,
            }),
            None => Ok(()),
        }
    }
}

/// Reads a checkpoint, or the newest one of a run (see [`checkpoint_folder`]); also says where it is. No
/// tokenizer is needed.
///
/// # Errors
///
/// When the path leads to no checkpoint, or the checkpoint cannot be read.
pub fn open_model(path: &Path, device: &Device) -> Result<(PathBuf, Checkpoint), InferError> {
    let folder = checkpoint_folder(path)?;
    let checkpoint = load(&folder, device)?;
    Ok((folder, checkpoint))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::{TinyCheckpoint, tiny_config};

    #[test]
    fn an_id_beyond_the_vocabulary_names_both_sizes() {
        let mut config = tiny_config();
        config.vocabulary = 200;
        let tiny = TinyCheckpoint::new(&config, 1);
        let error = Engine::open(tiny.path(), device::default_name()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "token id 256 is beyond the model's vocabulary: tokenizer.json has 257 ids, config.json 200"
        );
    }

    #[test]
    fn a_checkpoint_without_a_tokenizer_is_named() {
        let tiny = TinyCheckpoint::new(&tiny_config(), 1);
        fs::remove_file(tiny.path().join(TOKENIZER_FILE)).unwrap();
        let error = Engine::open(tiny.path(), device::default_name()).unwrap_err();
        assert!(
            error.to_string().contains("has no tokenizer.json"),
            "{error}"
        );
    }
}
