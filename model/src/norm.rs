//! RMSNorm with a gain from a [`ParameterSource`].

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::config::ModelConfig;
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::rms_norm;

/// `x / √(mean(x²) + ε) ⊙ γ` over the last dimension (arXiv 1910.07467, eq. 4).
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// γ, `[width]`
    pub gamma: Param<Tensor<1>>,
    /// ε
    pub epsilon: f64,
}

impl RmsNorm {
    /// A norm of `width`, an axis and its number of values; `γ` is taken from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        width: (Axis, usize),
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        Ok(Self {
            gamma: source.parameter(ParameterSpec::new(
                format!("{path}.gamma"),
                Role::Norm,
                [width],
                Initializer::Ones,
            ))?,
            epsilon: config.norm_epsilon,
        })
    }

    /// # Shapes
    ///
    /// - `x`, output: `[…, width]`
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        rms_norm(x, self.gamma.val(), self.epsilon)
    }

    /// The same of a part of the values that are normed together, with the mean square of them all.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[rows, width of the part]`
    /// - `mean_square`: `[rows, 1]`
    pub(crate) fn forward_given(&self, x: Tensor<2>, mean_square: Tensor<2>) -> Tensor<2> {
        let scale = mean_square.add_scalar(self.epsilon).sqrt().recip();
        x * scale * self.gamma.val().unsqueeze()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::{ByHand, rows, smallest};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(three_and_four);

    fn three_and_four(device: Device) {
        let norm = |gamma: &[f32], epsilon: f64| {
            let mut source = ByHand {
                device: &device,
                values: &[("norm.gamma", gamma)],
            };
            let mut config = smallest();
            config.norm_epsilon = epsilon;
            let Ok(norm) = RmsNorm::new(&config, (Axis::Model, 2), "norm", &mut source);
            values(norm.forward(rows(&[[3.0, 4.0], [0.0, 0.0], [-3.0, 4.0]], &device)))
        };
        // √(12.5 + 12.5) = 5
        let expected = [0.6, 0.8, 0.0, 0.0, -0.6, 0.8];
        assert_close("ones", &norm(&[1.0, 1.0], 12.5), &expected, 1e-6).unwrap();
        let expected = [6.0, 4.0, 0.0, 0.0, -6.0, 4.0];
        assert_close("a gain", &norm(&[10.0, 5.0], 12.5), &expected, 1e-6).unwrap();
        // 3 / √12.5 and 4 / √12.5
        let expected = [
            0.848_528_1,
            1.131_370_9,
            0.0,
            0.0,
            -0.848_528_1,
            1.131_370_9,
        ];
        assert_close(
            "a small epsilon",
            &norm(&[1.0, 1.0], 1e-12),
            &expected,
            1e-6,
        )
        .unwrap();
    }
}
