//! Which text is held out for validation, decided before anything else looks at it.

use serde::{Deserialize, Serialize};

use super::hash::{Hash, hash, unit_interval};
use super::source::{Entry, Picture};
use crate::config::{Split, SplitKind};

/// The two sides of a document; one may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sides<'a> {
    pub training: &'a str,
    pub validation: &'a str,
}

/// Splits a document whose text has this hash.
///
/// - `hash`: the whole document falls on one side, by nothing but its text, so that a copy of a
///   validation document never turns up in training, whatever its name, source or place.
/// - `tail`: the first int((1 − fraction) · bytes) bytes are for training, moved back to a
///   character's start; for ASCII text this is the customary split of nanoGPT's `shakespeare_char`.
pub(super) fn split<'a>(text: &'a str, hash: &Hash, config: Split) -> Sides<'a> {
    let at = match config.by {
        Some(SplitKind::Tail) => {
            let bytes = (1.0 - config.fraction) * text.len() as f64;
            text.floor_char_boundary(bytes as usize)
        }
        // A fraction of 1 holds out every document, and one of 0 none.
        _ if unit_interval(hash) < config.fraction => 0,
        _ => text.len(),
    };
    let (training, validation) = text.split_at(at);
    Sides {
        training,
        validation,
    }
}

/// Why a caption with its picture is held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldOutPicture {
    /// Nothing of its concept is trained on.
    Concept,
    /// Other pictures of its concept are trained on.
    Combination,
}

impl HeldOutPicture {
    /// What is new of them, for people.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Concept => "concepts",
            Self::Combination => "combinations",
        }
    }

    /// Its number on disk, from 1.
    pub fn number(self) -> usize {
        match self {
            Self::Concept => 1,
            Self::Combination => 2,
        }
    }

    /// The one of a number, if it is of any.
    pub fn of_number(number: usize) -> Option<Self> {
        [Self::Concept, Self::Combination]
            .into_iter()
            .find(|held_out| held_out.number() == number)
    }
}

/// Splits a document of a source; `hash` is that of its text.
///
/// A caption is held out with its picture, by the concept: pictures of one concept are near-copies of each other. Of the
/// other concepts with several pictures, single ones are held out, which combine the concept with what is known from
/// others.
pub(super) fn split_entry<'a>(entry: &'a Entry, hash: &Hash, config: Split) -> Sides<'a> {
    let text = &entry.document.text[..];
    let Some(picture) = &entry.picture else {
        return split(text, hash, config);
    };
    match held_out(text, picture, config.fraction) {
        Some(_) => Sides {
            training: "",
            validation: text,
        },
        None => Sides {
            training: text,
            validation: "",
        },
    }
}

/// Whether a picture is held out, and why.
pub(super) fn held_out(caption: &str, picture: &Picture, fraction: f64) -> Option<HeldOutPicture> {
    let chosen = |what: &str, name: &str| {
        unit_interval(&hash(format!("{what}:{name}").as_bytes())) < fraction
    };
    if chosen("concept", &picture.concept) {
        return Some(HeldOutPicture::Concept);
    }
    (picture.has_siblings && chosen("combo", caption)).then_some(HeldOutPicture::Combination)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::hash::hash;
    use super::*;

    #[test]
    fn documents_fall_on_the_validation_side_at_the_given_rate() {
        let config = Split {
            fraction: 0.2,
            by: Some(SplitKind::Hash),
        };
        let held_out = (0..5000)
            .filter(|n| {
                let text = format!("document {n}");
                !split(&text, &hash(text.as_bytes()), config)
                    .validation
                    .is_empty()
            })
            .count();
        assert!((850..1150).contains(&held_out), "{held_out} of 5000");
    }

    #[test]
    fn a_tenth_of_tiny_shakespeare_is_the_customary_tenth() {
        let config = Split {
            fraction: 0.1,
            by: Some(SplitKind::Tail),
        };
        let text = "a".repeat(1_115_394);
        assert_eq!(split(&text, &hash(b""), config).training.len(), 1_003_854);
    }

    #[test]
    fn everything_or_nothing_is_held_out() {
        let nothing = Split {
            fraction: 0.0,
            by: None,
        };
        for text in ["", "a", "der Kessel", &"b".repeat(5000)] {
            let hash = hash(text.as_bytes());
            assert_eq!(split(text, &hash, nothing).training, text);
            assert_eq!(split(text, &hash, Split::EVERYTHING).validation, text);
        }
    }

    proptest! {
        #[test]
        fn both_sides_together_are_the_document(text in any::<String>(), fraction in 0.001..0.999, tail: bool) {
            let by = if tail { SplitKind::Tail } else { SplitKind::Hash };
            let Sides { training, validation } = split(&text, &hash(text.as_bytes()), Split { fraction, by: Some(by) });
            prop_assert_eq!(format!("{training}{validation}"), &text[..]);
            prop_assert!(tail || training.is_empty() || validation.is_empty());
        }
    }
}
