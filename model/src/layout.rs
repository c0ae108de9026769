//! Where the tokens of a forward pass stand, and what each of them attends to.

use burn::tensor::{Bool, Device, Tensor, TensorData};
use firebox_kernels::rope::Rotary;

/// What attention needs to know of the tokens of a forward pass; made once, for all layers.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Number of sequences. Each has equally many new tokens, in consecutive rows.
    pub batch: usize,
    /// The rotary positions of the new tokens.
    pub rotary: Rotary,
    /// `[batch or 1, 1, new, all]`, true where a new token must not attend; `None` for a causal mask.
    pub mask: Option<Tensor<4, Bool>>,
}

impl Layout {
    /// Causal attention within each of `batch` sequences.
    pub fn causal(batch: usize, rotary: Rotary) -> Self {
        Self {
            batch,
            rotary,
            mask: None,
        }
    }

    /// Causal attention within each of `batch` sequences, in which no token attends to padding.
    ///
    /// # Panics
    ///
    /// When there is not one flag per token.
    pub fn padded(batch: usize, rotary: Rotary, valid: &[bool], device: &Device) -> Self {
        let length = valid.len() / batch.max(1);
        Self {
            mask: Some(padding_mask(valid, batch, length, device)),
            ..Self::causal(batch, rotary)
        }
    }
}

/// Mask of the positions that each position must not attend to: later ones, and padding. A padded position attends to
/// itself only, because a softmax over an empty set is NaN.
///
/// # Shapes
///
/// - `valid`: `batch · length` values
/// - output: `[batch, 1, length, length]`, true where attention is not allowed
fn padding_mask(valid: &[bool], batch: usize, length: usize, device: &Device) -> Tensor<4, Bool> {
    assert_eq!(valid.len(), batch * length, "one flag per token");
    let mut hidden = Vec::with_capacity(batch * length * length);
    for row in valid.chunks(length) {
        for query in 0..length {
            let keys = row.iter().enumerate();
            hidden.extend(keys.map(|(key, &valid)| key != query && (key > query || !valid)));
        }
    }
    Tensor::from_data(TensorData::new(hidden, [batch, 1, length, length]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use firebox_runtime::on_every_device;

    on_every_device!(what_hides_from_whom);

    fn what_hides_from_whom(device: Device) {
        // One row is padded at its beginning, one at its end; padding sees itself.
        let valid = [false, true, true, true, true, false];
        let mask = padding_mask(&valid, 2, 3, &device);
        assert_eq!(mask.dims(), [2, 1, 3, 3]);
        let mask: Vec<bool> = mask.into_data().iter::<bool>().collect();
        const HIDDEN: bool = true;
        const SEEN: bool = false;
        let expected = [
            [SEEN, HIDDEN, HIDDEN],
            [HIDDEN, SEEN, HIDDEN],
            [HIDDEN, SEEN, SEEN],
            [SEEN, HIDDEN, HIDDEN],
            [SEEN, SEEN, HIDDEN],
            [SEEN, SEEN, SEEN],
        ];
        assert_eq!(mask, expected.concat());
    }
}
