//! What the CubeCL kernels share: buffers in row-major order, and how many units to launch.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::prelude::{CubeCount, CubeDim};

/// The tensor with its values side by side in row-major order; copied only where they do not lie so.
pub fn contiguous(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// The tensor to be changed in place; copied first where someone else holds it too.
pub fn owned(tensor: CubeTensor) -> CubeTensor {
    match tensor.can_mut() {
        true => tensor,
        false => tensor.copy(),
    }
}

/// Room for f32 values on the device of `like`.
pub fn empty_float(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    empty(like, shape.into(), DType::F32)
}

/// Room for i32 values on the device of `like`.
pub fn empty_int(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    empty(like, shape.into(), DType::I32)
}

fn empty(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

/// Zeros on the device of `like`.
pub fn zeros(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    zeros_client(client, device, shape.into(), dtype)
}

/// A launch of at least `count` units, one for each piece of work.
pub fn units(client: &Client, count: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, count);
    let count = cubecl::calculate_cube_count_elemwise(client, count, dim);
    (count, dim)
}
