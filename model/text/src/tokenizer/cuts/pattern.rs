//! What a regular expression that splits text can match, without running it.

use regex_syntax::hir::{Class, ClassUnicode, Hir, HirKind};

/// Two adjacent characters, between which a text may be cut.
#[derive(Debug)]
pub(super) struct Pair {
    pub before: ClassUnicode,
    pub after: ClassUnicode,
}

impl Pair {
    /// Whether it may begin with this character.
    pub fn before_contains(&self, c: char) -> bool {
        contains(&self.before, c)
    }
}

/// What is known of all matches of a pattern.
#[derive(Debug)]
pub(super) struct Matches {
    hir: Hir,
}

/// Alternatives that look ahead, and match nothing but whitespace. At the end of a piece they may match where they do
/// not in the whole text, but if the whitespace there is a single character, they match what another alternative matches.
const LOOKING_AHEAD: [&str; 4] = [r"\s+(?!\S)", r"\s++(?!\S)", r"\s+$", r"\s++$"];

impl Matches {
    /// `None` for a pattern whose matches may depend on more than the text from their start on, or that cannot be parsed.
    ///
    /// Text is matched by Oniguruma, for which `?+`, `*+` and `++` are possessive, but `{1,3}+` is a repetition of a
    /// repetition. The former match no more than plain ones, as which they are read here.
    pub fn of(pattern: &str) -> Option<Self> {
        let plain: Vec<&str> = alternatives(pattern)
            .into_iter()
            .filter(|alternative| !LOOKING_AHEAD.contains(alternative))
            .collect();
        let hir = regex_syntax::parse(&without_possession(&plain.join("|"))).ok()?;
        let any = Pair {
            before: ClassUnicode::empty(),
            after: ClassUnicode::empty(),
        };
        spanning(&hir, &any)?;
        Some(Self { hir })
    }

    /// Whether a match may contain the pair.
    pub fn may_span(&self, pair: &Pair) -> bool {
        spanning(&self.hir, pair).is_none_or(|spanning| spanning.inside)
    }

    /// The characters each of which is a match if it stands alone: none of them is ever outside of all matches.
    pub fn single(&self) -> ClassUnicode {
        single(&self.hir)
    }
}

/// The alternatives of the outermost level.
fn alternatives(pattern: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut start, mut groups, mut classes) = (0, 0_usize, 0_usize);
    let mut characters = pattern.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => _ = characters.next(),
            '[' => classes += 1,
            ']' => classes = classes.saturating_sub(1),
            '(' if classes == 0 => groups += 1,
            ')' if classes == 0 => groups = groups.saturating_sub(1),
            '|' if classes == 0 && groups == 0 => {
                found.push(&pattern[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&pattern[start..]);
    found
}

/// The pattern with `?`, `*` and `+` in place of `?+`, `*+` and `++`.
fn without_possession(pattern: &str) -> String {
    let mut plain = String::with_capacity(pattern.len());
    let mut classes = 0_usize;
    let mut characters = pattern.chars().peekable();
    while let Some(c) = characters.next() {
        plain.push(c);
        match c {
            '\\' => plain.extend(characters.next()),
            '[' => classes += 1,
            ']' => classes = classes.saturating_sub(1),
            '?' | '*' | '+' if classes == 0 => _ = characters.next_if_eq(&'+'),
            _ => {}
        }
    }
    plain
}

/// How the matches of an expression may relate to a pair.
#[derive(Debug, Clone, Copy, Default)]
struct Spanning {
    /// A match may be empty.
    empty: bool,
    /// A match may start with the pair's second character.
    starts: bool,
    /// A match may end with its first.
    ends: bool,
    /// A match may contain the pair.
    inside: bool,
}

/// `None` for an expression that looks around.
fn spanning(hir: &Hir, pair: &Pair) -> Option<Spanning> {
    Some(match hir.kind() {
        HirKind::Empty => Spanning {
            empty: true,
            ..Spanning::default()
        },
        HirKind::Literal(literal) => {
            let characters: Vec<char> = str::from_utf8(&literal.0).ok()?.chars().collect();
            let is =
                |class: &ClassUnicode, c: Option<&char>| c.is_some_and(|&c| contains(class, c));
            Spanning {
                empty: characters.is_empty(),
                starts: is(&pair.after, characters.first()),
                ends: is(&pair.before, characters.last()),
                inside: characters
                    .windows(2)
                    .any(|two| contains(&pair.before, two[0]) && contains(&pair.after, two[1])),
            }
        }
        HirKind::Class(Class::Unicode(class)) => Spanning {
            empty: false,
            starts: intersect(class, &pair.after),
            ends: intersect(class, &pair.before),
            inside: false,
        },
        HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => return None,
        HirKind::Repetition(repetition) => {
            let once = spanning(&repetition.sub, pair)?;
            let again = repetition.max.is_none_or(|most| most > 1);
            Spanning {
                empty: once.empty || repetition.min == 0,
                inside: once.inside || again && once.ends && once.starts,
                ..once
            }
        }
        HirKind::Capture(capture) => spanning(&capture.sub, pair)?,
        HirKind::Concat(parts) => {
            let mut whole = Spanning {
                empty: true,
                ..Spanning::default()
            };
            for part in parts {
                let next = spanning(part, pair)?;
                whole = Spanning {
                    empty: whole.empty && next.empty,
                    starts: whole.starts || whole.empty && next.starts,
                    ends: next.ends || next.empty && whole.ends,
                    inside: whole.inside || next.inside || whole.ends && next.starts,
                };
            }
            whole
        }
        HirKind::Alternation(parts) => {
            let mut whole = Spanning::default();
            for part in parts {
                let next = spanning(part, pair)?;
                whole = Spanning {
                    empty: whole.empty || next.empty,
                    starts: whole.starts || next.starts,
                    ends: whole.ends || next.ends,
                    inside: whole.inside || next.inside,
                };
            }
            whole
        }
    })
}

fn single(hir: &Hir) -> ClassUnicode {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Class(Class::Bytes(_)) => {
            ClassUnicode::empty()
        }
        HirKind::Literal(literal) => {
            let mut characters = str::from_utf8(&literal.0).unwrap_or_default().chars();
            match (characters.next(), characters.next()) {
                (Some(only), None) => super::class_of(&[only]),
                _ => ClassUnicode::empty(),
            }
        }
        HirKind::Class(Class::Unicode(class)) => class.clone(),
        HirKind::Repetition(repetition) => match (repetition.min, repetition.max) {
            (0 | 1, max) if max != Some(0) => single(&repetition.sub),
            _ => ClassUnicode::empty(),
        },
        HirKind::Capture(capture) => single(&capture.sub),
        HirKind::Concat(parts) => {
            let mut whole = ClassUnicode::empty();
            for (index, part) in parts.iter().enumerate() {
                let mut others = parts
                    .iter()
                    .enumerate()
                    .filter(|&(other, _)| other != index);
                if others.all(|(_, other)| other.properties().minimum_len() == Some(0)) {
                    whole.union(&single(part));
                }
            }
            whole
        }
        HirKind::Alternation(parts) => {
            let mut whole = ClassUnicode::empty();
            for part in parts {
                whole.union(&single(part));
            }
            whole
        }
    }
}

fn contains(class: &ClassUnicode, c: char) -> bool {
    class
        .iter()
        .any(|range| (range.start()..=range.end()).contains(&c))
}

fn intersect(left: &ClassUnicode, right: &ClassUnicode) -> bool {
    let mut both = left.clone();
    both.intersect(right);
    !both.ranges().is_empty()
}
