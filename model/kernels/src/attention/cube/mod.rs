//! The CubeCL backends' side: blocks of 64 queries and 64 keys of a head meet in a cube.
//!
//! Queries and keys are rotated by their positions first, in place where nobody else holds them ([`rotate`]), since every
//! block would rotate its keys again otherwise. Every sum is taken in one order, without atomics, so that two runs give
//! the same bits.

mod backward;
mod cached;
mod forward;
mod key_and_value;
mod query;
mod rotate;
mod span;
mod tile;

use burn::backend::Cube;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{CubeCount, CubeDim};

use super::{Attention, AttentionShape, FirstKeys};
use crate::cube::{contiguous, empty_int};
use crate::operation::Operation;

/// What the forward pass took, rotated, and what it made.
#[derive(Debug, Clone)]
pub struct Saved {
    /// Turned and scaled.
    query: CubeTensor,
    /// Turned.
    key: CubeTensor,
    value: CubeTensor,
    output: CubeTensor,
    sinks: CubeTensor,
    /// ln Σ exp(score), `[batch, length, heads]`.
    log_sum_exp: CubeTensor,
    tables: Tables,
    ranges: Ranges,
    shape: AttentionShape,
}

/// Cosines and sines of the rotary positions, each `[length or batch · length, half]`. Nobody reads them where `half` is
/// 0.
#[derive(Debug, Clone)]
struct Tables {
    cosines: CubeTensor,
    sines: CubeTensor,
    /// Pairs of values of a head that are rotated.
    half: usize,
}

impl Tables {
    fn new(cosines: CubeTensor, sines: CubeTensor, shape: AttentionShape) -> Self {
        Self {
            cosines: contiguous(cosines),
            sines: contiguous(sines),
            half: shape.rotary_dim / 2,
        }
    }
}

/// What hides keys in front of a query.
#[derive(Debug, Clone)]
struct Ranges {
    /// The first key that each query sees, `[batch · length]`; a single value that nobody reads where every query sees its
    /// sequence's first key.
    first: CubeTensor,
    /// The most positions that a query sees.
    window: usize,
    limits: Limits,
}

/// Which of [`Ranges`] there are. A kernel is compiled without the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Limits {
    /// The first key of each query.
    ranges: bool,
    /// A window.
    window: bool,
}

impl Limits {
    /// Whether there is one at all.
    fn any(self) -> bool {
        self.ranges || self.window
    }
}

impl Ranges {
    fn new(first: FirstKeys<Cube>, shape: AttentionShape, like: &CubeTensor) -> Self {
        let (first, ranges) = match first {
            FirstKeys::OfQuery(first) => (contiguous(first), true),
            // A kernel takes no empty buffer.
            FirstKeys::OfSequence => (empty_int(like, [1]), false),
        };
        let window = shape.window.filter(|&window| window < shape.length);
        Self {
            first,
            window: window.unwrap_or(shape.length),
            limits: Limits {
                ranges,
                window: window.is_some(),
            },
        }
    }
}

impl Operation<Cube, 4> for Attention<Cube> {
    type Saved = Saved;

    fn forward_saving(self, [query, key, value, sinks]: [CubeTensor; 4]) -> (CubeTensor, Saved) {
        let shape = self.shape;
        let tables = Tables::new(self.cosines, self.sines, shape);
        let ranges = Ranges::new(self.first, shape, &query);
        let query = rotate::rotate(query, &tables, shape.head_dim, shape.scale);
        let key = rotate::rotate(key, &tables, shape.head_dim, 1.0);
        let (value, sinks) = (contiguous(value), contiguous(sinks));
        let (output, log_sum_exp) =
            forward::forward([&query, &key, &value, &sinks], &ranges, shape);
        let saved = Saved {
            query,
            key,
            value,
            output: output.clone(),
            sinks,
            log_sum_exp,
            tables,
            ranges,
            shape,
        };
        (output, saved)
    }

    fn backward(
        saved: Saved,
        gradient: CubeTensor,
        [query_wanted, key_wanted, value_wanted, sinks_wanted]: [bool; 4],
    ) -> [Option<CubeTensor>; 4] {
        let pass = backward::Pass::new(&saved, contiguous(gradient));
        let rotate_transposed =
            |heads| rotate::rotate_transposed(heads, &saved.tables, saved.shape.head_dim);
        let query = query_wanted.then(|| rotate_transposed(query::gradient(&pass)));
        let (key, value) = key_and_value::gradients(&pass, key_wanted, value_wanted);
        let key = key.map(rotate_transposed);
        let sinks = (sinks_wanted && saved.shape.sinks).then(|| pass.sinks());
        [query, key, value, sinks]
    }
}

/// Cubes that keep a large device busy.
const CUBES: usize = 512;

/// A launch of a cube for each block, first dimension, of each of so many heads, the other two.
fn launch_of(blocks: usize, heads: usize) -> (CubeCount, CubeDim) {
    let deep = heads.div_ceil(usize::from(u16::MAX));
    let count = CubeCount::new_3d(blocks as u32, heads.div_ceil(deep) as u32, deep as u32);
    (count, CubeDim::new_1d(tile::UNITS as u32))
}

/// Blocks of columns that hold a head.
fn column_blocks(head_dim: usize) -> usize {
    head_dim.div_ceil(tile::BLOCK_COLUMNS)
}
