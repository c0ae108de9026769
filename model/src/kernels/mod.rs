//! Operations that the tensor interface lacks or does slowly, each beside its plain reference.

mod adamw;
mod attention;
pub mod awake;
pub mod bandwidth;
mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod dispatch;
mod experts;
mod exponential;
pub mod host;
mod linear;
mod peak;
pub mod product;
mod rms_norm;
mod simd;
mod sum_of_squares;
#[cfg(test)]
pub(crate) mod testing;
pub mod weights;

pub use adamw::{AdamWUpdate, adamw, adamw_reference};
pub(crate) use attention::{cached_attention, has_cached_attention, masked_attention, split_heads};
pub use attention::{causal_attention, causal_attention_reference};
pub use cross_entropy::{cross_entropy_sum, cross_entropy_sum_reference};
pub use experts::{experts, experts_reference, swiglu, swiglu_reference};
pub use linear::{linear, linear_reference, linear_transposed};
pub use peak::matrix_peak;
pub use rms_norm::{rms_norm, rms_norm_reference};
pub use sum_of_squares::{sum_of_squares, sum_of_squares_reference};
