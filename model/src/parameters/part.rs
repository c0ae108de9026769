//! A part of a model that is there as a whole.

use std::collections::BTreeMap;
use std::convert::Infallible;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

use super::{Held, ParameterSource, ParameterSpec, VisitParameter, visit};
use crate::language_model::LanguageModel;
use crate::parallel::Shard;

/// What a rank holds of a model that is there as a whole.
#[derive(Debug)]
pub(crate) struct PartOf {
    /// The values of every parameter, by path.
    values: BTreeMap<String, Vec<f32>>,
    shard: Shard,
    device: Device,
}

impl PartOf {
    /// The part of a rank.
    pub fn new(model: &LanguageModel, shard: Shard) -> Self {
        struct Collect(BTreeMap<String, Vec<f32>>);
        impl VisitParameter for Collect {
            fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
                let values = parameter.val().into_data().iter().collect();
                self.0.insert(path.to_owned(), values);
            }
        }
        let mut collect = Collect(BTreeMap::new());
        visit(model, &mut collect);
        Self {
            values: collect.0,
            shard,
            device: model.device(),
        }
    }
}

impl ParameterSource for PartOf {
    type Error = Infallible;

    fn shard(&self) -> Option<&Shard> {
        Some(&self.shard)
    }

    fn parameter<const D: usize>(
        &mut self,
        spec: ParameterSpec<D>,
    ) -> Result<Param<Tensor<D>>, Infallible> {
        let values = self.values.remove(&spec.path);
        let values = values.unwrap_or_else(|| panic!("the model has {}", spec.path));
        let data = match self.held(&spec) {
            Held::Values(slice) => {
                let part = slice.runs().flat_map(|run| values[run].iter().copied());
                TensorData::new(part.collect::<Vec<f32>>(), slice.shape())
            }
            Held::Zeros(shape) => TensorData::zeros::<f32, _>(shape),
        };
        Ok(Param::from_tensor(Tensor::from_data(data, &self.device)))
    }
}
