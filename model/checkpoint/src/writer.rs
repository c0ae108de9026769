//! Writes a model as the tensors of its family.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Gradients, Tensor};

use firebox_console::durable;

use super::config_json::config_json;
use super::dialect::Dialect;
use super::families::{Family, RouterKind};
use super::layout::{Numbers, Piece, Spelling, fill, transpose};
use super::tensor_writer::write_weights;
use super::{CONFIG_FILE, CheckpointError, NamedTensor, Notes};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::Slice;
use firebox_model::parameters::{Axis, ParameterInfo, VisitParameter, visit};

/// How a checkpoint is written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SaveOptions {
    /// The type of the stored weights.
    pub dtype: WeightDtype,
    /// The maximum size of a weights file, in bytes; `None` for a single file.
    pub shard_bytes: Option<u64>,
    /// What config.json says besides what is computed, such as the ids that end a text.
    pub notes: Notes,
}

/// Writes config.json and the weights into a folder, and waits until they are on disk. `progress` is called with the
/// number of bytes of weights written.
///
/// # Errors
///
/// When a file cannot be written, or a weight is beyond the range of the type.
///
/// # Panics
///
/// When the weights are [quantized](firebox_model::matrix::Matrix::Int8): they are for inference.
pub fn save(
    model: &LanguageModel,
    folder: &Path,
    options: &SaveOptions,
    progress: impl FnMut(u64),
) -> Result<(), CheckpointError> {
    save_part(model, folder, options, &nowhere, progress)
}

/// The same of a model of which other processes have parts: `elsewhere` gets the values of a parameter that is not here as a
/// whole, or of a stack those of one expert, when they are written.
///
/// # Errors
///
/// As [`save`].
pub fn save_part(
    model: &LanguageModel,
    folder: &Path,
    options: &SaveOptions,
    elsewhere: &Elsewhere<'_>,
    progress: impl FnMut(u64),
) -> Result<(), CheckpointError> {
    let family = family(model);
    let (dialect, spelling) = (Dialect::HuggingFace, Spelling::Saved);
    let tensors = with_router_bias(
        tensors(model, &family, dialect, spelling, None, elsewhere),
        model,
        &family,
        dialect,
    );
    write_weights(
        folder,
        &tensors,
        options.dtype,
        options.shard_bytes,
        progress,
    )?;
    let json = config_json(model.config(), &family, &options.notes, options.dtype);
    Ok(durable::write(&folder.join(CONFIG_FILE), json)?)
}

/// Every parameter, and the selection bias of routers that have one.
pub(crate) fn model_tensors(
    model: &LanguageModel,
    family: &Family,
    dialect: Dialect,
    spelling: Spelling,
) -> Vec<NamedTensor<'static>> {
    let tensors = tensors(model, family, dialect, spelling, None, &nowhere);
    with_router_bias(tensors, model, family, dialect)
}

/// Gets the values of a parameter, or of one expert of a stack of experts.
pub type Elsewhere<'a> = dyn Fn(&ParameterInfo, Option<usize>) -> Vec<f32> + 'a;

/// Of a model that is here as a whole.
fn nowhere(parameter: &ParameterInfo, _: Option<usize>) -> Vec<f32> {
    panic!("{} is not here", parameter.path)
}

fn with_router_bias<'a>(
    mut tensors: Vec<NamedTensor<'a>>,
    model: &LanguageModel,
    family: &Family,
    dialect: Dialect,
) -> Vec<NamedTensor<'a>> {
    let moe = model.config().moe.as_ref();
    let experts = moe.map_or(0, |moe| moe.experts.count);
    let biases = model.config().moe_layers().zip(model.router_bias());
    for (layer, mut bias) in biases {
        if family.router == RouterKind::DeepSeekV3 {
            bias.resize(experts, 0.0);
        }
        if bias.is_empty() {
            continue;
        }
        let name = fill(dialect.router_bias(), Some(layer), None);
        tensors.push(NamedTensor::float(name, [bias.len()], move || bias.clone()));
    }
    tensors
}

/// The gradient of every parameter, under the parameter's name in memory of `transformers` 5, with fused experts; zeros
/// if the loss does not depend on the parameter.
pub fn named_gradients(model: &LanguageModel, gradients: &Gradients) -> Vec<NamedTensor<'static>> {
    let (family, dialect) = (family(model), Dialect::HuggingFace);
    let (spelling, gradients) = (Spelling::Fused, Some(gradients));
    tensors(model, &family, dialect, spelling, gradients, &nowhere)
}

/// The family that computes what a model computes.
pub(crate) fn family(model: &LanguageModel) -> Family {
    let biased = model.router_bias().iter().any(|bias| !bias.is_empty());
    Family::of(model.config(), biased)
}

/// One tensor of a file, and its pieces of parameters.
struct Assembled<'a> {
    shape: Vec<usize>,
    /// By their offset in the tensor: from one value to the next, and the values.
    pieces: BTreeMap<usize, (usize, Values<'a>)>,
}

type Values<'a> = Box<dyn Fn() -> Vec<f32> + 'a>;

impl Assembled<'_> {
    fn values(&self) -> Vec<f32> {
        if self.pieces.len() == 1
            && let Some((1, values)) = self.pieces.get(&0)
        {
            return values();
        }
        let mut whole = vec![0.0; self.shape.iter().product()];
        for (&start, (step, values)) in &self.pieces {
            let places = whole[start..].iter_mut().step_by(*step);
            places
                .zip(values())
                .for_each(|(place, value)| *place = value);
        }
        whole
    }
}

fn tensors<'a>(
    model: &LanguageModel,
    family: &Family,
    dialect: Dialect,
    spelling: Spelling,
    gradients: Option<&Gradients>,
    elsewhere: &'a Elsewhere<'a>,
) -> Vec<NamedTensor<'a>> {
    let mut collect = Collect {
        family,
        dialect,
        spelling,
        gradients,
        parts: Part::all(model),
        elsewhere,
        order: Vec::new(),
        tensors: BTreeMap::new(),
    };
    assert!(
        WeightDtype::of_tensor(model.weight_type()).is_some(),
        "quantized weights are not written"
    );
    visit(model, &mut collect);
    let Collect {
        order, mut tensors, ..
    } = collect;
    let assembled = order.into_iter().map(|name| {
        let assembled = tensors.remove(&name).expect("collected once");
        NamedTensor::float(name, assembled.shape.clone(), move || assembled.values())
    });
    assembled.collect()
}

/// A parameter of which others have parts.
#[derive(Clone)]
struct Part {
    parameter: ParameterInfo,
    /// The experts of a stack that are here as a whole; `None` for a parameter that is no stack.
    experts: Option<Range<usize>>,
}

impl Part {
    /// All of a model, by path.
    fn all(model: &LanguageModel) -> BTreeMap<String, Self> {
        let Some(shard) = model.shard() else {
            return BTreeMap::new();
        };
        let parameters = LanguageModel::parameter_list(model.config()).into_iter();
        let parts = parameters.filter_map(|parameter| {
            let slice = shard.slice(&parameter);
            if slice.as_ref().is_some_and(Slice::is_whole) {
                return None;
            }
            let is_stack = parameter.axes[0] == Axis::Experts;
            let has_whole_ones = |slice: &Slice| slice.shape()[1..] == parameter.shape[1..];
            let experts = is_stack.then(|| {
                let slice = slice.filter(has_whole_ones);
                let own = slice.and_then(|slice| slice.ranges()[0].first().cloned());
                own.unwrap_or_default()
            });
            Some((parameter.path.clone(), Self { parameter, experts }))
        });
        parts.collect()
    }
}

struct Collect<'a, 'b> {
    family: &'b Family,
    dialect: Dialect,
    spelling: Spelling,
    gradients: Option<&'b Gradients>,
    parts: BTreeMap<String, Part>,
    elsewhere: &'a Elsewhere<'a>,
    order: Vec<String>,
    tensors: BTreeMap<String, Assembled<'a>>,
}

impl VisitParameter for Collect<'_, '_> {
    fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
        let (rule, layer) = self
            .dialect
            .rule(self.family, path)
            .unwrap_or_else(|| panic!("{} has no {path}", self.family.architecture));
        let value = match self.gradients {
            None => parameter.val(),
            Some(gradients) => parameter
                .val()
                .grad(gradients)
                .unwrap_or_else(|| parameter.val().inner().zeros_like()),
        };
        let mut dims: Vec<usize> = value.dims().to_vec();
        let part = self.parts.get(path);
        if let Some(part) = part {
            dims.clone_from(&part.parameter.shape);
        }
        let count = rule.count(self.spelling, &dims);
        for index in 0..count {
            let Piece {
                name,
                shape,
                start,
                step,
                transposed,
                ..
            } = rule.piece(self.spelling, Numbers::of_layer(layer), &dims, index);
            let (value, part, elsewhere) = (value.clone(), part.cloned(), self.elsewhere);
            let experts = dims[0];
            let values = move || {
                let on_host =
                    |value: Tensor<D>| -> Vec<f32> { value.into_data().iter::<f32>().collect() };
                let one = |expert: usize| match &part {
                    None => on_host(value.clone().narrow(0, expert, 1)),
                    Some(part) => match &part.experts {
                        Some(own) if own.contains(&expert) => {
                            on_host(value.clone().narrow(0, expert - own.start, 1))
                        }
                        _ => elsewhere(&part.parameter, Some(expert)),
                    },
                };
                let values = match (count > 1, &part) {
                    (true, _) => one(index),
                    (false, None) => on_host(value.clone()),
                    (false, Some(part)) if part.experts.is_some() => {
                        (0..experts).flat_map(one).collect()
                    }
                    (false, Some(part)) => elsewhere(&part.parameter, None),
                };
                let Some((d_in, d_out)) = transposed else {
                    return values;
                };
                let mut stored = vec![0.0; values.len()];
                transpose(&values, d_in, d_out, &mut stored);
                stored
            };
            let tensor = self.tensors.entry(name.clone()).or_insert_with(|| {
                self.order.push(name);
                Assembled {
                    shape,
                    pieces: BTreeMap::new(),
                }
            });
            tensor.pieces.insert(start, (step, Box::new(values)));
        }
    }
}
