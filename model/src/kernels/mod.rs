//! Operations that the tensor interface lacks or does slowly, each beside its plain reference.

mod attention;
mod exponential;
mod grouped;
pub mod host;
pub mod product;

pub use attention::{
    CausalAttention, causal_attention, causal_attention_reference, masked_attention, split_heads,
};
pub use grouped::{grouped_matmul, grouped_matmul_reference};
