//! Tensors of the CPU backends as slices, and the products of matrices in them.
//!
//! `flex` and `ndarray` share the kernels of this folder: each is a function of slices, and this is the door
//! through which tensors become slices and slices tensors.

// NdArray is deprecated upstream; it is kept as an independent second opinion.
#![allow(deprecated)]

use std::borrow::Cow;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, DispatchDevice};
use burn::tensor::{Device, Shape};

/// Whether tensors of a device lie in this machine's memory, where the kernels over slices work on them.
pub fn is_host(device: &Device) -> bool {
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => true,
        _ => false,
    }
}

/// A backend whose f32 tensors lie in this machine's memory.
pub trait Host: Backend {
    /// Values in row-major order; copied only where they do not lie so.
    fn values(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]>;

    /// Values to be changed in place; copied only where someone else holds the tensor too.
    fn into_values(tensor: FloatTensor<Self>) -> Vec<f32>;

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

    fn into_values(tensor: FloatTensor<Self>) -> Vec<f32> {
        let data = tensor.into_data();
        data.into_vec().expect("f32, as it was made")
    }

    fn tensor(values: Vec<f32>, shape: Shape) -> FloatTensor<Self> {
        burn::backend::flex::FlexTensor::from_data(burn::tensor::TensorData::new(values, shape))
    }
}

#[cfg(feature = "ndarray")]
impl Host for burn::backend::NdArray {
    fn values(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        let burn::backend::ndarray::NdArrayTensor::F32(storage) = tensor else {
            panic!("f32, as it was made");
        };
        let view = storage.view();
        match view.to_slice() {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(view.iter().copied().collect()),
        }
    }

    fn into_values(tensor: FloatTensor<Self>) -> Vec<f32> {
        Self::values(&tensor).into_owned()
    }

    fn tensor(values: Vec<f32>, shape: Shape) -> FloatTensor<Self> {
        let data = burn::tensor::TensorData::new(values, shape);
        burn::backend::ndarray::NdArrayTensor::from_data(data)
    }
}
