//! Writes a model in the layout of its family.

use std::fs;
use std::path::Path;

use burn::module::Param;
use burn::tensor::Tensor;

use super::layout::{Layout, ROUTER_BIAS, Storage, fill};
use super::reader::transposed;
use super::{
    CONFIG_FILE, CheckpointError, HuggingFaceConfig, MODEL_FILE, NamedTensor, write_tensors,
};
use crate::language_model::LanguageModel;
use crate::parameters::{VisitParameter, visit};

/// Writes config.json and model.safetensors into a folder, and waits until they are on the disk.
///
/// # Errors
///
/// When a file cannot be written.
pub fn save(model: &LanguageModel, end_of_text: u32, folder: &Path) -> Result<(), CheckpointError> {
    let mut collected = Collect {
        layout: Layout::of(model.config()),
        tensors: Vec::new(),
    };
    visit(model, &mut collected);
    let mut tensors = collected.tensors;
    for (layer, bias) in model.router_bias().into_iter().enumerate() {
        if !bias.is_empty() {
            let (name, shape) = (fill(ROUTER_BIAS, Some(layer), None), vec![bias.len()]);
            tensors.push(NamedTensor {
                name,
                shape,
                values: Box::new(move || bias.clone()),
            });
        }
    }
    write_tensors(&folder.join(MODEL_FILE), tensors)?;

    let config = HuggingFaceConfig {
        model: model.config().clone(),
        end_of_text: Some(end_of_text),
    };
    let path = folder.join(CONFIG_FILE);
    fs::write(&path, config.to_json())
        .and_then(|()| fs::File::open(&path)?.sync_all())
        .map_err(CheckpointError::io("write", &path))
}

struct Collect {
    layout: Layout,
    tensors: Vec<NamedTensor<'static>>,
}

impl VisitParameter for Collect {
    fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
        let (rule, layer) = self
            .layout
            .rule(path)
            .unwrap_or_else(|| panic!("{} has no rule for {path}", self.layout.architecture));
        let tensor = parameter.val();
        let shape: Vec<usize> = tensor.dims().to_vec();
        let name = |expert| fill(rule.name, layer, expert);
        match rule.storage {
            Storage::AsIs => self.tensors.push(NamedTensor {
                name: name(None),
                shape,
                values: Box::new(move || values(&tensor)),
            }),
            Storage::Transposed => {
                let (d_in, d_out) = (shape[0], shape[1]);
                self.tensors.push(NamedTensor {
                    name: name(None),
                    shape: vec![d_out, d_in],
                    values: Box::new(move || transposed(&values(&tensor), d_in, d_out)),
                });
            }
            Storage::Experts => {
                let (experts, d_in, d_out) = (shape[0], shape[1], shape[2]);
                for expert in 0..experts {
                    let tensor = tensor.clone();
                    self.tensors.push(NamedTensor {
                        name: name(Some(expert)),
                        shape: vec![d_out, d_in],
                        values: Box::new(move || {
                            transposed(&values(&tensor.clone().narrow(0, expert, 1)), d_in, d_out)
                        }),
                    });
                }
            }
        }
    }
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}
