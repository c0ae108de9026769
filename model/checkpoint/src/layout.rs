//! The mapping from parameters to a checkpoint's tensors, as data.

use std::ops::Range;

/// How a parameter is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// One tensor of the parameter's own shape.
    AsIs(&'static str),
    /// One tensor; `[d_in, d_out]` in the model, `[d_out, d_in]` in the file.
    Transposed(&'static str),
    /// `[experts, d_in, d_out]` in the model; one `[d_out, d_in]` per expert in the file.
    PerExpert(&'static str),
    /// `[experts, d_in, d_out]` in the model; in the file, the rows `part · d_out ..` of each expert in
    /// `[experts, parts · d_out, d_in]`.
    Fused {
        /// The tensor's name.
        name: &'static str,
        /// Index of the matrix among those that are stacked in the tensor.
        part: usize,
        /// Number of stacked matrices.
        parts: usize,
    },
    /// `[…, width]` in the model; in the file, the places `part`, `part + parts`, … of the last dimension of
    /// `[…, parts · width]`.
    Interleaved {
        /// The tensor's name.
        name: &'static str,
        /// Index of the parameter among those whose values take turns.
        part: usize,
        /// Their number.
        parts: usize,
    },
}

/// How one parameter is named and stored. In names, `{layer}` and `{expert}` are placeholders for indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The parameter's path in the model.
    pub path: &'static str,
    /// In files that `transformers` writes.
    pub saved: Stored,
    /// In memory of `transformers` 5, with fused experts; some files use it too, and gradients are named after it.
    pub fused: Stored,
}

/// One of the two ways of storing a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// [`Rule::saved`]
    Saved,
    /// [`Rule::fused`]
    Fused,
}

/// One matrix of a parameter (or the whole parameter, if it is stored as is) in a tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The tensor's name.
    pub name: String,
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// Offset of the piece in the tensor, in values.
    pub start: usize,
    /// Number of values.
    pub length: usize,
    /// From one value of the piece to the next in the tensor; 1 where they lie side by side.
    pub step: usize,
    /// `(d_in, d_out)` of a matrix that is `[d_in, d_out]` in the model and `[d_out, d_in]` in the file.
    pub transposed: Option<(usize, usize)>,
}

impl Piece {
    /// What the piece takes of the tensor, from its first value to its last.
    pub fn span(&self) -> Range<usize> {
        self.start..self.start + (self.length.max(1) - 1) * self.step + self.length.min(1)
    }
}

impl Rule {
    /// A parameter that is stored in its own shape under this name.
    pub const fn as_is(path: &'static str, name: &'static str) -> Self {
        Self {
            path,
            saved: Stored::AsIs(name),
            fused: Stored::AsIs(name),
        }
    }

    fn stored(&self, spelling: Spelling) -> Stored {
        match spelling {
            Spelling::Saved => self.saved,
            Spelling::Fused => self.fused,
        }
    }

    /// Number of pieces of a parameter of this shape.
    pub fn count(&self, spelling: Spelling, shape: &[usize]) -> usize {
        match self.stored(spelling) {
            Stored::AsIs(_) | Stored::Transposed(_) => 1,
            Stored::PerExpert(_) | Stored::Fused { .. } | Stored::Interleaved { .. } => shape[0],
        }
    }

    /// Piece `index` of a parameter of this shape; the pieces are consecutive in the parameter.
    ///
    /// # Panics
    ///
    /// When the rule cannot store a parameter of this rank.
    pub fn piece(
        &self,
        spelling: Spelling,
        layer: Option<usize>,
        shape: &[usize],
        index: usize,
    ) -> Piece {
        let whole = |name, shape: &[usize], transposed| Piece {
            name,
            shape: shape.to_vec(),
            start: 0,
            length: shape.iter().product(),
            step: 1,
            transposed,
        };
        match (self.stored(spelling), shape) {
            (Stored::AsIs(name), _) => whole(fill(name, layer, None), shape, None),
            (Stored::Transposed(name), &[d_in, d_out]) => {
                let name = fill(name, layer, None);
                whole(name, &[d_out, d_in], Some((d_in, d_out)))
            }
            (Stored::PerExpert(name), &[_, d_in, d_out]) => {
                let name = fill(name, layer, Some(index));
                whole(name, &[d_out, d_in], Some((d_in, d_out)))
            }
            (Stored::Fused { name, part, parts }, &[experts, d_in, d_out]) => Piece {
                name: fill(name, layer, None),
                shape: vec![experts, parts * d_out, d_in],
                start: (index * parts + part) * d_in * d_out,
                length: d_in * d_out,
                step: 1,
                transposed: Some((d_in, d_out)),
            },
            (Stored::Interleaved { name, part, parts }, &[_, ref inner @ .., width]) => {
                let mut stored = shape.to_vec();
                stored[shape.len() - 1] = parts * width;
                let length = inner.iter().product::<usize>() * width;
                Piece {
                    name: fill(name, layer, None),
                    shape: stored,
                    start: index * parts * length + part,
                    length,
                    step: parts,
                    transposed: None,
                }
            }
            (stored, _) => panic!("{} {shape:?} cannot be stored as {stored:?}", self.path),
        }
    }
}

/// The layer in a path, and the path with `{layer}` in place of its index.
pub fn pattern(path: &str) -> (Option<usize>, String) {
    let inner = path
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'));
    match inner.and_then(|(layer, rest)| Some((layer.parse().ok()?, rest))) {
        Some((layer, rest)) => (Some(layer), format!("blocks.{{layer}}.{rest}")),
        None => (None, path.to_owned()),
    }
}

/// A name with its placeholders filled in.
pub fn fill(name: &str, layer: Option<usize>, expert: Option<usize>) -> String {
    let mut filled = name.to_owned();
    for (placeholder, index) in [("{layer}", layer), ("{expert}", expert)] {
        if let Some(index) = index {
            filled = filled.replace(placeholder, &index.to_string());
        }
    }
    filled
}

/// Writes the transpose of a `rows × columns` matrix in row-major order to `output`.
///
/// # Panics
///
/// When `values` or `output` does not have `rows · columns` values.
pub fn transpose<T: Copy>(values: &[T], rows: usize, columns: usize, output: &mut [T]) {
    // Blocks keep both sides in cache; a plain loop has a cache miss for every write to a large matrix.
    const BLOCK: usize = 32;
    assert_eq!(values.len(), rows * columns);
    assert_eq!(output.len(), values.len());
    for row_block in (0..rows).step_by(BLOCK) {
        for column_block in (0..columns).step_by(BLOCK) {
            for row in row_block..(row_block + BLOCK).min(rows) {
                for column in column_block..(column_block + BLOCK).min(columns) {
                    output[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Rule, Spelling, Stored, transpose};

    #[test]
    fn interleaved_parameters_take_turns() {
        let stored = |part| Stored::Interleaved {
            name: "both",
            part,
            parts: 2,
        };
        let piece = |part, shape: &[usize], index| {
            let rule = Rule {
                path: "it",
                saved: stored(part),
                fused: stored(part),
            };
            assert_eq!(rule.count(Spelling::Saved, shape), shape[0]);
            rule.piece(Spelling::Saved, None, shape, index)
        };
        let second = piece(1, &[4, 3, 5], 2);
        assert_eq!(second.shape, [4, 3, 10]);
        // Two experts of 30 values, then the second value, and every other one of 30.
        assert_eq!((second.start, second.length, second.step), (61, 15, 2));
        assert_eq!(second.span(), 61..90);
        let bias = piece(0, &[4, 5], 3);
        assert_eq!(
            (bias.shape.as_slice(), bias.span()),
            ([4, 10].as_slice(), 30..39)
        );
    }

    #[test]
    fn a_transpose_larger_than_a_block() {
        let (rows, columns) = (37, 70);
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let (mut transposed, mut back) = (vec![0.0; values.len()], vec![0.0; values.len()]);
        transpose(&values, rows, columns, &mut transposed);
        assert_eq!(transposed[5 * rows + 36], values[36 * columns + 5]);
        transpose(&transposed, columns, rows, &mut back);
        assert_eq!(back, values);
    }
}
