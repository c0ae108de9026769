//! Rotary position embedding, half-split: value i is rotated with value i + rotary_dim/2.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Int, Tensor, TensorData};

/// Cosines and sines of the positions of some tokens, one row per token.
///
/// `angle(position, i) = position · theta^(−2i / rotary_dim)` for i below rotary_dim/2, unless the frequencies are scaled
/// (RoFormer, arXiv 2104.09864, eq. 15). The pairs are those of Hugging Face's Llama and Mixtral, which
/// split the head in halves, where the paper pairs neighbours. The angles are computed in f32 as there,
/// so that the tables agree to the last bits.
///
/// A head may have more values than are rotated: the first `rotary_dim` of them are, the others stay as they are
/// (GPT-NeoX, arXiv 2204.06745; Hugging Face's `partial_rotary_factor`).
///
/// The rows belong either to the positions of every sequence of a batch, which are then the same for all of them, or
/// to all tokens of the batch, sequence by sequence.
#[derive(Debug, Clone)]
pub struct Rotary {
    cosines: Tensor<2>, // [rows, rotary_dim / 2]
    sines: Tensor<2>,   // [rows, rotary_dim / 2]
}

/// How far each pair of values rotates from one position to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// Radians per position, one per pair.
    pub radians: Vec<f32>,
    /// Factor of the rotated values; 1 leaves their length as it is.
    pub length: f32,
}

impl Frequencies {
    /// `theta^(−2i / rotary_dim)` for i below rotary_dim/2.
    pub fn new(rotary_dim: usize, theta: f64) -> Self {
        let radians = (0..rotary_dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / rotary_dim as f32;
            1.0 / (theta as f32).powf(exponent)
        });
        Self {
            radians: radians.collect(),
            length: 1.0,
        }
    }
}

impl Rotary {
    /// Rows for positions `start .. start + length`, of unscaled frequencies.
    pub fn new(
        start: usize,
        length: usize,
        rotary_dim: usize,
        theta: f64,
        device: &Device,
    ) -> Self {
        Self::with(start, length, &Frequencies::new(rotary_dim, theta), device)
    }

    /// Rows for positions `start .. start + length`.
    pub fn with(start: usize, length: usize, frequencies: &Frequencies, device: &Device) -> Self {
        let Frequencies {
            radians,
            length: scale,
        } = frequencies;
        let half = radians.len();
        let angles = (start..start + length)
            .flat_map(|position| radians.iter().map(move |radians| position as f32 * radians));
        let (cosines, sines): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| (angle.cos() * scale, angle.sin() * scale))
            .unzip();
        let table = |values| Tensor::from_data(TensorData::new(values, [length, half]), device);
        Self {
            cosines: table(cosines),
            sines: table(sines),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.cosines.dims()[0]
    }

    /// Values of a head that are rotated: its first ones.
    pub fn rotary_dim(&self) -> usize {
        2 * self.cosines.dims()[1]
    }

    /// Cosines and sines, each `[rows, rotary_dim / 2]`.
    pub fn tables(&self) -> (Tensor<2>, Tensor<2>) {
        (self.cosines.clone(), self.sines.clone())
    }

    /// The rows `start .. start + length`.
    pub fn range(&self, start: usize, length: usize) -> Self {
        let of = |table: &Tensor<2>| table.clone().narrow(0, start, length);
        Self {
            cosines: of(&self.cosines),
            sines: of(&self.sines),
        }
    }

    /// The rows of these positions.
    ///
    /// # Shapes
    ///
    /// - `positions`: `[tokens]`, each below the number of rows
    pub fn at(&self, positions: &Tensor<1, Int>) -> Self {
        let of = |table: &Tensor<2>| table.clone().select(0, positions.clone());
        Self {
            cosines: of(&self.cosines),
            sines: of(&self.sines),
        }
    }

    /// Rotates queries or keys by their positions.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[batch, heads, new, head_dim]`
    ///
    /// # Panics
    ///
    /// When there are neither `new` nor `batch · new` rows, or heads have fewer values than are rotated.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, _, new, head_dim] = x.dims();
        let (rotary_dim, rows) = (self.rotary_dim(), self.rows());
        let half = rotary_dim / 2;
        assert!(
            head_dim >= rotary_dim && (rows == new || rows == batch * new),
            "rotary rows {:?} against queries or keys {:?}",
            self.cosines.dims(),
            x.dims(),
        );
        let table = |table: &Tensor<2>| table.clone().reshape([rows / new.max(1), 1, new, half]);
        let (cosines, sines) = (table(&self.cosines), table(&self.sines));
        let first = x.clone().narrow(3, 0, half);
        let second = x.clone().narrow(3, half, half);
        let mut parts = vec![
            first.clone() * cosines.clone() - second.clone() * sines.clone(),
            second * cosines + first * sines,
        ];
        if rotary_dim < head_dim {
            parts.push(x.narrow(3, rotary_dim, head_dim - rotary_dim));
        }
        Tensor::cat(parts, 3)
    }
}

/// The tables of a model's rotary positions: made when they are first needed, and kept.
#[derive(Debug, Clone)]
pub struct RotaryCache {
    frequencies: Frequencies,
    tables: Arc<Mutex<Vec<(Device, Rotary)>>>,
}

impl RotaryCache {
    /// No tables yet, of these frequencies.
    pub fn new(frequencies: Frequencies) -> Self {
        Self {
            frequencies,
            tables: Arc::default(),
        }
    }

    /// A table of at least `positions` positions from 0, on this device.
    pub fn table(&self, positions: usize, device: &Device) -> Rotary {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        // Burn's equality of devices leaves autodiff out. Tables that carry it would make the forward pass of a plain
        // model one with autodiff, so what a validation computes would depend on what came before it.
        let autodiff = device.is_autodiff();
        let known = tables
            .iter_mut()
            .find(|(of, _)| of == device && of.is_autodiff() == autodiff);
        if let Some((_, table)) = &known
            && table.rows() >= positions
        {
            return table.clone();
        }
        // Doubled, so that a growing cache is served by few of them.
        let table = Rotary::with(0, positions.next_power_of_two(), &self.frequencies, device);
        match known {
            Some((_, known)) => *known = table.clone(),
            None => tables.push((device.clone(), table.clone())),
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(
        tables_of_a_position,
        a_right_angle_exchanges_the_halves_of_what_is_rotated,
        rows_by_position_and_by_token,
    );

    // 100^(−2/4) is 1/10.
    fn tables_of_a_position(device: Device) {
        let rotary = Rotary::new(2, 1, 4, 100.0, &device);
        assert_eq!((rotary.rows(), rotary.rotary_dim()), (1, 4));
        let (cosines, sines) = rotary.tables();
        let expected = [2f32.cos(), 0.2f32.cos()];
        assert_close("cosines", &values(cosines), &expected, 1e-6).unwrap();
        let expected = [2f32.sin(), 0.2f32.sin()];
        assert_close("sines", &values(sines), &expected, 1e-6).unwrap();
    }

    fn a_right_angle_exchanges_the_halves_of_what_is_rotated(device: Device) {
        let rotary = Rotary {
            cosines: Tensor::zeros([1, 2], &device),
            sines: Tensor::ones([1, 2], &device),
        };
        let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 3.0, 4.0]]]], &device);
        assert_eq!(values(rotary.apply(x)), [-3.0, -4.0, 1.0, 2.0]);
        let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]]], &device);
        assert_eq!(values(rotary.apply(x)), [-3.0, -4.0, 1.0, 2.0, 5.0, 6.0]);
    }

    fn rows_by_position_and_by_token(device: Device) {
        let cache = RotaryCache::new(Frequencies::new(4, 100.0));
        let table = cache.table(5, &device);
        assert_eq!(table.rows(), 8);
        let same = |found: &Rotary, expected: &Rotary| {
            let both = |rotary: &Rotary| {
                let (cosines, sines) = rotary.tables();
                [values(cosines), values(sines)]
            };
            assert_eq!(both(found), both(expected));
        };
        same(&table.range(3, 2), &Rotary::new(3, 2, 4, 100.0, &device));
        same(&cache.table(20, &device).range(0, 8), &table);

        for device in [device.clone().autodiff(), device.clone()] {
            let (cosines, _) = cache.table(5, &device).tables();
            assert_eq!(cosines.device().is_autodiff(), device.is_autodiff());
        }

        // Two sequences that stand elsewhere, at once and one after the other.
        let positions = Tensor::<1, Int>::from_ints([3, 4, 0, 1], &device);
        let x = Tensor::<1, Int>::arange(0..16, &device)
            .float()
            .reshape([2, 1, 2, 4]);
        let together = values(table.at(&positions).apply(x.clone()));
        let apart = [(0, 3), (1, 0)].map(|(sequence, start)| {
            let rotary = Rotary::new(start, 2, 4, 100.0, &device);
            values(rotary.apply(x.clone().narrow(0, sequence, 1)))
        });
        assert_eq!(together, apart.concat());
    }
}
