//! Places where a text can be cut without changing its tokens, so that pieces of it can be encoded one batch after the
//! other, on all cores and in bounded memory.
//!
//! Nothing is assumed of a tokenizer: its normalizer, pre-tokenizer, vocabulary and added tokens are examined, and a
//! kind of place that cannot be shown to be safe is not used. A text without safe places is encoded whole.

mod pattern;
#[cfg(test)]
mod tests;

use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange, HirKind};
use serde_json::Value;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use self::pattern::{Matches, Pair};

/// The pattern of a `ByteLevel` pre-tokenizer.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Characters that end a clause. Unicode's normal forms map them to themselves or to one another.
const STOPS: [char; 6] = ['.', ',', ';', '，', '。', '、'];

/// Characters that follow words and numbers in code, tables and data. Those with which special tokens like `<think>` or
/// `[MASK]` end are not among them, so that such a token does not rule out all these places.
const SIGNS: [char; 11] = ['.', ',', ';', ':', '"', '=', '(', '[', '{', '+', '/'];

/// A kind of place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// After a line feed that is the only whitespace between two other characters.
    Line,
    /// Between a letter and a space.
    Word,
    /// Between an ASCII digit and a space.
    Number,
    /// Between a letter and one of [`STOPS`].
    Clause,
    /// Between an ASCII letter or digit and one of [`SIGNS`].
    Sign,
    /// Between an ASCII punctuation character and a space; not behind `_`, which regular expressions count among letters.
    Punctuation,
}

impl Place {
    const ALL: [Self; 6] = [
        Self::Line,
        Self::Word,
        Self::Number,
        Self::Clause,
        Self::Sign,
        Self::Punctuation,
    ];

    const BEFORE_A_SPACE: [Self; 3] = [Self::Word, Self::Number, Self::Punctuation];

    /// A text that ends as the text before such a place does.
    const fn example(self) -> &'static str {
        match self {
            Self::Line => "a\n",
            Self::Word | Self::Clause | Self::Sign => "a",
            Self::Number => "0",
            Self::Punctuation => ".",
        }
    }

    /// The characters on both sides, if `space` is what represents a space.
    fn pair(self, space: char) -> Pair {
        let letters = || class(r"[\p{Alphabetic}\p{M}]");
        let (before, after) = match self {
            Self::Line => (class_of(&['\n']), class(r"\S")),
            Self::Word => (letters(), class_of(&[space])),
            Self::Number => (class("[0-9]"), class_of(&[space])),
            Self::Clause => (class("[A-Za-z一-龥]"), class_of(&STOPS)),
            Self::Sign => (class("[A-Za-z0-9]"), class_of(&SIGNS)),
            Self::Punctuation => (class("[[:punct:]&&[^_]]"), class_of(&[space])),
        };
        Pair { before, after }
    }

    /// Whether such a place is between `before` and `after`, which are not empty.
    fn is_between(self, before: &str, after: &str) -> bool {
        let mut backwards = before.chars().rev();
        let (Some(last), Some(next)) = (backwards.next(), after.chars().next()) else {
            return false;
        };
        match self {
            Self::Line => {
                last == '\n'
                    && !next.is_whitespace()
                    && backwards.next().is_some_and(|c| !c.is_whitespace())
            }
            Self::Word => next == ' ' && last.is_alphabetic(),
            Self::Number => next == ' ' && last.is_ascii_digit(),
            Self::Clause => {
                STOPS.contains(&next) && matches!(last, 'A'..='Z' | 'a'..='z' | '一'..='龥')
            }
            Self::Sign => SIGNS.contains(&next) && last.is_ascii_alphanumeric(),
            Self::Punctuation => next == ' ' && is_punctuation(last),
        }
    }

    /// Whether a token that contains these two characters may reach over such a place. In a byte-level vocabulary,
    /// characters represent bytes.
    fn may_be_inside(self, [before, after]: [char; 2], space: char) -> bool {
        let letter = |c: char| c.is_ascii_alphabetic() || !c.is_ascii();
        match self {
            Self::Line => before == '\n' && !after.is_ascii_whitespace(),
            Self::Word => letter(before) && after == space,
            Self::Number => before.is_ascii_digit() && after == space,
            Self::Clause => letter(before) && (STOPS.contains(&after) || !after.is_ascii()),
            Self::Sign => before.is_ascii_alphanumeric() && SIGNS.contains(&after),
            Self::Punctuation => is_punctuation(before) && after == space,
        }
    }

    /// Whether such a place may be where an added token ends. What is put before a text is put before what follows such a
    /// token, too, and not before a piece that is encoded behind an example.
    fn may_be_behind(self, token: &AddedToken, space: char) -> bool {
        let last = token.content.chars().next_back();
        last.is_some_and(|last| self.pair(space).before_contains(last))
    }

    /// Whether an added token may take part of the text on both sides.
    fn may_be_taken_by(self, token: &AddedToken) -> bool {
        let inside = |two: &[char]| self.may_be_inside([two[0], two[1]], ' ');
        let characters: Vec<char> = token.content.chars().collect();
        characters.windows(2).any(inside)
            || match self {
                // The token would take the line feed before it.
                Self::Line => token.lstrip,
                // It would take the space after it.
                Self::Word | Self::Number => {
                    token.rstrip && token.content.ends_with(char::is_alphanumeric)
                }
                Self::Punctuation => token.rstrip && token.content.ends_with(is_punctuation),
                Self::Clause | Self::Sign => false,
            }
    }
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() && c != '_'
}

/// Where the texts of a tokenizer may be cut.
#[derive(Debug, Clone, Default)]
pub(super) struct Cuts {
    /// The kinds of places. With each, if the tokenizer treats the start of a text specially, the number of tokens of
    /// its example: a piece is then encoded behind the example, whose tokens are dropped.
    places: Vec<(Place, Option<usize>)>,
}

/// A piece of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    /// Where it begins in the text, in bytes.
    pub offset: usize,
    pub text: &'a str,
    /// What to encode before it, and how many tokens that gives.
    pub lead: Option<(&'static str, usize)>,
}

impl Cuts {
    /// Examines a tokenizer.
    pub fn of(inner: &Tokenizer) -> Self {
        let json = |part: serde_json::Result<Value>| {
            part.expect("a tokenizer's part can be written as JSON")
        };
        let normalizer = inner.get_normalizer().map(serde_json::to_value);
        let pre_tokenizer = inner.get_pre_tokenizer().map(serde_json::to_value);
        let mut splitting = Splitting::default();
        let known = splitting
            .normalize(&normalizer.map_or(Value::Null, json))
            .and_then(|()| splitting.split(&pre_tokenizer.map_or(Value::Null, json)));
        if known.is_none() {
            return Self::default();
        }
        let added: Vec<AddedToken> = inner
            .get_added_tokens_decoder()
            .into_values()
            .filter(|token| !(token.special && inner.get_encode_special_tokens()))
            .collect();
        let leads = splitting.leads || added.iter().any(|token| token.single_word);
        let safe = |place: &Place| {
            splitting.keeps_apart(*place, inner)
                && !added.iter().any(|token| {
                    place.may_be_taken_by(token)
                        || splitting.leads && place.may_be_behind(token, splitting.space)
                })
        };
        let with_lead = |place: Place| {
            let tokens = match leads {
                true => Some(inner.encode_fast(place.example(), false).ok()?.len()),
                false => None,
            };
            Some((place, tokens))
        };
        Self {
            places: Place::ALL
                .into_iter()
                .filter(safe)
                .filter_map(with_lead)
                .collect(),
        }
    }

    /// The kinds of places.
    #[cfg(test)]
    pub fn places(&self) -> Vec<Place> {
        self.places.iter().map(|&(place, _)| place).collect()
    }

    /// Pieces of `size` bytes and somewhat more, up to the next place. They are larger only where there is none.
    pub fn pieces<'a>(&self, text: &'a str, size: usize) -> impl Iterator<Item = Piece<'a>> {
        let mut start = 0;
        let mut lead = None;
        std::iter::from_fn(move || {
            let rest = &text[start..];
            if rest.is_empty() {
                return None;
            }
            let offset = start;
            let from = start + rest.floor_char_boundary(size.max(1));
            let cut = text[from..].char_indices().find_map(|(at, _)| {
                let (before, after) = (&text[offset..from + at], &text[from + at..]);
                let place = self
                    .places
                    .iter()
                    .find(|(place, _)| place.is_between(before, after))?;
                Some((from + at, *place))
            });
            let piece_lead = lead;
            let end = match cut {
                Some((end, (place, tokens))) => {
                    lead = tokens.map(|tokens| (place.example(), tokens));
                    end
                }
                None => text.len(),
            };
            start = end;
            Some(Piece {
                offset,
                text: &text[offset..end],
                lead: piece_lead,
            })
        })
    }
}

/// How a tokenizer prepares text for its model.
#[derive(Debug)]
struct Splitting {
    /// What represents a space.
    space: char,
    /// Whether something is put before a text.
    leads: bool,
    /// Whether characters represent bytes.
    bytes: bool,
    /// For each place, whether a split may be absent because a match contains the characters on both sides.
    spanned: [bool; Place::ALL.len()],
    /// For each place, whether text is always split there.
    split: [bool; Place::ALL.len()],
    /// Characters that are in a match wherever they are.
    matched: ClassUnicode,
}

impl Default for Splitting {
    fn default() -> Self {
        Self {
            space: ' ',
            leads: false,
            bytes: false,
            spanned: [false; Place::ALL.len()],
            split: [false; Place::ALL.len()],
            matched: ClassUnicode::empty(),
        }
    }
}

impl Splitting {
    /// `None` if the normalizer may change a piece in another way than the whole.
    fn normalize(&mut self, normalizer: &Value) -> Option<()> {
        match kind(normalizer) {
            // These neither compose nor reorder anything over one of the places.
            "" | "NFC" | "NFD" | "NFKC" | "NFKD" => Some(()),
            "Prepend" => {
                self.leads = true;
                Some(())
            }
            "Replace" if normalizer["pattern"]["String"] == " " => {
                self.space = only(normalizer["content"].as_str()?)?;
                Some(())
            }
            "Sequence" => normalizer["normalizers"]
                .as_array()?
                .iter()
                .try_for_each(|part| self.normalize(part)),
            _ => None,
        }
    }

    /// `None` if the pre-tokenizer may split a piece in another way than the whole.
    fn split(&mut self, pre_tokenizer: &Value) -> Option<()> {
        let kind = kind(pre_tokenizer);
        if self.bytes && !kind.is_empty() {
            return None;
        }
        match kind {
            "" => {}
            "Sequence" => pre_tokenizer["pretokenizers"]
                .as_array()?
                .iter()
                .try_for_each(|part| self.split(part))?,
            "ByteLevel" => {
                self.leads |= pre_tokenizer["add_prefix_space"].as_bool()?;
                if pre_tokenizer["use_regex"].as_bool()? {
                    self.split_by(GPT2)?;
                }
                self.bytes = true;
            }
            "Split" => {
                if !matches!(pre_tokenizer["behavior"].as_str()?, "Isolated" | "Removed") {
                    // Where spaces are replaced, there is nothing to split.
                    let nothing = pre_tokenizer["pattern"]["String"] == " " && self.space != ' ';
                    return nothing.then_some(());
                }
                let pattern = &pre_tokenizer["pattern"];
                match (pattern["Regex"].as_str(), pattern["String"].as_str()) {
                    (Some(pattern), _) => self.split_by(pattern)?,
                    (None, Some(text)) => self.split_by(&regex_syntax::escape(text))?,
                    (None, None) => return None,
                }
            }
            "Digits" => {}
            "Punctuation" if pre_tokenizer["behavior"] == "Isolated" => {}
            "Whitespace" | "WhitespaceSplit" | "BertPreTokenizer" => {
                self.split[Place::Line as usize] = true;
                for place in Place::BEFORE_A_SPACE {
                    self.split[place as usize] |= self.space == ' ';
                }
            }
            "Metaspace" => {
                self.space = only(pre_tokenizer["replacement"].as_str()?)?;
                self.leads |= pre_tokenizer["prepend_scheme"] != "never";
                if pre_tokenizer["split"].as_bool()? {
                    for place in Place::BEFORE_A_SPACE {
                        self.split[place as usize] = true;
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn split_by(&mut self, pattern: &str) -> Option<()> {
        let matches = Matches::of(pattern)?;
        for place in Place::ALL {
            self.spanned[place as usize] |= matches.may_span(&place.pair(self.space));
        }
        self.matched.union(&matches.single());
        Some(())
    }

    /// Whether no token reaches over such a place.
    fn keeps_apart(&self, place: Place, inner: &Tokenizer) -> bool {
        if self.spanned[place as usize] {
            return false;
        }
        let mut unmatched = place.pair(self.space).before;
        unmatched.difference(&self.matched);
        unmatched.ranges().is_empty()
            || self.split[place as usize]
            || self.has_no_token_over(place, inner)
    }

    /// Whether no token of a byte-pair encoding contains both sides of such a place, so that nothing is ever merged over
    /// it.
    fn has_no_token_over(&self, place: Place, inner: &Tokenizer) -> bool {
        let ModelWrapper::BPE(model) = inner.get_model() else {
            return false;
        };
        let is_plain = model.dropout.is_none_or(|rate| rate == 0.0)
            && model
                .continuing_subword_prefix
                .as_ref()
                .is_none_or(String::is_empty)
            && model
                .end_of_word_suffix
                .as_ref()
                .is_none_or(String::is_empty)
            && !model.ignore_merges
            && (!model.fuse_unk || model.byte_fallback);
        let byte_of = super::byte_level::characters();
        let byte_of = |c: char| byte_of.iter().position(|&own| own == c).unwrap_or(0xFF);
        let reaches_over = |token: &String| {
            let mut characters: Vec<char> = token.chars().collect();
            if self.bytes {
                for c in &mut characters {
                    *c = char::from(byte_of(*c) as u8);
                }
            }
            characters
                .windows(2)
                .any(|two| place.may_be_inside([two[0], two[1]], self.space))
        };
        is_plain && !inner.get_vocab(false).keys().any(reaches_over)
    }
}

/// The `type` of a part of a `tokenizer.json`; empty for null.
fn kind(part: &Value) -> &str {
    match part {
        Value::Null => "",
        part => part["type"].as_str().unwrap_or("unknown"),
    }
}

/// The only character of a text.
fn only(text: &str) -> Option<char> {
    let mut characters = text.chars();
    characters.next().filter(|_| characters.next().is_none())
}

fn class(pattern: &str) -> ClassUnicode {
    let parsed = regex_syntax::parse(pattern).expect("a constant");
    match parsed.into_kind() {
        HirKind::Class(regex_syntax::hir::Class::Unicode(class)) => class,
        other => unreachable!("{other:?} is not a class"),
    }
}

fn class_of(characters: &[char]) -> ClassUnicode {
    ClassUnicode::new(characters.iter().map(|&c| ClassUnicodeRange::new(c, c)))
}
