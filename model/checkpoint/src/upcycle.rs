//! Upcycling: an MoE model whose experts start as copies of a dense model's feed-forward (arXiv 2212.05055).

use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor};

use super::{CheckpointConfig, CheckpointError, CheckpointParameters};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{ParameterSource, ParameterSpec, RandomParameters, Role};

/// Reads a dense checkpoint, whose config.json is `config`, into an MoE model: each expert is a copy of the dense
/// feed-forward, the routers are random, everything else is loaded unchanged. If the selected experts' weights sum to 1
/// (`router.normalize`), the MoE model initially computes the same function as the dense model.
///
/// # Errors
///
/// See [`load`](super::load); also when the shapes of the MoE model do not match the checkpoint.
///
/// # Panics
///
/// When the checkpoint is not dense.
pub fn upcycle(
    folder: &Path,
    config: &CheckpointConfig,
    moe: &ModelConfig,
    seed: u64,
    device: &Device,
) -> Result<LanguageModel, CheckpointError> {
    assert_eq!(
        config.model.moe_layers().count(),
        0,
        "only a dense checkpoint can be upcycled"
    );
    let mut source = Upcycled {
        dense: CheckpointParameters::open(
            folder,
            &config.model,
            &config.family,
            device,
            WeightDtype::F32,
        )?,
        fresh: RandomParameters::new(seed, device),
    };
    LanguageModel::new(moe, &mut source)
}

struct Upcycled<'a> {
    dense: CheckpointParameters<'a>,
    fresh: RandomParameters<'a>,
}

impl ParameterSource for Upcycled<'_> {
    type Error = CheckpointError;

    fn parameter<const D: usize>(
        &mut self,
        spec: ParameterSpec<D>,
    ) -> Result<Param<Tensor<D>>, CheckpointError> {
        match spec.role {
            Role::Router | Role::RouterBias => {
                let Ok(router) = self.fresh.parameter(spec);
                Ok(router)
            }
            // The same parameter of the dense feed-forward, once per expert.
            Role::Experts => {
                let ParameterSpec { axes, shape, .. } = spec;
                let dense = ParameterSpec::new(
                    spec.path.replace(".experts.", "."),
                    Role::FeedForward,
                    [(axes[1], shape[1]), (axes[2], shape[2])],
                    spec.initializer,
                );
                let one = self.dense.parameter(dense)?.into_value();
                let copies = one.unsqueeze::<D>().repeat_dim(0, shape[0]);
                Ok(Param::from_tensor(copies))
            }
            _ => self.dense.parameter(spec),
        }
    }
}
