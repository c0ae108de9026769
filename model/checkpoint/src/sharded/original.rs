//! What is kept of a checkpoint besides the ranks' tensors, so that its files can be made again.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use firebox_console::durable::{self, FileError};
use safetensors::tensor::Metadata;

use super::manifest::{HASH_DIFFERS, Manifest, hash};
use super::others::copy_into;
use super::write::copy_tensors;
use crate::dtype::StoredDtype as _;
use crate::{CheckpointError, INDEX_FILE, TensorFile, TensorStore};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::parallel::Slice;

/// Name of the folder.
const FOLDER: &str = "original";

/// The tensors that no rank has: those that the network does not use.
const KEPT_FILE: &str = "kept.safetensors";

/// A weights' file of a checkpoint.
#[derive(Debug)]
pub(super) struct OriginalFile {
    /// Its name.
    pub name: String,
    /// Its header, with its length in front.
    pub header: Vec<u8>,
    /// Its tensors, in the order of their bytes.
    pub tensors: Vec<OriginalTensor>,
}

/// A tensor of a checkpoint.
#[derive(Debug)]
pub(super) struct OriginalTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type of its values.
    pub dtype: WeightDtype,
}

impl OriginalTensor {
    /// Number of its bytes.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bytes() as u64
    }
}

/// The folder in a sharded checkpoint.
fn folder(sharded: &Path) -> PathBuf {
    sharded.join(FOLDER)
}

/// Writes what is kept of the files of a store into the folder of a sharded checkpoint, given the names of the tensors
/// that ranks have.
pub(super) fn write(
    store: &TensorStore,
    of_ranks: &BTreeSet<&str>,
    sharded: &Path,
    manifest: &mut Manifest,
) -> Result<(), CheckpointError> {
    let folder = folder(sharded);
    fs::create_dir_all(&folder).map_err(FileError::of("create", &folder))?;
    for file in store.files() {
        let name = file.path().file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        let header = header_of(file)?;
        keep(&folder, &header_name(&name), &header, manifest)?;
        manifest.files.push(name);
    }
    let index = store.folder().join(INDEX_FILE);
    if index.exists() {
        let content = fs::read(&index).map_err(FileError::of("read", &index))?;
        keep(&folder, INDEX_FILE, &content, manifest)?;
    }
    let kept = store.files().flat_map(|file| file.tensors());
    let kept = kept.filter(|(name, _)| !of_ranks.contains(name.as_str()));
    let kept = kept.map(|(name, info)| (name.clone(), Slice::whole(info.shape.clone())));
    let kept: Vec<(String, Slice)> = kept.collect();
    if !kept.is_empty() {
        let tensors = kept.iter().map(|(name, slice)| (name.as_str(), slice));
        copy_tensors(store, tensors, &folder.join(KEPT_FILE), &mut |_| Ok(()))?;
        let hash = hash_of(&folder.join(KEPT_FILE))?;
        manifest.original.insert(KEPT_FILE.to_owned(), hash);
    }
    Ok(())
}

/// The files of the checkpoint.
///
/// # Errors
///
/// When a header is missing or damaged.
pub(super) fn read(
    sharded: &Path,
    manifest: &Manifest,
) -> Result<Vec<OriginalFile>, CheckpointError> {
    let files = manifest.files.iter().map(|name| {
        let path = folder(sharded).join(header_name(name));
        let header = fs::read(&path).map_err(FileError::of("read", &path))?;
        let damaged = |reason: String| CheckpointError::Damaged {
            path: path.clone(),
            reason,
        };
        let json = header.get(size_of::<u64>()..).unwrap_or_default();
        let metadata: Metadata =
            serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
        let mut tensors: Vec<_> = metadata.tensors().into_iter().collect();
        tensors.sort_by_key(|(name, info)| (info.data_offsets, name.clone()));
        let tensors = tensors.into_iter().map(|(name, info)| {
            let dtype = WeightDtype::of_safetensors(info.dtype)
                .ok_or_else(|| damaged(format!("{name} is of type {:?}", info.dtype)))?;
            Ok(OriginalTensor {
                name,
                shape: info.shape.clone(),
                dtype,
            })
        });
        Ok(OriginalFile {
            name: name.clone(),
            tensors: tensors.collect::<Result<_, CheckpointError>>()?,
            header,
        })
    });
    files.collect()
}

/// Copies the index of the weights' files into a folder, if there is one.
///
/// # Errors
///
/// When it cannot be read or written.
pub(super) fn copy_index(sharded: &Path, folder: &Path) -> Result<(), CheckpointError> {
    let index = self::folder(sharded).join(INDEX_FILE);
    match index.exists() {
        true => copy_into(&index, folder),
        false => Ok(()),
    }
}

/// The tensors of no rank; `None` if there are none.
///
/// # Errors
///
/// When their file is damaged.
pub(super) fn kept(
    sharded: &Path,
    manifest: &Manifest,
) -> Result<Option<TensorFile>, CheckpointError> {
    match manifest.original.contains_key(KEPT_FILE) {
        true => Ok(Some(TensorFile::open(&folder(sharded).join(KEPT_FILE))?)),
        false => Ok(None),
    }
}

/// Checks that all files are as they were written.
///
/// # Errors
///
/// The first that is not.
pub(super) fn check(sharded: &Path, manifest: &Manifest) -> Result<(), CheckpointError> {
    match faults(sharded, manifest).into_iter().next() {
        None => Ok(()),
        Some((file, reason)) => Err(CheckpointError::Damaged {
            path: sharded.join(file),
            reason: format!("it {reason}"),
        }),
    }
}

/// The files that are not as they were written, and why.
pub(super) fn faults(sharded: &Path, manifest: &Manifest) -> Vec<(String, String)> {
    let faults = manifest.original.iter().filter_map(|(name, expected)| {
        let fault = match hash_of(&folder(sharded).join(name)) {
            Ok(found) if found == *expected => return None,
            Ok(_) => HASH_DIFFERS.to_owned(),
            Err(error) => format!("cannot be read: {}", error.source),
        };
        Some((format!("{FOLDER}/{name}"), fault))
    });
    faults.collect()
}

fn header_name(file: &str) -> String {
    format!("{file}.header")
}

/// Writes a file of this folder.
fn keep(
    folder: &Path,
    name: &str,
    content: &[u8],
    manifest: &mut Manifest,
) -> Result<(), CheckpointError> {
    durable::write(&folder.join(name), content)?;
    manifest.original.insert(name.to_owned(), hash(content));
    Ok(())
}

/// The hash of a file, all of which is read at once: headers and tensors that no rank has are small.
fn hash_of(path: &Path) -> Result<String, FileError> {
    Ok(hash(&fs::read(path).map_err(FileError::of("read", path))?))
}

/// The header of a safetensors file, with its length in front.
fn header_of(file: &TensorFile) -> Result<Vec<u8>, FileError> {
    let path = file.path();
    let read = || {
        let mut file = fs::File::open(path)?;
        let mut length = [0; size_of::<u64>()];
        file.read_exact(&mut length)?;
        let mut header = length.to_vec();
        file.take(u64::from_le_bytes(length))
            .read_to_end(&mut header)?;
        Ok(header)
    };
    read().map_err(FileError::of("read", path))
}
