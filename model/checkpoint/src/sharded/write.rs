//! Divides a checkpoint.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use firebox_console::durable::{self, FileError, Unfinished};
use safetensors::tensor::{Dtype, View};

use super::manifest::{Hashes, Manifest, hash};
use super::ranks::RankTensors;
use super::summary::Summary;
use super::{LAYOUT_FILE, ShardedCheckpoint, original, rank_name, verify};
use crate::dtype::StoredDtype as _;
use crate::plan::Files;
use crate::tensor_writer::serialize;
use crate::{Accept, CheckpointConfig, CheckpointError, INDEX_FILE, MODEL_FILE, TensorStore};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::parallel::stages::stages;
use firebox_model::parallel::{RankLayout, Shard, Slice};

/// What became of a request to divide a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum Sharding {
    /// It was written.
    Written(Summary),
    /// It was there: the same checkpoint in the same layout.
    AlreadyThere(Summary),
}

/// Divides the checkpoint in a folder (see [`read_config`](crate::read_config) for `accept`) among the ranks of a layout, into the folder `output`,
/// which must be empty, absent, or what this would write; it appears only when it is complete. No more than one tensor's part
/// is in memory. `progress` is called with the number of bytes of weights written, or compared, and their total.
///
/// # Errors
///
/// When the checkpoint cannot be read or is packed in MXFP4, cannot be laid out so, or `output` cannot be written or has
/// something else in it.
pub fn shard(
    folder: &Path,
    accept: Accept,
    layout: RankLayout,
    output: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Sharding, CheckpointError> {
    let config = crate::read_config(folder, accept)?;
    let store = TensorStore::open(folder)?;
    if store.is_packed() {
        return Err(CheckpointError::PackedShard {
            folder: folder.to_owned(),
        });
    }
    let ranks = rank_tensors(&store, &config, layout)?;
    let summaries = ranks.iter().map(|rank| rank.summary).collect();
    let summary = Summary::new(layout, summaries);
    if is_occupied(output) {
        return match is_same(folder, accept, layout, output, &mut progress) {
            true => Ok(Sharding::AlreadyThere(summary)),
            false => Err(CheckpointError::Occupied {
                folder: output.to_owned(),
            }),
        };
    }
    let unfinished = Unfinished::create(output)?;
    let target = unfinished.path();
    let mut manifest = Manifest::new(layout, &stages(&config.model, layout.pipeline));
    let mut done = 0;
    for (rank, RankTensors { parts, .. }) in ranks.iter().enumerate() {
        let folder = target.join(rank_name(rank));
        fs::create_dir(&folder).map_err(FileError::of("create", &folder))?;
        let parts = parts.iter().map(|(name, part)| (name.as_str(), part));
        let hashes = copy_tensors(&store, parts, &folder.join(MODEL_FILE), &mut |bytes| {
            done += bytes;
            progress(done, summary.bytes);
        })?;
        manifest.ranks.push(hashes);
    }
    let names = ranks.iter().flat_map(|rank| rank.parts.keys());
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    original::write(&store, &names, target, &mut manifest)?;
    for path in other_files(folder)? {
        copy_into(&path, target)?;
    }
    manifest.write(target)?;
    unfinished.finish()?;
    Ok(Sharding::Written(summary))
}

/// The tensors of every rank of a checkpoint.
fn rank_tensors(
    store: &TensorStore,
    config: &CheckpointConfig,
    layout: RankLayout,
) -> Result<Vec<RankTensors>, CheckpointError> {
    let shards = Shard::all(&config.model, layout)?;
    let ranks = shards.iter();
    ranks
        .map(|shard| RankTensors::find(store, config, shard, Files::Whole(Some(shard))))
        .collect()
}

pub(super) fn is_occupied(folder: &Path) -> bool {
    let has_entries = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    has_entries || folder.is_file()
}

/// Whether a folder is a checkpoint that was divided so.
fn is_same(
    folder: &Path,
    accept: Accept,
    layout: RankLayout,
    output: &Path,
    progress: impl FnMut(u64, u64),
) -> bool {
    let same_files = || -> Result<bool, CheckpointError> {
        for path in other_files(folder)? {
            let copy = output.join(path.file_name().unwrap_or_default());
            let [ours, theirs] = [&path, &copy].map(|path| fs::read(path).ok());
            if ours != theirs {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let opened = ShardedCheckpoint::open(output, accept);
    opened.is_ok_and(|opened| opened.layout() == layout)
        && same_files().unwrap_or(false)
        && verify(output, accept, Some(folder), progress)
            .is_ok_and(|verified| verified.faults.is_empty())
}

/// Files of a checkpoint that are neither weights nor the state of a training run.
pub(super) fn other_files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    const WEIGHTS: [&str; 9] = [
        "safetensors",
        "bin",
        "pt",
        "pth",
        "ckpt",
        "gguf",
        "h5",
        "msgpack",
        "onnx",
    ];
    let entries = fs::read_dir(folder).map_err(FileError::of("read", folder))?;
    let files = entries.flatten().map(|entry| entry.path());
    let mut others: Vec<PathBuf> = files
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let extension = path.extension().unwrap_or_default().to_string_lossy();
            path.is_file()
                && !name.starts_with('.')
                && !name.starts_with("train_state.")
                && !name.ends_with(".index.json")
                && ![INDEX_FILE, LAYOUT_FILE].contains(&name.as_ref())
                && !WEIGHTS.contains(&extension.as_ref())
        })
        .collect();
    others.sort();
    Ok(others)
}

/// Copies a file into a folder.
pub(super) fn copy_into(path: &Path, folder: &Path) -> Result<(), CheckpointError> {
    let content = fs::read(path).map_err(FileError::of("read", path))?;
    let copy = folder.join(path.file_name().unwrap_or_default());
    Ok(durable::write(&copy, content)?)
}

/// Writes parts of tensors of a store into a file, with their bytes as they are, and returns their hashes. `progress` is
/// called with the bytes of each.
pub(super) fn copy_tensors<'a>(
    store: &TensorStore,
    parts: impl Iterator<Item = (&'a str, &'a Slice)>,
    path: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Hashes, CheckpointError> {
    let copying = Copying {
        store,
        failed: RefCell::new(None),
        hashes: RefCell::new(BTreeMap::new()),
        progress: RefCell::new(progress),
    };
    let outgoing = parts.map(|(name, part)| {
        let info = store.info(name).expect("a tensor of the store");
        let outgoing = Outgoing {
            name,
            part,
            shape: part.shape(),
            dtype: info.dtype,
            copying: &copying,
        };
        (name, outgoing)
    });
    durable::write_with(path, |unfinished| {
        serialize(unfinished, path, outgoing)?;
        copying.failed.take().map_or(Ok(()), Err)
    })?;
    Ok(copying.hashes.take())
}

/// What the tensors of a file share while it is written.
struct Copying<'a> {
    store: &'a TensorStore,
    /// [`View`] cannot return an error.
    failed: RefCell<Option<CheckpointError>>,
    hashes: RefCell<Hashes>,
    progress: RefCell<&'a mut dyn FnMut(u64)>,
}

/// A part of a tensor while it is written.
struct Outgoing<'a> {
    name: &'a str,
    part: &'a Slice,
    shape: Vec<usize>,
    dtype: WeightDtype,
    copying: &'a Copying<'a>,
}

impl View for Outgoing<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype.safetensors_dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let Copying {
            store,
            failed,
            hashes,
            progress,
        } = self.copying;
        let bytes = store.read_stored(self.name, self.part);
        let bytes = bytes.unwrap_or_else(|error| {
            failed.borrow_mut().get_or_insert(error);
            vec![0; self.data_len()]
        });
        let mut hashes = hashes.borrow_mut();
        hashes.insert(self.name.to_owned(), hash(&bytes));
        progress.borrow_mut()(bytes.len() as u64);
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.part.elements() * self.dtype.bytes()
    }
}
