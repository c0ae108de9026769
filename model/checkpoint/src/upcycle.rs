//! Upcycling: a mixture of experts that starts as copies of a dense model (arXiv 2212.05055).

use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor};

use super::{CheckpointError, CheckpointParameters, read_config};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{Initial, ParameterSource, RandomParameters};

/// Reads a dense checkpoint into a mixture: each expert is a copy of the dense feed-forward, the routers are
/// fresh, everything else is taken over. The chosen experts' weights add up to 1 (`router.normalize`), so that
/// the mixture says what the dense model says until training makes the experts differ.
///
/// # Errors
///
/// See [`load`](super::load); also where the shapes of the mixture are not those of the checkpoint.
///
/// # Panics
///
/// When a checkpoint of a mixture is given; see [`CheckpointConfig`](super::CheckpointConfig).
pub fn upcycle(
    folder: &Path,
    mixture: &ModelConfig,
    seed: u64,
    device: &Device,
) -> Result<LanguageModel, CheckpointError> {
    let config = read_config(folder)?;
    assert_eq!(
        config.model.moe_layers().count(),
        0,
        "only a dense checkpoint is upcycled"
    );
    let mut source = Upcycled {
        dense: CheckpointParameters::open(
            folder,
            &config.model,
            &config.family,
            device,
            WeightDtype::F32,
        )?,
        fresh: RandomParameters { seed, device },
    };
    LanguageModel::new(mixture, &mut source)
}

struct Upcycled<'a> {
    dense: CheckpointParameters<'a>,
    fresh: RandomParameters<'a>,
}

impl ParameterSource for Upcycled<'_> {
    type Error = CheckpointError;

    fn parameter<const D: usize>(
        &mut self,
        path: &str,
        shape: [usize; D],
        initial: Initial,
    ) -> Result<Param<Tensor<D>>, CheckpointError> {
        if path.ends_with(".router.weight") {
            let Ok(router) = self.fresh.parameter(path, shape, initial);
            return Ok(router);
        }
        if !path.contains(".experts.") {
            return self.dense.parameter(path, shape, initial);
        }
        // The same parameter of the dense feed-forward, once for each expert.
        let path = path.replace(".experts.", ".");
        let one = self
            .dense
            .parameter(&path, [shape[1], shape[2]], initial)?
            .into_value();
        let copies = one.unsqueeze::<D>().repeat_dim(0, shape[0]);
        Ok(Param::from_tensor(copies))
    }
}
