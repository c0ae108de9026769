//! Text of tokens as they come.

use std::sync::Arc;

use firebox_text::{StreamDecoder, Tokenizer};

/// Makes text of the tokens of one job: whole characters, cut before the first stop string. What may be the beginning of a stop
/// string is held back until it is known not to be.
#[derive(Debug, Clone)]
pub struct TextWriter {
    decoder: StreamDecoder<Arc<Tokenizer>>,
    stops: Stops,
    /// How much of each stop string the text ends with.
    matched: Vec<usize>,
    include_stop: bool,
    /// The end of the text that is not shown.
    held: String,
    /// Characters of the text, held ones included.
    length: usize,
    stopped: bool,
}

/// What a token adds to a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// What can be shown now: of this token and of those before it.
    pub text: String,
    /// Where the token's own text begins, in characters from the beginning of the generated text.
    pub offset: usize,
    /// The stop string that ends the text here.
    pub stopped: Option<String>,
}

impl TextWriter {
    /// A writer of what follows a prompt. With `special_tokens`, they are shown; with `include_stop`, the text ends after the
    /// stop string and not before it.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        prompt: &[u32],
        special_tokens: bool,
        stops: Stops,
        include_stop: bool,
    ) -> Self {
        Self {
            decoder: StreamDecoder::new(tokenizer, special_tokens).after(prompt),
            matched: vec![0; stops.0.len()],
            stops,
            include_stop,
            held: String::new(),
            length: 0,
            stopped: false,
        }
    }

    /// Characters of the text so far, those that are held back included.
    pub fn offset(&self) -> usize {
        self.length
    }

    /// Adds a token. After a stop string, nothing is added any more.
    pub fn push(&mut self, id: u32) -> Written {
        let offset = self.length;
        if self.stopped {
            return Written {
                text: String::new(),
                offset,
                stopped: None,
            };
        }
        let new = self.decoder.push(id).unwrap_or_default();
        let (text, stopped) = self.append(&new);
        Written {
            text,
            offset,
            stopped,
        }
    }

    /// What is left when the text ends without a stop string: what was held back, and a character that is not complete.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let new = self.decoder.finish().unwrap_or_default();
        let (mut text, _) = self.append(&new);
        text.push_str(&std::mem::take(&mut self.held));
        self.stopped = true;
        text
    }

    /// Adds text; returns what can be shown, and the stop string that ends it.
    fn append(&mut self, new: &str) -> (String, Option<String>) {
        let before = self.held.len();
        self.held.push_str(new);
        self.length += new.chars().count();
        // Where a stop string begins and ends: the first one of those that this text completes.
        let mut first: Option<(usize, usize, &Stop)> = None;
        for (stop, matched) in self.stops.0.iter().zip(&mut self.matched) {
            let Some(end) = stop.search(matched, new.as_bytes()) else {
                continue;
            };
            let end = before + end;
            let start = end - stop.text.len();
            if first.is_none_or(|(s, e, _)| (start, end) < (s, e)) {
                first = Some((start, end, stop));
            }
        }
        let Some((start, end, stop)) = first else {
            let held = self.matched.iter().max().copied().unwrap_or(0);
            let rest = self.held.split_off(self.held.len() - held);
            return (std::mem::replace(&mut self.held, rest), None);
        };
        self.stopped = true;
        let mut text = std::mem::take(&mut self.held);
        self.length -= text[end..].chars().count();
        text.truncate(end);
        if !self.include_stop {
            self.length -= text[start..].chars().count();
            text.truncate(start);
        }
        (text, Some(stop.text.clone()))
    }
}

/// The stop strings of a request, which its texts share.
#[derive(Debug, Clone)]
pub struct Stops(Arc<[Stop]>);

impl Stops {
    /// Ready to be found. Empty ones are left out.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty());
        Self(stops.cloned().map(Stop::new).collect())
    }
}

/// A text that ends the generated one, found byte by byte (Knuth, Morris and Pratt, SIAM J. Comput. 6, 1977).
#[derive(Debug)]
struct Stop {
    text: String,
    /// For each of its beginnings, from the one of one byte: the length of the longest shorter beginning that it ends with.
    shorter: Box<[u32]>,
}

impl Stop {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut shorter = vec![0; bytes.len()];
        let mut matched = 0;
        for (at, &byte) in bytes.iter().enumerate().skip(1) {
            matched = step(bytes, &shorter, matched, byte);
            shorter[at] = matched as u32;
        }
        Self {
            shorter: shorter.into(),
            text,
        }
    }

    /// Where it ends in further text, given how much of it the text before ended with; that is updated.
    fn search(&self, matched: &mut usize, new: &[u8]) -> Option<usize> {
        let bytes = self.text.as_bytes();
        let ends = |&byte: &u8| {
            *matched = step(bytes, &self.shorter, *matched, byte);
            *matched == bytes.len()
        };
        new.iter().position(ends).map(|at| at + 1)
    }
}

/// How much of `text` is matched after one more byte, given how much was before it, which is not all.
fn step(text: &[u8], shorter: &[u32], mut matched: usize, byte: u8) -> usize {
    while text[matched] != byte {
        match matched {
            0 => return 0,
            _ => matched = shorter[matched - 1] as usize,
        }
    }
    matched + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn writer(stops: &[&str], include_stop: bool) -> TextWriter {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        TextWriter::new(
            Arc::new(Tokenizer::bytes()),
            &[0],
            false,
            Stops::new(&stops),
            include_stop,
        )
    }

    /// What each byte of a text shows, and the rest.
    fn pieces(writer: &mut TextWriter, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        for byte in text.bytes() {
            let written = writer.push(byte.into());
            pieces.push(written.text);
            if written.stopped.is_some() {
                break;
            }
        }
        pieces.push(writer.finish());
        pieces
    }

    #[test]
    fn what_may_begin_a_stop_string_is_held_back() {
        let mut writer = writer(&["abac"], false);
        let shown = pieces(&mut writer, "xabab");
        assert_eq!(shown, ["x", "", "", "", "ab", "ab"]);
    }

    #[test]
    fn a_text_is_cut_before_a_stop_string() {
        let shown = pieces(&mut writer(&["!?", "aba"], false), "äbababa");
        assert_eq!(shown.concat(), "äb");
        let mut including = writer(&["aba"], true);
        assert_eq!(pieces(&mut including, "äbababa").concat(), "äbaba");
        assert_eq!(including.offset(), 5);
    }

    #[test]
    fn the_stop_string_that_begins_first_counts() {
        // One token completes both.
        let mut writer = writer(&["b", "aé"], false);
        writer.decoder = StreamDecoder::new(Arc::new(Tokenizer::bytes()), true);
        assert_eq!(writer.push(u32::from(b'a')).text, "");
        let (text, stopped) = writer.append("éb");
        assert_eq!((text.as_str(), stopped.as_deref()), ("", Some("aé")));
    }

    #[test]
    fn offsets_count_characters_before_a_token_and_never_fall() {
        let mut writer = writer(&["üx"], false);
        let bytes = "aüb".bytes().chain("üx".bytes());
        let offsets: Vec<usize> = bytes.map(|byte| writer.push(byte.into()).offset).collect();
        assert_eq!(offsets, [0, 1, 1, 2, 3, 3, 4]);
        // Without the stop string.
        assert_eq!(writer.offset(), 3);
        assert_eq!((writer.push(97).offset, writer.finish().as_str()), (3, ""));
    }

    /// The same, from all tokens so far: the whole text that is shown in the end, and the stop string.
    fn plainly(ids: &[u32], stops: &[String], include_stop: bool) -> (String, Option<String>) {
        let tokenizer = Tokenizer::bytes();
        for count in 0..=ids.len() {
            let text = whole_characters(&tokenizer, &ids[..count]);
            let found = stops.iter().filter_map(|stop| {
                let start = text.find(stop.as_str())?;
                Some((start, start + stop.len(), stop))
            });
            if let Some((start, end, stop)) = found.min() {
                let end = if include_stop { end } else { start };
                return (text[..end].to_owned(), Some(stop.clone()));
            }
        }
        let text = tokenizer.decode(ids);
        let cut = stops.iter().filter_map(|stop| {
            let start = text.find(stop.as_str())?;
            Some((start, start + stop.len()))
        });
        let end = cut
            .min()
            .map_or(text.len(), |(start, end)| match include_stop {
                true => end,
                false => start,
            });
        (text[..end].to_owned(), None)
    }

    /// The text of tokens without a character that the next one may complete.
    fn whole_characters(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut stream = tokenizer.stream();
        ids.iter().filter_map(|&id| stream.push(id)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn a_text_is_what_the_plain_definition_says(
            ids in prop::collection::vec(prop::sample::select(vec![97u32, 98, 0xC3, 0xA9, 0xFF, 256]), 0..24),
            stops in prop::collection::vec("[abé\u{FFFD}]{1,4}", 0..4),
            include_stop in any::<bool>(),
        ) {
            let (expected, stop) = plainly(&ids, &stops, include_stop);
            let borrowed: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut writer = writer(&borrowed, include_stop);
            let (mut text, mut stopped) = (String::new(), None);
            for &id in &ids {
                let written = writer.push(id);
                prop_assert!(written.offset <= writer.offset() || written.stopped.is_some());
                text += &written.text;
                prop_assert!(expected.starts_with(&text));
                if written.stopped.is_some() {
                    stopped = written.stopped;
                    break;
                }
            }
            text += &writer.finish();
            prop_assert_eq!((text, stopped), (expected, stop));
        }
    }
}
