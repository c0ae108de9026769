//! Operations that the tensor interface lacks or does slowly, each beside its plain reference.

mod experts;
mod exponential;
mod grouped;
pub mod host;
pub mod product;

pub use experts::{experts, experts_reference, swiglu, swiglu_reference};
pub use grouped::{grouped_matmul, grouped_matmul_reference};
