//! Divides a checkpoint.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use firebox_console::durable::{self, FileError, Unfinished};
use safetensors::tensor::{Dtype, View};

use super::manifest::{Hashes, Manifest, hash};
use super::others::copy_others;
use super::progress::Progress;
use super::ranks::RankTensors;
use super::summary::Summary;
use super::{ShardedCheckpoint, original, rank_name, verify};
use crate::dtype::StoredDtype as _;
use crate::folder::require_free;
use crate::plan::Files;
use crate::tensor_writer::serialize;
use crate::{Accept, CheckpointConfig, CheckpointError, MODEL_FILE, TensorStore};
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

/// Divides the checkpoint in a folder (see [`read_config`](crate::read_config) for `accept`) among the ranks of a layout,
/// into the folder `output`, which must be empty, absent, or what this would write; it appears only when it is complete. No
/// more than one tensor's part is in memory. `progress` is called with the number of bytes of weights written, or compared,
/// and their total; [`ControlFlow::Break`] ends the work.
///
/// # Errors
///
/// When the checkpoint cannot be read or is packed in MXFP4, cannot be laid out so, `output` cannot be written or has
/// something else in it, or the work was ended.
pub fn shard(
    folder: &Path,
    accept: Accept,
    layout: RankLayout,
    output: &Path,
    progress: impl FnMut(u64, u64) -> ControlFlow<()>,
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
    if let Err(occupied) = require_free(output) {
        return match is_same(folder, accept, layout, output, progress)? {
            true => Ok(Sharding::AlreadyThere(summary)),
            false => Err(occupied),
        };
    }
    let unfinished = Unfinished::create(output)?;
    let target = unfinished.path();
    let mut manifest = Manifest::new(layout, &stages(&config.model, layout.pipeline));
    let names = ranks.iter().flat_map(|rank| rank.parts.keys());
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    let kept = original::to_keep(&store, &names);
    let of_kept = kept.iter().filter_map(|(name, _)| store.info(name));
    let of_kept: usize = of_kept
        .map(|info| info.elements() * info.dtype.bytes())
        .sum();
    let mut progress = Progress::new(progress, summary.bytes + of_kept as u64);
    for (rank, RankTensors { parts, .. }) in ranks.iter().enumerate() {
        let folder = target.join(rank_name(rank));
        fs::create_dir(&folder).map_err(FileError::of("create", &folder))?;
        let parts = parts.iter().map(|(name, part)| (name.as_str(), part));
        let hashes = copy_tensors(&store, parts, &folder.join(MODEL_FILE), &mut |bytes| {
            progress.advance(bytes)
        })?;
        manifest.ranks.push(hashes);
    }
    original::write(&store, &kept, target, &mut manifest, &mut |bytes| {
        progress.advance(bytes)
    })?;
    copy_others(folder, target)?;
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

/// Whether a folder is this checkpoint, divided so.
///
/// # Errors
///
/// When the checkpoint cannot be read, or the work was ended.
fn is_same(
    folder: &Path,
    accept: Accept,
    layout: RankLayout,
    output: &Path,
    progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<bool, CheckpointError> {
    let there = ShardedCheckpoint::open(output, accept);
    if !there.is_ok_and(|there| there.layout() == layout) {
        return Ok(false);
    }
    let verified = verify(output, accept, Some(folder), progress)?;
    Ok(verified.faults.is_empty())
}

/// Writes parts of tensors of a store into a file, with their bytes as they are, and returns their hashes. `progress` is
/// called with the number of bytes of each, and its error ends the work.
pub(super) fn copy_tensors<'a>(
    store: &TensorStore,
    parts: impl Iterator<Item = (&'a str, &'a Slice)>,
    path: &Path,
    progress: &mut dyn FnMut(usize) -> Result<(), CheckpointError>,
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
        let written = serialize(unfinished, path, outgoing);
        copying.failed.take().map_or(written, Err)
    })?;
    Ok(copying.hashes.take())
}

/// What the tensors of a file share while it is written.
struct Copying<'a> {
    store: &'a TensorStore,
    /// [`View`] cannot return an error.
    failed: RefCell<Option<CheckpointError>>,
    hashes: RefCell<Hashes>,
    progress: RefCell<&'a mut dyn FnMut(usize) -> Result<(), CheckpointError>>,
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
        let mut failed = failed.borrow_mut();
        if failed.is_some() {
            // What is written from here on is removed.
            return Cow::Borrowed(&[]);
        }
        let read = || {
            let bytes = store.read_stored(self.name, self.part)?;
            let mut hashes = hashes.borrow_mut();
            hashes.insert(self.name.to_owned(), hash(&bytes));
            progress.borrow_mut()(bytes.len())?;
            Ok(bytes)
        };
        let bytes = read().unwrap_or_else(|error| {
            *failed = Some(error);
            Vec::new()
        });
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.part.elements() * self.dtype.bytes()
    }
}
