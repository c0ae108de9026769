//! Converts a checkpoint: to another dtype, into shards, under the tensor names of `transformers`.

use std::fs;
use std::path::Path;

use firebox_checkpoint::{Checkpoint, PREPROCESSOR_FILE, SaveOptions, require_free, save};
use firebox_console::durable::{self, FileError, Unfinished};
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
    /// Whether to write the text model that is left of one that sees pictures.
    pub text_only: bool,
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
            mut notes,
            dtype,
        } = opened;
        let sees = model.vision.is_some();
        let model = match (self.text_only, sees) {
            (false, _) => model,
            (true, false) => return Err(InferError::TextAlready { folder }),
            (true, true) => {
                notes.keep_ids_below(model.config().vocab_size);
                model.text_only()
            }
        };
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
        if model.vision.is_some() {
            copy_if_there(&folder, part, PREPROCESSOR_FILE)?;
        }
        unfinished.finish()?;
        Ok(dtype)
    }
}

/// Copies a file of a folder to another folder, if it is there.
fn copy_if_there(from: &Path, to: &Path, name: &str) -> Result<(), InferError> {
    let file = from.join(name);
    if !file.is_file() {
        return Ok(());
    }
    let content = fs::read(&file)
        .map_err(FileError::of("read", &file))
        .map_err(InferError::Read)?;
    durable::write(&to.join(name), content).map_err(InferError::Write)
}
