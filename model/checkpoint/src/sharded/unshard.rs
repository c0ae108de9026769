//! Makes a checkpoint of its ranks again.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use firebox_console::durable::{self, FileError, Unfinished};

use super::original::{self, OriginalFile, OriginalTensor};
use super::parts::{Band, Holders, bands, row_bytes};
use super::ranks::RankTensors;
use super::write::{copy_into, is_occupied, other_files};
use super::{ShardedCheckpoint, rank_name};
use crate::plan::Files;
use crate::{Accept, CheckpointError, INDEX_FILE, TensorFile, TensorStore};
use firebox_model::parallel::Slice;

/// Makes the checkpoint that was divided into a folder again, byte by byte, in the folder `output`, which must be empty or
/// absent and appears only when it is complete. `progress` is called with the number of bytes of weights written and their
/// total.
///
/// # Errors
///
/// When a rank's folder is missing or damaged, two ranks differ in what they both have, or `output` cannot be written or is
/// not empty.
pub fn unshard(
    folder: &Path,
    accept: Accept,
    output: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), CheckpointError> {
    let sharded = ShardedCheckpoint::open(folder, accept)?;
    if is_occupied(output) {
        return Err(CheckpointError::Occupied {
            folder: output.to_owned(),
        });
    }
    let files = original::read(folder, &sharded.manifest)?;
    let kept = original::kept(folder, &sharded.manifest)?;
    let mut ranks = Vec::new();
    for rank in 0..sharded.layout().ranks() {
        ranks.push(rank_tensors(&sharded, rank, &files)?);
    }
    let holders = Holders::new(&sharded, ranks.iter().enumerate());
    let bytes = |tensor: &OriginalTensor| {
        tensor.shape.iter().product::<usize>() as u64 * tensor.dtype.bytes() as u64
    };
    let total = files.iter().flat_map(|file| &file.tensors).map(bytes).sum();
    let mut joining = Joining {
        sharded: &sharded,
        holders,
        kept,
    };
    let mut done = 0;
    let unfinished = Unfinished::create(output)?;
    for file in &files {
        joining.write(file, unfinished.path(), |bytes| {
            done += bytes;
            progress(done, total);
        })?;
    }
    let index = original::folder(folder).join(INDEX_FILE);
    if index.exists() {
        copy_into(&index, unfinished.path())?;
    }
    for path in other_files(folder)? {
        copy_into(&path, unfinished.path())?;
    }
    Ok(unfinished.finish()?)
}

/// What a rank has, after a look at its files: they are exactly the rank's, of the types of the checkpoint.
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
                    "{} is in {}, and was in {}",
                    tensor.name, info.dtype, tensor.dtype
                ),
            });
        }
    }
    Ok(tensors)
}

/// The ranks that are joined.
struct Joining<'a> {
    sharded: &'a ShardedCheckpoint,
    holders: Holders<'a>,
    kept: Option<TensorFile>,
}

impl Joining<'_> {
    /// Writes a file of the checkpoint.
    fn write(
        &mut self,
        file: &OriginalFile,
        folder: &Path,
        mut progress: impl FnMut(u64),
    ) -> Result<(), CheckpointError> {
        let path = folder.join(&file.name);
        durable::write_with(&path, |unfinished| -> Result<(), CheckpointError> {
            let failed = || FileError::of("write", &path);
            let mut output = BufWriter::new(File::create(unfinished).map_err(failed())?);
            output.write_all(&file.header).map_err(failed())?;
            for tensor in &file.tensors {
                self.each_band(tensor, |bytes| {
                    progress(bytes.len() as u64);
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
            return each(&kept.read_stored(name, &Slice::whole(tensor.shape.clone()))?);
        }
        for rows in bands(tensor) {
            let mut band = Band::new(rows.len() * row_bytes(tensor));
            for part in self.holders.parts(tensor, &rows)? {
                if !band.put(&part) {
                    return Err(self.damaged(format!(
                        "{} has another {name} than the ranks before it, of what they all have",
                        rank_name(part.rank)
                    )));
                }
            }
            if !band.is_full() {
                return Err(self.damaged(format!("no rank has all of {name}")));
            }
            each(&band.bytes)?;
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
