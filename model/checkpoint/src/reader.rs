//! A [`ParameterSource`] that reads a checkpoint.

use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use half::{bf16, f16};
use rayon::prelude::*;

use super::CheckpointError;
use super::families::Family;
use super::layout::transpose;
use super::mismatch::Mismatch;
use super::plan::{EMBEDDING_PATH, Files, Plan, Planned};
use super::store::TensorStore;
use firebox_kernels::dtype::{StorageFloat, WeightDtype, WeightFormat};
use firebox_kernels::{Int8, LargeWeight};
use firebox_model::config::ModelConfig;
use firebox_model::matrix::Matrix;
use firebox_model::parallel::{Shard, Slice};
use firebox_model::parameters::{Held, ParameterSource, ParameterSpec, Role};
use firebox_runtime::device::is_host;

/// Reads parameters from a checkpoint folder, one after the other. Opening it compares all names and shapes: each
/// parameter has its tensors, and each tensor its parameter.
#[derive(Debug)]
pub struct CheckpointParameters<'a> {
    store: TensorStore,
    plan: Plan,
    shard: Option<Shard>,
    device: &'a Device,
    weight_storage: WeightStorage,
}

/// How weights are rounded and stored on the device.
#[derive(Debug, Clone, Copy)]
struct WeightStorage {
    /// Whether the weights of products are integers of 8 bits.
    int8: bool,
    /// The type that other values are rounded to.
    rounded: WeightDtype,
    /// The type of the tensors, which represents the rounded values exactly.
    stored: WeightDtype,
}

impl<'a> CheckpointParameters<'a> {
    /// Opens the weights in a folder. Matrices are held in `format`, everything else in f32: gains of norms and router
    /// weights are small, and a router's selection depends on small differences.
    ///
    /// # Errors
    ///
    /// When a file is missing or damaged, the tensors are not exactly those of the model, the device does not hold such
    /// weights, or the device trains and `format` is not f32.
    pub fn open(
        folder: &Path,
        config: &ModelConfig,
        family: &Family,
        device: &'a Device,
        format: impl Into<WeightFormat>,
    ) -> Result<Self, CheckpointError> {
        Self::of_files(
            folder,
            config,
            family,
            device,
            format.into(),
            Files::Whole(None),
        )
    }

    /// The same for one rank: it reads what the rank holds of each parameter, and nothing else of the files but their
    /// headers.
    ///
    /// # Errors
    ///
    /// See [`open`](Self::open).
    pub fn open_shard(
        folder: &Path,
        config: &ModelConfig,
        family: &Family,
        device: &'a Device,
        format: impl Into<WeightFormat>,
        shard: &Shard,
    ) -> Result<Self, CheckpointError> {
        let files = Files::Whole(Some(shard));
        Self::of_files(folder, config, family, device, format.into(), files)
    }

    /// The same from a folder that has the tensors of this rank alone.
    ///
    /// # Errors
    ///
    /// See [`open`](Self::open).
    pub fn open_rank(
        folder: &Path,
        config: &ModelConfig,
        family: &Family,
        device: &'a Device,
        format: impl Into<WeightFormat>,
        shard: &Shard,
    ) -> Result<Self, CheckpointError> {
        let files = Files::OfRank(shard);
        Self::of_files(folder, config, family, device, format.into(), files)
    }

    fn of_files(
        folder: &Path,
        config: &ModelConfig,
        family: &Family,
        device: &'a Device,
        format: WeightFormat,
        files: Files<'_>,
    ) -> Result<Self, CheckpointError> {
        let weight_storage = WeightStorage::on(device, format)?;
        let store = TensorStore::open(folder)?;
        let plan = Plan::new(&store, config, family, files)?;
        let opened = Self {
            store,
            plan,
            shard: files.shard().cloned(),
            device,
            weight_storage,
        };
        if opened.plan.has_tied_head {
            opened.check_tied_head()?;
        }
        Ok(opened)
    }

    /// The type of the stored weights; `None` if there are several.
    pub fn dtype(&self) -> Option<WeightDtype> {
        let mut all = self.store.tensors().map(|(_, info)| info.dtype);
        let first = all.next()?;
        all.all(|dtype| dtype == first).then_some(first)
    }

    /// The number of bytes of weights that were read so far.
    pub fn bytes_read(&self) -> u64 {
        self.store.bytes_read()
    }

    /// The selection bias of each router, of the rank's stage where it is a rank that reads; empty if the checkpoint has none.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn router_bias(&self) -> Result<Vec<Vec<f32>>, CheckpointError> {
        let biases = self.plan.biases.iter();
        biases.map(|name| self.store.read(name)).collect()
    }

    /// Where the values of a parameter are.
    fn planned<const D: usize>(
        &self,
        spec: &ParameterSpec<D>,
    ) -> Result<&Planned, CheckpointError> {
        let planned = self.plan.parameters.get(&spec.path);
        let planned = planned.filter(|planned| planned.held.of() == spec.shape);
        planned.ok_or_else(|| {
            let mut mismatch = Mismatch::default();
            mismatch.expect(&spec.path, &spec.shape, None);
            mismatch
                .check(self.store.folder())
                .expect_err("a parameter is missing")
        })
    }

    /// Some files contain a head although it is tied to the embedding; then the two must be equal. A rank compares the rows
    /// that it has.
    fn check_tied_head(&self) -> Result<(), CheckpointError> {
        let Some(embedding) = self.plan.parameters.get(EMBEDDING_PATH) else {
            return Ok(()); // another rank's
        };
        let whole = embedding.held.of();
        let dialect = self.store.dialect();
        for row in embedding.held.ranges()[0].iter().cloned().flatten() {
            let row = Slice::new(whole, vec![vec![row..row + 1], vec![0..whole[1]]]);
            let of = |name| self.store.read_part::<f32>(name, &row);
            if of(dialect.head())? != of(dialect.embedding())? {
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

    fn shard(&self) -> Option<&Shard> {
        self.shard.as_ref()
    }

    fn parameter<const D: usize>(
        &mut self,
        spec: ParameterSpec<D>,
    ) -> Result<Param<Tensor<D>>, CheckpointError> {
        if let Held::Zeros(shape) = self.held(&spec) {
            return Ok(Param::from_tensor(Tensor::zeros(shape, self.device)));
        }
        let planned = self.planned(&spec)?;
        let storage = match spec.role {
            Role::Norm
            | Role::Bias
            | Role::Sinks
            | Role::Router
            | Role::RouterBias
            | Role::Gate
            | Role::TowerEmbedding => WeightStorage::F32,
            _ => self.weight_storage,
        };
        let data = match storage.rounded {
            WeightDtype::F32 => read::<f32>(&self.store, planned),
            WeightDtype::Bf16 => read::<bf16>(&self.store, planned),
            WeightDtype::F16 => read::<f16>(&self.store, planned),
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

    fn matrix<const D: usize>(
        &mut self,
        spec: ParameterSpec<D>,
    ) -> Result<Matrix<D>, CheckpointError> {
        if !self.weight_storage.int8 {
            return self.parameter(spec).map(Matrix::from);
        }
        let planned = self.planned(&spec)?;
        let data = read::<f32>(&self.store, planned)?;
        let shape = data.shape().dims();
        let values: Vec<f32> = data.try_into_vec().expect("f32, as it was read");
        let quantized = Int8::quantize(&values, shape, self.device);
        quantized
            .map(Matrix::Int8)
            .map_err(|LargeWeight { matrix }| {
                let mut stack = planned.part.ranges()[0].iter().cloned().flatten();
                let expert = stack.nth(matrix).filter(|_| planned.is_stack());
                CheckpointError::OutOfRange {
                    name: planned.piece(expert.unwrap_or(0)).name,
                    format: WeightFormat::Int8,
                }
            })
    }
}

impl WeightStorage {
    const F32: Self = Self {
        int8: false,
        rounded: WeightDtype::F32,
        stored: WeightDtype::F32,
    };

    fn on(device: &Device, format: WeightFormat) -> Result<Self, CheckpointError> {
        if format == WeightDtype::F32.into() {
            return Ok(Self::F32);
        }
        if device.is_autodiff() {
            return Err(CheckpointError::Training { format });
        }
        let (int8, rounded) = (format == WeightFormat::Int8, format.plain());
        let stored = match device.supports_dtype(rounded.tensor_type()) {
            true => rounded,
            // ndarray has f32 only: round the values, but store them in f32.
            false if is_host(device) => WeightDtype::F32,
            false => return Err(CheckpointError::Device { format }),
        };
        // GPUs may hold integers of 8 bits, but have no kernel that multiplies with them.
        if int8 && !is_host(device) {
            return Err(CheckpointError::Device { format });
        }
        Ok(Self {
            int8,
            rounded,
            stored,
        })
    }
}

/// The values of a parameter that are wanted.
fn read<T: StorageFloat>(
    store: &TensorStore,
    planned: &Planned,
) -> Result<TensorData, CheckpointError> {
    let (part, shape) = (&planned.part, planned.part.shape());
    if !planned.is_stack() {
        let piece = planned.piece(0);
        let stored = store.read_part::<T>(&piece.name, &piece.part(part.ranges()))?;
        let values = match shape[..] {
            [d_in, d_out] if piece.transposed.is_some() => {
                let mut values = vec![T::default(); stored.len()];
                transpose(&stored, d_out, d_in, &mut values);
                values
            }
            _ => stored,
        };
        return Ok(TensorData::new(values, shape));
    }
    // In parallel over experts: most of the time is spent transposing and touching fresh memory.
    let [stack, matrix @ ..] = part.ranges() else {
        unreachable!("a stack has a dimension")
    };
    let indices: Vec<usize> = stack.iter().cloned().flatten().collect();
    let mut values = vec![T::default(); part.elements()];
    let length = shape[1..].iter().product::<usize>().max(1);
    let outputs = values.par_chunks_mut(length).zip(indices);
    outputs.try_for_each(|(output, index)| -> Result<(), CheckpointError> {
        let piece = planned.piece(index);
        let stored = store.read_part::<T>(&piece.name, &piece.part(matrix))?;
        match piece.transposed {
            Some(_) => transpose(&stored, shape[2], shape[1], output),
            None => {
                let values = stored.into_iter().skip(piece.phase()).step_by(piece.step);
                output
                    .iter_mut()
                    .zip(values)
                    .for_each(|(to, value)| *to = value);
            }
        }
        Ok(())
    })?;
    Ok(TensorData::new(values, shape))
}
