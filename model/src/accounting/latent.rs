//! What latent attention has in place of projections.

use crate::config::{AttentionBias, LatentConfig, ModelConfig};

/// Numbers of parameters of one layer's attention.
pub(super) struct Latent {
    /// Of its matrices.
    pub matrices: u128,
    /// Of the norms of the latents.
    pub norms: u128,
    /// Of its biases.
    pub biases: u128,
}

impl Latent {
    /// Counts those of a layer.
    pub fn of(config: &ModelConfig, latent: &LatentConfig) -> Self {
        let [d_model, heads, head_dim, rotary_dim] = [
            config.d_model,
            config.heads,
            config.head_dim,
            config.rotary_dim,
        ]
        .map(|n| n as u128);
        let [rank, value_dim] = [latent.rank, latent.value_dim].map(|n| n as u128);
        let query_rank = latent.query_rank.map(|rank| rank as u128);
        let queries = match query_rank {
            None => d_model * heads * head_dim,
            Some(query_rank) => query_rank * (d_model + heads * head_dim),
        };
        let keys_and_values = rank * heads * (head_dim - rotary_dim + value_dim);
        let query_rank = query_rank.unwrap_or(0);
        Self {
            matrices: queries
                + d_model * (rank + rotary_dim)
                + keys_and_values
                + heads * value_dim * d_model,
            norms: query_rank + rank,
            biases: match config.attention_bias {
                AttentionBias::None | AttentionBias::Qkv => 0,
                AttentionBias::All => query_rank + rank + rotary_dim + d_model,
            },
        }
    }
}
