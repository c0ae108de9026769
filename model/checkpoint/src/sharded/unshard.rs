//! Reassembles the original checkpoint.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;

use firebox_console::durable::{self, FileError, Unfinished};

use super::original::{self, OriginalFile, OriginalTensor};
use super::others::copy_others;
use super::parts::{Band, Holders, band_of, bands, row_bytes};
use super::progress::Progress;
use super::ranks::RankTensors;
use super::{ShardedCheckpoint, rank_name};
use crate::folder::require_free;
use crate::plan::Files;
use crate::{Accept, CheckpointError, TensorFile, TensorStore};

/// Makes the files of the checkpoint that was divided into a folder again, byte by byte, in the folder `output`, which must be
/// empty or absent and appears only when it is complete. What ranks have is compared with its hashes on the way. `progress`
/// is called with the number of bytes of weights done and their total; [`ControlFlow::Break`] ends the work.
///
/// # Errors
///
/// When a rank's folder is missing or damaged, a tensor does not match its hash, two ranks differ in what they both have,
/// `output` cannot be written or is not empty, or the work was ended.
pub fn unshard(
    folder: &Path,
    accept: Accept,
    output: &Path,
    progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(), CheckpointError> {
    let sharded = ShardedCheckpoint::open(folder, accept)?;
    require_free(output)?;
    let mut progress = Progress::new(progress, original::kept_bytes(folder));
    original::check(folder, &sharded.manifest, &mut |bytes| {
        progress.advance(bytes)
    })?;
    let files = original::read(folder, &sharded.manifest)?;
    let kept = original::kept(folder, &sharded.manifest)?;
    let mut ranks = Vec::new();
    for rank in 0..sharded.layout().ranks() {
        ranks.push(rank_tensors(&sharded, rank, &files)?);
    }
    let holders = Holders::new(&sharded, ranks.iter().enumerate());
    let tensors = files.iter().flat_map(|file| &file.tensors);
    progress.expect(tensors.map(OriginalTensor::bytes).sum());
    let mut joining = Joining {
        sharded: &sharded,
        holders,
        kept,
        progress,
    };
    let unfinished = Unfinished::create(output)?;
    for file in &files {
        joining.write(file, unfinished.path())?;
    }
    original::copy_index(folder, unfinished.path())?;
    copy_others(folder, unfinished.path())?;
    Ok(unfinished.finish()?)
}

/// What a rank has, after a look at its files: they are exactly the rank's, and parts of the checkpoint's tensors.
pub(super) fn rank_tensors(
    sharded: &ShardedCheckpoint,
    rank: usize,
    files: &[OriginalFile],
) -> Result<RankTensors, CheckpointError> {
    let shard = sharded.shard(rank)?;
    let store = TensorStore::open(&sharded.rank_folder(rank))?;
    let tensors = RankTensors::find(&store, &sharded.config, &shard, Files::OfRank(&shard))?;
    for tensor in files.iter().flat_map(|file| &file.tensors) {
        let Some(info) = store.info(&tensor.name) else {
            continue;
        };
        if info.dtype != tensor.dtype {
            return Err(CheckpointError::Damaged {
                path: sharded.rank_folder(rank),
                reason: format!(
                    "{} has type {}; the original has {}",
                    tensor.name, info.dtype, tensor.dtype
                ),
            });
        }
        let part = &tensors.parts[&tensor.name];
        if part.of() != tensor.shape {
            return Err(CheckpointError::Damaged {
                path: sharded.rank_folder(rank),
                reason: format!(
                    "{} is a part of {:?}; the original has {:?}",
                    tensor.name,
                    part.of(),
                    tensor.shape
                ),
            });
        }
    }
    Ok(tensors)
}

/// The ranks that are joined.
struct Joining<'a, F> {
    sharded: &'a ShardedCheckpoint,
    holders: Holders<'a>,
    kept: Option<TensorFile>,
    progress: Progress<F>,
}

impl<F: FnMut(u64, u64) -> ControlFlow<()>> Joining<'_, F> {
    /// Writes a file of the checkpoint.
    fn write(&mut self, file: &OriginalFile, folder: &Path) -> Result<(), CheckpointError> {
        let path = folder.join(&file.name);
        durable::write_with(&path, |unfinished| -> Result<(), CheckpointError> {
            let failed = || FileError::of("write", &path);
            let mut output = BufWriter::new(File::create(unfinished).map_err(failed())?);
            output.write_all(&file.header).map_err(failed())?;
            for tensor in &file.tensors {
                self.each_band(tensor, |bytes| {
                    Ok(output.write_all(bytes).map_err(failed())?)
                })?;
            }
            Ok(output.flush().map_err(failed())?)
        })
    }

    /// Calls a function with the bytes of a tensor, band by band.
    fn each_band(
        &mut self,
        tensor: &OriginalTensor,
        mut each: impl FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let name = &tensor.name;
        let kept = self.kept.as_ref();
        if let Some(kept) = kept.filter(|kept| kept.tensors().contains_key(name)) {
            for rows in bands(tensor) {
                let bytes = kept.read_stored(name, &band_of(tensor, &rows))?;
                each(&bytes)?;
                self.progress.advance(bytes.len())?;
            }
            return Ok(());
        }
        self.holders.check(name)?;
        let holders = self.holders.of(name);
        for rows in bands(tensor) {
            let mut band = Band::new(rows.len() * row_bytes(tensor));
            for (rank, slice) in &holders {
                let part = self.holders.part(*rank, slice, tensor, &rows)?;
                if !part.is_none_or(|part| band.put(&part)) {
                    return Err(self.damaged(format!(
                        "{}: its copy of {name} differs from another rank's",
                        rank_name(*rank)
                    )));
                }
            }
            if !band.is_full() {
                return Err(self.damaged(format!("part of {name} is on no rank")));
            }
            each(&band.bytes)?;
            self.progress.advance(band.bytes.len())?;
        }
        Ok(())
    }

    fn damaged(&self, reason: String) -> CheckpointError {
        CheckpointError::Damaged {
            path: self.sharded.folder.clone(),
            reason,
        }
    }
}
