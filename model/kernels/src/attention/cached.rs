//! Attention of a few new positions over a cache, to which they are added in place.

use std::mem;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};
use rayon::prelude::*;

use super::rows::{AttentionShape, RopeTables, scratch_slice};
use super::{masked_attention, shape_of, split_heads};
use crate::host::Host;
use crate::host::exp::exp;
use crate::host::gemm::{Accumulate, Matrix, gemm};
use crate::host::gemv::GEMV_MAX_ROWS;
use crate::host::simd::{maximum, sum, vectorized};
use crate::rope::Rotary;

/// Minimum bytes of keys and values per thread.
const MIN_BYTES_PER_THREAD: usize = 1 << 17;

/// Rotates new queries and keys by their positions, writes the keys and values into the cache, and attends over all
/// that it holds then.
///
/// The same values as [`cached_attention_reference`], which runs where there is no kernel: on devices without any, under
/// autodiff, for other types than f32, and for more new positions of a sequence than a decode step has. The kernel
/// copies neither the cache nor a part of it.
///
/// # Shapes
///
/// - `query`: `[batch · new, heads · head_dim]`, as the projection gives it
/// - `key`, `value`: `[batch · new, kv_heads · head_dim]`
/// - `cache`: keys and values, `[batch, kv_heads, capacity, head_dim]`, of which `past` positions are taken
/// - output: `[batch · new, heads · head_dim]`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn cached_attention(
    query: Tensor<2>,
    key: Tensor<2>,
    value: Tensor<2>,
    rotary: &Rotary,
    cache: [&mut Tensor<4>; 2],
    past: usize,
) -> Tensor<2> {
    let [batch, kv_heads, capacity, head_dim] = cache[0].dims();
    let shape = shape_of(&query, &key, &value, batch, rotary);
    assert!(
        shape.kv_heads == kv_heads
            && shape.head_dim == head_dim
            && past + shape.length <= capacity
            && cache[1].dims() == cache[0].dims(),
        "a cache {:?} that holds {past} positions against {shape:?}",
        cache[0].dims(),
    );
    if query.dims()[0] == 0 {
        return query; // as empty as the output, which some backends refuse to compute
    }
    let device = query.device();
    let kernel = kernels(&device) != Kernels::None && !device.is_autodiff();
    if !kernel || query.dtype() != DType::F32 || shape.length > GEMV_MAX_ROWS {
        return cached_attention_reference(query, key, value, rotary, cache, past);
    }
    // Taken out, since what nobody else holds is changed in place.
    let [keys, values] = cache;
    let take = |tensor: &mut Tensor<4>| mem::replace(tensor, Tensor::empty([0; 4], &device));
    let (cosines, sines) = rotary.tables();
    let (output, new_keys, new_values) = <Dispatch as CachedAttention>::cached_attention(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        cosines.into_dispatch(),
        sines.into_dispatch(),
        take(keys).into_dispatch(),
        take(values).into_dispatch(),
        shape,
        past,
    );
    *keys = Tensor::from_dispatch(new_keys);
    *values = Tensor::from_dispatch(new_values);
    Tensor::from_dispatch(output)
}

/// [`cached_attention`] in plain tensor operations.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn cached_attention_reference(
    query: Tensor<2>,
    key: Tensor<2>,
    value: Tensor<2>,
    rotary: &Rotary,
    [keys, values]: [&mut Tensor<4>; 2],
    past: usize,
) -> Tensor<2> {
    let [batch, kv_heads, _, head_dim] = keys.dims();
    let all = past + query.dims()[0] / batch.max(1);
    let split = |x: Tensor<2>| split_heads(x, batch, head_dim);
    let place = [0..batch, 0..kv_heads, past..all, 0..head_dim];
    let new = rotary.apply(split(key));
    keys.inplace(|keys| keys.slice_assign(place.clone(), new));
    values.inplace(|values| values.slice_assign(place, split(value)));
    let so_far = |cache: &Tensor<4>| cache.clone().narrow(2, 0, all);
    let query = rotary.apply(split(query));
    masked_attention(query, so_far(keys), so_far(values), None)
}

/// The backends' side of [`cached_attention`](self::cached_attention); it has no gradient.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube")
)]
pub trait CachedAttention: Backend {
    /// The outputs, and the cache's keys and values with the new ones among them.
    #[allow(clippy::too_many_arguments)] // each tensor crosses the border between backends by itself
    fn cached_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        shape: AttentionShape,
        past: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl<B: Host> CachedAttention for B {
    fn cached_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        cosines: FloatTensor<Self>,
        sines: FloatTensor<Self>,
        mut keys: FloatTensor<Self>,
        mut values: FloatTensor<Self>,
        shape: AttentionShape,
        past: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let capacity = keys.shape()[2];
        let new = New {
            query: &B::values(&query),
            key: &B::values(&key),
            value: &B::values(&value),
            tables: RopeTables {
                cosines: &B::values(&cosines),
                sines: &B::values(&sines),
            },
            shape,
            past,
        };
        let output = new.attend(
            B::values_mut(&mut keys),
            B::values_mut(&mut values),
            capacity,
        );
        (B::tensor(output, query.shape()), keys, values)
    }
}

/// New positions, `shape.length` of each sequence.
struct New<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    tables: RopeTables<'a>,
    shape: AttentionShape,
    /// Positions of the cache that are taken.
    past: usize,
}

impl New<'_> {
    fn attend(&self, keys: &mut [f32], values: &mut [f32], capacity: usize) -> Vec<f32> {
        let AttentionShape {
            batch,
            length,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let (tasks, of_head) = (batch * kv_heads, capacity * head_dim);
        let columns = self.shape.group() * head_dim;
        let bytes = 2 * (self.past + length) * head_dim * size_of::<f32>();
        let mut outputs = vec![0.0; tasks * length * columns];
        outputs
            .par_chunks_mut(length * columns)
            .zip(keys.par_chunks_mut(of_head))
            .zip(values.par_chunks_mut(of_head))
            .enumerate()
            .with_min_len((MIN_BYTES_PER_THREAD / bytes).max(1))
            .for_each_init(Vec::new, |scratch, (index, ((outputs, keys), values))| {
                let (sequence, kv_head) = (index / kv_heads, index % kv_heads);
                self.head(sequence, kv_head, [keys, values], scratch, outputs);
            });
        if length == 1 || kv_heads == 1 {
            return outputs;
        }
        // From [batch, kv_heads, length, …] to [batch, length, kv_heads, …].
        let mut output = Vec::with_capacity(outputs.len());
        for sequence in outputs.chunks(kv_heads * length * columns) {
            for position in 0..length {
                for head in sequence.chunks(length * columns) {
                    output.extend_from_slice(&head[position * columns..][..columns]);
                }
            }
        }
        output
    }

    /// One key/value head of one sequence, of which `keys` and `values` hold all positions.
    ///
    /// # Shapes
    ///
    /// - `keys`, `values`: `[capacity, head_dim]`
    /// - `outputs`: `[length, group · head_dim]`; zeros
    fn head(
        &self,
        sequence: usize,
        kv_head: usize,
        [keys, values]: [&mut [f32]; 2],
        scratch: &mut Vec<f32>,
        outputs: &mut [f32],
    ) {
        let shape = self.shape;
        let AttentionShape {
            length, head_dim, ..
        } = shape;
        let (group, width, kv_width) = (shape.group(), shape.width(), shape.kv_width());
        let (rows, all) = (length * group, self.past + length);
        let (queries, scores) =
            scratch_slice(scratch, rows * (head_dim + all)).split_at_mut(rows * head_dim);

        vectorized(
            #[inline(always)]
            || {
                let packed = queries.chunks_exact_mut(group * head_dim);
                for (position, packed) in packed.enumerate() {
                    let row = sequence * length + position;
                    let from = row * width + kv_head * group * head_dim;
                    packed.copy_from_slice(&self.query[from..][..group * head_dim]);
                    for head in packed.chunks_exact_mut(head_dim) {
                        self.tables.rotate(head, row, shape.scale());
                    }
                    let from = row * kv_width + kv_head * head_dim;
                    let place = (self.past + position) * head_dim;
                    let key = &mut keys[place..place + head_dim];
                    key.copy_from_slice(&self.key[from..][..head_dim]);
                    self.tables.rotate(key, row, 1.0);
                    values[place..place + head_dim]
                        .copy_from_slice(&self.value[from..][..head_dim]);
                }
            },
        );
        gemm(
            Matrix::new(queries, rows, head_dim),
            Matrix::new(&keys[..all * head_dim], all, head_dim).t(),
            1.0,
            Accumulate::Replace,
            scores,
            all,
        );
        vectorized(
            #[inline(always)]
            || {
                for (row, scores) in scores.chunks_exact_mut(all).enumerate() {
                    let (visible, later) = scores.split_at_mut(self.past + row / group + 1);
                    softmax(visible);
                    later.fill(0.0);
                }
            },
        );
        gemm(
            Matrix::new(scores, rows, all),
            Matrix::new(&values[..all * head_dim], all, head_dim),
            1.0,
            Accumulate::Replace,
            outputs,
            head_dim,
        );
    }
}

#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let largest = maximum(scores);
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let inverse = sum(scores, |weight| weight).recip();
    for score in scores.iter_mut() {
        *score *= inverse;
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};
    use proptest::prelude::*;

    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, on_threads, values, wave};

    type Attention =
        fn(Tensor<2>, Tensor<2>, Tensor<2>, &Rotary, [&mut Tensor<4>; 2], usize) -> Tensor<2>;

    /// Outputs for new positions, and the cache after them.
    fn run(
        attention: Attention,
        shape: AttentionShape,
        past: usize,
        device: &Device,
    ) -> [Vec<f32>; 3] {
        let AttentionShape {
            batch,
            length,
            heads,
            kv_heads,
            head_dim,
        } = shape;
        let all = past + length;
        let wide = [batch * length, heads * head_dim];
        let narrow = [batch * length, kv_heads * head_dim];
        let (query, key) = (wave(wide, 0.1, device), wave(narrow, 0.4, device));
        let value = wave(narrow, 0.7, device);
        let rotary = Rotary::new(past, length, head_dim, 1e4, device);
        let cache = [batch, kv_heads, all + 2, head_dim];
        let (mut keys, mut values_) = (wave(cache, 0.2, device), wave(cache, 0.9, device));
        let cache = [&mut keys, &mut values_];
        let output = attention(query, key, value, &rotary, cache, past);
        [values(output), values(keys), values(values_)]
    }

    on_every_device!(
        a_second_position,
        equals_the_reference,
        long_pasts_and_wide_heads,
        any_number_of_threads_gives_the_same_bits,
    );

    // Its scores are 0 and ln 3, its weights 1/4 and 3/4.
    fn a_second_position(device: Device) {
        let row = |row: [f32; 2]| Tensor::<2>::from_floats([row], &device);
        let cache = |rows: [[f32; 2]; 3]| Tensor::<4>::from_floats([[rows]], &device);
        let mut keys = cache([[0.0, 0.0], [9.0, 9.0], [9.0, 9.0]]);
        let mut so_far = cache([[4.0, 0.0], [9.0, 9.0], [9.0, 9.0]]);
        let output = cached_attention(
            row([2f32.sqrt(), 0.0]),
            row([3f32.ln(), 0.0]),
            row([0.0, 8.0]),
            &Rotary::new(1, 1, 2, 1e4, &device),
            [&mut keys, &mut so_far],
            1,
        );
        assert_close("output", &values(output), &[1.0, 6.0], 5e-7).unwrap();
        assert_eq!(values(so_far), [4.0, 0.0, 0.0, 8.0, 9.0, 9.0]);
        // ln 3 · (cos 1, sin 1)
        let expected = [0.0, 0.0, 0.593_582_8, 0.924_450_4, 9.0, 9.0];
        assert_close("keys", &values(keys), &expected, 3e-7).unwrap();
    }

    fn check(shape: AttentionShape, past: usize, device: &Device) -> Result<(), TestCaseError> {
        let (fast, slow) = (
            run(cached_attention, shape, past, device),
            run(cached_attention_reference, shape, past, device),
        );
        for (name, (fast, slow)) in ["output", "keys", "values"]
            .iter()
            .zip(fast.iter().zip(&slow))
        {
            assert_close(name, fast, slow, 5e-6)?;
        }
        Ok(())
    }

    fn equals_the_reference(device: Device) {
        proptest!(ProptestConfig::with_cases(24), |(
            (batch, length, past) in (1usize..4, 1usize..11, 0usize..40),
            (kv_heads, group, half) in (1usize..3, 1usize..4, 1usize..9),
        )| {
            let heads = kv_heads * group;
            let shape = AttentionShape { batch, length, heads, kv_heads, head_dim: 2 * half };
            check(shape, past, &device)?;
        });
    }

    fn long_pasts_and_wide_heads(device: Device) {
        for (past, length, head_dim) in [(700, 5, 80), (127, 2, 256), (4500, 1, 8)] {
            let shape = AttentionShape {
                batch: 2,
                length,
                heads: 6,
                kv_heads: 2,
                head_dim,
            };
            check(shape, past, &device).unwrap();
        }
    }

    fn any_number_of_threads_gives_the_same_bits(device: Device) {
        let shape = AttentionShape {
            batch: 3,
            length: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
        };
        on_threads(|| run(cached_attention, shape, 700, &device).concat());
    }
}
