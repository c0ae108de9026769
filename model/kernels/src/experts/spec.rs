//! What the experts compute, but for the tokens and the weights of their outputs.

use burn::tensor::Tensor;
use burn::tensor::activation::{sigmoid, silu};

use crate::precision::Precision;
use crate::weight::Weight;

/// How an expert makes its hidden activations of the products with its gate and up matrices.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Activation {
    /// `silu(gate) ⊙ up` (arXiv 2002.05202).
    #[default]
    Swiglu,
    /// `(u + 1) ⊙ g ⊙ σ(alpha · g)`, with `g = min(gate, limit)` and u the values of up between −limit and limit (gpt-oss,
    /// arXiv 2508.10925). Where a value is beyond its limit, its gradient is 0.
    ClampedSwiglu {
        /// Factor of g within the sigmoid.
        alpha: f32,
        /// The largest value of gate, and the largest magnitude of up.
        limit: f32,
    },
}

impl Activation {
    /// The hidden activations, in plain tensor operations. All of one shape.
    pub(super) fn reference<const D: usize>(self, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Swiglu => silu(gate) * up,
            Self::ClampedSwiglu { alpha, limit } => {
                let gate = gate.clamp_max(limit);
                let up = up.clamp(-limit, limit).add_scalar(1.0);
                up * gate.clone() * sigmoid(gate.mul_scalar(alpha))
            }
        }
    }
}

/// The weights of a layer's experts.
#[derive(Debug, Clone)]
pub struct ExpertWeights {
    /// `[experts, d_model, d_ff]`
    pub gate: Weight<3>,
    /// `[experts, d_model, d_ff]`
    pub up: Weight<3>,
    /// `[experts, d_ff, d_model]`
    pub down: Weight<3>,
    /// What is added to the products with these; `None` for nothing.
    pub biases: Option<ExpertBiases>,
}

/// The biases of a layer's experts, in f32.
#[derive(Debug, Clone)]
pub struct ExpertBiases {
    /// `[experts, d_ff]`
    pub gate: Tensor<2>,
    /// `[experts, d_ff]`
    pub up: Tensor<2>,
    /// `[experts, d_model]`
    pub down: Tensor<2>,
}

/// What the backends need to know besides the tensors.
#[derive(Debug, Clone, Copy)]
pub struct ExpertsSpec {
    pub(super) activation: Activation,
    /// Whether there are biases.
    pub(super) biased: bool,
    pub(super) precision: Precision,
}
