//! The keys and values of latent attention, which a GGUF file has in two tensors of a layer.
//!
//! Of each head h, Hugging Face's `kv_b_proj` has the rows K_h `[plain, rank]`, then V_h `[value_dim, rank]`. llama.cpp lets
//! queries meet the latents themselves, and so keeps K_h transposed, `attn_k_b` `[heads, rank, plain]`, apart from `attn_v_b`
//! `[heads, value_dim, rank]`. Here both are one tensor, under the name that llama.cpp had for it before.

use std::collections::BTreeMap;
use std::path::Path;

use super::block::BlockType;
use crate::CheckpointError;
use crate::layout::transpose;
use crate::tensor_file::TensorInfo;
use firebox_model::parallel::Slice;

/// How the names of the two tensors end, and that of both.
const KEYS: &str = ".attn_k_b.weight";
const VALUES: &str = ".attn_v_b.weight";
const BOTH: &str = ".attn_kv_b.weight";

/// The keys and values of a layer.
#[derive(Debug)]
pub(super) struct KeyValue {
    /// The names of the two tensors.
    pub keys: String,
    pub values: String,
    /// Of both together: `[heads · (plain + value_dim), rank]`.
    pub info: TensorInfo,
    widths: Widths,
}

/// The widths of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Widths {
    /// Values of a head's key that are not rotated.
    pub plain: usize,
    /// Values of a head's value.
    pub value_dim: usize,
    /// Values of the latent.
    pub rank: usize,
}

impl Widths {
    /// Rows of a head.
    fn rows(self) -> usize {
        self.plain + self.value_dim
    }
}

/// Whether a tensor of this name may be written with fewer than three dimensions, where there is one head.
pub(super) fn is_part(name: &str) -> bool {
    name.ends_with(KEYS) || name.ends_with(VALUES)
}

/// The names of the two tensors that one of both together is written as.
pub(super) fn parts(name: &str) -> Option<[String; 2]> {
    let layer = name.strip_suffix(BOTH)?;
    Some([KEYS, VALUES].map(|part| format!("{layer}{part}")))
}

/// Both of each layer, by the name that they have together.
///
/// # Errors
///
/// When one has no counterpart that fits it.
pub(super) fn pairs(
    tensors: &BTreeMap<String, (TensorInfo, BlockType)>,
    path: &Path,
) -> Result<BTreeMap<String, KeyValue>, CheckpointError> {
    let mut pairs = BTreeMap::new();
    for name in tensors.keys().filter(|name| is_part(name)) {
        let layer = name.strip_suffix(KEYS).or(name.strip_suffix(VALUES));
        let both = format!("{}{BOTH}", layer.unwrap_or_default());
        let [keys, values] = parts(&both).expect("it ends so");
        let shape = |name: &str| tensors.get(name).map(|(info, _)| info.shape.as_slice());
        let fits = match (shape(&keys), shape(&values)) {
            (Some(&[heads, rank, plain]), Some(&[others, value_dim, width])) => {
                let widths = Widths {
                    plain,
                    value_dim,
                    rank,
                };
                (heads == others && rank == width).then_some((heads, widths))
            }
            _ => None,
        };
        let Some((heads, widths)) = fits else {
            return Err(CheckpointError::Damaged {
                path: path.to_owned(),
                reason: format!(
                    "the tensors {keys} {:?} and {values} {:?} are not [heads, rank, keys] and [heads, values, rank]",
                    shape(&keys).unwrap_or_default(),
                    shape(&values).unwrap_or_default()
                ),
            });
        };
        let dtype = tensors[&keys].0.dtype;
        let info = TensorInfo::derived(vec![heads * widths.rows(), widths.rank], dtype);
        let pair = KeyValue {
            keys,
            values,
            info,
            widths,
        };
        pairs.insert(both, pair);
    }
    Ok(pairs)
}

impl KeyValue {
    /// A part of both, which `read` reads of each. Whole heads are read.
    pub fn read_part<T: Copy + Default>(
        &self,
        part: &Slice,
        read: impl Fn(&str, &Slice) -> Result<Vec<T>, CheckpointError>,
    ) -> Result<Vec<T>, CheckpointError> {
        let Widths {
            plain,
            value_dim,
            rank,
        } = self.widths;
        let (rows, total) = (self.widths.rows(), self.info.shape[0]);
        let ranges = &part.ranges()[0];
        let starts = ranges.iter().map(|range| range.start / rows);
        let ends = ranges.iter().map(|range| range.end.div_ceil(rows));
        let first = starts.min().unwrap_or(0);
        let end = ends.max().unwrap_or(0).max(first);
        let of_heads = |name: &str, height: usize, width: usize| {
            let of = [total / rows, height, width];
            let ranges = [first..end, 0..height, 0..width];
            read(
                name,
                &Slice::new(of, ranges.map(|range| vec![range]).into()),
            )
        };
        let keys = of_heads(&self.keys, rank, plain)?;
        let values = of_heads(&self.values, value_dim, rank)?;
        let both = join(&keys, &values, self.widths);
        let rows: Vec<_> = ranges
            .iter()
            .map(|range| range.start - first * rows..range.end - first * rows)
            .collect();
        let of = [both.len() / rank, rank];
        Ok(Slice::new(of, vec![rows, part.ranges()[1].clone()]).take(&both))
    }
}

/// Of each head its keys, then its values.
fn join<T: Copy + Default>(keys: &[T], values: &[T], widths: Widths) -> Vec<T> {
    let Widths {
        plain,
        value_dim,
        rank,
    } = widths;
    let mut both = vec![T::default(); keys.len() + values.len()];
    let heads = both.chunks_exact_mut(widths.rows() * rank);
    let parts = keys
        .chunks_exact(plain * rank)
        .zip(values.chunks_exact(value_dim * rank));
    for (head, (keys, values)) in heads.zip(parts) {
        let (of_keys, of_values) = head.split_at_mut(plain * rank);
        transpose(keys, rank, plain, of_keys);
        of_values.copy_from_slice(values);
    }
    both
}

/// The keys of all heads, as they are stored.
pub(super) fn keys(both: &[f32], widths: Widths) -> Vec<f32> {
    let (plain, rank) = (widths.plain, widths.rank);
    let heads = both.chunks_exact(widths.rows() * rank);
    let of_head = heads.flat_map(|head| {
        let mut stored = vec![0.0; plain * rank];
        transpose(&head[..plain * rank], plain, rank, &mut stored);
        stored
    });
    of_head.collect()
}

/// The values of all heads, as they are stored.
pub(super) fn values(both: &[f32], widths: Widths) -> Vec<f32> {
    let heads = both.chunks_exact(widths.rows() * widths.rank);
    let of_head = heads.flat_map(|head| &head[widths.plain * widths.rank..]);
    of_head.copied().collect()
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // slices are lists of ranges
mod tests {
    use super::*;
    use firebox_kernels::dtype::WeightDtype;

    #[test]
    fn keys_and_values_are_taken_apart_and_joined() {
        let widths = Widths {
            plain: 2,
            value_dim: 1,
            rank: 4,
        };
        // Three heads of three rows of four.
        let both: Vec<f32> = (0..36).map(|value| value as f32).collect();
        let (keys, values) = (keys(&both, widths), values(&both, widths));
        assert_eq!(keys[..8], [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]);
        assert_eq!(values[..4], [8.0, 9.0, 10.0, 11.0]);
        assert_eq!(join(&keys, &values, widths), both);

        let pair = KeyValue {
            keys: "keys".to_owned(),
            values: "values".to_owned(),
            info: TensorInfo::derived(vec![9, 4], WeightDtype::F32),
            widths,
        };
        let read = |name: &str, part: &Slice| {
            let all = if name == "keys" { &keys } else { &values };
            Ok(part.take(all))
        };
        for ranges in [
            vec![vec![0..9], vec![0..4]],
            vec![vec![4..5, 7..9], vec![1..3]],
            vec![vec![3..6], vec![0..1, 2..4]],
            vec![vec![], vec![0..4]],
        ] {
            let part = Slice::new([9, 4], ranges);
            assert_eq!(pair.read_part(&part, read).unwrap(), part.take(&both));
        }
    }
}
