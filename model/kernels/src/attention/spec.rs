//! What attention computes, but for its tensors.

/// Heads, window and scale of an attention.
///
/// How far it rotates queries and keys follows from the [`Rotary`](crate::rope::Rotary) that is given beside it: the
/// first values of each head, all of them, or none where there is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads in a row.
    pub kv_heads: usize,
    /// Values of a head; even.
    pub head_dim: usize,
    /// The most positions that a query sees, its own included, at least 1; `None` for all. The query at position i sees
    /// the key at position j where i − j < window (Mistral 7B, arXiv 2310.06825), as with Hugging Face's
    /// `sliding_window`.
    pub window: Option<usize>,
    /// Factor of the scores.
    pub scale: f32,
}

impl AttentionSpec {
    /// Without a window, and with the usual scale of 1/√head_dim.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            kv_heads,
            head_dim,
            window: None,
            scale: (head_dim as f32).sqrt().recip(),
        }
    }

    /// # Panics
    ///
    /// When no attention has such heads or such a window.
    pub(super) fn check(&self) {
        let Self {
            heads,
            kv_heads,
            head_dim,
            window,
            ..
        } = *self;
        assert!(
            kv_heads > 0
                && heads.is_multiple_of(kv_heads)
                && head_dim > 0
                && head_dim.is_multiple_of(2)
                && window != Some(0),
            "no attention is like {self:?}"
        );
    }
}
