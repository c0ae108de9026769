//! Gates of the branches of a layer.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};

/// Two gates: attention and the feed-forward are multiplied by their hyperbolic tangents (Flamingo, arXiv 2204.14198,
/// section 2.2).
#[derive(Module, Debug)]
pub struct Gates {
    /// That of attention, `[1]`.
    pub attention: Param<Tensor<1>>,
    /// That of the feed-forward, `[1]`.
    pub feed_forward: Param<Tensor<1>>,
}

impl Gates {
    /// Takes both from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        initializer: Initializer,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        Ok(Self {
            attention: gate(format!("{path}.attention"), initializer, source)?,
            feed_forward: gate(format!("{path}.feed_forward"), initializer, source)?,
        })
    }
}

/// A gate, `[1]`.
pub(super) fn gate<S: ParameterSource>(
    path: impl Into<String>,
    initializer: Initializer,
    source: &mut S,
) -> Result<Param<Tensor<1>>, S::Error> {
    let spec = ParameterSpec::new(path, Role::Gate, [(Axis::Single, 1)], initializer);
    source.parameter(spec)
}

/// The factor that a gate stands for, to be multiplied with a tensor of this rank.
pub(super) fn open<const D: usize>(gate: &Param<Tensor<1>>) -> Tensor<D> {
    gate.val().tanh().unsqueeze()
}
