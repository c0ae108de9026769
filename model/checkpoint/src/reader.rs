//! A [`ParameterSource`] that reads a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use half::{bf16, f16};
use rayon::prelude::*;

use super::CheckpointError;
use super::families::{EMBEDDING, Family, HEAD, ROUTER_BIAS};
use super::layout::{Piece, Rule, Spelling, fill, transpose};
use super::mismatch::Mismatch;
use super::store::TensorStore;
use firebox_kernels::dtype::StorageFloat;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::{ParameterInfo, ParameterSource, ParameterSpec, Role};
use firebox_runtime::device::is_host;

/// Reads parameters from a checkpoint folder, one after the other. Opening it compares all names and shapes: each
/// parameter has its tensors, and each tensor its parameter.
#[derive(Debug)]
pub struct CheckpointParameters<'a> {
    store: TensorStore,
    plan: BTreeMap<String, Planned>,
    /// Tensor names of the routers' selection bias, one per MoE layer; empty if there is none.
    biases: Vec<String>,
    device: &'a Device,
    weight_storage: WeightStorage,
}

/// How weights are rounded and stored on the device.
#[derive(Debug, Clone, Copy)]
struct WeightStorage {
    /// The type that values are rounded to.
    rounded: WeightDtype,
    /// The type of the tensors, which represents the rounded values exactly.
    stored: WeightDtype,
}

/// The tensors of a parameter.
#[derive(Debug)]
struct Planned {
    shape: Vec<usize>,
    pieces: Vec<Piece>,
}

impl<'a> CheckpointParameters<'a> {
    /// Opens the weights in a folder. Matrices are stored in `dtype`, everything else in f32: gains of norms and router
    /// weights are small, and a router's selection depends on small differences.
    ///
    /// # Errors
    ///
    /// When a file is missing or damaged, the tensors are not exactly those of the model, the device does not support
    /// `dtype`, or the device trains and `dtype` is not f32.
    pub fn open(
        folder: &Path,
        config: &ModelConfig,
        family: &Family,
        device: &'a Device,
        dtype: WeightDtype,
    ) -> Result<Self, CheckpointError> {
        let weight_storage = WeightStorage::on(device, dtype)?;
        let store = TensorStore::open(folder)?;
        // A size beyond what these files can contain would make the list of parameters unboundedly long.
        let tensors = store.tensors().count();
        if config.layers.len() > tensors {
            return Err(CheckpointError::Mismatch {
                place: folder.to_owned(),
                differences: format!(
                    "config.json has {} layers, but the files contain only {tensors} tensors",
                    config.layers.len()
                ),
            });
        }
        let mut mismatch = Mismatch::default();
        let plan: BTreeMap<String, Planned> = LanguageModel::parameter_list(config)
            .into_iter()
            .filter_map(|ParameterInfo { path, shape, .. }| {
                let Some((rule, layer)) = family.rule(&path) else {
                    mismatch.expect(&path, &shape, None);
                    return None;
                };
                // Tools that write shared tensors once may keep the head's name.
                let swapped = path == EMBEDDING_PATH
                    && config.tied_embeddings
                    && store.info(EMBEDDING).is_none()
                    && store.info(HEAD).is_some();
                let rule = match swapped {
                    true => Rule::as_is(EMBEDDING_PATH, HEAD),
                    false => rule,
                };
                let first = |spelling| rule.piece(spelling, layer, &shape, 0);
                let (saved, fused) = (first(Spelling::Saved), first(Spelling::Fused));
                let has = |piece: &Piece| store.info(&piece.name).is_some();
                let (spelling, first) = if has(&fused) && !has(&saved) {
                    (Spelling::Fused, fused)
                } else {
                    (Spelling::Saved, saved)
                };
                let count = rule.count(spelling, &shape);
                let last = rule.piece(spelling, layer, &shape, count - 1);
                let shared = spelling == Spelling::Fused || count > 1 && last.name == first.name;
                let found = store.info(&first.name);
                let absent = found.is_none_or(|info| shared && info.shape != first.shape);
                if absent {
                    mismatch.expect(&first.name, &first.shape, found);
                    return None;
                }
                if !shared && count > tensors {
                    mismatch.expect(&last.name, &last.shape, None);
                    return None;
                }
                let pieces = (0..count).map(|index| rule.piece(spelling, layer, &shape, index));
                let pieces = pieces.collect();
                Some((path, Planned { shape, pieces }))
            })
            .collect();
        let names = config
            .moe_layers()
            .map(|layer| fill(ROUTER_BIAS, Some(layer), None));
        let names: Vec<String> = names.collect();
        // Every router has one, or none has.
        let any = names.iter().any(|name| store.info(name).is_some());
        let biases = match family.has_selection_bias() && any {
            true => names,
            false => Vec::new(),
        };

        let mut read: BTreeMap<&str, usize> = BTreeMap::new();
        for piece in plan.values().flat_map(|planned| &planned.pieces) {
            match read.get_mut(piece.name.as_str()) {
                Some(length) => *length = length.saturating_add(piece.length),
                None => {
                    let found = store.info(&piece.name);
                    let fits = mismatch.expect(&piece.name, &piece.shape, found);
                    // A tensor with another shape is not listed twice.
                    read.insert(&piece.name, if fits { piece.length } else { usize::MAX });
                }
            }
        }
        let experts = config.moe.as_ref().map_or(0, |moe| moe.experts.count);
        for name in &biases {
            read.insert(name, experts);
            mismatch.expect(name, &[experts], store.info(name));
        }
        let redundant_head =
            config.tied_embeddings && store.info(HEAD).is_some() && store.info(EMBEDDING).is_some();
        if redundant_head {
            read.insert(HEAD, config.vocab_size * config.d_model);
            let shape = [config.vocab_size, config.d_model];
            mismatch.expect(HEAD, &shape, store.info(HEAD));
        }
        let further = match family.predicts_further() {
            true => further_layers(&store, config.layers.len()),
            false => BTreeSet::new(),
        };
        for (name, info) in store.tensors() {
            if layer_of(name).is_some_and(|layer| further.contains(&layer)) {
                continue;
            }
            // A fused tensor of which the model needs only a part does not match either.
            if read
                .get(name)
                .is_none_or(|&length| length < info.elements())
            {
                mismatch.superfluous(name, &info.shape);
            }
        }
        mismatch.check(folder)?;

        let opened = Self {
            store,
            plan,
            biases,
            device,
            weight_storage,
        };
        if redundant_head {
            opened.check_tied_head(config.d_model)?;
        }
        Ok(opened)
    }

    /// The type of the stored weights; `None` if there are several.
    pub fn dtype(&self) -> Option<WeightDtype> {
        let mut all = self.store.tensors().map(|(_, info)| info.dtype);
        let first = all.next()?;
        all.all(|dtype| dtype == first).then_some(first)
    }

    /// The selection bias of each router; empty if the checkpoint has none.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn router_bias(&self) -> Result<Vec<Vec<f32>>, CheckpointError> {
        let values = |name: &String| {
            let experts = self.store.info(name).map_or(0, |info| info.elements());
            self.store.read(name, 0..experts)
        };
        self.biases.iter().map(values).collect()
    }

    /// Some files contain a head although it is tied to the embedding; then the two must be equal.
    fn check_tied_head(&self, d_model: usize) -> Result<(), CheckpointError> {
        let values = self.store.info(HEAD).map_or(0, |info| info.elements());
        for start in (0..values).step_by(d_model) {
            let row = start..start + d_model;
            if self.store.read(HEAD, row.clone())? != self.store.read(EMBEDDING, row)? {
                return Err(CheckpointError::HeadNotTied {
                    folder: self.store.folder().to_owned(),
                });
            }
        }
        Ok(())
    }
}

impl ParameterSource for CheckpointParameters<'_> {
    type Error = CheckpointError;

    fn parameter<const D: usize>(
        &mut self,
        ParameterSpec {
            path, role, shape, ..
        }: ParameterSpec<D>,
    ) -> Result<Param<Tensor<D>>, CheckpointError> {
        let planned = self
            .plan
            .get(&path)
            .filter(|planned| planned.shape == shape);
        let Some(Planned { pieces, .. }) = planned else {
            let mut mismatch = Mismatch::default();
            mismatch.expect(&path, &shape, None);
            return Err(mismatch
                .check(self.store.folder())
                .expect_err("a parameter is missing"));
        };
        let storage = match role {
            Role::Norm | Role::Bias | Role::Sinks | Role::Router | Role::RouterBias => {
                WeightStorage::F32
            }
            _ => self.weight_storage,
        };
        let values = StoredValues {
            store: &self.store,
            pieces,
            shape: &shape,
        };
        let data = match storage {
            WeightStorage {
                rounded: WeightDtype::F32,
                ..
            } => values.read::<f32>(),
            WeightStorage {
                rounded: WeightDtype::Bf16,
                ..
            } => values.read::<bf16>(),
            WeightStorage {
                rounded: WeightDtype::F16,
                ..
            } => values.read::<f16>(),
        }?;
        let stored = storage.stored.tensor_type();
        let value = Tensor::from_data(data.convert_dtype(stored), (self.device, stored));
        let parameter = Param::from_tensor(value);
        Ok(match storage.rounded {
            WeightDtype::F32 => parameter,
            // The optimizer's updates are too small for these types.
            WeightDtype::Bf16 | WeightDtype::F16 => parameter.set_require_grad(false),
        })
    }
}

/// Path of the embedding.
const EMBEDDING_PATH: &str = "embedding";

impl WeightStorage {
    const F32: Self = Self {
        rounded: WeightDtype::F32,
        stored: WeightDtype::F32,
    };

    fn on(device: &Device, rounded: WeightDtype) -> Result<Self, CheckpointError> {
        if rounded == WeightDtype::F32 {
            return Ok(Self::F32);
        }
        if device.is_autodiff() {
            return Err(CheckpointError::Training { dtype: rounded });
        }
        let stored = match device.supports_dtype(rounded.tensor_type()) {
            true => rounded,
            // ndarray supports f32 only: round the values, but store them in f32.
            false if is_host(device) => WeightDtype::F32,
            false => return Err(CheckpointError::Device { dtype: rounded }),
        };
        Ok(Self { rounded, stored })
    }
}

/// The values of one parameter in the files.
struct StoredValues<'a> {
    store: &'a TensorStore,
    pieces: &'a [Piece],
    shape: &'a [usize],
}

impl StoredValues<'_> {
    fn read<T: StorageFloat>(&self) -> Result<TensorData, CheckpointError> {
        let read = |piece: &Piece| self.store.read_as::<T>(&piece.name, piece.span());
        let values = match self.pieces {
            [whole] if whole.transposed.is_none() && whole.step == 1 => read(whole)?,
            pieces => {
                // In parallel over experts: most of the time is spent transposing and touching fresh memory.
                let mut values = vec![T::default(); self.shape.iter().product()];
                let length = pieces[0].length.max(1);
                let outputs = values.par_chunks_mut(length).zip(pieces);
                outputs.try_for_each(|(output, piece)| -> Result<(), CheckpointError> {
                    let stored = read(piece)?;
                    match piece.transposed {
                        Some((d_in, d_out)) => transpose(&stored, d_out, d_in, output),
                        None => {
                            let values = stored.into_iter().step_by(piece.step);
                            output
                                .iter_mut()
                                .zip(values)
                                .for_each(|(to, value)| *to = value);
                        }
                    }
                    Ok(())
                })?;
                values
            }
        };
        Ok(TensorData::new(values, self.shape))
    }
}

/// The layers behind the last one that predict further tokens: they begin with a projection of their own.
fn further_layers(store: &TensorStore, layers: usize) -> BTreeSet<usize> {
    let names = store.tensors().map(|(name, _)| name);
    let names = names.filter(|name| name.ends_with(".eh_proj.weight"));
    let further = names.filter_map(layer_of);
    further.filter(|layer| *layer >= layers).collect()
}

/// The layer in a tensor's name, such as 3 in `model.layers.3.mlp.gate.weight`.
fn layer_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("model.layers.")?;
    rest.split('.').next()?.parse().ok()
}
