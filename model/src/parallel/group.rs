//! The tensor ranks of a stage.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use firebox_comm::{Comm, CommError};
use firebox_kernels::{Collective, collective, embedding};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sampling::Exchange;

/// The ranks that share the matrices of a stage's layers. Each has the whole residual stream, the same bits as the others.
///
/// What they divide begins with `enter` and ends with [`sum`](Self::sum), which have gradients: f and g of
/// Megatron-LM (arXiv 1909.08053, section 3). So every rank has the gradient of the stream, too, and of all that it computes
/// as the others do.
///
/// When a message fails, the rank's work ends by [`CommError::unwind`], a panic that prints nothing, up to where the rank
/// was started: no function of the forward pass has an error to hand on.
#[derive(Debug, Clone)]
pub struct TensorGroup {
    comm: Arc<dyn Comm>,
    /// Nanoseconds that this rank has spent in messages, waiting for others included.
    communicating: Arc<AtomicU64>,
}

impl TensorGroup {
    /// The ranks of a communicator.
    pub fn new(comm: Arc<dyn Comm>) -> Self {
        Self {
            comm,
            communicating: Arc::default(),
        }
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

    /// How long this rank has spent in messages so far, waiting for others included.
    pub fn communicating(&self) -> Duration {
        Duration::from_nanos(self.communicating.load(Ordering::Relaxed))
    }

    /// The sum over the ranks, in f32 and in their order: the same bits for each of them. A single rank's is its own.
    ///
    /// All ranks compute the same with it, so that its gradient is that of each rank's term.
    pub fn sum<const D: usize>(&self, own: Tensor<D>) -> Tensor<D> {
        self.added_up(own, Direction::Forward)
    }

    /// Values that every rank has, of which each computes a part of what is made of them: it has a term of their gradient,
    /// and the gradient is the sum over the ranks. Without gradients it does nothing.
    pub(crate) fn enter<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match x.is_autodiff() {
            true => self.added_up(x, Direction::Backward),
            false => x,
        }
    }

    fn added_up<const D: usize>(&self, values: Tensor<D>, direction: Direction) -> Tensor<D> {
        if self.size() == 1 {
            return values;
        }
        let shape = values.shape();
        let width = shape[D - 1];
        let rows = shape.num_elements() / width.max(1);
        let sum = Arc::new(Sum {
            group: self.clone(),
            direction,
        });
        collective(values.reshape([rows, width]), sum).reshape(shape)
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
        let parts = self.timed(|| self.comm.all_gather(&bytes(&values)));
        let parts = parts.into_iter().map(|part| {
            let values = floats(&part);
            let columns = values.len() / rows.max(1);
            Tensor::from_data(TensorData::new(values, [rows, columns]), &device)
        });
        Tensor::cat(parts.collect(), 1)
    }

    fn timed<T>(&self, work: impl FnOnce() -> Result<T, CommError>) -> T {
        let started = Instant::now();
        let result = work();
        let nanoseconds = started.elapsed().as_nanos() as u64;
        self.communicating.fetch_add(nanoseconds, Ordering::Relaxed);
        unwound(result)
    }
}

/// Where values are added up over the ranks; in the other direction they pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// A sum over the ranks, or a gradient that is one.
#[derive(Debug)]
struct Sum {
    group: TensorGroup,
    direction: Direction,
}

impl Sum {
    fn of(&self, mut values: Vec<f32>, direction: Direction) -> Vec<f32> {
        if self.direction == direction {
            let group = &self.group;
            group.timed(|| group.comm.all_reduce_sum(&mut values));
        }
        values
    }
}

impl Collective for Sum {
    fn forward(&self, rows: Vec<f32>, _: usize) -> Vec<f32> {
        self.of(rows, Direction::Forward)
    }

    fn backward(&self, gradient: Vec<f32>, _: usize) -> Vec<f32> {
        self.of(gradient, Direction::Backward)
    }

    fn passes(&self) -> [bool; 2] {
        [Direction::Forward, Direction::Backward].map(|direction| direction != self.direction)
    }
}

impl Exchange for TensorGroup {
    fn ranks(&self) -> usize {
        self.size()
    }

    fn all<T: Serialize + DeserializeOwned>(&mut self, own: T) -> Vec<T> {
        if self.size() == 1 {
            return vec![own];
        }
        let own = encoded(&own);
        let parts = self.timed(|| self.comm.all_gather(&own));
        parts.iter().map(|part| decoded(part)).collect()
    }
}

/// Those of a rank that may be one of several, or alone.
impl Exchange for Option<TensorGroup> {
    fn ranks(&self) -> usize {
        self.as_ref().map_or(1, TensorGroup::size)
    }

    fn all<T: Serialize + DeserializeOwned>(&mut self, own: T) -> Vec<T> {
        match self {
            Some(group) => group.all(own),
            None => vec![own],
        }
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
