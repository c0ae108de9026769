//! Operations that the tensor interface lacks or does slowly, each beside its plain reference.

mod adamw;
mod attention;
mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod dispatch;
mod experts;
mod exponential;
pub mod host;
mod linear;
pub mod product;
mod rms_norm;
mod simd;
mod sum_of_squares;
#[cfg(test)]
pub(crate) mod testing;

pub use adamw::{AdamWUpdate, adamw, adamw_reference};
pub use attention::{causal_attention, causal_attention_reference};
pub(crate) use attention::{masked_attention, split_heads};
pub use cross_entropy::{cross_entropy_sum, cross_entropy_sum_reference};
pub use experts::{experts, experts_reference, swiglu, swiglu_reference};
pub use linear::{linear, linear_reference};
pub use rms_norm::{rms_norm, rms_norm_reference};
pub use sum_of_squares::{sum_of_squares, sum_of_squares_reference};
