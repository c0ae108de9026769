//! Weights as products take them: numbers, or integers of 8 bits with scales.

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use half::f16;
use rayon::prelude::*;

use crate::host::gemv::Int8Matrix;
use crate::host::simd::vectorized;
use firebox_runtime::device::{Kernels, kernels};

/// The weights of a product: a matrix, or a stack of them.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // handles of tensors, which live for a product
pub enum Weight<const D: usize> {
    /// Numbers, in f32, bf16 or f16: `[…, d_in, d_out]`.
    Float(Tensor<D>),
    /// Integers of 8 bits with scales.
    Int8(Int8<D>),
}

impl<const D: usize> Weight<D> {
    /// `[…, d_in, d_out]`
    pub fn dims(&self) -> [usize; D] {
        match self {
            Self::Float(weight) => weight.dims(),
            Self::Int8(weight) => weight.dims(),
        }
    }

    /// The type of the numbers, or of the integers.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Float(weight) => weight.dtype(),
            Self::Int8(weight) => weight.codes.dtype(),
        }
    }

    /// The numbers that these weights stand for; those of integers in f32.
    pub fn dequantized(self) -> Tensor<D> {
        match self {
            Self::Float(weight) => weight,
            Self::Int8(weight) => weight.dequantized(),
        }
    }
}

impl Weight<2> {
    /// The only one of a stack.
    pub(crate) fn stacked(self) -> Weight<3> {
        match self {
            Self::Float(weight) => Weight::Float(weight.unsqueeze()),
            Self::Int8(Int8 { codes, scales }) => Weight::Int8(Int8 {
                codes: codes.unsqueeze(),
                scales: scales.unsqueeze(),
            }),
        }
    }
}

impl<const D: usize> From<Tensor<D>> for Weight<D> {
    fn from(weight: Tensor<D>) -> Self {
        Self::Float(weight)
    }
}

impl<const D: usize> From<Int8<D>> for Weight<D> {
    fn from(weight: Int8<D>) -> Self {
        Self::Int8(weight)
    }
}

/// A weight that is too large for a scale in f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LargeWeight {
    /// Which matrix of a stack it belongs to.
    pub matrix: usize,
}

/// Weights that are quantized by the largest magnitude of a block (as ggml's `quantize_row_q8_0_ref` does), activations not: integers from −127 to 127, each times a scale
/// that the weights of a block have in common: [`BLOCK`](Self::BLOCK) that one output meets, one input after the other. It is the number of f16 that is nearest to
/// `max |w| ÷ 127`, or the next one where that is too small, so that no weight is off by more than half of it. The blocks of
/// GGUF's type q8_0 stay what they are, if each has a weight of ±127 scales, as llama.cpp writes them.
#[derive(Module, Debug)]
pub struct Int8<const D: usize> {
    /// `[…, d_in, d_out]`
    pub(crate) codes: Tensor<D, Int>,
    /// `[…, ⌈d_in ÷ block⌉, d_out]`, in f16, or in f32 where the device does not hold it.
    pub(crate) scales: Tensor<D>,
}

impl<const D: usize> Int8<D> {
    /// Weights of a block, of which the last of a column may have fewer.
    pub const BLOCK: usize = Int8Matrix::BLOCK;

    /// The integers and scales of some weights.
    ///
    /// # Shapes
    ///
    /// - `values`: `shape`, `[…, d_in, d_out]`; none of them is NaN
    ///
    /// # Errors
    ///
    /// When a weight is too large for a scale: about 8.3 million.
    ///
    /// # Panics
    ///
    /// When there is another number of values, or the device [has no such weights](Self::is_held_by).
    pub fn quantize(
        values: &[f32],
        shape: [usize; D],
        device: &Device,
    ) -> Result<Self, LargeWeight> {
        assert!(
            Self::is_held_by(device),
            "no weights in 8 bits on this device"
        );
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{shape:?}");
        let [d_in, d_out] = [shape[D - 2], shape[D - 1]];
        let mut blocks = shape;
        blocks[D - 2] = d_in.div_ceil(Self::BLOCK);
        let mut codes = vec![0; values.len()];
        let mut scales = vec![f16::ZERO; blocks.iter().product()];
        if !values.is_empty() {
            let matrices = values.chunks_exact(d_in * d_out);
            let of_block = matrices.flat_map(|matrix| matrix.chunks(Self::BLOCK * d_out));
            let by_block = codes
                .chunks_exact_mut(d_in * d_out)
                .flat_map(|matrix| matrix.chunks_mut(Self::BLOCK * d_out))
                .zip(scales.chunks_exact_mut(d_out));
            let tasks: Vec<_> = of_block.zip(by_block).collect();
            tasks.into_par_iter().for_each(|(values, (codes, scales))| {
                round_block(values, codes, scales);
            });
        }
        if let Some(place) = scales.iter().position(|scale| !scale.is_finite()) {
            let of_matrix = blocks[D - 2] * d_out;
            return Err(LargeWeight {
                matrix: place / of_matrix,
            });
        }
        let held = match device.supports_dtype(DType::F16) {
            true => DType::F16,
            false => DType::F32,
        };
        let scales = TensorData::new(scales, blocks).convert_dtype(held);
        Ok(Self {
            codes: Tensor::from_data(TensorData::new(codes, shape), (device, DType::I8)),
            scales: Tensor::from_data(scales, (device, held)),
        })
    }

    /// `[…, d_in, d_out]`
    pub fn dims(&self) -> [usize; D] {
        self.codes.dims()
    }

    /// Whether a device holds such weights.
    pub fn is_held_by(device: &Device) -> bool {
        device.supports_dtype(DType::I8)
    }

    /// Whether a device multiplies with them as they are; another one widens them each time.
    pub(crate) fn has_kernel(device: &Device) -> bool {
        kernels(device) == Kernels::Slices && !device.is_autodiff()
    }

    /// The numbers that these stand for, in f32.
    pub fn dequantized(self) -> Tensor<D> {
        let inputs = self.codes.dims()[D - 2];
        let device = self.scales.device();
        let blocks: Vec<i32> = (0..inputs).map(|row| (row / Self::BLOCK) as i32).collect();
        let blocks = Tensor::from_data(TensorData::new(blocks, [inputs]), &device);
        self.codes.float().cast(DType::F32) * self.scales.cast(DType::F32).select(D - 2, blocks)
    }
}

/// The integers and scales of a block of rows.
///
/// # Shapes
///
/// - `values`, `codes`: `[rows, d_out]`
/// - `scales`: `[d_out]`
fn round_block(values: &[f32], codes: &mut [i8], scales: &mut [f16]) {
    let d_out = scales.len();
    let mut largest = vec![0.0f32; d_out];
    for row in values.chunks_exact(d_out) {
        for (largest, value) in largest.iter_mut().zip(row) {
            *largest = largest.max(value.abs());
        }
    }
    for (scale, largest) in scales.iter_mut().zip(&mut largest) {
        *scale = block_scale(*largest);
        *largest = scale.to_f32();
    }
    let wide = largest;
    vectorized(
        #[inline(always)]
        || {
            let rows = values.chunks_exact(d_out);
            for (row, codes) in rows.zip(codes.chunks_exact_mut(d_out)) {
                for ((code, value), scale) in codes.iter_mut().zip(row).zip(&wide) {
                    // 0 ÷ 0 becomes 0.
                    *code = (value / scale).round_ties_even().clamp(-127.0, 127.0) as i8;
                }
            }
        },
    );
}

/// The scale of a block of [`Int8`] by its largest weight; infinite where there is none.
pub fn block_scale(largest: f32) -> f16 {
    let nearest = f16::from_f32(largest / 127.0);
    // Only among the smallest numbers of f16, which lie far apart, can the nearest one be this much too small.
    match nearest.to_f32() * 127.5 < largest {
        true => f16::from_bits(nearest.to_bits() + 1),
        false => nearest,
    }
}

#[cfg(test)]
mod tests;
