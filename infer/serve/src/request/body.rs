//! The JSON object of a request's body.
//!
//! Bodies come from strangers and may be large, so they are never held as a tree: an object is read into the texts of its known
//! fields, which [`Field`] reads one by one.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::field::Field;
use crate::error::ApiError;

/// How deeply a body may be nested.
const DEPTH: usize = 128;

/// So many unknown fields are named.
const NAMED: usize = 16;

/// So many characters of their names are kept.
const NAME: usize = 64;

/// The fields of a request.
#[derive(Debug)]
pub struct Body<'a> {
    known: &'static [&'static [&'static str]],
    fields: BTreeMap<&'static str, &'a RawValue>,
    /// Names of the first fields that are not known.
    pub unknown: Vec<String>,
}

impl<'a> Body<'a> {
    /// Reads an object; only fields with a known name are kept. Of several fields with one name, the last counts.
    ///
    /// # Errors
    ///
    /// When the bytes are not a JSON object, or it is nested too deeply.
    pub fn read(
        bytes: &'a [u8],
        known: &'static [&'static [&'static str]],
    ) -> Result<Self, ApiError> {
        let invalid = |reason: String| ApiError::InvalidJson { reason };
        let text = std::str::from_utf8(bytes).map_err(|error| {
            invalid(format!(
                "it is not UTF-8 from byte {} on",
                error.valid_up_to()
            ))
        })?;
        if depth(bytes) > DEPTH {
            return Err(invalid(format!("it is nested more than {DEPTH} deep")));
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let body = json
            .deserialize_map(Members { known })
            .and_then(|body| json.end().map(|()| body));
        body.map_err(|error| invalid(error.to_string()))
    }

    /// A field; null is the same as none.
    ///
    /// # Panics
    ///
    /// When the name is not among the known ones.
    pub fn field(&self, name: &'static str) -> Option<Field<'a>> {
        debug_assert!(self.known.iter().any(|names| names.contains(&name)));
        let field = Field::new(name, self.fields.get(name)?);
        (!field.is_null()).then_some(field)
    }

    /// What is read of a field, if it is there.
    ///
    /// # Errors
    ///
    /// Those of `read`.
    pub fn optional<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(Field<'a>) -> Result<T, ApiError>,
    ) -> Result<Option<T>, ApiError> {
        self.field(name).map(read).transpose()
    }
}

/// The largest number of brackets that are open at once, outside of texts.
fn depth(json: &[u8]) -> usize {
    let (mut open, mut deepest) = (0usize, 0);
    let (mut in_text, mut escaped) = (false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => (),
            b'{' | b'[' => {
                open += 1;
                deepest = deepest.max(open);
            }
            b'}' | b']' => open = open.saturating_sub(1),
            _ => (),
        }
    }
    deepest
}

/// Reads the members of an object.
struct Members {
    known: &'static [&'static [&'static str]],
}

impl<'a> Visitor<'a> for Members {
    type Value = Body<'a>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<Body<'a>, A::Error> {
        let mut body = Body {
            known: self.known,
            fields: BTreeMap::new(),
            unknown: Vec::new(),
        };
        while let Some(name) = map.next_key::<String>()? {
            let mut known = self.known.iter().copied().flatten();
            match known.find(|known| **known == name) {
                Some(name) => {
                    body.fields.insert(name, map.next_value()?);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                    if body.unknown.len() < NAMED {
                        body.unknown.push(name.chars().take(NAME).collect());
                    }
                }
            }
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&[&str]] = &[&["a", "b"], &["c"]];

    fn refused(bytes: &[u8]) -> String {
        Body::read(bytes, KNOWN).unwrap_err().to_string()
    }

    #[test]
    fn known_fields_are_kept_and_others_named() {
        let body = Body::read(br#" {"a": 1, "x": [{}], "c": null, "a": 2} "#, KNOWN).unwrap();
        assert_eq!(body.unknown, ["x"]);
        assert_eq!(body.field("a").unwrap().integer(0..=9).unwrap(), 2);
        assert!(body.field("c").is_none() && body.field("b").is_none());
        let many: Vec<String> = (0..100).map(|i| format!("\"{i:099}\":{i}")).collect();
        let many = format!("{{{}}}", many.join(","));
        let unknown = Body::read(many.as_bytes(), KNOWN).unwrap().unknown;
        assert_eq!((unknown.len(), unknown[0].len()), (NAMED, NAME));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for (bytes, reason) in [
            (&b""[..], "EOF while parsing a value at line 1 column 0"),
            (b"[1]", "invalid type: sequence, expected an object"),
            (b"{\"a\": NaN}", "expected value"),
            (b"{\"a\": 1} 2", "trailing characters"),
            (b"{\"a\": \"\xFF\"}", "it is not UTF-8 from byte 7 on"),
            (b"{\"a\": 01}", "invalid number"),
        ] {
            let message = refused(bytes);
            assert!(message.contains(reason), "{message}");
        }
    }

    #[test]
    fn nesting_is_bounded_outside_of_texts() {
        let nested = |count: usize| {
            let (open, close) = ("[".repeat(count - 1), "]".repeat(count - 1));
            format!("{{\"x\":{open}\"\\\"[[[[\"{close}}}")
        };
        assert!(Body::read(nested(DEPTH).as_bytes(), KNOWN).is_ok());
        let message = refused(nested(DEPTH + 1).as_bytes());
        assert!(message.contains("nested more than 128 deep"), "{message}");
        assert!(refused(nested(200_000).as_bytes()).contains("nested"));
    }
}
