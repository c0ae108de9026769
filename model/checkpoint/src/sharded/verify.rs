//! Says what is wrong with a sharded checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::manifest::hash;
use super::original::{self, OriginalTensor};
use super::parts::{Band, Holders, bands, row_bytes};
use super::ranks::RankTensors;
use super::summary::Summary;
use super::unshard::rank_tensors;
use super::{ShardedCheckpoint, rank_name};
use crate::{Accept, CheckpointError, MODEL_FILE, TensorFile, TensorStore};
use firebox_model::parallel::Slice;

/// Something that is wrong with a sharded checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The rank; `None` for what belongs to none.
    pub rank: Option<usize>,
    /// The tensor or file.
    pub tensor: Option<String>,
    /// What is wrong with it.
    pub fault: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rank) = self.rank {
            write!(formatter, "{}: ", rank_name(rank))?;
        }
        if let Some(tensor) = &self.tensor {
            write!(formatter, "{tensor} ")?;
        }
        formatter.write_str(&self.fault)
    }
}

/// What a check has found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verified {
    /// How the checkpoint is divided, of the ranks that can be read.
    pub summary: Summary,
    /// What is wrong, by rank.
    pub faults: Vec<Fault>,
}

/// Checks every tensor of every rank of a sharded checkpoint: names, shapes and types, its hash, and whether ranks have the
/// same where they have copies; with a checkpoint, also whether it is what was divided. `progress` is called with the number
/// of bytes read and their total.
///
/// # Errors
///
/// When the folder is no sharded checkpoint, or the checkpoint cannot be read. What is wrong with a rank is no error, but a
/// fault.
pub fn verify(
    folder: &Path,
    accept: Accept,
    checkpoint: Option<&Path>,
    progress: impl FnMut(u64, u64),
) -> Result<Verified, CheckpointError> {
    let sharded = ShardedCheckpoint::open(folder, accept)?;
    let checkpoint = checkpoint.map(TensorStore::open).transpose()?;
    let mut faults: Vec<Fault> = original::faults(folder, &sharded.manifest.original)
        .into_iter()
        .map(|(file, fault)| Fault {
            rank: None,
            tensor: Some(file),
            fault,
        })
        .collect();
    let files = match faults.is_empty() {
        true => original::read(folder, &sharded.manifest)?,
        false => Vec::new(),
    };
    let mut ranks = BTreeMap::new();
    for rank in 0..sharded.layout().ranks() {
        match rank_tensors(&sharded, rank, &files) {
            Ok(tensors) => drop(ranks.insert(rank, tensors)),
            Err(error) => faults.push(Fault {
                rank: Some(rank),
                tensor: None,
                fault: error.to_string(),
            }),
        }
    }
    let tensors: Vec<&OriginalTensor> = files.iter().flat_map(|file| &file.tensors).collect();
    let kept = match faults.is_empty() {
        true => original::kept(folder, &sharded.manifest)?,
        false => None,
    };
    let mut checking = Checking {
        sharded: &sharded,
        holders: Holders::new(
            &sharded,
            ranks.iter().map(|(rank, tensors)| (*rank, tensors)),
        ),
        checkpoint: checkpoint.as_ref(),
        kept,
        faults: BTreeSet::new(),
        done: 0,
        total: 0,
        progress,
    };
    checking.total = ranks.values().map(|rank| rank.summary.bytes).sum();
    checking.total += checking.bytes_of_bands(&tensors);
    for (&rank, tensors) in &ranks {
        checking.hashes(rank, tensors)?;
    }
    for tensor in tensors {
        checking.values(tensor)?;
    }
    if let Some(store) = &checkpoint {
        checking.superfluous(
            store,
            &files
                .iter()
                .flat_map(|file| &file.tensors)
                .collect::<Vec<_>>(),
        );
    }
    faults.extend(
        checking
            .faults
            .into_iter()
            .map(|(rank, tensor, fault)| Fault {
                rank,
                tensor: Some(tensor),
                fault,
            }),
    );
    let summaries = ranks.values().map(|rank| rank.summary);
    Ok(Verified {
        summary: Summary::new(sharded.layout(), summaries.collect()),
        faults,
    })
}

/// A check while it runs.
struct Checking<'a, P> {
    sharded: &'a ShardedCheckpoint,
    holders: Holders<'a>,
    checkpoint: Option<&'a TensorStore>,
    kept: Option<TensorFile>,
    /// Once for each rank, tensor and fault, however many of its bands have it.
    faults: BTreeSet<(Option<usize>, String, String)>,
    done: u64,
    total: u64,
    progress: P,
}

impl<P: FnMut(u64, u64)> Checking<'_, P> {
    fn fault(&mut self, rank: Option<usize>, tensor: &str, fault: impl Into<String>) {
        self.faults.insert((rank, tensor.to_owned(), fault.into()));
    }

    fn advance(&mut self, bytes: usize) {
        self.done += bytes as u64;
        (self.progress)(self.done, self.total);
    }

    /// Whether the values of a tensor are put together: to compare copies, or to compare them with the checkpoint.
    fn needs_values(&self, tensor: &OriginalTensor) -> bool {
        self.checkpoint.is_some() || self.holders.overlap(&tensor.name)
    }

    fn bytes_of_bands(&self, tensors: &[&OriginalTensor]) -> u64 {
        let needed = tensors.iter().filter(|tensor| self.needs_values(tensor));
        let bytes = needed.map(|tensor| {
            tensor.shape.iter().product::<usize>() as u64 * tensor.dtype.bytes() as u64
        });
        bytes.sum()
    }

    /// Compares the tensors of a rank with their hashes.
    fn hashes(&mut self, rank: usize, tensors: &RankTensors) -> Result<(), CheckpointError> {
        let sharded = self.sharded;
        let expected = &sharded.manifest.ranks[rank];
        let file = TensorFile::open(&sharded.rank_folder(rank).join(MODEL_FILE))?;
        for (name, part) in &tensors.parts {
            let bytes = file.read_stored(name, &Slice::whole(part.shape()))?;
            self.advance(bytes.len());
            match expected.get(name) {
                Some(expected) if *expected == hash(&bytes) => (),
                Some(_) => self.fault(Some(rank), name, "is not as it was written"),
                None => self.fault(Some(rank), name, "is not listed in layout.json"),
            }
        }
        for name in expected.keys() {
            if !tensors.parts.contains_key(name) {
                self.fault(
                    Some(rank),
                    name,
                    "is listed in layout.json and not in its file",
                );
            }
        }
        Ok(())
    }

    /// Compares what ranks have of a tensor with each other and with the checkpoint.
    fn values(&mut self, tensor: &OriginalTensor) -> Result<(), CheckpointError> {
        if !self.needs_values(tensor) {
            return Ok(());
        }
        let name = tensor.name.as_str();
        let store = self.checkpoint.filter(|store| {
            let same = store.info(name);
            same.is_some_and(|info| info.shape == tensor.shape && info.dtype == tensor.dtype)
        });
        if self.checkpoint.is_some() && store.is_none() {
            let shape = &tensor.shape;
            let fault = format!("is not in the checkpoint as {} {shape:?}", tensor.dtype);
            self.fault(None, name, fault);
        }
        let kept = self.kept.as_ref();
        if let Some(kept) = kept.filter(|kept| kept.tensors().contains_key(name)) {
            let whole = Slice::whole(tensor.shape.clone());
            let ours = kept.read_stored(name, &whole)?;
            let theirs = store.map(|store| store.read_stored(name, &whole));
            self.advance(ours.len());
            if theirs.transpose()?.is_some_and(|theirs| theirs != ours) {
                self.fault(None, name, "differs from the checkpoint");
            }
            return Ok(());
        }
        for rows in bands(tensor) {
            let mut band = Band::new(rows.len() * row_bytes(tensor));
            let theirs = store.map(|store| {
                let mut ranges = Slice::whole(tensor.shape.clone()).ranges().to_vec();
                ranges[0] = vec![rows.clone()];
                store.read_stored(name, &Slice::new(tensor.shape.clone(), ranges))
            });
            let theirs = theirs.transpose()?;
            for part in self.holders.parts(tensor, &rows)? {
                let rank = Some(part.rank);
                if !band.put(&part) {
                    self.fault(rank, name, "differs from a copy that an earlier rank has");
                }
                if let Some(theirs) = &theirs
                    && part.pieces().any(|(run, bytes)| theirs[run] != *bytes)
                {
                    self.fault(rank, name, "differs from the checkpoint");
                }
            }
            self.advance(band.bytes.len());
        }
        Ok(())
    }

    /// Finds tensors of the checkpoint that are not in the ranks.
    fn superfluous(&mut self, store: &TensorStore, tensors: &[&OriginalTensor]) {
        let known: BTreeSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        for (name, _) in store.tensors() {
            if !known.contains(name) {
                self.fault(None, name, "is in the checkpoint alone");
            }
        }
    }
}
