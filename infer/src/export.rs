//! Converts a checkpoint: to another dtype, into shards, under the tensor names of `transformers`; or into a GGUF file for
//! llama.cpp.

use std::fs;
use std::path::{Path, PathBuf};

use firebox_checkpoint::{
    BlockType, Checkpoint, GgufOptions, GgufValue, PREPROCESSOR_FILE, SaveOptions,
    check_exportable, gguf_types, is_gguf, require_free, save, save_gguf,
};
use firebox_console::durable::{self, FileError, Unfinished};
use firebox_kernels::dtype::WeightDtype;
use firebox_runtime::device;
use firebox_text::{TOKENIZER_FILE, Tokenizer};

use crate::InferError;
use crate::engine::open_model;
use crate::gguf::{open_tokenizer, tokenizer_metadata};

/// How to write the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// What to write.
    pub format: Format,
    /// Whether to write the text model that is left of one that sees pictures.
    pub text_only: bool,
}

/// What an export writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A folder in the format of Hugging Face.
    Folder {
        /// The type of the weights; `None` for that of the checkpoint, or f32 if the checkpoint has several.
        dtype: Option<WeightDtype>,
        /// The maximum size of a weights file, in bytes.
        shard_bytes: Option<u64>,
    },
    /// A GGUF file.
    Gguf {
        /// The type of the matrices; `None` for that of the checkpoint, or f32 if the checkpoint has several.
        kind: Option<BlockType>,
    },
}

/// A checkpoint that is to be written, with its tokenizer if it has one.
struct Opened {
    place: PathBuf,
    checkpoint: Checkpoint,
    tokenizer: Option<Tokenizer>,
}

impl Export {
    /// Reads a checkpoint (see [`Engine::open`](crate::engine::Engine::open)), and writes it to `output`: a folder, which must be
    /// empty or absent, or a GGUF file, which takes the place of another file. It appears only when it is complete. `progress` is
    /// called with the number of bytes of weights written and their total. Returns the name of the type of the weights.
    ///
    /// # Errors
    ///
    /// When the checkpoint cannot be read, or `output` cannot be written; also when llama.cpp would compute something else, or
    /// has no tokenizer like that of the checkpoint.
    pub fn write(
        &self,
        checkpoint: &Path,
        accept: &[String],
        output: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<String, InferError> {
        match self.format {
            Format::Folder { .. } => require_free(output)?,
            Format::Gguf { .. } => durable::check_writable(output).map_err(InferError::Place)?,
        }
        let opened = self.open(checkpoint, accept)?;
        match self.format {
            Format::Folder { dtype, shard_bytes } => {
                let dtype = dtype.or(opened.checkpoint.dtype).unwrap_or_default();
                let total = opened.checkpoint.model.parameters() * dtype.bytes() as u64;
                opened.write_folder(output, dtype, shard_bytes, |done| progress(done, total))?;
                Ok(dtype.to_string())
            }
            Format::Gguf { kind } => {
                let kind = match kind {
                    Some(kind) => kind,
                    None => opened.stored_type()?,
                };
                opened.write_gguf(output, kind, progress)?;
                Ok(kind.to_string())
            }
        }
    }

    fn open(&self, path: &Path, accept: &[String]) -> Result<Opened, InferError> {
        let device = device::select(device::default_name())?;
        let (place, mut checkpoint) = open_model(path, accept, &device, WeightDtype::F32)?;
        if self.text_only {
            if checkpoint.model.vision.is_none() {
                return Err(InferError::TextAlready { folder: place });
            }
            let ids = checkpoint.model.config().vocab_size;
            checkpoint.notes.keep_ids_below(ids);
            checkpoint.model = checkpoint.model.text_only();
        }
        let tokenizer = open_tokenizer(&place, &checkpoint.eos_ids)?;
        if tokenizer.is_none() {
            tracing::warn!("{} has no {TOKENIZER_FILE}", place.display());
        }
        Ok(Opened {
            place,
            checkpoint,
            tokenizer,
        })
    }
}

impl Opened {
    /// The type that the matrices are stored in; f32 where they are in several.
    fn stored_type(&self) -> Result<BlockType, InferError> {
        if !is_gguf(&self.place) {
            let dtype = self.checkpoint.dtype.unwrap_or_default();
            return Ok(BlockType::Plain(dtype));
        }
        let types = gguf_types(&self.place)?;
        if let [kind] = types[..] {
            return Ok(kind);
        }
        let kind = BlockType::Plain(WeightDtype::F32);
        let names: Vec<String> = types.iter().map(BlockType::to_string).collect();
        tracing::warn!(
            "{} has matrices in {}; without --dtype, all are written in {kind}",
            self.place.display(),
            names.join(" and ")
        );
        Ok(kind)
    }

    fn write_folder(
        self,
        output: &Path,
        dtype: WeightDtype,
        shard_bytes: Option<u64>,
        progress: impl FnMut(u64),
    ) -> Result<(), InferError> {
        let model = &self.checkpoint.model;
        let options = SaveOptions {
            dtype,
            shard_bytes,
            notes: self.checkpoint.notes,
        };
        let unfinished = Unfinished::create(output)?;
        let part = unfinished.path();
        save(model, part, &options, progress)?;
        if let Some(tokenizer) = &self.tokenizer {
            tokenizer.save_to(part, model.config().context_length)?;
        }
        if model.vision.is_some() {
            copy_if_there(&self.place, part, PREPROCESSOR_FILE)?;
        }
        Ok(unfinished.finish()?)
    }

    fn write_gguf(
        self,
        output: &Path,
        kind: BlockType,
        progress: impl FnMut(u64, u64),
    ) -> Result<(), InferError> {
        let model = &self.checkpoint.model;
        check_exportable(model)?;
        let vocab_size = model.config().vocab_size;
        let vocabulary = self.tokenizer.as_ref();
        let vocabulary = vocabulary
            .map(|tokenizer| tokenizer.to_ggml(vocab_size))
            .transpose()?;
        if self.tokenizer.as_ref().is_some_and(Tokenizer::normalizes) {
            tracing::warn!(
                "llama.cpp does not bring text into Unicode's form C, as this tokenizer does: text in another form gets other tokens there"
            );
        }
        let eos_ids = match &self.tokenizer {
            Some(tokenizer) => tokenizer.eos_ids(),
            None => &self.checkpoint.eos_ids,
        };
        let mut metadata = tokenizer_metadata(vocabulary.as_ref(), eos_ids);
        if let Some(name) = output.file_stem().and_then(|name| name.to_str()) {
            metadata.push(("general.name".to_owned(), GgufValue::text(name)));
        }
        let options = GgufOptions {
            kind,
            notes: self.checkpoint.notes,
            metadata,
        };
        let unfit = save_gguf(model, output, &options, progress)?;
        if unfit > 0 {
            tracing::warn!(
                "{unfit} of the matrices have rows whose length is no multiple of 32, as {kind} needs it, and are stored in f16"
            );
        }
        Ok(())
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
