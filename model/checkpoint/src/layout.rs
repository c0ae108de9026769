//! The mapping from parameters to a checkpoint's tensors, as data.

use std::ops::Range;

use firebox_model::parallel::Slice;

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

/// The numbers that names are filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbers {
    /// The layer, where the parameter has one.
    pub layer: Option<usize>,
    /// The number of the first expert of the parameter: 0, unless it is a part of a larger one.
    pub first_expert: usize,
}

impl Numbers {
    /// Of a whole parameter of this layer.
    pub fn of_layer(layer: Option<usize>) -> Self {
        Self {
            layer,
            first_expert: 0,
        }
    }
}

impl Piece {
    /// What a part of the piece's values takes of the tensor, given its ranges along each dimension of the matrix. Where values
    /// take turns (`step`), those of their neighbours are taken too, so that its values are every `step`-th of them, from
    /// [`phase`](Self::phase) on.
    pub fn part(&self, ranges: &[Vec<Range<usize>>]) -> Slice {
        let inner: usize = self.shape[1..].iter().product();
        let moved = |ranges: &[Range<usize>], by: usize| -> Vec<Range<usize>> {
            let moved = ranges.iter().map(|range| range.start + by..range.end + by);
            moved.collect()
        };
        let ranges = match (self.transposed, ranges) {
            (None, _) if self.step == 1 => ranges.to_vec(),
            (None, [between @ .., last]) => {
                let index = self.start / inner;
                let together = last
                    .iter()
                    .map(|range| range.start * self.step..range.end * self.step);
                let mut all = vec![vec![index..index + 1]];
                all.extend_from_slice(between);
                all.push(together.collect());
                all
            }
            (Some((d_in, _)), [inputs, outputs]) => match self.shape.as_slice() {
                [_, _] => vec![outputs.clone(), inputs.clone()],
                _ => {
                    let index = self.start / inner;
                    let outputs = moved(outputs, self.start % inner / d_in);
                    vec![vec![index..index + 1], outputs, inputs.clone()]
                }
            },
            _ => panic!("{ranges:?} of {self:?}"),
        };
        Slice::new(self.shape.clone(), ranges)
    }

    /// The place of the piece's first value among those that take turns with it.
    pub fn phase(&self) -> usize {
        self.start % self.step
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

    /// Whether each index of the parameter's first dimension has a piece of its own.
    pub fn is_stack(&self, spelling: Spelling) -> bool {
        match self.stored(spelling) {
            Stored::AsIs(_) | Stored::Transposed(_) => false,
            Stored::PerExpert(_) | Stored::Fused { .. } | Stored::Interleaved { .. } => true,
        }
    }

    /// Number of pieces of a parameter of this shape.
    pub fn count(&self, spelling: Spelling, shape: &[usize]) -> usize {
        match self.is_stack(spelling) {
            true => shape[0],
            false => 1,
        }
    }

    /// What a part of a parameter takes of which tensors, those of the parameters with it that are in the same tensor: where
    /// several are fused or take turns, they are divided alike, and what belongs together stays together.
    ///
    /// # Panics
    ///
    /// When the rule cannot store a parameter of this rank.
    pub fn tensors(
        &self,
        spelling: Spelling,
        layer: Option<usize>,
        part: &Slice,
    ) -> Vec<(String, Slice)> {
        let moved = |ranges: &[Range<usize>], factor: usize, by: usize| {
            let moved = ranges.iter();
            let moved = moved.map(|range| range.start * factor + by..range.end * factor + by);
            moved.collect::<Vec<_>>()
        };
        let (of, ranges) = (part.of(), part.ranges());
        let one = |name, slice| vec![(fill(name, layer, None), slice)];
        match (self.stored(spelling), of, ranges) {
            (Stored::AsIs(name), ..) => one(name, part.clone()),
            (Stored::Transposed(name), &[d_in, d_out], [inputs, outputs]) => {
                let ranges = vec![outputs.clone(), inputs.clone()];
                one(name, Slice::new([d_out, d_in], ranges))
            }
            (Stored::PerExpert(name), &[_, d_in, d_out], [experts, inputs, outputs]) => {
                let experts = experts.iter().cloned().flatten();
                let of_expert = experts.map(|expert| {
                    let ranges = vec![outputs.clone(), inputs.clone()];
                    let slice = Slice::new([d_out, d_in], ranges);
                    (fill(name, layer, Some(expert)), slice)
                });
                of_expert.collect()
            }
            (
                Stored::Fused { name, parts, .. },
                &[experts, d_in, d_out],
                [stack, inputs, outputs],
            ) => {
                let rows = (0..parts).flat_map(|part| moved(outputs, 1, part * d_out));
                let ranges = vec![stack.clone(), rows.collect(), inputs.clone()];
                one(name, Slice::new([experts, parts * d_out, d_in], ranges))
            }
            (Stored::Interleaved { name, parts, .. }, [front @ .., width], [before @ .., last]) => {
                let mut of = front.to_vec();
                of.push(parts * width);
                let mut ranges = before.to_vec();
                ranges.push(moved(last, parts, 0));
                one(name, Slice::new(of, ranges))
            }
            (stored, ..) => panic!("{} {of:?} cannot be stored as {stored:?}", self.path),
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
        Numbers {
            layer,
            first_expert,
        }: Numbers,
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
                let name = fill(name, layer, Some(first_expert + index));
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

/// The rule among these for a parameter's path, and its layer where it has one; `None` where there is no such parameter.
pub fn find(groups: &[&'static [Rule]], path: &str) -> Option<(Rule, Option<usize>)> {
    let (layer, pattern) = pattern(path);
    let mut rules = groups.iter().copied().flatten();
    let rule = rules.find(|rule| rule.path == pattern)?;
    Some((*rule, layer))
}

/// The layer in a path, and the path with `{layer}` in place of its index.
pub fn pattern(path: &str) -> (Option<usize>, String) {
    let found = STACKS.iter().find_map(|stack| {
        let (layer, rest) = path.strip_prefix(stack)?.split_once('.')?;
        Some((layer.parse().ok()?, format!("{stack}{{layer}}.{rest}")))
    });
    match found {
        Some((layer, pattern)) => (Some(layer), pattern),
        None => (None, path.to_owned()),
    }
}

/// What the layer's index stands behind in a path.
const STACKS: [&str; 3] = [
    "blocks.",
    "vision.tower.layers.",
    "vision.tower.global_layers.",
];

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
#[allow(clippy::single_range_in_vec_init)] // slices are lists of ranges
mod tests {
    use super::*;

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
            rule.piece(Spelling::Saved, Numbers::default(), shape, index)
        };
        let second = piece(1, &[4, 3, 5], 2);
        assert_eq!(second.shape, [4, 3, 10]);
        // Two experts of 30 values, then the second value, and every other one of 30.
        assert_eq!((second.start, second.length, second.step), (61, 15, 2));
        assert_eq!(second.phase(), 1);
        let runs = |piece: &Piece, ranges: &[Vec<Range<usize>>]| -> Vec<Range<usize>> {
            piece.part(ranges).runs().collect()
        };
        assert_eq!(runs(&second, &[vec![0..3], vec![0..5]]), [60..90]);
        assert_eq!(runs(&second, &[vec![1..3], vec![2..4]]), [74..78, 84..88]);
        let bias = piece(0, &[4, 5], 3);
        assert_eq!(bias.shape, [4, 10]);
        assert_eq!(runs(&bias, &[vec![1..2, 4..5]]), [32..34, 38..40]);
    }

    #[test]
    fn rows_and_columns_of_an_expert_in_a_fused_tensor() {
        let rule = Rule {
            path: "it",
            saved: Stored::PerExpert("{expert}"),
            fused: Stored::Fused {
                name: "both",
                part: 1,
                parts: 2,
            },
        };
        // In the model `[experts, d_in, d_out]`; three experts of 4 → 5.
        let numbers = Numbers {
            layer: None,
            first_expert: 7,
        };
        let ranges = [vec![1..3], vec![0..2, 4..5]];
        let fused = rule.piece(Spelling::Fused, numbers, &[3, 4, 5], 2);
        let part = fused.part(&ranges);
        assert_eq!(part.of(), [3, 10, 4]);
        assert_eq!(part.ranges(), [vec![2..3], vec![5..7, 9..10], vec![1..3]]);
        let alone = rule.piece(Spelling::Saved, numbers, &[3, 4, 5], 2);
        assert_eq!(alone.name, "9");
        assert_eq!(alone.part(&ranges).ranges(), [vec![0..2, 4..5], vec![1..3]]);
    }

    /// The tensor of a part is the part of the tensor, whichever way it is stored.
    #[test]
    fn a_part_is_stored_in_parts_of_tensors() {
        let name = "it.{expert}";
        for stored in [
            Stored::PerExpert(name),
            Stored::Fused {
                name,
                part: 1,
                parts: 3,
            },
            Stored::Interleaved {
                name,
                part: 2,
                parts: 3,
            },
            Stored::AsIs(name),
        ] {
            let rule = Rule {
                path: "it",
                saved: stored,
                fused: stored,
            };
            let shape = [4, 5, 6];
            let part = Slice::new(shape, vec![vec![1..3], vec![0..2, 4..5], vec![2..6]]);
            let tensors = rule.tensors(Spelling::Saved, None, &part);
            let numbers = Numbers {
                layer: None,
                first_expert: 1,
            };
            for index in 0..rule.count(Spelling::Saved, &part.shape()) {
                // What the rank reads of the whole tensor, and of its own one.
                let whole = rule.piece(Spelling::Saved, Numbers::default(), &shape, 1 + index);
                let local = rule.piece(Spelling::Saved, numbers, &part.shape(), index);
                let (_, slice) = tensors
                    .iter()
                    .find(|(name, _)| *name == local.name)
                    .unwrap();
                assert_eq!(local.shape, slice.shape(), "{stored:?}");
                let values: Vec<usize> = (0..slice.of().iter().product()).collect();
                let mine = slice.take(&values);
                let (ranges, all) = match rule.is_stack(Spelling::Saved) {
                    true => (&part.ranges()[1..], vec![vec![0..3], vec![0..4]]),
                    false => (part.ranges(), vec![vec![0..2], vec![0..3], vec![0..4]]),
                };
                let expected = whole.part(ranges).take(&values);
                assert_eq!(local.part(&all).take(&mine), expected, "{stored:?}");
            }
        }
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
