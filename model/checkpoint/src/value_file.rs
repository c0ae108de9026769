//! Reads values from a file: what is asked for, and little else.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use firebox_console::durable::FileError;

use super::CheckpointError;

/// Bytes between two runs of values that are read rather than passed over: a page of the system's cache.
const GAP: usize = 4096;

/// Bytes that are read together at most, unless a single run is longer.
const AT_ONCE: usize = 1 << 20;

/// A file of values that is open for reading, with ordinary reads, so that only the requested values are in memory.
#[derive(Debug)]
pub(crate) struct ValueFile {
    path: PathBuf,
    file: Mutex<File>,
    /// Bytes of values that were read.
    read: AtomicU64,
}

impl ValueFile {
    /// A file at this path.
    pub fn new(path: &Path, file: File) -> Self {
        Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            read: AtomicU64::new(0),
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of bytes of values that were read since the file was opened.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Reads runs of so many bytes together, whose places count from `offset`. Those that are close to each other are read
    /// together, with what is between them, up to [`AT_ONCE`] bytes.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn read_runs(
        &self,
        offset: u64,
        runs: impl Iterator<Item = Range<usize>>,
        total: usize,
    ) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = vec![0; total];
        let mut rest = bytes.as_mut_slice();
        let mut runs = runs.peekable();
        let mut together: Vec<Range<usize>> = Vec::new();
        let mut between = Vec::new();
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut read = |place: usize, bytes: &mut [u8]| {
            self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            file.seek(SeekFrom::Start(offset + place as u64))
                .and_then(|_| file.read_exact(bytes))
                .map_err(FileError::of("read", &self.path))
        };
        while let Some(first) = runs.next() {
            together.clear();
            let mut end = first.end;
            together.push(first.clone());
            while let Some(next) = runs.next_if(|next| {
                let close = next.start >= end && next.start - end <= GAP;
                close && next.end - first.start <= AT_ONCE
            }) {
                end = next.end;
                together.push(next);
            }
            let length: usize = together.iter().map(|run| run.len()).sum();
            let (wanted, after) = rest.split_at_mut(length);
            rest = after;
            if let [run] = together.as_slice() {
                read(run.start, wanted)?;
                continue;
            }
            between.resize(end - first.start, 0);
            read(first.start, &mut between)?;
            let mut wanted = wanted;
            for run in &together {
                let (to, after) = wanted.split_at_mut(run.len());
                to.copy_from_slice(&between[run.start - first.start..run.end - first.start]);
                wanted = after;
            }
        }
        Ok(bytes)
    }
}
