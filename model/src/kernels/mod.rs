//! Operations that the tensor interface lacks or does slowly, each beside its plain reference.

mod grouped;
pub mod host;
pub mod product;

pub use grouped::{grouped_matmul, grouped_matmul_reference};
