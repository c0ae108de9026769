//! Rotary position embedding, half-split: value i is rotated with value i + head_dim/2.

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

#[cfg(test)]
mod tests {
    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(
        tables_of_a_position,
        a_right_angle_exchanges_the_halves_of_a_head
    );

    // 100^(−2/4) is 1/10.
    fn tables_of_a_position(device: Device) {
        let rotary = Rotary::new(2, 1, 4, 100.0, &device);
        assert_eq!((rotary.positions(), rotary.head_dim()), (1, 4));
        let (cosines, sines) = rotary.tables();
        let expected = [2f32.cos(), 0.2f32.cos()];
        assert_close("cosines", &values(cosines), &expected, 1e-6).unwrap();
        let expected = [2f32.sin(), 0.2f32.sin()];
        assert_close("sines", &values(sines), &expected, 1e-6).unwrap();
    }

    fn a_right_angle_exchanges_the_halves_of_a_head(device: Device) {
        let rotary = Rotary {
            cosines: Tensor::zeros([1, 2], &device),
            sines: Tensor::ones([1, 2], &device),
        };
        let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 3.0, 4.0]]]], &device);
        assert_eq!(values(rotary.apply(x)), [-3.0, -4.0, 1.0, 2.0]);
    }
}
