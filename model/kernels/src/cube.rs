//! What the CubeCL kernels share: buffers in row-major order, how many units to launch, and sums in one order.
//!
//! # How long a loop may be
//!
//! No unit goes round its loops more than [`ROUNDS`] times in a launch: Mesa's software Vulkan ends every loop of a
//! shader when all of them together have had so many rounds, and says nothing (`LP_MAX_TGSI_LOOP_ITERATIONS` in its
//! `lp_limits.h`). Kernels unroll what is short, and share out what is long. Some of Burn's operations need a round
//! for each row: sums and means over rows, cumulative sums, and the gradient of `select`. Where rows are as many as
//! tokens, `sum_of_rows` and `embedding` stand in for them.
//!
//! # Precision
//!
//! Kernels have no atomics, whose sums would change from run to run, and no compensated sums, which Mesa's compiler
//! simplifies away. It does not fuse a product with a sum, and its `log` near 1 and `tanh` near 0 have only an absolute
//! accuracy: the surprise of a token that is all but certain is known to about 1e-7 nats, not to as many digits. Naga
//! makes `x != x` false for NaN, so a kernel that looks for NaN has to look at the bits.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::prelude::*;

/// Units of a cube whose units add up together.
pub const UNITS: usize = 256;

/// The tensor with its values side by side in row-major order; copied only where they do not lie so.
pub fn contiguous(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// The tensor in row-major order, to be changed in place; copied first where someone else holds it too.
pub fn owned(tensor: CubeTensor) -> CubeTensor {
    let tensor = contiguous(tensor);
    match tensor.can_mut() {
        true => tensor,
        // CUDA and ROCm leave gaps between the rows of a copy.
        false => contiguous(tensor.copy()),
    }
}

/// The most rounds that all loops of a unit may go in a launch; see the top of this file.
pub const ROUNDS: usize = 65_535;

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

/// How many values a unit takes at once: four where `width` is a multiple of that, else one.
pub fn vector_size(width: usize) -> usize {
    match width.is_multiple_of(4) {
        true => 4,
        false => 1,
    }
}

/// The sum of some values, `[1]`: one cube, whose units take every 256th value each.
pub fn sum(values: CubeTensor) -> CubeTensor {
    let total = empty_float(&values, [1]);
    sum_kernel::launch(
        &values.client.clone(),
        CubeCount::new_single(),
        CubeDim::new_1d(UNITS as u32),
        values.into_buffer_arg(),
        total.clone().into_buffer_arg(),
    );
    total
}

#[cube(launch)]
fn sum_kernel(values: &[f32], total: &mut [f32]) {
    let mut sum = 0.0f32;
    let mut place = UNIT_POS as usize;
    while place < values.len() {
        sum += values[place];
        place += UNITS;
    }
    let sum = sum_of_group(sum, UNITS);
    if UNIT_POS == 0 {
        total[0] = sum;
    }
}

/// The sum of `value` over a group of neighbours among the [`UNITS`] of a cube, known to each of them; a tree, whose
/// order depends on nothing. All units of the cube have to call it. `group` is a power of two.
#[cube]
pub fn sum_of_group(value: f32, #[comptime] group: usize) -> f32 {
    let unit = UNIT_POS as usize;
    let mut values = Shared::<[f32]>::new_slice(UNITS);
    values[unit] = value;
    sync_cube();
    let mut step = (group / 2).runtime();
    while step > 0 {
        if unit % group < step {
            values[unit] += values[unit + step];
        }
        sync_cube();
        step /= 2;
    }
    let sum = values[unit / group * group];
    // Before the next sum takes the same room.
    sync_cube();
    sum
}
