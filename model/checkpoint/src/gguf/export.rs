//! Writes a model as a GGUF file.

use std::path::Path;
use std::rc::Rc;

use super::architecture::Architecture;
use super::block::BlockType;
use super::config::{has_rope_factors, rope_factors};
use super::file::pair;
use super::latent::{self, Widths};
use super::limits::architecture_of;
use super::metadata::metadata;
use super::names::{EMBEDDING, HEAD, ROPE_FACTORS, is_matrix, is_rotated};
use super::value::Value;
use super::write::{Outgoing, write};
use crate::dialect::Dialect;
use crate::layout::Spelling;
use crate::tensor_writer::{NamedTensor, Values};
use crate::writer::{family, model_tensors};
use crate::{CheckpointError, Notes};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;

/// How a GGUF file is written.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufOptions {
    /// The type of the matrices; vectors and routers are stored in f32.
    pub kind: BlockType,
    /// What config.json says besides what is computed.
    pub notes: Notes,
    /// Keys and values that are written as they are: those of the tokenizer, and the model's name.
    pub metadata: Vec<(String, Value)>,
}

/// Checks that llama.cpp computes what a model computes.
///
/// # Errors
///
/// When it does not, with what it would compute otherwise.
pub fn check_exportable(model: &LanguageModel) -> Result<(), CheckpointError> {
    architecture_of(model.config(), &family(model)).map(drop)
}

/// Writes a model as a GGUF file, whole or not at all, and waits until it is on disk. `progress` is called with the bytes of
/// tensors that are written, and their total. Returns the number of matrices whose rows are not made of whole blocks of the type, and
/// which are stored in f16.
///
/// # Errors
///
/// See [`check_exportable`]; also when the file cannot be written, or a weight is beyond the range of the type.
pub fn save_gguf(
    model: &LanguageModel,
    path: &Path,
    options: &GgufOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<usize, CheckpointError> {
    let family = family(model);
    let config = model.config();
    let architecture = architecture_of(config, &family)?;
    let dialect = Dialect::Gguf(architecture);
    let mut tensors = model_tensors(model, &family, dialect, Spelling::Saved);
    if config.tied_embeddings && !architecture.tied {
        tensors.extend(embedding_as_head(model, &family, dialect));
    }
    if has_rope_factors(config) {
        let factors = rope_factors(config);
        let factors = NamedTensor::float(ROPE_FACTORS, [factors.len()], move || factors.clone());
        tensors.push(factors);
    }
    if let Some(latent) = config.latent {
        let widths = Widths {
            plain: config.head_dim - config.rotary_dim,
            value_dim: latent.value_dim,
            rank: latent.rank,
        };
        let tensors_of = |tensor| in_parts(tensor, config.heads, widths);
        tensors = tensors.into_iter().flat_map(tensors_of).collect();
    }
    let mut unfit = 0;
    let outgoing = tensors.into_iter().map(|tensor| {
        let kind = kind_of(&tensor, options.kind, &mut unfit);
        outgoing(tensor, kind, &architecture, config)
    });
    let outgoing: Vec<Outgoing<'_>> = outgoing.collect();
    let total = outgoing
        .iter()
        .map(|tensor| tensor.kind.bytes(&tensor.shape).unwrap_or(0) as u64);
    let total = total.sum();
    let mut all = metadata(config, &architecture, options.kind, &options.notes);
    all.extend(options.metadata.iter().cloned());
    write(path, &all, &outgoing, |done| progress(done, total))?;
    Ok(unfit)
}

/// A second time the embedding, for architectures that always have a head.
fn embedding_as_head(
    model: &LanguageModel,
    family: &crate::families::Family,
    dialect: Dialect,
) -> Option<NamedTensor<'static>> {
    let tensors = model_tensors(model, family, dialect, Spelling::Saved);
    let mut embedding = tensors
        .into_iter()
        .find(|tensor| tensor.name == EMBEDDING)?;
    HEAD.clone_into(&mut embedding.name);
    Some(embedding)
}

/// The keys and values of latent attention apart; any other tensor as it is.
fn in_parts(
    tensor: NamedTensor<'static>,
    heads: usize,
    widths: Widths,
) -> Vec<NamedTensor<'static>> {
    let Some([keys, values]) = latent::parts(&tensor.name) else {
        return vec![tensor];
    };
    let Widths {
        plain,
        value_dim,
        rank,
    } = widths;
    let Values::Float(both) = tensor.values else {
        unreachable!("the parameters of a model are floats")
    };
    let both: Rc<dyn Fn() -> Vec<f32>> = both.into();
    let again = both.clone();
    vec![
        NamedTensor::float(keys, [heads, rank, plain], move || {
            latent::keys(&both(), widths)
        }),
        NamedTensor::float(values, [heads, value_dim, rank], move || {
            latent::values(&again(), widths)
        }),
    ]
}

/// The type that a tensor is stored in.
fn kind_of(tensor: &NamedTensor<'_>, kind: BlockType, unfit: &mut usize) -> BlockType {
    if !is_matrix(&tensor.name, &tensor.shape) {
        return BlockType::Plain(WeightDtype::F32);
    }
    match kind.bytes(&tensor.shape) {
        Some(_) => kind,
        None => {
            *unfit += 1;
            BlockType::Plain(WeightDtype::F16)
        }
    }
}

fn outgoing<'a>(
    tensor: NamedTensor<'a>,
    kind: BlockType,
    architecture: &Architecture,
    config: &ModelConfig,
) -> Outgoing<'a> {
    let NamedTensor {
        name,
        shape,
        values,
    } = tensor;
    let Values::Float(values) = values else {
        unreachable!("the parameters of a model are floats")
    };
    let (rows, width) = (shape[0], config.head_dim);
    let values: Box<dyn Fn() -> Vec<f32>> = match architecture.paired && is_rotated(&name) {
        true => Box::new(move || pair(&values(), rows, width)),
        false => values,
    };
    Outgoing {
        name,
        shape,
        kind,
        values,
    }
}
