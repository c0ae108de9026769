//! Reading and continuing texts with a cache.

use burn::tensor::{Int, Tensor};

use crate::cache::KeyValueCache;
use crate::language_model::{Entry, LanguageModel};
use crate::moe::Routing;
use firebox_kernels::latency_bound;

/// New tokens of one sequence of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Index of the sequence in the cache.
    pub sequence: usize,
    /// The tokens that follow those in the cache, at least one.
    pub tokens: &'a [u32],
    /// How many of these tokens, counted from the last, logits are returned for: 1 to sample the next token, 0 for a part
    /// of a prompt, all of them to verify drafted tokens.
    pub logits: usize,
}

impl<'a> Piece<'a> {
    /// Tokens after which the next one is sampled.
    pub fn new(sequence: usize, tokens: &'a [u32]) -> Self {
        Self {
            sequence,
            tokens,
            logits: 1,
        }
    }

    /// One piece for each sequence of a cache.
    pub fn of_all(rows: impl IntoIterator<Item = &'a [u32]>) -> Vec<Self> {
        let rows = rows.into_iter().enumerate();
        rows.map(|(sequence, tokens)| Self::new(sequence, tokens))
            .collect()
    }
}

impl LanguageModel {
    /// The logits at the last positions of each piece, given the tokens in the cache, to which those of the pieces are
    /// appended. Pieces may differ in length; the head is computed only for the positions that are returned.
    ///
    /// What is computed of a sequence does not depend on the other pieces, but for rounding: a CPU sums products of up
    /// to 32 rows in one order and those of more rows in another; where the embedding is the head, up to 8.
    ///
    /// # Shapes
    ///
    /// - output: `[Σ logits, vocab_size]`, in the order of the pieces; `None` if no piece asks for any
    ///
    /// # Panics
    ///
    /// When there is no piece, a sequence is not in the cache or has two pieces, a piece has no tokens or fewer than the
    /// logits that it asks for, the context is exceeded, or a bounded cache has too few blocks: see
    /// [`reserve`](KeyValueCache::reserve).
    pub fn decode(&self, pieces: &[Piece], cache: &mut KeyValueCache) -> Option<Tensor<2>> {
        match self.decode_stage(self.entry(pieces), pieces, cache).0 {
            Decoded::Logits(logits) => logits,
            Decoded::Stream(_) => panic!("a stage that is not the last has no logits"),
        }
    }

    /// The tokens of pieces, for a first stage.
    pub(crate) fn entry(&self, pieces: &[Piece]) -> Entry {
        let tokens = pieces.iter().flat_map(|piece| piece.tokens);
        let tokens: Vec<i32> = tokens.map(|&id| id as i32).collect();
        Entry::Tokens(Tensor::from_ints(&tokens[..], &self.device()))
    }

    /// A pipeline stage's part of [`decode`](Self::decode), with the tokens of the pieces or the residual stream of the stage
    /// before. Logits are those of the rank's part of the vocabulary. Returns also the routing of the stage's layers.
    ///
    /// # Panics
    ///
    /// As [`decode`](Self::decode).
    pub(crate) fn decode_stage(
        &self,
        entry: Entry,
        pieces: &[Piece],
        cache: &mut KeyValueCache,
    ) -> (Decoded, Vec<Routing>) {
        let context = self.config().context_length;
        let mut wanted: Vec<i32> = Vec::new();
        let mut rows = 0;
        for piece in pieces {
            let new = piece.tokens.len();
            let all = cache.lengths()[piece.sequence] + new;
            assert!(
                all <= context,
                "{all} tokens exceed the context of {context}"
            );
            assert!(
                piece.logits <= new,
                "{} logits of {new} tokens",
                piece.logits
            );
            rows += new;
            wanted.extend((rows - piece.logits..rows).map(|row| row as i32));
        }
        let device = self.device();
        let new = pieces
            .iter()
            .map(|piece| (piece.sequence, piece.tokens.len()));
        let new = new.collect::<Vec<_>>();
        let image_token = self.config().image_token();
        let sight = image_token.and_then(|id| cache.sight(pieces, id));
        let mut step = cache.begin(&new);
        latency_bound(rows, &device, || {
            let (hidden, routing) = self.stepped(entry, &mut step, sight);
            if self.norm.is_none() {
                return (Decoded::Stream(hidden), routing);
            }
            if wanted.is_empty() {
                return (Decoded::Logits(None), routing);
            }
            let hidden = match wanted.len() == rows {
                true => hidden,
                false => hidden.select(0, Tensor::<1, Int>::from_ints(&wanted[..], &device)),
            };
            (Decoded::Logits(Some(self.logits(hidden))), routing)
        })
    }
}

/// What a pipeline stage makes of a step.
#[derive(Debug)]
pub(crate) enum Decoded {
    /// The residual stream for the next stage, `[tokens, d_model]`.
    Stream(Tensor<2>),
    /// The logits that the pieces ask for, on the last stage.
    Logits(Option<Tensor<2>>),
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::language_model::token_tensor;
    use crate::testing::{
        clamped, latent, latent_multiplied, smallest, text, tiny, windowed, with_experts,
        without_positions,
    };
    use firebox_runtime::device::{Kernels, default_name, kernels, select};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(
        decoding_equals_one_forward_pass,
        pieces_of_several_lengths_equal_those_of_one_sequence,
        neighbours_change_nothing_but_rounding,
    );

    /// The same f32 terms, added in another order.
    const ROUNDING: f64 = 5e-6;

    fn close(what: &str, found: Tensor<2>, expected: Tensor<2>) {
        assert_close(what, &values(found), &values(expected), ROUNDING).unwrap();
    }

    fn decoding_equals_one_forward_pass(device: Device) {
        for config in [
            tiny(),
            with_experts(8, 8),
            tiny().dense_baseline(),
            windowed(),
            clamped(),
            without_positions(),
            latent(),
            latent_multiplied(),
        ] {
            let model = LanguageModel::random(&config, 7, &device);
            let rows = text(2, 20, config.vocab_size);
            let tokens = token_tensor(rows.iter().map(Vec::as_slice), &device);
            let whole = model.forward(tokens).logits;
            // Pieces of several lengths: a long prompt, single tokens, a few at once.
            let mut cache = KeyValueCache::new(&config, 2, 20, &device);
            let mut start = 0;
            for length in [7, 1, 1, 4, 1, 6] {
                let end = start + length;
                let pieces = Piece::of_all(rows.iter().map(|row| &row[start..end]));
                let last = model.decode(&pieces, &mut cache).unwrap();
                let expected = whole.clone().narrow(1, end - 1, 1).squeeze_dim::<2>(1);
                close(&format!("position {end}"), last, expected);
                start = end;
                assert_eq!(cache.lengths(), [end; 2]);
            }
        }
    }

    fn pieces_of_several_lengths_equal_those_of_one_sequence(device: Device) {
        let config = windowed();
        let model = LanguageModel::random(&config, 7, &device);
        let rows = text(3, 25, config.vocab_size);
        let whole = rows.iter().map(|row| {
            let tokens = token_tensor([row.as_slice()].into_iter(), &device);
            model.forward(tokens).logits.squeeze_dim::<2>(0)
        });
        let whole: Vec<Tensor<2>> = whole.collect();
        let mut cache = KeyValueCache::new(&config, 3, 2, &device);
        let mut lengths = [0; 3];
        // Sequence, tokens, logits.
        let steps: [&[(usize, usize, usize)]; 5] = [
            &[(1, 9, 1), (0, 3, 3)],
            &[(0, 1, 1), (2, 12, 0), (1, 1, 1)],
            &[(2, 1, 1), (0, 5, 4)],
            &[(0, 2, 0)],
            &[(1, 4, 2), (2, 1, 1), (0, 1, 1)],
        ];
        for step in steps {
            let pieces = step.iter().map(|&(sequence, new, logits)| {
                let start = lengths[sequence];
                lengths[sequence] += new;
                Piece {
                    sequence,
                    tokens: &rows[sequence][start..start + new],
                    logits,
                }
            });
            let found = model.decode(&pieces.collect::<Vec<_>>(), &mut cache);
            assert_eq!(cache.lengths(), lengths);
            let wanted = step.iter().filter(|(_, _, logits)| *logits > 0);
            let expected = wanted.map(|&(sequence, _, logits)| {
                let whole = whole[sequence].clone();
                whole.narrow(0, lengths[sequence] - logits, logits)
            });
            let expected: Vec<Tensor<2>> = expected.collect();
            match found {
                Some(found) => close("pieces", found, Tensor::cat(expected, 0)),
                None => assert!(expected.is_empty()),
            }
        }
    }

    fn neighbours_change_nothing_but_rounding(device: Device) {
        let config = tiny();
        let model = LanguageModel::random(&config, 7, &device);
        let rows = text(40, 12, config.vocab_size);
        // Prompts of other lengths, by themselves.
        let prompt = |sequence: usize| &rows[sequence][..1 + sequence % 9];
        let next = |sequence: usize| &rows[sequence][1 + sequence % 9..][..1];
        let of_batch = |sequences: usize| {
            let mut cache = KeyValueCache::new(&config, sequences, 4, &device);
            for sequence in 0..sequences {
                model.decode(&[Piece::new(sequence, prompt(sequence))], &mut cache);
            }
            let pieces: Vec<Piece> = (0..sequences)
                .map(|sequence| Piece::new(sequence, next(sequence)))
                .collect();
            model.decode(&pieces, &mut cache).unwrap()
        };
        let alone: Vec<Tensor<2>> = (0..40)
            .map(|sequence| {
                let mut cache = KeyValueCache::new(&config, 1, 4, &device);
                model.decode(&[Piece::new(0, prompt(sequence))], &mut cache);
                model
                    .decode(&[Piece::new(0, next(sequence))], &mut cache)
                    .unwrap()
            })
            .collect();
        for sequences in [2, 8, 32, 40] {
            let together = of_batch(sequences);
            let alone = Tensor::cat(alone[..sequences].to_vec(), 0);
            // The kernels of the CPU add in one order for up to 32 rows.
            if sequences <= 32 && kernels(&device) == Kernels::Slices {
                assert_eq!(values(together), values(alone));
            } else {
                close(&format!("{sequences} sequences"), together, alone);
            }
        }
    }

    #[test]
    #[should_panic(expected = "9 tokens exceed the context of 8")]
    fn a_cache_holds_no_more_than_the_context() {
        let device = select(default_name()).unwrap();
        let model = LanguageModel::random(&smallest(), 7, &device);
        let mut cache = KeyValueCache::new(&smallest(), 1, 20, &device);
        let _ = model.decode(&[Piece::new(0, &[0; 8])], &mut cache);
        let _ = model.decode(&[Piece::new(0, &[0])], &mut cache);
    }
}
