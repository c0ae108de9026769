//! The feed-forward of a layer: dense, or a mixture of experts.

use burn::module::Module;
use burn::tensor::Tensor;

use crate::config::{FeedForwardKind, ModelConfig};
use crate::matrix::Matrix;
use crate::moe::{MixtureOfExperts, Routing};
use crate::observer::Observer;
use crate::parallel::{Shard, TensorGroup};
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use crate::parts::{LayerPart, Part};
use firebox_kernels::{Precision, swiglu};

/// SwiGLU: `(silu(x W_gate) ⊙ x W_up) W_down` (arXiv 2002.05202).
#[derive(Module, Debug)]
pub struct DenseFeedForward {
    /// `[d_model, d_ff]`
    pub gate: Matrix<2>,
    /// `[d_model, d_ff]`
    pub up: Matrix<2>,
    /// `[d_ff, d_model]`
    pub down: Matrix<2>,
    /// Of its products.
    #[module(skip)]
    pub precision: Precision,
    /// The ranks that its output is added up over, each of which has a part of the width.
    #[module(skip)]
    pub(crate) group: Option<TensorGroup>,
}

impl DenseFeedForward {
    /// A feed-forward of width `d_ff`; takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        role: Role,
        d_ff: usize,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let (model, inner) = ((Axis::Model, config.d_model), (Axis::FeedForward, d_ff));
        let initializer = Initializer::Normal(config.initializer_range);
        let matrix = |name: &str, dimensions| {
            ParameterSpec::new(format!("{path}.{name}"), role, dimensions, initializer)
        };
        Ok(Self {
            gate: source.matrix(matrix("gate", [model, inner]))?,
            up: source.matrix(matrix("up", [model, inner]))?,
            down: source.matrix(ParameterSpec {
                initializer: Initializer::Output(config.residual_initializer_range()),
                ..matrix("down", [inner, model])
            })?,
            precision: Precision::F32,
            group: None,
        })
    }

    /// Makes this one rank of a tensor-parallel group.
    pub(crate) fn join(&mut self, group: &TensorGroup) {
        self.group = Some(group.clone());
    }

    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.group {
            Some(group) => group.sum(self.own_part(group.enter(x))),
            None => self.own_part(x),
        }
    }

    /// The output of the part of the width that is here.
    fn own_part(&self, x: Tensor<2>) -> Tensor<2> {
        let [gate, up, down] = [&self.gate, &self.up, &self.down].map(Matrix::weight);
        swiglu(x, gate, up, down, self.precision)
    }
}

/// The feed-forward of a layer, as configured.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // one per layer
pub enum FeedForward {
    /// Each token is routed to its top-k experts.
    Moe(MixtureOfExperts),
    /// One SwiGLU for all tokens.
    Dense(DenseFeedForward),
}

impl FeedForward {
    /// Takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        layer: usize,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        Ok(match config.layers[layer].feed_forward {
            FeedForwardKind::Moe => {
                let moe = config.moe.as_ref().expect("an MoE layer has a mixture");
                Self::Moe(MixtureOfExperts::new(config, moe, path, source)?)
            }
            FeedForwardKind::Dense { d_ff } => Self::Dense(DenseFeedForward::new(
                config,
                Role::FeedForward,
                d_ff,
                path,
                source,
            )?),
        })
    }

    /// Computes the products at this precision from now on; the router's stay f32.
    pub fn set_precision(&mut self, precision: Precision) {
        match self {
            Self::Moe(moe) => {
                moe.experts.precision = precision;
                if let Some(shared) = &mut moe.shared {
                    shared.precision = precision;
                }
            }
            Self::Dense(dense) => dense.precision = precision,
        }
    }

    /// Makes this one rank of a tensor-parallel group.
    pub(crate) fn join(&mut self, group: &TensorGroup, shard: &Shard) {
        match self {
            Self::Moe(moe) => moe.join(group, shard),
            Self::Dense(dense) => dense.join(group),
        }
    }

    /// Returns the output, and the routing of an MoE layer.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    pub fn forward(
        &self,
        x: Tensor<2>,
        layer: usize,
        observer: &mut impl Observer,
    ) -> (Tensor<2>, Option<Routing>) {
        match self {
            Self::Moe(moe) => {
                let (output, routing) = moe.forward(x, layer, observer);
                (output, Some(routing))
            }
            Self::Dense(dense) => {
                let part = LayerPart::of_layer(layer, Part::FeedForward);
                (observer.output(part, dense.forward(x)), None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::config::LayerConfig;
    use crate::observer::Unobserved;
    use crate::testing::{ByHand, rows, smallest, tiny};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(a_swiglu_by_hand, the_kind_and_width_of_each_layer);

    fn a_swiglu_by_hand(device: Device) {
        let three = 3f32.ln();
        let mut source = ByHand {
            device: &device,
            values: &[
                ("gate", &[three, 0.0]),
                ("up", &[0.0, 2.0]),
                ("down", &[4.0 / three, 8.0 / three]),
            ],
        };
        let Ok(dense) =
            DenseFeedForward::new(&smallest(), Role::FeedForward, 1, "dense", &mut source);
        // silu(ln 3) = ln 3 · 3/4 and silu(−ln 3) = −ln 3 · 1/4; times 2 y; times [4, 8] / ln 3.
        let x = rows(&[[1.0, 1.0], [1.0, -3.0], [-1.0, 1.0]], &device);
        let expected = [6.0, 12.0, -18.0, -36.0, -2.0, -4.0];
        assert_close("SwiGLU", &values(dense.forward(x)), &expected, 1e-6).unwrap();
    }

    fn the_kind_and_width_of_each_layer(device: Device) {
        let mut config = tiny();
        config.layers[0] = LayerConfig::dense(3);
        let kinds = |config: &ModelConfig| {
            [0, 1].map(|layer| {
                let mut source = ByHand {
                    device: &device,
                    values: &[],
                };
                let Ok(made) = FeedForward::new(config, layer, "it", &mut source);
                let (_, routing) =
                    made.forward(Tensor::ones([5, 24], &device), layer, &mut Unobserved);
                match (&made, routing) {
                    (FeedForward::Dense(dense), None) => Some(dense.gate.dims()),
                    (FeedForward::Moe(_), Some(routing)) => {
                        assert_eq!(routing.layer, layer);
                        None
                    }
                    other => panic!("{other:?}"),
                }
            })
        };
        assert_eq!(kinds(&config), [Some([24, 3]), None]);
        assert_eq!(kinds(&tiny()), [None, None]);
        // Two experts of 20.
        assert_eq!(kinds(&tiny().dense_baseline()), [Some([24, 40]); 2]);
    }
}
