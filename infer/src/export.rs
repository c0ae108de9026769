//! Converts a checkpoint: to another dtype, into shards, under the tensor names of `transformers`.

use std::fs;
use std::path::{Path, PathBuf};

use firebox_checkpoint::{Checkpoint, SaveOptions, save};
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
    /// Reads a checkpoint, or the newest one of a run, and writes it into the folder `output`, which must be
    /// empty or absent and appears only when it is complete. `progress` is called with the number of bytes of weights
    /// written and their total. Returns the type of the weights.
    ///
    /// # Errors
    ///
    /// When the checkpoint cannot be read, or the folder cannot be written.
    pub fn write(
        &self,
        checkpoint: &Path,
        output: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<WeightDtype, InferError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| InferError::Write { path, source }
        };
        let occupied = fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some());
        if occupied || output.is_file() {
            return Err(InferError::NotEmpty {
                folder: output.to_owned(),
            });
        }
        let device = device::select(device::default_name())?;
        let (folder, opened) = open_model(checkpoint, &device, WeightDtype::F32)?;
        let Checkpoint {
            model,
            end_of_text,
            beginning_of_text,
            dtype,
        } = opened;
        let path = folder.join(TOKENIZER_FILE);
        let tokenizer = match path.exists() {
            true => Some(Tokenizer::load(&path, &end_of_text)?),
            false => None,
        };
        let dtype = self.dtype.or(dtype).unwrap_or_default();
        let options = SaveOptions {
            dtype,
            shard_bytes: self.shard_bytes,
            end_of_text,
            beginning_of_text,
        };
        let total = model.parameters() * dtype.bytes() as u64;

        let part = Unfinished::create(output)?;
        save(&model, &part.0, &options, |done| progress(done, total))?;
        match &tokenizer {
            Some(tokenizer) => tokenizer.save_to(&part.0, model.config().context)?,
            None => tracing::warn!("{} has no {TOKENIZER_FILE}", folder.display()),
        }
        if output.exists() {
            fs::remove_dir(output).map_err(failed(output))?;
        }
        fs::rename(&part.0, output).map_err(failed(output))?;
        Ok(dtype)
    }
}

/// Temporary output folder, removed on drop unless renamed.
struct Unfinished(PathBuf);

impl Unfinished {
    fn create(output: &Path) -> Result<Self, InferError> {
        let mut name = output.as_os_str().to_owned();
        name.push(".part");
        let path = PathBuf::from(name);
        let created = fs::create_dir_all(&path);
        created.map_err(|source| InferError::Write {
            path: path.clone(),
            source,
        })?;
        Ok(Self(path))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After the rename, this path no longer exists.
        let _ = fs::remove_dir_all(&self.0);
    }
}
