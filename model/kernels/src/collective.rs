//! What ranks compute together, as an operation with a gradient.

#![allow(deprecated)] // `ndarray` is deprecated upstream, and kept as the reference

use std::fmt::Debug;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor, TensorData, read_sync};

use crate::operation::{Operation, differentiable};

/// A function of the rows of a matrix that ranks compute together by messages, each with rows of its own. All of them call
/// it at the same points of a forward pass and of its backward pass.
pub trait Collective: Debug + Send + Sync {
    /// What this rank gets for its rows of so many values, in rows of as many.
    fn forward(&self, rows: Vec<f32>, width: usize) -> Vec<f32>;

    /// The gradient of this rank's rows, from that of what it got.
    fn backward(&self, gradient: Vec<f32>, width: usize) -> Vec<f32>;

    /// Whether the rows, and the gradient, pass through as they are: then they stay where they are, and nobody is asked.
    fn passes(&self) -> [bool; 2] {
        [false; 2]
    }
}

/// What ranks compute together of their rows, in f32. Values pass through this machine's memory, wherever the tensor is.
///
/// # Shapes
///
/// - `rows`: `[rows, width]`
/// - output: `[rows that this rank gets, width]`
pub fn collective(rows: Tensor<2>, function: Arc<dyn Collective>) -> Tensor<2> {
    let rows = rows.cast(DType::F32).into_dispatch();
    Tensor::from_dispatch(<Dispatch as CollectiveBackend>::collective(rows, function))
}

/// The backends' side of [`collective`].
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait CollectiveBackend: Backend {
    /// See [`collective`].
    fn collective(rows: FloatTensor<Self>, function: Arc<dyn Collective>) -> FloatTensor<Self>;
}

/// A backend without autodiff.
trait Plain: Backend {}

#[cfg(feature = "flex")]
impl Plain for burn::backend::Flex {}

#[cfg(feature = "ndarray")]
impl Plain for burn::backend::NdArray {}

#[cfg(feature = "cube")]
impl Plain for burn::backend::Cube {}

/// The operation, of the rows.
#[derive(Debug, Clone)]
struct Together(Arc<dyn Collective>);

impl<B: Plain> Operation<B, 1> for Together {
    type Saved = Self;

    fn forward_saving(self, [rows]: [FloatTensor<B>; 1]) -> (FloatTensor<B>, Self) {
        let [passes, _] = self.0.passes();
        let output = match passes {
            true => rows,
            false => on_host::<B>(rows, |rows, width| self.0.forward(rows, width)),
        };
        (output, self)
    }

    fn backward(
        saved: Self,
        gradient: FloatTensor<B>,
        _needs_grad: [bool; 1],
    ) -> [Option<FloatTensor<B>>; 1] {
        let [_, passes] = saved.0.passes();
        let gradient = match passes {
            true => gradient,
            false => on_host::<B>(gradient, |rows, width| saved.0.backward(rows, width)),
        };
        [Some(gradient)]
    }
}

/// What `work` makes of the rows of a matrix and their width, where the matrix is.
fn on_host<B: Backend>(
    rows: FloatTensor<B>,
    work: impl FnOnce(Vec<f32>, usize) -> Vec<f32>,
) -> FloatTensor<B> {
    let [_, width] = rows.shape().dims();
    let device = rows.device();
    let data = read_sync(B::float_into_data(rows)).expect("the values of a tensor");
    let values = work(data.try_into_vec().expect("values in f32"), width);
    let shape = [values.len() / width.max(1), width];
    B::float_from_data(TensorData::new(values, shape), &device)
}

impl<B: Plain> CollectiveBackend for B {
    fn collective(rows: FloatTensor<Self>, function: Arc<dyn Collective>) -> FloatTensor<Self> {
        <Together as Operation<B, 1>>::forward(Together(function), [rows])
    }
}

impl<B: Plain, C: CheckpointStrategy> CollectiveBackend for Autodiff<B, C> {
    fn collective(rows: FloatTensor<Self>, function: Arc<dyn Collective>) -> FloatTensor<Self> {
        differentiable::<_, B, C, 1>(Together(function), [rows])
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::values;

    use super::*;

    on_every_device!(
        rows_go_away_and_their_gradients_come_back,
        what_passes_is_not_asked_for,
    );

    /// As if another rank had sent a row of ones between this rank's rows, and got the first of these.
    #[derive(Debug)]
    struct Exchange;

    impl Collective for Exchange {
        fn forward(&self, rows: Vec<f32>, width: usize) -> Vec<f32> {
            [vec![1.0; width], rows[width..].to_vec(), vec![1.0; width]].concat()
        }

        fn backward(&self, gradient: Vec<f32>, width: usize) -> Vec<f32> {
            [
                vec![7.0; width],
                gradient[width..gradient.len() - width].to_vec(),
            ]
            .concat()
        }
    }

    fn rows_go_away_and_their_gradients_come_back(device: Device) {
        let device = device.autodiff();
        let rows = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]];
        let rows = Tensor::<2>::from_floats(rows, &device).require_grad();
        let got = collective(rows.clone(), Arc::new(Exchange));
        assert_eq!(
            values(got.clone()),
            [1.0, 1.0, 3.0, 4.0, 5.0, 6.0, 1.0, 1.0]
        );
        let gradients = got.square().sum().backward();
        let gradient = values(rows.grad(&gradients).unwrap());
        assert_eq!(gradient, [7.0, 7.0, 6.0, 8.0, 10.0, 12.0]);
    }

    /// As if another rank had the same, in one direction alone.
    #[derive(Debug)]
    struct Doubled {
        forward: bool,
    }

    impl Doubled {
        fn twice(rows: Vec<f32>, is_done: bool) -> Vec<f32> {
            assert!(is_done, "what passes is not asked for");
            rows.into_iter().map(|value| 2.0 * value).collect()
        }
    }

    impl Collective for Doubled {
        fn forward(&self, rows: Vec<f32>, _: usize) -> Vec<f32> {
            Self::twice(rows, self.forward)
        }

        fn backward(&self, gradient: Vec<f32>, _: usize) -> Vec<f32> {
            Self::twice(gradient, !self.forward)
        }

        fn passes(&self) -> [bool; 2] {
            [!self.forward, self.forward]
        }
    }

    fn what_passes_is_not_asked_for(device: Device) {
        let device = device.autodiff();
        for (forward, expected) in [(true, [2.0, 4.0, 2.0, 2.0]), (false, [1.0, 2.0, 4.0, 4.0])] {
            let rows = Tensor::<2>::from_floats([[1.0, 2.0]], &device).require_grad();
            let got = collective(rows.clone(), Arc::new(Doubled { forward }));
            let output = values(got.clone());
            // The sum of twice the output.
            let gradients = got.mul_scalar(2.0).sum().backward();
            let gradient = values(rows.grad(&gradients).unwrap());
            assert_eq!([output, gradient].concat(), expected);
        }
    }
}
