//! Reassembles tensors from the ranks' slices, some rows at a time.

use std::collections::BTreeMap;
use std::ops::Range;

use super::ShardedCheckpoint;
use super::original::OriginalTensor;
use super::ranks::RankTensors;
use crate::{CheckpointError, MODEL_FILE, TensorFile};
use firebox_model::parallel::Slice;

/// Bytes of a tensor that are in memory at once, unless one index of its first dimension has more.
const BAND: usize = 64 << 20;

/// Files that are open at once.
const OPEN_FILES: usize = 128;

/// The ranks that have parts of each tensor.
#[derive(Debug)]
pub(super) struct Holders<'a> {
    sharded: &'a ShardedCheckpoint,
    of: BTreeMap<String, Vec<(usize, Slice)>>,
    open: BTreeMap<usize, TensorFile>,
}

/// What a rank has of a band.
#[derive(Debug)]
pub(super) struct Part {
    /// Where its bytes belong, from the beginning of the band.
    pub runs: Vec<Range<usize>>,
    /// The bytes of all runs, one after the other.
    pub bytes: Vec<u8>,
}

impl Part {
    /// Each run with its bytes.
    pub fn pieces(&self) -> impl Iterator<Item = (Range<usize>, &[u8])> {
        let mut rest = self.bytes.as_slice();
        self.runs.iter().map(move |run| {
            let (bytes, after) = rest.split_at(run.len());
            rest = after;
            (run.clone(), bytes)
        })
    }
}

/// A band of a tensor that is put together.
#[derive(Debug)]
pub(super) struct Band {
    /// Its bytes.
    pub bytes: Vec<u8>,
    filled: Vec<bool>,
}

impl Band {
    /// An empty one.
    pub fn new(length: usize) -> Self {
        Self {
            bytes: vec![0; length],
            filled: vec![false; length],
        }
    }

    /// Puts a part in its place, where nothing is yet. Returns whether it is the same as what is there.
    #[must_use]
    pub fn put(&mut self, part: &Part) -> bool {
        let mut same = true;
        for (run, bytes) in part.pieces() {
            let places = self.bytes[run.clone()]
                .iter_mut()
                .zip(&mut self.filled[run]);
            for ((there, filled), &new) in places.zip(bytes) {
                match filled {
                    true => same &= *there == new,
                    false => (*there, *filled) = (new, true),
                }
            }
        }
        same
    }

    /// Whether ranks have put something everywhere.
    pub fn is_full(&self) -> bool {
        self.filled.iter().all(|filled| *filled)
    }
}

/// The indices of a tensor's first dimension, in runs that fit into memory.
pub(super) fn bands(tensor: &OriginalTensor) -> Vec<Range<usize>> {
    let rows = tensor.shape.first().copied().unwrap_or(1);
    let at_once = (BAND / row_bytes(tensor).max(1)).max(1);
    let starts = (0..rows).step_by(at_once);
    starts
        .map(|start| start..(start + at_once).min(rows))
        .collect()
}

/// One of these runs, as a part of the tensor.
pub(super) fn band_of(tensor: &OriginalTensor, rows: &Range<usize>) -> Slice {
    let mut ranges = Slice::whole(tensor.shape.clone()).ranges().to_vec();
    if let Some(first) = ranges.first_mut() {
        *first = vec![rows.clone()];
    }
    Slice::new(tensor.shape.clone(), ranges)
}

/// Bytes of one index of its first dimension.
pub(super) fn row_bytes(tensor: &OriginalTensor) -> usize {
    let inner: usize = tensor.shape.iter().skip(1).product();
    inner * tensor.dtype.bytes()
}

impl<'a> Holders<'a> {
    /// Those of a sharded checkpoint, given what each rank has.
    pub fn new<'t>(
        sharded: &'a ShardedCheckpoint,
        ranks: impl IntoIterator<Item = (usize, &'t RankTensors)>,
    ) -> Self {
        let mut of: BTreeMap<String, Vec<(usize, Slice)>> = BTreeMap::new();
        for (rank, tensors) in ranks {
            for (name, part) in &tensors.parts {
                of.entry(name.clone())
                    .or_default()
                    .push((rank, part.clone()));
            }
        }
        Self {
            sharded,
            of,
            open: BTreeMap::new(),
        }
    }

    /// Whether several ranks have the same values of a tensor.
    pub fn overlap(&self, name: &str) -> bool {
        let holders = || self.of.get(name).into_iter().flatten();
        let held: usize = holders().map(|(_, part)| part.elements()).sum();
        holders()
            .next()
            .is_some_and(|(_, part)| held > part.of().iter().product())
    }

    /// The ranks that have parts of a tensor, with these parts.
    pub fn of(&self, name: &str) -> Vec<(usize, Slice)> {
        self.of.get(name).cloned().unwrap_or_default()
    }

    /// Checks that the ranks have of a tensor what they were given. One rank's part is in memory at once.
    ///
    /// # Errors
    ///
    /// When a rank's file cannot be read, or its part has not the hash that `layout.json` says.
    ///
    /// # Panics
    ///
    /// As [`part`](Self::part).
    pub fn check(&mut self, name: &str) -> Result<(), CheckpointError> {
        for (rank, slice) in self.of(name) {
            let file = self.file(rank)?;
            let bytes = file.read_stored(name, &Slice::whole(slice.shape()))?;
            if let Some(fault) = self.sharded.manifest.fault(rank, name, &bytes) {
                return Err(CheckpointError::Damaged {
                    path: self.sharded.rank_folder(rank).join(MODEL_FILE),
                    reason: format!("{name} {fault}"),
                });
            }
        }
        Ok(())
    }

    /// What a rank has of some indices of a tensor's first dimension, given its part of the tensor; `None` if it has nothing
    /// of these.
    ///
    /// # Errors
    ///
    /// When the rank's file cannot be read.
    ///
    /// # Panics
    ///
    /// When the rank's file has not what the rank has.
    pub fn part(
        &mut self,
        rank: usize,
        slice: &Slice,
        tensor: &OriginalTensor,
        band: &Range<usize>,
    ) -> Result<Option<Part>, CheckpointError> {
        // The same indices in the tensor and in the rank's.
        let (mut global, mut local, mut before) = (Vec::new(), Vec::new(), 0);
        for range in &slice.ranges()[0] {
            let (start, end) = (range.start.max(band.start), range.end.min(band.end));
            if start < end {
                global.push(start - band.start..end - band.start);
                local.push(before + start - range.start..before + end - range.start);
            }
            before += range.len();
        }
        if global.is_empty() {
            return Ok(None);
        }
        let with_first = |shape: Vec<usize>, first, inner: Vec<Vec<Range<usize>>>| {
            let mut ranges = vec![first];
            ranges.extend(inner);
            Slice::new(shape, ranges)
        };
        let inner = slice.ranges()[1..].to_vec();
        let mut of_band = slice.of().to_vec();
        of_band[0] = band.len();
        let places = with_first(of_band, global, inner);
        let shape = slice.shape();
        let all = Slice::whole(&shape[1..]).ranges().to_vec();
        let own = with_first(shape, local, all);
        let width = tensor.dtype.bytes();
        let runs = places.runs();
        Ok(Some(Part {
            runs: runs.map(|run| run.start * width..run.end * width).collect(),
            bytes: self.file(rank)?.read_stored(&tensor.name, &own)?,
        }))
    }

    fn file(&mut self, rank: usize) -> Result<&TensorFile, CheckpointError> {
        if self.open.len() >= OPEN_FILES && !self.open.contains_key(&rank) {
            self.open.clear();
        }
        if !self.open.contains_key(&rank) {
            let path = self.sharded.rank_folder(rank).join(MODEL_FILE);
            self.open.insert(rank, TensorFile::open(&path)?);
        }
        Ok(&self.open[&rank])
    }
}
