//! Models in a single GGUF file, as llama.cpp and what is built on it read and write them.
//!
//! A file has metadata, which says what the model is and has its tokenizer, and tensors under llama.cpp's own names. Metadata
//! becomes the fields of a config.json, and names are one more table of rules, so that such a file is read and checked as a
//! folder is. The format is that of ggml's `docs/gguf.md`.

mod architecture;
mod block;
mod config;
mod export;
mod file;
mod header;
mod keys;
mod latent;
mod limits;
mod metadata;
mod names;
pub mod tokenizer_keys;
mod value;
mod write;

pub use block::BlockType;
pub use export::{GgufOptions, check_exportable, save_gguf};
pub use value::{Number, NumberKind, Value};

pub(crate) use architecture::Architecture;
pub(crate) use config::read_config;
pub(crate) use file::GgufFile;
pub use file::is_gguf;

use std::collections::BTreeMap;
use std::path::Path;

use crate::CheckpointError;

/// The metadata of a GGUF file, by key.
///
/// # Errors
///
/// When the file cannot be read, is damaged, or is none that Firebox reads.
pub fn gguf_metadata(path: &Path) -> Result<BTreeMap<String, Value>, CheckpointError> {
    Ok(GgufFile::open(path)?.into_metadata())
}

/// The types of a GGUF file's matrices, each once: none where it has no matrix, several where they differ.
///
/// # Errors
///
/// When the file cannot be read, is damaged, or is none that Firebox reads.
pub fn gguf_types(path: &Path) -> Result<Vec<BlockType>, CheckpointError> {
    Ok(GgufFile::open(path)?.matrix_types())
}

/// The name of the embedding, of the head and of the routers' selection bias.
pub(crate) const FIXED_NAMES: [&str; 3] = [names::EMBEDDING, names::HEAD, names::ROUTER_BIAS];
/// Tensors that follow from the metadata.
pub(crate) const DERIVED: &str = names::ROPE_FACTORS;
