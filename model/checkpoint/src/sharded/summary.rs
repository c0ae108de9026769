//! How evenly a checkpoint is divided.

use serde::Serialize;

use firebox_model::parallel::RankLayout;

/// What a rank has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RankSummary {
    /// The rank.
    pub rank: usize,
    /// Its layers: first and end (exclusive).
    pub layers: [usize; 2],
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Bytes among them that are copies of what an earlier rank has: norms, routers, key/value heads that are fewer than the
    /// ranks, and a tied embedding.
    pub copied_bytes: u64,
}

/// What the ranks have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The parallel layout.
    pub layout: RankLayout,
    /// In order.
    pub ranks: Vec<RankSummary>,
    /// Bytes of all ranks.
    pub bytes: u64,
    /// Bytes among them that are copies.
    pub copied_bytes: u64,
    /// Mean over maximum of the ranks' bytes; 1 if all have the same.
    pub balance: f64,
}

impl Summary {
    pub(super) fn new(layout: RankLayout, ranks: Vec<RankSummary>) -> Self {
        let bytes: u64 = ranks.iter().map(|rank| rank.bytes).sum();
        let largest = ranks.iter().map(|rank| rank.bytes).max().unwrap_or(0);
        let mean = bytes as f64 / ranks.len().max(1) as f64;
        Self {
            layout,
            copied_bytes: ranks.iter().map(|rank| rank.copied_bytes).sum(),
            ranks,
            bytes,
            balance: mean / largest.max(1) as f64,
        }
    }
}
