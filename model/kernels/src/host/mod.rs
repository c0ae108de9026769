//! Tensors as slices, and the products of matrices in them.
//!
//! Every CPU kernel is a function of slices. [`Host`] is how tensors of `flex` become slices and slices tensors;
//! `ndarray` stays without kernels, as the reference.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod exp;
pub(crate) mod gemm;
pub(crate) mod gemv;
#[cfg(target_arch = "x86_64")]
mod panels;
pub(crate) mod product;
pub(crate) mod simd;
pub(crate) mod spin_pool;
mod stream;
pub(crate) mod uninit;
mod widen;

use std::borrow::Cow;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{Device, Shape, read_sync};
use half::f16;
#[cfg(feature = "flex")]
use {
    crate::dtype::StorageFloat, burn::backend::flex::FlexTensor, burn::tensor::DType, bytemuck::Pod,
};

use firebox_runtime::device::{Kernels, kernels};
use gemv::{GEMV_MAX_ROWS, WeightStorage};

/// Runs work on tensors of `rows` rows. On a CPU, few rows leave each thread so little between two barriers that it runs
/// [`awake`].
pub fn latency_bound<T: Send>(rows: usize, device: &Device, work: impl FnOnce() -> T + Send) -> T {
    match rows <= GEMV_MAX_ROWS {
        true => awake(device, work),
        false => work(),
    }
}

/// Runs work of many small steps. On a CPU, threads do not fall asleep between them, where being woken takes as long as a step:
/// see `spin_pool.rs`.
pub fn awake<T: Send>(device: &Device, work: impl FnOnce() -> T + Send) -> T {
    match kernels(device) {
        Kernels::Slices => spin_pool::spin(work),
        _ => work(),
    }
}

/// A backend whose tensors lie in this machine's memory, as slices that kernels work on.
pub trait Host: Backend {
    /// Values in row-major order; copied only where they do not lie so.
    fn values(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]>;

    /// Values of weights, in whatever type they are held; copied only where they do not lie in row-major order.
    fn weights(tensor: &FloatTensor<Self>) -> WeightStorage<'_>;

    /// Values of a tensor in f16; copied only where they do not lie in row-major order.
    fn halves(tensor: &FloatTensor<Self>) -> Cow<'_, [f16]>;

    /// The integers of weights in 8 bits; copied only where they do not lie in row-major order.
    fn codes(tensor: &IntTensor<Self>) -> Cow<'_, [i8]>;

    /// Integers in row-major order.
    fn integers(tensor: IntTensor<Self>) -> Vec<i64> {
        let data = read_sync(Self::int_into_data(tensor)).expect("this machine's own memory");
        data.iter().collect()
    }

    /// Values to be changed in place; copied only where someone else holds the tensor too.
    fn into_values(tensor: FloatTensor<Self>) -> Vec<f32>;

    /// The tensor's own values, to be changed in place; copied first where someone else holds the tensor too,
    /// or where they do not lie in row-major order.
    fn values_mut(tensor: &mut FloatTensor<Self>) -> &mut [f32];

    /// A tensor of these values, which are not copied.
    fn tensor(values: Vec<f32>, shape: Shape) -> FloatTensor<Self>;
}

#[cfg(feature = "flex")]
impl Host for burn::backend::Flex {
    fn values(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        match tensor.as_slice::<f32>() {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(tensor.to_contiguous().storage::<f32>().to_vec()),
        }
    }

    fn weights(tensor: &FloatTensor<Self>) -> WeightStorage<'_> {
        fn values<T: StorageFloat + Pod>(tensor: &FlexTensor) -> Cow<'_, [T]> {
            match tensor.as_slice() {
                Some(values) => Cow::Borrowed(values),
                None => Cow::Owned(tensor.to_contiguous().storage().to_vec()),
            }
        }
        match tensor.dtype() {
            DType::BF16 => WeightStorage::Bf16(values(tensor)),
            DType::F16 => WeightStorage::F16(values(tensor)),
            _ => WeightStorage::F32(values(tensor)),
        }
    }

    fn halves(tensor: &FloatTensor<Self>) -> Cow<'_, [f16]> {
        match tensor.as_slice() {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(tensor.to_contiguous().storage().to_vec()),
        }
    }

    fn codes(tensor: &IntTensor<Self>) -> Cow<'_, [i8]> {
        match tensor.as_slice() {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(tensor.to_contiguous().storage().to_vec()),
        }
    }

    fn into_values(tensor: FloatTensor<Self>) -> Vec<f32> {
        let data = tensor.into_data();
        data.try_into_vec().expect("f32, as it was made")
    }

    fn values_mut(tensor: &mut FloatTensor<Self>) -> &mut [f32] {
        let elements = tensor.layout().num_elements();
        // A view may be a part of its buffer, even where its values lie side by side.
        if tensor.layout().contiguous_offsets() != Some((0, elements))
            || tensor.bytes().len() != elements * size_of::<f32>()
        {
            *tensor = Self::tensor(Self::values(tensor).into_owned(), tensor.shape());
        }
        tensor.storage_mut::<f32>()
    }

    fn tensor(values: Vec<f32>, shape: Shape) -> FloatTensor<Self> {
        FlexTensor::from_data(burn::tensor::TensorData::new(values, shape))
    }
}
