//! Weights as f32 in vector registers.

#[cfg(target_arch = "x86_64")]
use std::any::Any;

use pulp::Simd;
#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};

use crate::dtype::Number;
use crate::precision::rounded_to_bf16;

/// The most values that a vector has.
const MAX_LANES: usize = 16;

/// The first values, as many as a vector has, or all of them.
#[inline(always)]
pub fn load<S: Simd>(simd: S, values: &[f32]) -> S::f32s {
    match S::as_simd_f32s(values) {
        ([first, ..], _) => *first,
        ([], rest) => simd.partial_load_f32s(rest),
    }
}

/// [`load`] of weights, each as [`widened`] has it.
#[inline(always)]
pub fn widened_vector<S: Simd, T: Number, const ROUND: bool>(simd: S, weights: &[T]) -> S::f32s {
    // Only what has to be rounded may change.
    if !ROUND && let Some(weights) = T::as_f32(weights) {
        return load(simd, weights);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(bits) = T::as_bf16(weights).map(bytemuck::cast_slice)
        && let Some(vector) = from_bf16(simd, bits)
    {
        return vector;
    }
    #[cfg(target_arch = "x86_64")]
    if !ROUND
        && let Some(bits) = T::as_f16(weights).map(bytemuck::cast_slice)
        && let Some(vector) = from_f16(simd, bits)
    {
        return vector;
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(vector) = T::as_i8(weights).and_then(|codes| from_i8(simd, codes)) {
        return vector;
    }
    // The compiler makes vector instructions of this, if not always the best ones.
    let mut values = [0.0; MAX_LANES];
    let count = S::F32_LANES.min(weights.len());
    for (value, weight) in values.iter_mut().zip(&weights[..count]) {
        *value = widened::<T, ROUND>(*weight);
    }
    load(simd, &values[..S::F32_LANES])
}

/// A whole vector of numbers in bf16, which are the upper halves of what they are in f32; `None` where there are fewer, or on
/// machines without such instructions.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn from_bf16<S: Simd>(simd: S, bits: &[u16]) -> Option<S::f32s> {
    let simd: &dyn Any = &simd;
    if let Some(V4 { avx512f, .. }) = simd.downcast_ref() {
        let bits = pulp::cast(*bits.first_chunk::<16>()?);
        let wide = avx512f._mm512_slli_epi32::<16>(avx512f._mm512_cvtepu16_epi32(bits));
        return Some(bytemuck::cast(wide));
    }
    if let Some(V3 { avx2, .. }) = simd.downcast_ref() {
        let bits = pulp::cast(*bits.first_chunk::<8>()?);
        let wide = avx2._mm256_slli_epi32::<16>(avx2._mm256_cvtepu16_epi32(bits));
        return Some(bytemuck::cast(wide));
    }
    None
}

/// A whole vector of numbers in f16; `None` where there are fewer, or on machines without such instructions.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn from_f16<S: Simd>(simd: S, bits: &[u16]) -> Option<S::f32s> {
    let simd: &dyn Any = &simd;
    if let Some(V4 { avx512f, .. }) = simd.downcast_ref() {
        let wide = avx512f._mm512_cvtph_ps(pulp::cast(*bits.first_chunk::<16>()?));
        return Some(bytemuck::cast(wide));
    }
    if let Some(V3 { avx, avx2, .. }) = simd.downcast_ref() {
        // As `f16::widen` has it.
        let bits = avx2._mm256_cvtepu16_epi32(pulp::cast(*bits.first_chunk::<8>()?));
        let magnitude = avx2._mm256_and_si256(bits, avx._mm256_set1_epi32(0x7fff));
        let sign = avx2._mm256_slli_epi32::<16>(avx2._mm256_sub_epi32(bits, magnitude));
        let magnitude = pulp::cast(avx2._mm256_slli_epi32::<13>(magnitude));
        let magnitude = avx._mm256_mul_ps(magnitude, avx._mm256_set1_ps(f32::from_bits(239 << 23)));
        let wide = avx2._mm256_or_si256(pulp::cast(magnitude), sign);
        return Some(bytemuck::cast(wide));
    }
    None
}

/// A whole vector of integers of 8 bits; `None` where there are fewer, or on machines without such instructions.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn from_i8<S: Simd>(simd: S, integers: &[i8]) -> Option<S::f32s> {
    let simd: &dyn Any = &simd;
    if let Some(V4 { avx512f, .. }) = simd.downcast_ref() {
        let integers = pulp::cast(*integers.first_chunk::<16>()?);
        let wide = avx512f._mm512_cvtepi32_ps(avx512f._mm512_cvtepi8_epi32(integers));
        return Some(bytemuck::cast(wide));
    }
    if let Some(V3 { avx, avx2, .. }) = simd.downcast_ref() {
        // Half of what the instruction reads, which takes the lower half.
        let mut both = [0; 16];
        both[..8].copy_from_slice(integers.first_chunk::<8>()?);
        let wide = avx._mm256_cvtepi32_ps(avx2._mm256_cvtepi8_epi32(pulp::cast(both)));
        return Some(bytemuck::cast(wide));
    }
    None
}

/// In f32, rounded to bf16 first if `ROUND`.
#[inline(always)]
pub fn widened<T: Number, const ROUND: bool>(weight: T) -> f32 {
    match ROUND && !T::EXACT_IN_BF16 {
        true => rounded_to_bf16(weight.widen()),
        false => weight.widen(),
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use pulp::{Arch, Scalar, WithSimd};

    use super::*;
    use crate::dtype::StorageFloat;

    /// The first values of a slice in every way, each of as many as the vector has.
    struct Widen<'a, T, const ROUND: bool>(&'a [T]);

    impl<T: Number, const ROUND: bool> WithSimd for Widen<'_, T, ROUND> {
        type Output = ();

        fn with_simd<S: Simd>(self, simd: S) {
            for length in 0..=self.0.len().min(2 * S::F32_LANES) {
                let found = [widened_vector::<S, T, ROUND>(simd, &self.0[..length])];
                let found: &[f32] = bytemuck::cast_slice(&found);
                for (lane, value) in found.iter().enumerate() {
                    let expected = match self.0[..length].get(lane) {
                        Some(weight) => widened::<T, ROUND>(*weight),
                        None => 0.0,
                    };
                    assert_eq!(value.to_bits(), expected.to_bits(), "{length}, {lane}");
                }
            }
        }
    }

    fn of_floats<T: StorageFloat, const ROUND: bool>() {
        // All of them finite in f16.
        let values = [1.0, -2.5, 3.1e-5, 0.0, -6e4, 1e-40, 0.1, 99.0, -1e-7];
        every_width::<T, ROUND>(values.map(T::nearest));
    }

    fn every_width<T: Number, const ROUND: bool>(values: [T; 9]) {
        let weights: Vec<T> = values.into_iter().cycle().take(40).collect();
        for start in 0..4 {
            Arch::new().dispatch(Widen::<T, ROUND>(&weights[start..]));
            Widen::<T, ROUND>(&weights[start..]).with_simd(Scalar);
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = V3::try_new() {
                Simd::vectorize(simd, Widen::<T, ROUND>(&weights[start..]));
            }
        }
    }

    #[test]
    fn vectors_hold_what_one_number_after_the_other_becomes() {
        of_floats::<f32, false>();
        of_floats::<f32, true>();
        of_floats::<bf16, false>();
        of_floats::<bf16, true>();
        of_floats::<f16, false>();
        of_floats::<f16, true>();
        every_width::<i8, false>([0, 1, -1, 127, -127, -128, 64, -99, 5]);
    }
}
