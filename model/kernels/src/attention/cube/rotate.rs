//! Rotary positions, which queries and keys take before the products and their gradients after them.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Tables;
use crate::cube::{owned, units};

/// Heads rotated by their positions, and scaled; in place where nobody else holds them.
///
/// # Shapes
///
/// - `heads`, output: `[batch · length, heads · head_dim]`
pub fn rotate(heads: CubeTensor, tables: &Tables, scale: f32) -> CubeTensor {
    launch(heads, tables, scale, false)
}

/// The transpose of [`rotate`], which is what a gradient takes: the same with the angles negated.
pub fn rotate_transposed(heads: CubeTensor, tables: &Tables) -> CubeTensor {
    launch(heads, tables, 1.0, true)
}

fn launch(heads: CubeTensor, tables: &Tables, scale: f32, back: bool) -> CubeTensor {
    let heads = owned(heads);
    let [tokens, width] = heads.shape().dims();
    let [rows, half] = tables.cosines.shape().dims();
    let (count, dim) = units(&heads.client, tokens * width / 2);
    rotate_kernel::launch(
        &heads.client,
        count,
        dim,
        heads.clone().into_buffer_arg(),
        tables.cosines.clone().into_buffer_arg(),
        tables.sines.clone().into_buffer_arg(),
        rows,
        width / (2 * half),
        half,
        scale,
        back,
    );
    heads
}

/// A unit rotates value i of a head with value i + head_dim/2.
#[cube(launch)]
fn rotate_kernel(
    values: &mut [f32],
    cosines: &[f32],
    sines: &[f32],
    rows: usize,
    heads: usize,
    half: usize,
    scale: f32,
    #[comptime] back: bool,
) {
    if ABSOLUTE_POS * 2 >= values.len() {
        terminate!();
    }
    let head = ABSOLUTE_POS / half;
    let i = ABSOLUTE_POS % half;
    let angle = head / heads % rows * half + i;
    let cosine = cosines[angle];
    let mut sine = sines[angle];
    if comptime!(back) {
        sine = -sine;
    }
    let first = head * 2 * half + i;
    let second = first + half;
    let a = values[first];
    let b = values[second];
    values[first] = scale * (a * cosine - b * sine);
    values[second] = scale * (b * cosine + a * sine);
}
