//! Converts a checkpoint: to another dtype, into shards, under the tensor names of `transformers`.

use std::path::Path;

use firebox_checkpoint::{Checkpoint, SaveOptions, require_free, save};
use firebox_console::durable::Unfinished;
use firebox_kernels::dtype::WeightDtype;
use firebox_runtime::device;
use firebox_text::TOKENIZER_FILE;
use firebox_text::Tokenizer;

use crate::InferError;
use crate::engine::open_model;

/// How to write the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The type of the weights; `None` for that of the checkpoint, or f32 if the checkpoint has several.
    pub dtype: Option<WeightDtype>,
    /// The maximum size of a weights file, in bytes.
    pub shard_bytes: Option<u64>,
}

impl Export {
    /// Reads a checkpoint (see [`Engine::open`](crate::engine::Engine::open)), and writes it into the folder `output`, which must be
    /// empty or absent and appears only when it is complete. `progress` is called with the number of bytes of weights
    /// written and their total. Returns the type of the weights.
    ///
    /// # Errors
    ///
    /// When the checkpoint cannot be read, or the folder cannot be written.
    pub fn write(
        &self,
        checkpoint: &Path,
        accept: &[String],
        output: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<WeightDtype, InferError> {
        require_free(output)?;
        let device = device::select(device::default_name())?;
        let (folder, opened) = open_model(checkpoint, accept, &device, WeightDtype::F32)?;
        let Checkpoint {
            model,
            eos_ids,
            notes,
            dtype,
        } = opened;
        let path = folder.join(TOKENIZER_FILE);
        let tokenizer = match path.exists() {
            true => Some(Tokenizer::load(&path, &eos_ids)?),
            false => None,
        };
        let dtype = self.dtype.or(dtype).unwrap_or_default();
        let options = SaveOptions {
            dtype,
            shard_bytes: self.shard_bytes,
            notes,
        };
        let total = model.parameters() * dtype.bytes() as u64;

        let unfinished = Unfinished::create(output)?;
        let part = unfinished.path();
        save(&model, part, &options, |done| progress(done, total))?;
        match &tokenizer {
            Some(tokenizer) => tokenizer.save_to(part, model.config().context_length)?,
            None => tracing::warn!("{} has no {TOKENIZER_FILE}", folder.display()),
        }
        unfinished.finish()?;
        Ok(dtype)
    }
}
