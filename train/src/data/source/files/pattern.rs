//! Patterns of paths, name by name, so that a walk knows where they cannot match.

use std::ffi::{OsStr, OsString};
use std::path::{Path, is_separator};

use globset::{GlobBuilder, GlobMatcher};

/// Paths that one pattern may stand for by its braces.
const MOST_ALTERNATIVES: usize = 1000;

/// One name of a pattern.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// A name without a wildcard.
    Name(OsString),
    /// `**`: any number of folders.
    Folders,
    /// A name with wildcards.
    Glob {
        matcher: GlobMatcher,
        /// Whether the pattern writes the dot at the start.
        dotted: bool,
    },
}

impl Part {
    /// Whether a name in a folder matches. As in a shell, a dot at the start has to be written.
    pub fn matches(&self, name: &OsStr) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Folders => !is_hidden(name),
            Self::Glob { matcher, dotted } => {
                (*dotted || !is_hidden(name)) && matcher.is_match(Path::new(name))
            }
        }
    }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// A pattern without braces.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    pub is_absolute: bool,
    pub parts: Vec<Part>,
}

/// The patterns that one with braces stands for.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn parse(pattern: &str) -> Result<Vec<Pattern>, String> {
    // What is wrong is said of the whole.
    glob(pattern)?;
    let mut patterns = Vec::new();
    let mut pending = vec![pattern.to_owned()];
    while let Some(next) = pending.pop() {
        match alternatives(&next) {
            Some(alternatives) => pending.extend(alternatives),
            None => patterns.push(single(&next)?),
        }
        if pending.len() + patterns.len() > MOST_ALTERNATIVES {
            return Err(format!(
                "its braces stand for more than {MOST_ALTERNATIVES} patterns"
            ));
        }
    }
    Ok(patterns)
}

fn glob(pattern: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(pattern)
        .literal_separator(true)
        .empty_alternates(true)
        .build();
    glob.map(|glob| glob.compile_matcher())
        .map_err(|error| error.kind().to_string())
}

fn single(pattern: &str) -> Result<Pattern, String> {
    let mut parts: Vec<Part> = Vec::new();
    for name in pattern.split(is_separator) {
        match name {
            "" | "." => {}
            "**" if matches!(parts.last(), Some(Part::Folders)) => {}
            "**" => parts.push(Part::Folders),
            _ => parts.push(match literal(name) {
                Some(name) => Part::Name(name.into()),
                None => Part::Glob {
                    matcher: glob(name)?,
                    dotted: name.trim_start_matches('\\').starts_with('.'),
                },
            }),
        }
    }
    // What ends with a separator or a dot is a folder.
    if pattern.ends_with(is_separator) || pattern.split(is_separator).next_back() == Some(".") {
        parts.push(Part::Name(".".into()));
    }
    // A pattern that ends so means every file below.
    if matches!(parts.last(), Some(Part::Folders)) {
        parts.push(Part::Glob {
            matcher: glob("*")?,
            dotted: false,
        });
    }
    Ok(Pattern {
        is_absolute: pattern.starts_with(is_separator),
        parts,
    })
}

/// The name that a pattern without wildcards stands for.
fn literal(pattern: &str) -> Option<String> {
    let mut name = String::new();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '*' | '?' | '[' => return None,
            // On Windows it separates names.
            '\\' => name.push(letters.next()?),
            _ => name.push(letter),
        }
    }
    Some(name)
}

/// What a pattern stands for by its first braces that are not within others; `None` if it has none.
fn alternatives(pattern: &str) -> Option<Vec<String>> {
    let mut depth = 0;
    let mut begin = 0;
    let mut commas = Vec::new();
    let mut in_class = false;
    let mut letters = pattern.char_indices().peekable();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' if !in_class => _ = letters.next(),
            '[' if !in_class => {
                in_class = true;
                letters.next_if(|(_, letter)| matches!(letter, '!' | '^'));
                letters.next_if(|(_, letter)| *letter == ']');
            }
            ']' => in_class = false,
            _ if in_class => {}
            '{' => {
                if depth == 0 {
                    begin = at;
                }
                depth += 1;
            }
            ',' if depth == 1 => commas.push(at),
            '}' if depth == 1 => {
                let ends = commas.iter().copied().chain([at]);
                let mut start = begin + 1;
                let alternative = |end: usize| {
                    let middle = &pattern[start..end];
                    start = end + 1;
                    format!("{}{middle}{}", &pattern[..begin], &pattern[at + 1..])
                };
                return Some(ends.map(alternative).collect());
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}
