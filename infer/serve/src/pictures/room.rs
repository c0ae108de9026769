//! Memory for the pictures of requests that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// So many bytes, which requests reserve before their pictures are read.
#[derive(Debug, Clone)]
pub struct PictureRoom {
    limit: u64,
    held: Arc<AtomicU64>,
}

/// A part of a [`PictureRoom`], until it is dropped.
#[derive(Debug)]
pub struct Reserved {
    bytes: u64,
    held: Arc<AtomicU64>,
}

impl PictureRoom {
    /// Room for `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            held: Arc::default(),
        }
    }

    /// The most bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Reserves bytes; `None` where others hold too many.
    pub fn reserve(&self, bytes: u64) -> Option<Reserved> {
        let with = |held: u64| held.checked_add(bytes).filter(|&all| all <= self.limit);
        let reserved = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, with);
        reserved.is_ok().then(|| Reserved {
            bytes,
            held: self.held.clone(),
        })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_free_again_when_it_is_dropped() {
        let room = PictureRoom::new(10);
        let first = room.reserve(6).unwrap();
        // Clones share it.
        assert!(room.clone().reserve(5).is_none());
        let second = room.reserve(4);
        assert!(second.is_some() && room.reserve(1).is_none() && room.reserve(u64::MAX).is_none());
        drop(first);
        assert!(room.reserve(7).is_none() && room.reserve(6).is_some());
    }
}
