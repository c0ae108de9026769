//! Where each parameter lies in a checkpoint's tensors, as data.

/// How one parameter is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// One tensor of the parameter's own shape.
    AsIs(&'static str),
    /// One tensor; `[d_in, d_out]` here, `[d_out, d_in]` there.
    Transposed(&'static str),
    /// `[experts, d_in, d_out]` here; there, one `[d_out, d_in]` an expert.
    PerExpert(&'static str),
    /// `[experts, d_in, d_out]` here; there `[experts, parts · d_out, d_in]`, of which these are the rows
    /// `part · d_out ..` of each expert.
    Fused {
        /// The tensor's name.
        name: &'static str,
        /// Which of the matrices that lie under each other.
        part: usize,
        /// How many do.
        parts: usize,
    },
}

/// Where one parameter is found. In names, `{layer}` and `{expert}` stand for numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The parameter's path in the model.
    pub path: &'static str,
    /// In files, as `transformers` writes them.
    pub saved: Stored,
    /// In the memory of `transformers` 5, where experts are fused; also met in files, and the name of the
    /// parameter's gradient.
    pub fused: Stored,
}

/// Which of the two spellings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// [`Rule::saved`]
    Saved,
    /// [`Rule::fused`]
    Fused,
}

/// One matrix of a parameter (or the whole of it, where it is stored as it is), in a tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The tensor's name.
    pub name: String,
    /// The tensor's shape.
    pub shape: Vec<usize>,
    /// Where the piece starts in the tensor, in values.
    pub start: usize,
    /// How many values it has.
    pub length: usize,
    /// `(d_in, d_out)` of a matrix that is `[d_in, d_out]` here and `[d_out, d_in]` there.
    pub transposed: Option<(usize, usize)>,
}

impl Rule {
    fn stored(&self, spelling: Spelling) -> Stored {
        match spelling {
            Spelling::Saved => self.saved,
            Spelling::Fused => self.fused,
        }
    }

    /// How many pieces a parameter of this shape has.
    pub fn count(&self, spelling: Spelling, shape: &[usize]) -> usize {
        match self.stored(spelling) {
            Stored::AsIs(_) | Stored::Transposed(_) => 1,
            Stored::PerExpert(_) | Stored::Fused { .. } => shape[0],
        }
    }

    /// One of the pieces of a parameter of this shape, which follow each other in its own order.
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
                transposed: Some((d_in, d_out)),
            },
            (stored, _) => panic!("{} {shape:?} cannot be stored as {stored:?}", self.path),
        }
    }
}

/// The layer that a path leads into, and the path with `{layer}` in its place.
pub fn pattern(path: &str) -> (Option<usize>, String) {
    let inner = path
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'));
    match inner.and_then(|(layer, rest)| Some((layer.parse().ok()?, rest))) {
        Some((layer, rest)) => (Some(layer), format!("blocks.{{layer}}.{rest}")),
        None => (None, path.to_owned()),
    }
}

/// A name with its numbers put in.
pub fn fill(name: &str, layer: Option<usize>, expert: Option<usize>) -> String {
    let mut filled = name.to_owned();
    for (place, number) in [("{layer}", layer), ("{expert}", expert)] {
        if let Some(number) = number {
            filled = filled.replace(place, &number.to_string());
        }
    }
    filled
}

/// The transpose of a matrix of `rows × columns` in row-major order, into a slice of the same length.
pub fn transpose<T: Copy>(values: &[T], rows: usize, columns: usize, output: &mut [T]) {
    // Blocks keep both sides in cache; a plain loop misses on every write of a large matrix.
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
    use super::transpose;

    #[test]
    fn a_transpose_larger_than_a_block() {
        let (rows, columns) = (37, 70);
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let (mut turned, mut back) = (vec![0.0; values.len()], vec![0.0; values.len()]);
        transpose(&values, rows, columns, &mut turned);
        assert_eq!(turned[5 * rows + 36], values[36 * columns + 5]);
        transpose(&turned, columns, rows, &mut back);
        assert_eq!(back, values);
    }
}
