//! Whether a file has changed, without reading it.

use std::fs::Metadata;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The coarsest resolution of modification times of any file system (FAT). Of two changes within it, the
/// second may not be visible.
const GRANULARITY: Duration = Duration::from_secs(2);

/// A file's size and modification time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stamp {
    /// Bytes.
    pub length: u64,
    /// Nanoseconds since 1970; negative before, 0 if the file system has no modification times.
    pub modified: i64,
}

impl Stamp {
    /// The stamp of a file, from its metadata.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            length: metadata.len(),
            modified: metadata.modified().map_or(0, nanoseconds),
        }
    }

    /// Whether every change after `time` must change the stamp, because the file was last modified long
    /// enough before. False for a modification time in the future, which means that clocks differ.
    pub fn is_settled(&self, time: SystemTime) -> bool {
        self.modified < nanoseconds(time - GRANULARITY)
    }
}

fn nanoseconds(time: SystemTime) -> i64 {
    let whole = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => whole(since),
        Err(before) => -whole(before.duration()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_stamp_is_size_and_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("file")).unwrap();
        file.set_len(3).unwrap();
        let stamp = |modified| {
            file.set_modified(modified).unwrap();
            Stamp::of(&file.metadata().unwrap())
        };
        let second = Duration::from_secs(1);
        let before = stamp(UNIX_EPOCH - second);
        assert_eq!((before.length, before.modified), (3, -1_000_000_000));
        let after = stamp(UNIX_EPOCH + 10 * second);
        assert_eq!(after.modified, 10_000_000_000);
        assert!(after.is_settled(UNIX_EPOCH + 13 * second));
        // Just written, or from the future.
        assert!(!after.is_settled(UNIX_EPOCH + 11 * second));
        assert!(!after.is_settled(UNIX_EPOCH + 5 * second));
    }
}
