//! A product with a weight, and a bias where there is one.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::matrix::Matrix;
use crate::parameters::{Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::{Precision, linear};

/// `x W`, or `x W + b`.
#[derive(Module, Debug)]
pub struct Linear {
    /// W, `[d_in, d_out]`
    pub weight: Matrix<2>,
    /// b, `[d_out]`
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Takes the weight that `spec` describes from `source`, under `{path}.weight`, and with `biased` a bias under
    /// `{path}.bias`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        spec: ParameterSpec<2>,
        biased: bool,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let path = spec.path.clone();
        let output = (spec.axes[1], spec.shape[1]);
        let weight = ParameterSpec {
            path: format!("{path}.weight"),
            ..spec
        };
        let bias = || {
            let path = format!("{path}.bias");
            ParameterSpec::new(path, Role::Bias, [output], Initializer::Zeros)
        };
        Ok(Self {
            weight: source.matrix(weight)?,
            bias: match biased {
                true => Some(source.parameter(bias())?),
                false => None,
            },
        })
    }

    /// The product at this precision, and the sum with the bias in f32.
    ///
    /// # Shapes
    ///
    /// - `x`: `[rows, d_in]`
    /// - output: `[rows, d_out]`
    pub fn forward(&self, x: Tensor<2>, precision: Precision) -> Tensor<2> {
        let product = linear(x, self.weight.weight(), precision);
        match &self.bias {
            Some(bias) => product + bias.val().unsqueeze(),
            None => product,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::parameters::Axis;
    use crate::testing::{ByHand, rows};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::values;

    on_every_device!(a_bias_is_added_to_every_row);

    fn a_bias_is_added_to_every_row(device: Device) {
        let of = |biased| {
            let mut source = ByHand {
                device: &device,
                values: &[
                    ("it.weight", &[1.0, 2.0, 3.0, 4.0]),
                    ("it.bias", &[0.5, -0.5]),
                ],
            };
            let dimensions = [(Axis::Model, 2), (Axis::Heads, 2)];
            let initializer = Initializer::Normal(1.0);
            let spec = ParameterSpec::new("it", Role::Attention, dimensions, initializer);
            let Ok(linear) = Linear::new(spec, biased, &mut source);
            values(linear.forward(rows(&[[1.0, 0.0], [1.0, 1.0]], &device), Precision::F32))
        };
        assert_eq!(of(false), [1.0, 2.0, 4.0, 6.0]);
        assert_eq!(of(true), [1.5, 1.5, 4.5, 5.5]);
    }
}
