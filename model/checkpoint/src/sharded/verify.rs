//! Says what is wrong with a sharded checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::{MAIN_SEPARATOR, Path};

use serde::Serialize;

use super::original::{self, OriginalFile, OriginalTensor};
use super::others::differences;
use super::parts::{Band, Holders, band_of, bands, row_bytes};
use super::progress::Progress;
use super::ranks::RankTensors;
use super::summary::Summary;
use super::unshard::rank_tensors;
use super::{ShardedCheckpoint, rank_name};
use crate::{Accept, CheckpointError, MODEL_FILE, TensorFile, TensorStore};
use firebox_model::parallel::Slice;

/// What is wrong with a tensor that has other values than the checkpoint's.
const OTHER_VALUES: &str = "differs from the checkpoint";

/// Something that is wrong with a sharded checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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
/// same where they have copies; with a checkpoint, also whether it is what was divided, with its configuration, tokenizer and
/// other files. `progress` is called with the number of bytes read and their total; [`ControlFlow::Break`] ends the work.
///
/// # Errors
///
/// When the folder is no sharded checkpoint, the checkpoint cannot be read, or the work was ended. What is wrong with the
/// sharded checkpoint is no error, but a fault, a file that cannot be read among it.
pub fn verify(
    folder: &Path,
    accept: Accept,
    checkpoint: Option<&Path>,
    progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Verified, CheckpointError> {
    let sharded = ShardedCheckpoint::open(folder, accept)?;
    let store = checkpoint.map(TensorStore::open).transpose()?;
    let mut faults = Faults::of(&sharded);
    if let Some(checkpoint) = checkpoint {
        for (file, fault) in differences(checkpoint, folder)? {
            faults.add(None, Some(&file), fault);
        }
    }
    let mut progress = Progress::new(progress, original::kept_bytes(folder));
    let of_original = original::faults(folder, &sharded.manifest, &mut |bytes| {
        progress.advance(bytes)
    })?;
    // Without these files nobody knows which tensors the checkpoint had.
    let original = match of_original.is_empty() {
        true => faults.value(None, Original::read(&sharded)),
        false => None,
    };
    for (file, fault) in of_original {
        faults.add(None, Some(&file), fault);
    }
    let files = original.as_ref().map(|original| original.files.as_slice());
    let files = files.unwrap_or_default();
    let mut ranks = BTreeMap::new();
    for rank in 0..sharded.layout().ranks() {
        let tensors = rank_tensors(&sharded, rank, files);
        let tensors = faults.value(Some(rank), tensors);
        ranks.extend(tensors.map(|tensors| (rank, tensors)));
    }
    let tensors: Vec<&OriginalTensor> = files.iter().flat_map(|file| &file.tensors).collect();
    if let Some(store) = store.as_ref().filter(|_| original.is_some()) {
        let known: BTreeSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        for (name, _) in store.tensors().filter(|(name, _)| !known.contains(name)) {
            faults.add(
                None,
                Some(name),
                "is in the checkpoint but not in the shards",
            );
        }
    }
    let holders = ranks.iter().map(|(rank, tensors)| (*rank, tensors));
    let holders = Holders::new(&sharded, holders);
    // Those whose values are put together: to compare copies, or to compare them with the checkpoint.
    let needs_values = |tensor: &&OriginalTensor| store.is_some() || holders.overlap(&tensor.name);
    let tensors: Vec<&OriginalTensor> = tensors.into_iter().filter(needs_values).collect();
    let of_ranks: u64 = ranks.values().map(|rank| rank.summary.bytes).sum();
    let of_tensors: u64 = tensors.iter().map(|tensor| tensor.bytes()).sum();
    progress.expect(of_ranks + of_tensors);
    let mut checking = Checking {
        sharded: &sharded,
        holders,
        store: store.as_ref(),
        kept: original
            .as_ref()
            .and_then(|original| original.kept.as_ref()),
        faults,
        progress,
    };
    for (&rank, tensors) in &ranks {
        checking.hashes(rank, tensors)?;
    }
    for tensor in tensors {
        checking.values(tensor)?;
    }
    let summaries = ranks.values().map(|rank| rank.summary);
    Ok(Verified {
        summary: Summary::new(sharded.layout(), summaries.collect()),
        faults: checking.faults.found.into_iter().collect(),
    })
}

/// What is kept of the checkpoint besides the ranks' tensors.
struct Original {
    files: Vec<OriginalFile>,
    kept: Option<TensorFile>,
}

impl Original {
    fn read(sharded: &ShardedCheckpoint) -> Result<Self, CheckpointError> {
        Ok(Self {
            files: original::read(&sharded.folder, &sharded.manifest)?,
            kept: original::kept(&sharded.folder, &sharded.manifest)?,
        })
    }
}

/// What was found to be wrong.
struct Faults<'a> {
    sharded: &'a ShardedCheckpoint,
    /// Once each, however many bands of a tensor have it.
    found: BTreeSet<Fault>,
}

impl<'a> Faults<'a> {
    /// None yet.
    fn of(sharded: &'a ShardedCheckpoint) -> Self {
        Self {
            sharded,
            found: BTreeSet::new(),
        }
    }

    fn add(&mut self, rank: Option<usize>, tensor: Option<&str>, fault: impl Into<String>) {
        self.found.insert(Fault {
            rank,
            tensor: tensor.map(str::to_owned),
            fault: fault.into(),
        });
    }

    /// A value, or a fault in its place, which names files within the folder of the rank.
    fn value<T>(&mut self, rank: Option<usize>, value: Result<T, CheckpointError>) -> Option<T> {
        let error = match value {
            Ok(value) => return Some(value),
            Err(error) => error.to_string(),
        };
        let folder = match rank {
            Some(rank) => self.sharded.rank_folder(rank),
            None => self.sharded.folder.clone(),
        };
        let folder = folder.display().to_string();
        let within = error.replace(&format!("{folder}{MAIN_SEPARATOR}"), "");
        self.add(rank, None, within.replace(&folder, "its folder"));
        None
    }
}

/// A check while it runs.
struct Checking<'a, F> {
    sharded: &'a ShardedCheckpoint,
    holders: Holders<'a>,
    store: Option<&'a TensorStore>,
    kept: Option<&'a TensorFile>,
    faults: Faults<'a>,
    progress: Progress<F>,
}

impl<F: FnMut(u64, u64) -> ControlFlow<()>> Checking<'_, F> {
    /// Compares the tensors of a rank with their hashes.
    fn hashes(&mut self, rank: usize, tensors: &RankTensors) -> Result<(), CheckpointError> {
        let manifest = &self.sharded.manifest;
        let path = self.sharded.rank_folder(rank).join(MODEL_FILE);
        let Some(file) = self.faults.value(Some(rank), TensorFile::open(&path)) else {
            return Ok(());
        };
        for (name, part) in &tensors.parts {
            let bytes = file.read_stored(name, &Slice::whole(part.shape()));
            let Some(bytes) = self.faults.value(Some(rank), bytes) else {
                continue;
            };
            if let Some(fault) = manifest.fault(rank, name, &bytes) {
                self.faults.add(Some(rank), Some(name), fault);
            }
            self.progress.advance(bytes.len())?;
        }
        let listed = manifest.ranks[rank].keys();
        for name in listed.filter(|name| !tensors.parts.contains_key(*name)) {
            let fault = "is listed in layout.json and not in its file";
            self.faults.add(Some(rank), Some(name), fault);
        }
        Ok(())
    }

    /// Compares what ranks have of a tensor with each other and with the checkpoint.
    fn values(&mut self, tensor: &OriginalTensor) -> Result<(), CheckpointError> {
        let name = tensor.name.as_str();
        let store = self.store.filter(|store| {
            let same = store.info(name);
            same.is_some_and(|info| info.shape == tensor.shape && info.dtype == tensor.dtype)
        });
        if self.store.is_some() && store.is_none() {
            let shape = &tensor.shape;
            let fault = format!("is not in the checkpoint as {} {shape:?}", tensor.dtype);
            self.faults.add(None, Some(name), fault);
        }
        let kept = self.kept;
        let kept = kept.filter(|kept| kept.tensors().contains_key(name));
        let holders = self.holders.of(name);
        for rows in bands(tensor) {
            let part = band_of(tensor, &rows);
            let theirs = store.map(|store| store.read_stored(name, &part));
            let theirs = theirs.transpose()?;
            match kept {
                Some(kept) => {
                    let ours = self.faults.value(None, kept.read_stored(name, &part));
                    if theirs.is_some() && ours.is_some() && theirs != ours {
                        self.faults.add(None, Some(name), OTHER_VALUES);
                    }
                }
                None => self.compare(tensor, &holders, &rows, theirs.as_deref()),
            }
            self.progress.advance(rows.len() * row_bytes(tensor))?;
        }
        Ok(())
    }

    /// Compares what ranks have of some indices of a tensor's first dimension with each other and with the checkpoint's bytes.
    fn compare(
        &mut self,
        tensor: &OriginalTensor,
        holders: &[(usize, Slice)],
        rows: &Range<usize>,
        theirs: Option<&[u8]>,
    ) {
        let name = Some(tensor.name.as_str());
        let mut band = Band::new(rows.len() * row_bytes(tensor));
        for (rank, slice) in holders {
            let part = self.holders.part(*rank, slice, tensor, rows);
            let rank = Some(*rank);
            let Some(part) = self.faults.value(rank, part).flatten() else {
                continue;
            };
            if !band.put(&part) {
                let fault = "differs from a copy that an earlier rank has";
                self.faults.add(rank, name, fault);
            }
            if let Some(theirs) = theirs
                && part.pieces().any(|(run, bytes)| theirs[run] != *bytes)
            {
                self.faults.add(rank, name, OTHER_VALUES);
            }
        }
    }
}
