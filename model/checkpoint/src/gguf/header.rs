//! The head of a GGUF file: metadata, and where each tensor lies.
//!
//! The format is that of ggml's `docs/gguf.md`, versions 2 and 3, with the smallest byte of a number first. Every count and
//! length is compared with what is left of the file, and with [`LARGEST_HEAD`], before memory is taken for it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use firebox_console::durable::FileError;

use super::block::{BlockType, name_of};
use super::value::{ARRAY, NumberKind, TEXT, Value};
use crate::CheckpointError;

/// How a file begins.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
pub(super) const VERSION: u32 = 3;
/// The key of the number that every tensor's place is a multiple of.
pub(super) const ALIGNMENT: &str = "general.alignment";
/// That number where the key is absent.
pub(super) const USUAL_ALIGNMENT: usize = 32;

/// Bytes of the largest head that is read. Those of published models, with vocabularies of 250,000 tokens, have a tenth of it.
const LARGEST_HEAD: u64 = 128 << 20;
/// The largest alignment that is read.
const LARGEST_ALIGNMENT: u64 = 1 << 20;
/// Bytes of the longest name of a key or tensor.
const LONGEST_NAME: u64 = 1024;
/// The most dimensions of a tensor in ggml.
const MOST_DIMENSIONS: u32 = 4;

/// A tensor's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its shape, the last dimension being that of neighbours in the file.
    pub shape: Vec<usize>,
    /// The type of its values.
    pub kind: BlockType,
    /// Byte offset of its values in the file.
    pub offset: u64,
    /// Their number of bytes.
    pub bytes: usize,
}

/// The head of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Header {
    /// The metadata, by key.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors, by name.
    pub tensors: BTreeMap<String, Entry>,
}

/// What is left of a head that is being read.
struct Source<'a, R> {
    reader: R,
    path: &'a Path,
    /// Bytes that were read.
    at: u64,
    /// Bytes of the file, or of the largest head.
    end: u64,
}

impl Header {
    /// Reads the head of a file of `length` bytes.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is damaged, or has a tensor of a type that Firebox does not read.
    pub fn read(reader: impl Read, length: u64, path: &Path) -> Result<Self, CheckpointError> {
        let mut source = Source {
            reader,
            path,
            at: 0,
            end: length.min(LARGEST_HEAD),
        };
        if source.bytes(4, "its first bytes")? != MAGIC {
            return Err(source.damaged("it does not begin with GGUF"));
        }
        let version = source.u32("its version")?;
        match version {
            2 | VERSION => {}
            _ if version.trailing_zeros() >= 16 && version != 0 => {
                return Err(source.unread("its numbers have the largest byte first"));
            }
            _ => {
                return Err(source.unread(&format!("version {version}; Firebox reads 2 and 3")));
            }
        }
        let tensors = source.u64("the number of tensors")?;
        let keys = source.u64("the number of keys")?;
        // A key has a length, a type and a value; a tensor a length, its dimensions, a type and an offset.
        source.allow(keys, 8 + 4 + 1, "keys")?;
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = source.name("a key")?;
            let value = source.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(source.damaged(&format!("the key {key} occurs twice")));
            }
        }
        let alignment = alignment(&metadata).map_err(|reason| source.damaged(&reason))?;
        source.allow(tensors, 8 + 4 + 8 + 4 + 8, "tensors")?;
        let mut entries = Vec::with_capacity(tensors as usize);
        let mut names = BTreeSet::new();
        for _ in 0..tensors {
            let (name, entry) = source.entry(alignment)?;
            if !names.insert(name.clone()) {
                return Err(source.damaged(&format!("the tensor {name} occurs twice")));
            }
            entries.push((name, entry));
        }
        let start = source.at.next_multiple_of(alignment);
        place(&mut entries, start, length).map_err(|reason| source.damaged(&reason))?;
        Ok(Self {
            metadata,
            tensors: entries.into_iter().collect(),
        })
    }
}

/// The alignment that metadata names.
fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, String> {
    let Some(value) = metadata.get(ALIGNMENT) else {
        return Ok(USUAL_ALIGNMENT as u64);
    };
    let allowed = |value: &u64| value.is_power_of_two() && *value <= LARGEST_ALIGNMENT;
    value.as_u64().filter(allowed).ok_or_else(|| {
        format!("{ALIGNMENT} = {value}: must be a power of two up to {LARGEST_ALIGNMENT}")
    })
}

/// Moves offsets, which count from the first tensor, by `start`. No tensor reaches into another, or beyond the file.
fn place(entries: &mut [(String, Entry)], start: u64, length: u64) -> Result<(), String> {
    for (name, entry) in entries.iter_mut() {
        let first = start.checked_add(entry.offset);
        let end = first.and_then(|first| first.checked_add(entry.bytes as u64));
        match (first, end) {
            (Some(first), Some(end)) if end <= length => entry.offset = first,
            _ => {
                return Err(format!(
                    "the tensor {name} of {} bytes ends behind the file, which has {length}",
                    entry.bytes
                ));
            }
        }
    }
    let mut places: Vec<_> = entries.iter().collect();
    places.sort_by_key(|(_, entry)| entry.offset);
    for pair in places.windows(2) {
        let [(first, before), (second, after)] = pair else {
            unreachable!("windows of two")
        };
        if before.offset + before.bytes as u64 > after.offset {
            return Err(format!("the tensors {first} and {second} overlap"));
        }
    }
    Ok(())
}

impl<R: Read> Source<'_, R> {
    fn damaged(&self, reason: &str) -> CheckpointError {
        CheckpointError::Damaged {
            path: self.path.to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn unread(&self, reason: &str) -> CheckpointError {
        CheckpointError::GgufUnread {
            path: self.path.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// Checks that so many things of so many bytes each can be left in the file.
    fn allow(&self, count: u64, least: u64, what: &str) -> Result<(), CheckpointError> {
        let left = self.end - self.at;
        match count.checked_mul(least) {
            Some(bytes) if bytes <= left => Ok(()),
            _ => Err(self.damaged(&format!("{count} {what} do not fit into it"))),
        }
    }

    fn bytes(&mut self, count: u64, what: &str) -> Result<Vec<u8>, CheckpointError> {
        if count > self.end - self.at {
            return Err(self.damaged(&format!("it ends before {what}")));
        }
        let mut bytes = vec![0; count as usize];
        self.reader
            .read_exact(&mut bytes)
            .map_err(FileError::of("read", self.path))?;
        self.at += count;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, CheckpointError> {
        let bytes = self.bytes(4, what)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(&mut self, what: &str) -> Result<u64, CheckpointError> {
        let bytes = self.bytes(8, what)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    fn text(&mut self, what: &str) -> Result<String, CheckpointError> {
        let length = self.u64(what)?;
        let bytes = self.bytes(length, what)?;
        String::from_utf8(bytes).map_err(|_| self.damaged(&format!("{what} is not UTF-8")))
    }

    fn name(&mut self, what: &str) -> Result<String, CheckpointError> {
        let length = self.u64(what)?;
        if length > LONGEST_NAME || length == 0 {
            return Err(self.damaged(&format!(
                "{what} has a name of {length} bytes; 1 to {LONGEST_NAME} are allowed"
            )));
        }
        let bytes = self.bytes(length, what)?;
        String::from_utf8(bytes)
            .map_err(|_| self.damaged(&format!("the name of {what} is not UTF-8")))
    }

    fn value(&mut self, key: &str) -> Result<Value, CheckpointError> {
        let what = format!("the value of {key}");
        match self.u32(&what)? {
            TEXT => Ok(Value::Text(self.text(&what)?)),
            ARRAY => self.array(key, &what),
            number => {
                let kind = self.number_kind(number, key)?;
                let bytes = self.bytes(kind.bytes() as u64, &what)?;
                match kind.decode(&bytes) {
                    Some(number) => Ok(Value::Number(kind, number)),
                    None => Err(self.damaged(&format!("{what} is neither true nor false"))),
                }
            }
        }
    }

    fn number_kind(&self, number: u32, key: &str) -> Result<NumberKind, CheckpointError> {
        NumberKind::of(number).ok_or_else(|| {
            let nested = number == ARRAY;
            self.damaged(&match nested {
                true => format!("the value of {key} is an array of arrays"),
                false => format!("the value of {key} has the unknown type {number}"),
            })
        })
    }

    fn array(&mut self, key: &str, what: &str) -> Result<Value, CheckpointError> {
        let number = self.u32(what)?;
        let count = self.u64(what)?;
        if number == TEXT {
            // Each has its length before it.
            self.allow(count, 8, &format!("texts of {key}"))?;
            let mut texts = Vec::with_capacity(count as usize);
            for _ in 0..count {
                texts.push(self.text(what)?);
            }
            return Ok(Value::Texts(texts));
        }
        let kind = self.number_kind(number, key)?;
        self.allow(count, kind.bytes() as u64, &format!("numbers of {key}"))?;
        let bytes = self.bytes(count * kind.bytes() as u64, what)?;
        if kind == NumberKind::Bool && bytes.iter().any(|&byte| byte > 1) {
            return Err(self.damaged(&format!("{what} is neither true nor false")));
        }
        Ok(Value::Numbers(kind, bytes))
    }

    fn entry(&mut self, alignment: u64) -> Result<(String, Entry), CheckpointError> {
        let name = self.name("a tensor")?;
        let what = format!("the entry of the tensor {name}");
        let dimensions = self.u32(&what)?;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            return Err(self.damaged(&format!(
                "the tensor {name} has {dimensions} dimensions; 1 to {MOST_DIMENSIONS} are allowed"
            )));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            let size = self.u64(&what)?;
            let size = usize::try_from(size).ok().filter(|&size| size > 0);
            let size = size.ok_or_else(|| {
                self.damaged(&format!(
                    "a dimension of the tensor {name} is 0 or too large"
                ))
            })?;
            shape.push(size);
        }
        // ggml counts dimensions from the one of neighbours on.
        shape.reverse();
        let number = self.u32(&what)?;
        let offset = self.u64(&what)?;
        let Some(kind) = BlockType::of(number) else {
            return Err(CheckpointError::GgufType {
                file: self.path.to_owned(),
                name,
                kind: name_of(number),
            });
        };
        let Some(bytes) = kind.bytes(&shape) else {
            return Err(self.damaged(&format!(
                "the tensor {name} {shape:?} is too large, or the length of its rows is no multiple of a block of {kind}"
            )));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(self.damaged(&format!(
                "the tensor {name} begins at {offset}, no multiple of {alignment}"
            )));
        }
        let entry = Entry {
            shape,
            kind,
            offset,
            bytes,
        };
        Ok((name, entry))
    }
}
