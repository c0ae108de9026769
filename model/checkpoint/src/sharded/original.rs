//! What is kept of a checkpoint besides the ranks' tensors, so that its files can be made again.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use firebox_console::durable::{self, FileError};
use firebox_console::numbers::hexadecimal;
use safetensors::tensor::Metadata;
use sha2::{Digest, Sha256};

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

/// Bytes of a file that are hashed at once.
const AT_ONCE: usize = 1 << 20;

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

/// The tensors of a store that no rank has, given the names of those that ranks have. Each is wholly kept. They may be large:
/// a model's further-prediction layers are whole layers with experts.
pub(super) fn to_keep(store: &TensorStore, of_ranks: &BTreeSet<&str>) -> Vec<(String, Slice)> {
    let tensors = store.files().flat_map(|file| file.tensors());
    let kept = tensors.filter(|(name, _)| !of_ranks.contains(name.as_str()));
    kept.map(|(name, info)| (name.clone(), Slice::whole(info.shape.clone())))
        .collect()
}

/// Writes what is kept of the files of a store into the folder of a sharded checkpoint, given the [tensors to
/// keep](to_keep). `progress` is called with the number of bytes of each tensor, and its error ends the work.
pub(super) fn write(
    store: &TensorStore,
    kept: &[(String, Slice)],
    sharded: &Path,
    manifest: &mut Manifest,
    progress: &mut dyn FnMut(usize) -> Result<(), CheckpointError>,
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
    if !kept.is_empty() {
        let path = folder.join(KEPT_FILE);
        let tensors = kept.iter().map(|(name, slice)| (name.as_str(), slice));
        copy_tensors(store, tensors, &path, progress)?;
        let hash = hash_of(&path, &mut |_| Ok(()))?;
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

/// Bytes of the file with the tensors of no rank; 0 if there is none.
pub(super) fn kept_bytes(sharded: &Path) -> u64 {
    fs::metadata(folder(sharded).join(KEPT_FILE)).map_or(0, |file| file.len())
}

/// Checks that all files are as they were written. `progress` is called as by [`faults`].
///
/// # Errors
///
/// The first that is not, or that of `progress`.
pub(super) fn check(
    sharded: &Path,
    manifest: &Manifest,
    progress: &mut dyn FnMut(usize) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    match faults(sharded, manifest, progress)?.into_iter().next() {
        None => Ok(()),
        Some((file, reason)) => Err(CheckpointError::Damaged {
            path: sharded.join(file),
            reason: format!("it {reason}"),
        }),
    }
}

/// The files that are not as they were written, and why. `progress` is called with numbers of bytes of the tensors that are
/// read, [`kept_bytes`] together.
///
/// # Errors
///
/// That of `progress`, which ends the work.
pub(super) fn faults(
    sharded: &Path,
    manifest: &Manifest,
    progress: &mut dyn FnMut(usize) -> Result<(), CheckpointError>,
) -> Result<Vec<(String, String)>, CheckpointError> {
    let mut faults = Vec::new();
    for (name, expected) in &manifest.original {
        let mut read = |bytes| match name == KEPT_FILE {
            true => progress(bytes),
            false => Ok(()),
        };
        let fault = match hash_of(&folder(sharded).join(name), &mut read) {
            Ok(found) if found == *expected => continue,
            Ok(_) => HASH_DIFFERS.to_owned(),
            Err(CheckpointError::Io(error)) => format!("cannot be read: {}", error.source),
            Err(error) => return Err(error),
        };
        faults.push((format!("{FOLDER}/{name}"), fault));
    }
    Ok(faults)
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

/// The hash of a file, some bytes of which are in memory at once; `progress` is called with how many they are.
fn hash_of(
    path: &Path,
    progress: &mut dyn FnMut(usize) -> Result<(), CheckpointError>,
) -> Result<String, CheckpointError> {
    let failed = || FileError::of("read", path);
    let mut file = fs::File::open(path).map_err(failed())?;
    let mut hasher = Sha256::new();
    let mut bytes = vec![0; AT_ONCE];
    loop {
        let read = file.read(&mut bytes).map_err(failed())?;
        if read == 0 {
            return Ok(hexadecimal(&hasher.finalize()));
        }
        hasher.update(&bytes[..read]);
        progress(read)?;
    }
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
