//! Rotary position embedding, half-split: value i turns with value i + head_dim/2.

use burn::tensor::{Device, Tensor, TensorData};

/// Cosines and sines of every position and frequency.
///
/// `angle(position, i) = position · theta^(−2i / head_dim)` for i below head_dim/2
/// (RoFormer, arXiv 2104.09864, eq. 15). The pairs are those of Hugging Face's Llama and Mixtral, which
/// split the head in halves, where the paper pairs neighbours. The angles are computed in f32 as there,
/// so that the tables agree to the last bits.
#[derive(Debug, Clone)]
pub struct Rotary {
    cosines: Tensor<2>, // [positions, head_dim / 2]
    sines: Tensor<2>,   // [positions, head_dim / 2]
}

impl Rotary {
    /// Tables for positions `start .. start + length`.
    pub fn new(start: usize, length: usize, head_dim: usize, theta: f64, device: &Device) -> Self {
        let half = head_dim / 2;
        let angles = (start..start + length).flat_map(|position| {
            (0..half).map(move |i| {
                let exponent = (2 * i) as f32 / head_dim as f32;
                position as f32 * (1.0 / (theta as f32).powf(exponent))
            })
        });
        let (cosines, sines): (Vec<f32>, Vec<f32>) =
            angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        let table = |values| Tensor::from_data(TensorData::new(values, [length, half]), device);
        Self {
            cosines: table(cosines),
            sines: table(sines),
        }
    }

    /// Positions of the tables.
    pub fn positions(&self) -> usize {
        self.cosines.dims()[0]
    }

    /// Values of a head.
    pub fn head_dim(&self) -> usize {
        2 * self.cosines.dims()[1]
    }

    /// Cosines and sines, each `[positions, head_dim / 2]`.
    pub fn tables(&self) -> (Tensor<2>, Tensor<2>) {
        (self.cosines.clone(), self.sines.clone())
    }

    /// Turns queries or keys by their positions.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[batch, heads, positions, head_dim]`
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let [_, _, positions, head_dim] = x.dims();
        let half = head_dim / 2;
        assert_eq!(
            self.cosines.dims(),
            [positions, half],
            "rotary table [positions, head_dim / 2]"
        );
        let cosines = self.cosines.clone().unsqueeze::<4>();
        let sines = self.sines.clone().unsqueeze::<4>();
        let first = x.clone().narrow(3, 0, half);
        let second = x.narrow(3, half, half);
        Tensor::cat(
            vec![
                first.clone() * cosines.clone() - second.clone() * sines.clone(),
                second * cosines + first * sines,
            ],
            3,
        )
    }
}
