//! Rotary positions, which queries and keys take before the products and their gradients after them.

use burn::backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::Tables;
use crate::cube::{contiguous, owned, units};

/// Heads rotated by their positions, and scaled; in place where nobody else holds them.
///
/// # Shapes
///
/// - `heads`, output: `[batch · length, heads · head_dim]`
pub fn rotate(heads: CubeTensor, tables: &Tables, head_dim: usize, scale: f32) -> CubeTensor {
    launch(heads, tables, head_dim, scale, false)
}

/// The transpose of [`rotate`], which is what a gradient takes: the same with the angles negated.
pub fn rotate_transposed(heads: CubeTensor, tables: &Tables, head_dim: usize) -> CubeTensor {
    launch(heads, tables, head_dim, 1.0, true)
}

fn launch(
    heads: CubeTensor,
    tables: &Tables,
    head_dim: usize,
    scale: f32,
    back: bool,
) -> CubeTensor {
    if tables.half == 0 && scale == 1.0 {
        return contiguous(heads);
    }
    let heads = owned(heads);
    let [tokens, width] = heads.shape().dims();
    let [rows, _] = tables.cosines.shape().dims();
    let (count, dim) = units(&heads.client, tokens * width / 2);
    rotate_kernel::launch(
        &heads.client,
        count,
        dim,
        heads.clone().into_buffer_arg(),
        tables.cosines.clone().into_buffer_arg(),
        tables.sines.clone().into_buffer_arg(),
        rows,
        width / head_dim,
        head_dim / 2,
        tables.half,
        scale,
        back,
    );
    heads
}

/// A unit rotates value i of a head with value i + half, or scales two neighbours of the values behind those.
#[cube(launch)]
fn rotate_kernel(
    values: &mut [f32],
    cosines: &[f32],
    sines: &[f32],
    rows: usize,
    heads: usize,
    pairs: usize,
    half: usize,
    scale: f32,
    #[comptime] back: bool,
) {
    if ABSOLUTE_POS * 2 >= values.len() {
        terminate!();
    }
    let head = ABSOLUTE_POS / pairs;
    let i = ABSOLUTE_POS % pairs;
    let start = head * 2 * pairs;
    if i < half {
        let angle = head / heads % rows * half + i;
        let cosine = cosines[angle];
        let mut sine = sines[angle];
        if comptime!(back) {
            sine = -sine;
        }
        let a = values[start + i];
        let b = values[start + i + half];
        values[start + i] = scale * (a * cosine - b * sine);
        values[start + i + half] = scale * (b * cosine + a * sine);
    } else {
        values[start + 2 * i] *= scale;
        values[start + 2 * i + 1] *= scale;
    }
}
