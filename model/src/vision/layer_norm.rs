//! LayerNorm with gains and biases from a [`ParameterSource`].

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::layer_norm;

/// `(x − mean(x)) / √(variance(x) + ε) ⊙ γ + β` over the last dimension (arXiv 1607.06450).
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// γ, `[width]`
    pub gamma: Param<Tensor<1>>,
    /// β, `[width]`
    pub beta: Param<Tensor<1>>,
    /// ε
    pub epsilon: f64,
}

impl LayerNorm {
    /// A norm of `width` values; γ and β are taken from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        width: usize,
        epsilon: f64,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let mut parameter = |name: &str, role, initializer| {
            let path = format!("{path}.{name}");
            let spec = ParameterSpec::new(path, role, [(Axis::Tower, width)], initializer);
            source.parameter(spec)
        };
        Ok(Self {
            gamma: parameter("gamma", Role::Norm, Initializer::Ones)?,
            beta: parameter("beta", Role::Bias, Initializer::Zeros)?,
            epsilon,
        })
    }

    /// # Shapes
    ///
    /// - `x`, output: `[rows, width]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        layer_norm(x, self.gamma.val(), self.beta.val(), self.epsilon)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::{ByHand, rows};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(one_and_three);

    fn one_and_three(device: Device) {
        let mut source = ByHand {
            device: &device,
            values: &[("it.gamma", &[1.0, 2.0]), ("it.beta", &[0.5, 0.0])],
        };
        // Variance 1 plus ε = 8 is 9, so that each difference from the mean is divided by 3.
        let Ok(norm) = LayerNorm::new(2, 8.0, "it", &mut source);
        let found = values(norm.forward(rows(&[[1.0, 3.0], [7.0, 7.0]], &device)));
        let third = 1.0 / 3.0;
        let expected = [0.5 - third, 2.0 * third, 0.5, 0.0];
        assert_close("LayerNorm", &found, &expected, 1e-6).unwrap();
    }
}
