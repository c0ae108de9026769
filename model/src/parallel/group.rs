//! The tensor ranks of a stage.

use std::sync::Arc;

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use firebox_comm::{Comm, CommError};
use firebox_kernels::embedding;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sampling::Exchange;

/// The ranks that share the matrices of a stage's layers. Each has the whole residual stream, the same bits as the others.
///
/// When a message fails, the rank's work ends by [`CommError::unwind`], a panic that prints nothing, up to where the rank
/// was started: no function of the forward pass has an error to hand on.
#[derive(Debug, Clone)]
pub struct TensorGroup {
    comm: Arc<dyn Comm>,
}

impl TensorGroup {
    /// The ranks of a communicator.
    pub fn new(comm: Arc<dyn Comm>) -> Self {
        Self { comm }
    }

    /// This rank's place.
    pub fn rank(&self) -> usize {
        self.comm.rank()
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.comm.size()
    }

    /// The communicator.
    pub fn comm(&self) -> &Arc<dyn Comm> {
        &self.comm
    }

    /// The sum over the ranks, in f32 and in their order: the same bits for each of them. A single rank's is its own.
    pub fn sum<const D: usize>(&self, own: Tensor<D>) -> Tensor<D> {
        if self.size() == 1 {
            return own;
        }
        let (shape, device) = (own.shape(), own.device());
        let data = own.cast(DType::F32).into_data();
        let mut values: Vec<f32> = data.try_into_vec().expect("values in f32");
        unwound(self.comm.all_reduce_sum(&mut values));
        Tensor::from_data(TensorData::new(values, shape), &device)
    }

    /// The rows of a table that `ids` name, of which this rank has those from id `first` on.
    ///
    /// # Shapes
    ///
    /// - `table`: `[ids of this rank, width]`
    /// - `ids`: `[tokens]`
    /// - output: `[tokens, width]`, in f32
    pub(crate) fn embedding(
        &self,
        table: Tensor<2>,
        ids: Tensor<1, Int>,
        first: usize,
    ) -> Tensor<2> {
        let (ids, elsewhere) = within(ids, first, table.dims()[0]);
        let rows = embedding(table, ids).cast(DType::F32);
        let shape = rows.shape();
        let elsewhere = elsewhere.unsqueeze_dim::<2>(1).expand(shape);
        self.sum(rows.mask_fill(elsewhere, 0.0))
    }

    /// The columns of all ranks side by side, in their order.
    ///
    /// # Shapes
    ///
    /// - `own`: `[rows, columns of this rank]`
    /// - output: `[rows, columns]`
    pub(crate) fn gather_columns(&self, own: Tensor<2>) -> Tensor<2> {
        if self.size() == 1 {
            return own;
        }
        let ([rows, _], device) = (own.dims(), own.device());
        let values: Vec<f32> = own.into_data().try_into_vec().expect("values in f32");
        let parts = self.comm.all_gather(&bytes(&values));
        let parts = unwound(parts).into_iter().map(|part| {
            let values = floats(&part);
            let columns = values.len() / rows.max(1);
            Tensor::from_data(TensorData::new(values, [rows, columns]), &device)
        });
        Tensor::cat(parts.collect(), 1)
    }
}

impl Exchange for TensorGroup {
    fn all<T: Serialize + DeserializeOwned>(&mut self, own: T) -> Vec<T> {
        if self.size() == 1 {
            return vec![own];
        }
        let parts = unwound(self.comm.all_gather(&encoded(&own)));
        parts.iter().map(|part| decoded(part)).collect()
    }
}

/// The places of token ids among the `own` ones from id `first` on, and which of the ids are not among them: those have any
/// place.
///
/// # Shapes
///
/// - `ids`, outputs: `[tokens]`
pub(super) fn within(
    ids: Tensor<1, Int>,
    first: usize,
    own: usize,
) -> (Tensor<1, Int>, Tensor<1, Bool>) {
    let places = ids - first as i64;
    let elsewhere = places
        .clone()
        .lower_elem(0)
        .bool_or(places.clone().greater_equal_elem(own as i64));
    (places.clamp(0, own as i64 - 1), elsewhere)
}

/// The result of an operation that did not fail.
pub(super) fn unwound<T>(result: Result<T, CommError>) -> T {
    result.unwrap_or_else(|error| error.unwind())
}

/// A message.
pub(super) fn encoded(message: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(message).expect("a message that can be written")
}

/// What a message of another rank says.
pub(super) fn decoded<T: DeserializeOwned>(message: &[u8]) -> T {
    postcard::from_bytes(message).expect("a message of the same program")
}

/// Values as they lie in memory, little-endian.
pub(super) fn bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Values of bytes that [`bytes`] gave.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks::<4>().0.iter();
    values.map(|&value| f32::from_le_bytes(value)).collect()
}
