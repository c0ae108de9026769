//! Constant factors within the network.

use super::rules::{ConfigError, finite};

/// Constant factors within the network, with which the best learning rate of a narrow model is that of a wide one too
/// (µP, arXiv 2203.03466, as Granite has it).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multipliers {
    /// Of the embeddings, as the first layer meets them; a head that is tied to the embedding is not multiplied.
    pub embedding: f64,
    /// Of what attention and feed-forward add to the residual stream.
    pub residual: f64,
    /// Of attention's scores; `None` for the usual 1/√head_dim.
    pub attention: Option<f64>,
    /// The logits are divided by it.
    pub logits_divisor: f64,
}

impl Multipliers {
    /// Those of a network without any.
    pub const NONE: Self = Self {
        embedding: 1.0,
        residual: 1.0,
        attention: None,
        logits_divisor: 1.0,
    };

    /// The factor of the scores of heads of this width where nothing else is said.
    pub fn usual_attention(head_dim: usize) -> f64 {
        (head_dim as f64).sqrt().recip()
    }

    /// Checks every rule.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [
            ("multipliers.embedding", self.embedding),
            ("multipliers.residual", self.residual),
            ("multipliers.attention", self.attention.unwrap_or(1.0)),
            ("multipliers.logits_divisor", self.logits_divisor),
        ] {
            finite(key, value, true)?;
        }
        Ok(())
    }
}

impl Default for Multipliers {
    fn default() -> Self {
        Self::NONE
    }
}
