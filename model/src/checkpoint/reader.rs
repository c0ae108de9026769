//! A checkpoint as a source of parameters.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};

use super::layout::{Layout, ROUTER_BIAS, Storage, fill};
use super::{CheckpointError, MODEL_FILE, TensorFile, TensorValues};
use crate::config::ModelConfig;
use crate::parameters::{Initial, ParameterSource};

/// Reads parameters from a checkpoint folder, each tensor exactly once.
#[derive(Debug)]
pub struct CheckpointParameters<'a> {
    file: TensorFile,
    unused: BTreeSet<String>,
    shapes: BTreeMap<String, Vec<usize>>,
    layout: Layout,
    layers: usize,
    experts: usize,
    device: &'a Device,
}

impl<'a> CheckpointParameters<'a> {
    /// Opens the weights in a folder.
    ///
    /// # Errors
    ///
    /// When the file is absent or damaged.
    pub fn open(
        folder: &Path,
        config: &ModelConfig,
        device: &'a Device,
    ) -> Result<Self, CheckpointError> {
        let path = folder.join(MODEL_FILE);
        if !path.exists() {
            return Err(CheckpointError::NotACheckpoint {
                folder: folder.to_owned(),
                missing: MODEL_FILE,
            });
        }
        let file = TensorFile::open(&path)?;
        let shapes = file.shapes()?;
        Ok(Self {
            unused: shapes.keys().cloned().collect(),
            shapes,
            file,
            layout: Layout::of(config),
            layers: config.layers,
            experts: config.experts.count,
            device,
        })
    }

    /// The selection bias of each router; none where the checkpoint has none.
    ///
    /// # Errors
    ///
    /// When one has another shape.
    pub fn router_bias(&mut self) -> Result<Vec<Vec<f32>>, CheckpointError> {
        let mut biases = Vec::new();
        for layer in 0..self.layers {
            let name = fill(ROUTER_BIAS, Some(layer), None);
            let known = self.shapes.contains_key(&name);
            let path = format!("blocks.{layer}.feed_forward.router.bias");
            biases.push(if known {
                self.take(&path, &name, &[self.experts])?
            } else {
                Vec::new()
            });
        }
        Ok(biases)
    }

    /// Checks that nothing was left over.
    ///
    /// # Errors
    ///
    /// When the file has tensors that no parameter was filled from.
    pub fn finish(self) -> Result<(), CheckpointError> {
        if self.unused.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::UnusedTensors {
            count: self.unused.len(),
            names: self.unused_names(),
            file: self.path(),
        })
    }

    fn path(&self) -> PathBuf {
        self.file.path().to_owned()
    }

    fn unused_names(&self) -> String {
        let mut names: Vec<String> = self
            .unused
            .iter()
            .take(8)
            .map(|name| format!("{name} {:?}", self.shapes[name]))
            .collect();
        if self.unused.len() > names.len() {
            names.push(format!("and {} more", self.unused.len() - names.len()));
        }
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    }

    fn take(
        &mut self,
        path: &str,
        name: &str,
        expected: &[usize],
    ) -> Result<Vec<f32>, CheckpointError> {
        let Some(TensorValues {
            shape: found,
            values,
        }) = self.file.read(name)?
        else {
            return Err(CheckpointError::MissingTensor {
                file: self.path(),
                name: name.to_owned(),
                path: path.to_owned(),
                shape: expected.into(),
                unused: self.unused_names(),
            });
        };
        if found != expected {
            return Err(CheckpointError::Shape {
                file: self.path(),
                name: name.to_owned(),
                path: path.to_owned(),
                found: found.into(),
                expected: expected.into(),
            });
        }
        self.unused.remove(name);
        Ok(values)
    }
}

impl ParameterSource for CheckpointParameters<'_> {
    type Error = CheckpointError;

    fn tensor<const D: usize>(
        &mut self,
        path: &str,
        shape: [usize; D],
        _: Initial,
    ) -> Result<Tensor<D>, CheckpointError> {
        let (rule, layer) = self
            .layout
            .rule(path)
            .unwrap_or_else(|| panic!("{} has no rule for {path}", self.layout.architecture));
        let values = match rule.storage {
            Storage::AsIs => self.take(path, &fill(rule.name, layer, None), &shape)?,
            Storage::Transposed => {
                let (d_in, d_out) = (shape[0], shape[1]);
                let stored = self.take(path, &fill(rule.name, layer, None), &[d_out, d_in])?;
                transposed(&stored, d_out, d_in)
            }
            Storage::Experts => {
                let (experts, d_in, d_out) = (shape[0], shape[1], shape[2]);
                let mut stacked = Vec::with_capacity(experts * d_in * d_out);
                for expert in 0..experts {
                    let stored =
                        self.take(path, &fill(rule.name, layer, Some(expert)), &[d_out, d_in])?;
                    stacked.extend(transposed(&stored, d_out, d_in));
                }
                stacked
            }
        };
        Ok(Tensor::from_data(
            TensorData::new(values, shape),
            self.device,
        ))
    }
}

/// The transpose of a matrix in row-major order.
pub(super) fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    // Blocks keep both sides in cache; a plain loop misses on every write of a large matrix.
    const BLOCK: usize = 32;
    let mut output = vec![0.0; values.len()];
    for row_block in (0..rows).step_by(BLOCK) {
        for column_block in (0..columns).step_by(BLOCK) {
            for row in row_block..(row_block + BLOCK).min(rows) {
                for column in column_block..(column_block + BLOCK).min(columns) {
                    output[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use super::transposed;

    #[test]
    fn a_transpose_larger_than_a_block() {
        let (rows, columns) = (37, 70);
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let turned = transposed(&values, rows, columns);
        assert_eq!(turned[5 * rows + 36], values[36 * columns + 5]);
        assert_eq!(transposed(&turned, columns, rows), values);
    }
}
