//! Operations that the tensor interface lacks or does slowly, each beside its plain reference.

mod grouped;

pub use grouped::{grouped_matmul, grouped_matmul_reference};
