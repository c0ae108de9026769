//! Operations that the tensor interface lacks or does slowly, each beside its plain reference.
//!
//! On a GPU no unit goes round its loops more than 65,535 times in a launch: Mesa's software Vulkan ends every loop of a
//! shader when all of them together have had so many rounds, and says nothing (`LP_MAX_TGSI_LOOP_ITERATIONS` in its
//! `lp_limits.h`). Kernels here unroll what is short, and share out what is long. Some of Burn's
//! operations need a round for each row: sums and means over rows, cumulative sums, and the gradient of `select`. Where
//! rows are as many as tokens, `sum_of_rows` and `embedding` stand in for them.

mod adamw;
mod attention;
pub mod bandwidth;
mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
pub mod dispatch;
pub mod dtype;
mod embedding;
mod experts;
mod host;
mod linear;
mod peak;
mod rms_norm;
pub mod rope;
mod sum_of_rows;
mod sum_of_squares;

pub use adamw::{AdamWUpdate, adamw, adamw_reference};
pub use attention::{
    cached_attention, causal_attention, causal_attention_reference, has_cached_attention,
    masked_attention, split_heads,
};
pub use cross_entropy::{cross_entropy_sum, cross_entropy_sum_reference};
pub use embedding::embedding;
pub use experts::{experts, experts_reference, swiglu, swiglu_reference};
pub use host::latency_bound;
pub use linear::{linear, linear_reference, linear_transposed};
pub use peak::matrix_peak;
pub use rms_norm::{rms_norm, rms_norm_reference};
pub use sum_of_rows::sum_of_rows;
pub use sum_of_squares::{sum_of_squares, sum_of_squares_reference};
