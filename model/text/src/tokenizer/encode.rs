//! Text to token ids, in bounded memory.

use std::borrow::Cow;
use std::thread::available_parallelism;

use firebox_console::panics::caught;

use super::cuts::Piece;
use super::{Tokenizer, TokenizerError};

/// Texts are encoded in pieces of about this many bytes, if that does not change the tokens.
const PIECE: usize = 128 << 10;

/// At least this many pieces are encoded together, on all cores.
const PIECES: usize = 8;

impl Piece<'_> {
    fn input(&self) -> Cow<'_, str> {
        match self.lead {
            Some((lead, _)) => Cow::Owned([lead, self.text].concat()),
            None => Cow::Borrowed(self.text),
        }
    }
}

impl Tokenizer {
    /// Token ids of a text. Special tokens are not added; in the text, they are ordinary characters unless
    /// [`with_special_tokens`](Self::with_special_tokens) says otherwise.
    ///
    /// # Errors
    ///
    /// When the tokenizer has no token for a part of the text, or cannot split it; byte-level tokenizers have tokens for
    /// every text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.encode_batch(&[text])?.pop().unwrap_or_default())
    }

    /// Token ids of several texts, on all cores. An error says in which of them it occurred.
    ///
    /// # Errors
    ///
    /// When a text cannot be encoded; see [`encode`](Self::encode).
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let mut ids = vec![Vec::new(); texts.len()];
        let pieces = texts
            .iter()
            .enumerate()
            .flat_map(|(index, text)| self.pieces(text).map(move |piece| (index, piece)));
        self.encode_pieces(pieces, |index, part| {
            ids[index].extend_from_slice(part);
            Ok::<_, TokenizerError>(())
        })?;
        Ok(ids)
    }

    /// Gives the token ids of a text to `take`, part by part, so that a long text needs little memory.
    ///
    /// # Errors
    ///
    /// Those of [`encode`](Self::encode) and of `take`.
    pub fn encode_parts<E: From<TokenizerError>>(
        &self,
        text: &str,
        mut take: impl FnMut(&[u32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let pieces = self.pieces(text).map(|piece| (0, piece));
        self.encode_pieces(pieces, |_, part| take(part))
    }

    fn pieces<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Piece<'a>> {
        self.cuts.pieces(text, PIECE)
    }

    /// Encodes pieces of numbered texts in batches. `take` is given the number of each and its ids, in order.
    fn encode_pieces<'a, E: From<TokenizerError>>(
        &self,
        mut pieces: impl Iterator<Item = (usize, Piece<'a>)>,
        mut take: impl FnMut(usize, &[u32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let threads = available_parallelism().map_or(1, usize::from);
        let most = PIECE * PIECES.max(2 * threads);
        loop {
            let mut bytes = 0;
            let mut batch = Vec::new();
            while bytes < most
                && let Some((index, piece)) = pieces.next()
            {
                bytes += piece.text.len();
                batch.push((index, piece));
            }
            if batch.is_empty() {
                return Ok(());
            }
            if self.identity {
                for (index, piece) in batch {
                    let ids: Vec<u32> = piece.text.bytes().map(u32::from).collect();
                    take(index, &ids)?;
                }
                continue;
            }
            let inputs: Vec<Cow<'_, str>> = batch.iter().map(|(_, piece)| piece.input()).collect();
            let encoded = caught(|| self.inner.encode_batch_fast(inputs, false));
            let Ok(Ok(encoded)) = encoded else {
                return Err(self.failure(&batch).into());
            };
            for ((index, piece), encoding) in batch.into_iter().zip(encoded) {
                let lead = piece.lead.map_or(0, |(_, tokens)| tokens);
                take(index, &encoding.get_ids()[lead..])?;
            }
        }
    }

    /// Why a batch cannot be encoded. The regular expressions that split text give up with a panic when they have tried
    /// ten million ways to match, for example in a run of as many spaces.
    fn failure(&self, batch: &[(usize, Piece<'_>)]) -> TokenizerError {
        let why = |piece: &Piece<'_>| {
            let encoded = caught(|| self.inner.encode_fast(piece.input(), false));
            match encoded {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(panic),
            }
        };
        let failed = batch
            .iter()
            .find_map(|(index, piece)| Some((*index, piece.offset, why(piece)?)));
        let (text, offset, message) =
            failed.unwrap_or_else(|| (0, 0, "encoding failed once".to_owned()));
        TokenizerError::Encode {
            document: None,
            text,
            offset,
            message,
        }
    }
}
