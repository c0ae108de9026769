//! Writes a GGUF file, tensor by tensor.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use firebox_console::durable::{self, FileError};

use super::block::BlockType;
use super::header::{MAGIC, USUAL_ALIGNMENT, VERSION};
use super::value::{ARRAY, TEXT, Value};
use crate::CheckpointError;

/// A tensor to write.
pub(super) struct Outgoing<'a> {
    /// Its name.
    pub name: String,
    /// Its shape, the last dimension being that of neighbours in the file.
    pub shape: Vec<usize>,
    /// The type to store it in; its rows are whole blocks.
    pub kind: BlockType,
    /// Makes its values, when it is written.
    pub values: Box<dyn Fn() -> Vec<f32> + 'a>,
}

/// Writes a file whole or not at all, and waits until it is on disk. One tensor at a time is in memory; `progress` is called
/// with the bytes of tensors that are written.
///
/// # Errors
///
/// When the file cannot be written, or a value is beyond the range of its tensor's type; what was at `path` is then kept.
pub(super) fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[Outgoing<'_>],
    progress: impl FnMut(u64),
) -> Result<(), CheckpointError> {
    durable::write_with(path, |unfinished| {
        let failed = |error| CheckpointError::from(FileError::of("write", path)(error));
        let file = File::create(unfinished).map_err(failed)?;
        let mut writer = BufWriter::new(file);
        let head = head(metadata, tensors);
        let written = writer.write_all(&head);
        written.map_err(|error| FileError::of("write", path)(error))?;
        fill(&mut writer, path, tensors, progress)?;
        let flushed = writer.flush();
        Ok(flushed.map_err(FileError::of("write", path))?)
    })
}

fn fill(
    writer: &mut impl Write,
    path: &Path,
    tensors: &[Outgoing<'_>],
    mut progress: impl FnMut(u64),
) -> Result<(), CheckpointError> {
    let mut done = 0;
    for tensor in tensors {
        let values = (tensor.values)();
        let bytes = tensor.kind.encode(&values);
        let bytes = bytes.ok_or_else(|| CheckpointError::GgufRange {
            name: tensor.name.clone(),
            kind: tensor.kind,
        })?;
        assert_eq!(
            Some(bytes.len()),
            tensor.kind.bytes(&tensor.shape),
            "{}",
            tensor.name
        );
        let padding = vec![0; padded(bytes.len()) - bytes.len()];
        writer
            .write_all(&bytes)
            .and_then(|()| writer.write_all(&padding))
            .map_err(FileError::of("write", path))?;
        done += bytes.len() as u64;
        progress(done);
    }
    Ok(())
}

/// A number of bytes up to where the next tensor begins.
fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(USUAL_ALIGNMENT)
}

/// Everything before the first tensor.
fn head(metadata: &[(String, Value)], tensors: &[Outgoing<'_>]) -> Vec<u8> {
    let mut head = Vec::new();
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    head.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        push_text(&mut head, key);
        push_value(&mut head, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        push_text(&mut head, &tensor.name);
        head.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        for &size in tensor.shape.iter().rev() {
            head.extend_from_slice(&(size as u64).to_le_bytes());
        }
        head.extend_from_slice(&tensor.kind.number().to_le_bytes());
        head.extend_from_slice(&(offset as u64).to_le_bytes());
        let bytes = tensor.kind.bytes(&tensor.shape);
        offset += padded(bytes.expect("rows of whole blocks"));
    }
    head.resize(padded(head.len()), 0);
    head
}

fn push_text(head: &mut Vec<u8>, text: &str) {
    head.extend_from_slice(&(text.len() as u64).to_le_bytes());
    head.extend_from_slice(text.as_bytes());
}

fn push_value(head: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Number(kind, number) => {
            head.extend_from_slice(&kind.number().to_le_bytes());
            kind.encode(*number, head);
        }
        Value::Text(text) => {
            head.extend_from_slice(&TEXT.to_le_bytes());
            push_text(head, text);
        }
        Value::Numbers(kind, bytes) => {
            head.extend_from_slice(&ARRAY.to_le_bytes());
            head.extend_from_slice(&kind.number().to_le_bytes());
            head.extend_from_slice(&((bytes.len() / kind.bytes()) as u64).to_le_bytes());
            head.extend_from_slice(bytes);
        }
        Value::Texts(texts) => {
            head.extend_from_slice(&ARRAY.to_le_bytes());
            head.extend_from_slice(&TEXT.to_le_bytes());
            head.extend_from_slice(&(texts.len() as u64).to_le_bytes());
            texts.iter().for_each(|text| push_text(head, text));
        }
    }
}
