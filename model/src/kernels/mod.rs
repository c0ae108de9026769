//! Operations that the tensor interface lacks or does slowly, each beside its plain reference.

mod attention;
mod grouped;
pub mod host;
pub mod product;
mod simd;

pub use attention::{causal_attention, causal_attention_reference};
pub(crate) use attention::{masked_attention, split_heads};
pub use grouped::{grouped_matmul, grouped_matmul_reference};
