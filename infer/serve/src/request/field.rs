//! One value of a request, and what it may be.

use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserializer as _;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::ApiError;

/// So much of a wrong value is shown.
const SHOWN: usize = 40;

/// A value of a request, with its name.
#[derive(Debug, Clone)]
pub struct Field<'a> {
    name: String,
    raw: &'a RawValue,
}

/// Numbers that a field may have.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    /// Whether a number is one of them.
    pub contain: fn(f64) -> bool,
    /// What they are, after "a number".
    pub words: &'static str,
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Boolean,
    /// A number of any kind.
    Number,
    /// A text.
    Text,
    /// A list.
    List,
    /// An object.
    Object,
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "true or false",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::List => "a list",
            Self::Object => "an object",
        }
    }
}

impl<'a> Field<'a> {
    /// A value with its name in the request, such as `messages[0].role`.
    pub fn new(name: impl Into<String>, raw: &'a RawValue) -> Self {
        Self {
            name: name.into(),
            raw,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its type.
    pub fn kind(&self) -> Kind {
        match self.raw.get().as_bytes().first() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::List,
            Some(b'"') => Kind::Text,
            Some(b't' | b'f') => Kind::Boolean,
            Some(b'n') => Kind::Null,
            _ => Kind::Number,
        }
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        self.kind() == Kind::Null
    }

    /// The error of a value of another type.
    pub fn wrong_type(&self, allowed: &'static str) -> ApiError {
        ApiError::InvalidType {
            param: self.name.clone(),
            found: self.kind().words(),
            allowed,
        }
    }

    /// The error of a value that is not allowed.
    pub fn wrong_value(&self, allowed: &str) -> ApiError {
        let text = self.raw.get();
        let shown: String = text.chars().take(SHOWN).collect();
        let more = if shown.len() < text.len() { "…" } else { "" };
        self.refused(format!("is {shown}{more}; it must be {allowed}"))
    }

    /// The error of a value that is not allowed, in the words that follow its name.
    pub fn refused(&self, words: impl fmt::Display) -> ApiError {
        ApiError::InvalidValue {
            param: self.name.clone(),
            message: format!("{} {words}", self.name),
        }
    }

    /// The error of what this server does not do.
    pub fn unsupported(&self, reason: impl Into<String>) -> ApiError {
        ApiError::Unsupported {
            param: self.name.clone(),
            reason: reason.into(),
        }
    }

    /// Its truth value.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn boolean(&self) -> Result<bool, ApiError> {
        match self.raw.get() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    /// Its number.
    ///
    /// # Errors
    ///
    /// When it is something else, or not one of `numbers`.
    pub fn number(&self, numbers: Numbers) -> Result<f64, ApiError> {
        if self.kind() != Kind::Number {
            return Err(self.wrong_type("a number"));
        }
        match self.raw.get().parse::<f64>() {
            Ok(value) if value.is_finite() && (numbers.contain)(value) => Ok(value),
            _ => Err(self.wrong_value(&format!("a number {}", numbers.words))),
        }
    }

    /// Its integer; `4.0` is one.
    ///
    /// # Errors
    ///
    /// When it is something else, or out of range.
    pub fn integer(&self, range: RangeInclusive<i128>) -> Result<i128, ApiError> {
        if self.kind() != Kind::Number {
            return Err(self.wrong_type("an integer"));
        }
        let text = self.raw.get();
        let whole = |value: f64| value.fract() == 0.0 && value.abs() < 2f64.powi(53);
        let exact = || text.parse::<f64>().ok().filter(|&value| whole(value));
        let value = text.parse().ok().or_else(|| exact().map(|v| v as i128));
        match value {
            Some(value) if range.contains(&value) => Ok(value),
            _ => {
                let (least, most) = range.into_inner();
                Err(self.wrong_value(&match most {
                    _ if most > i128::from(u32::MAX) && least >= 0 => {
                        format!("an integer of at least {least}")
                    }
                    _ => format!("an integer from {least} to {most}"),
                }))
            }
        }
    }

    /// Its integer, as a count.
    ///
    /// # Errors
    ///
    /// When it is something else, or out of range.
    pub fn count(&self, range: RangeInclusive<usize>) -> Result<usize, ApiError> {
        let (least, most) = range.into_inner();
        let value = self.integer(least as i128..=most as i128)?;
        Ok(value as usize)
    }

    /// Its text.
    ///
    /// # Errors
    ///
    /// When it is something else, or has half of a surrogate pair.
    pub fn text(&self) -> Result<String, ApiError> {
        if self.kind() != Kind::Text {
            return Err(self.wrong_type("a text"));
        }
        serde_json::from_str(self.raw.get()).map_err(|error| ApiError::InvalidJson {
            reason: format!("{}: {error}", self.name),
        })
    }

    /// Gives each item of the list to `take`, which may refuse it, with its index.
    ///
    /// # Errors
    ///
    /// When it is something else, which must be `allowed`; and those of `take`.
    pub fn items(
        &self,
        allowed: &'static str,
        mut take: impl FnMut(usize, &'a RawValue) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        if self.kind() != Kind::List {
            return Err(self.wrong_type(allowed));
        }
        let mut refused = None;
        let mut index = 0;
        let items = Items(|raw| {
            refused = take(index, raw).err();
            index += 1;
            refused.is_none()
        });
        let read = serde_json::Deserializer::from_str(self.raw.get()).deserialize_seq(items);
        self.outcome(read, refused)
    }

    /// An item of the list.
    pub fn item(&self, index: usize, raw: &'a RawValue) -> Field<'a> {
        Field::new(format!("{}[{index}]", self.name), raw)
    }

    /// Gives each member of the object to `take`, which may refuse it, with its name in the object. Members that are null are
    /// left out.
    ///
    /// # Errors
    ///
    /// When it is something else, which must be `allowed`; and those of `take`.
    pub fn members(
        &self,
        allowed: &'static str,
        mut take: impl FnMut(&str, Field<'a>) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        if self.kind() != Kind::Object {
            return Err(self.wrong_type(allowed));
        }
        let mut refused = None;
        let members = Members(|name: &str, raw| {
            let shown: String = name.chars().take(SHOWN).collect();
            let member = Field::new(format!("{}.{shown}", self.name), raw);
            if !member.is_null() {
                refused = take(name, member).err();
            }
            refused.is_none()
        });
        let read = serde_json::Deserializer::from_str(self.raw.get()).deserialize_map(members);
        self.outcome(read, refused)
    }

    /// Its value, whatever it is.
    ///
    /// # Errors
    ///
    /// When a text in it has half of a surrogate pair.
    pub fn json(&self) -> Result<serde_json::Value, ApiError> {
        serde_json::from_str(self.raw.get()).map_err(|error| ApiError::InvalidJson {
            reason: format!("{}: {error}", self.name),
        })
    }

    fn outcome(
        &self,
        read: Result<(), serde_json::Error>,
        refused: Option<ApiError>,
    ) -> Result<(), ApiError> {
        match (refused, read) {
            (Some(refused), _) => Err(refused),
            // The name of a member has half of a surrogate pair; all else was checked with the body.
            (None, Err(error)) => Err(ApiError::InvalidJson {
                reason: format!("{}: {error}", self.name),
            }),
            (None, Ok(())) => Ok(()),
        }
    }
}

/// Goes through a list until a callback returns false.
struct Items<F>(F);

impl<'a, F: FnMut(&'a RawValue) -> bool> Visitor<'a> for Items<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'a>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element()? {
            if !(self.0)(item) {
                return Err(A::Error::custom("an item is refused"));
            }
        }
        Ok(())
    }
}

/// Goes through an object until a callback returns false.
struct Members<F>(F);

impl<'a, F: FnMut(&str, &'a RawValue) -> bool> Visitor<'a> for Members<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut object: A) -> Result<(), A::Error> {
        while let Some((name, value)) = object.next_entry::<String, &'a RawValue>()? {
            if !(self.0)(&name, value) {
                return Err(A::Error::custom("a member is refused"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(json: &str, read: impl FnOnce(Field<'_>) -> T) -> T {
        let raw: &RawValue = serde_json::from_str(json).unwrap();
        read(Field::new("x", raw))
    }

    fn message<T: fmt::Debug>(json: &str, read: impl Fn(&Field) -> Result<T, ApiError>) -> String {
        with(json, |field| read(&field).unwrap_err().to_string())
    }

    #[test]
    fn integers_may_be_written_as_numbers() {
        for (json, value) in [
            ("4", 4),
            ("4.0", 4),
            ("-4", -4),
            ("4e2", 400),
            ("-0", 0),
            ("18446744073709551615", i128::from(u64::MAX)),
        ] {
            let range = -10..=i128::from(u64::MAX);
            assert_eq!(
                with(json, |field| field.integer(range)),
                Ok(value),
                "{json}"
            );
        }
        let integer = |field: &Field| field.integer(0..=9);
        assert_eq!(
            message("1.5", integer),
            "x is 1.5; it must be an integer from 0 to 9"
        );
        assert_eq!(
            message("10", integer),
            "x is 10; it must be an integer from 0 to 9"
        );
        assert_eq!(
            message("\"4\"", integer),
            "x is a text; it must be an integer"
        );
        assert_eq!(
            message("true", integer),
            "x is true or false; it must be an integer"
        );
        let long = "9".repeat(1000);
        let expected = format!(
            "x is {}…; it must be an integer of at least 0",
            "9".repeat(SHOWN)
        );
        assert_eq!(
            message(&long, |field| field.count(0..=usize::MAX)),
            expected
        );
    }

    #[test]
    fn numbers_are_finite_and_in_range() {
        let numbers = Numbers {
            contain: |value| value > 0.0,
            words: "greater than 0",
        };
        assert_eq!(with("1e-3", |field| field.number(numbers)), Ok(0.001));
        let number = |field: &Field| field.number(numbers);
        assert_eq!(
            message("0", number),
            "x is 0; it must be a number greater than 0"
        );
        assert_eq!(
            message("1e999", number),
            "x is 1e999; it must be a number greater than 0"
        );
        assert_eq!(message("[1]", number), "x is a list; it must be a number");
    }

    #[test]
    fn texts_are_unescaped() {
        assert_eq!(
            with(r#""a\u00fc\ud83d\udd25\n""#, |field| field.text()).unwrap(),
            "aü\u{1F525}\n"
        );
        let error = with(r#""\ud83d""#, |field| field.text()).unwrap_err();
        assert_eq!(error.code(), "invalid_json");
        assert_eq!(
            message("{}", |field| field.text()),
            "x is an object; it must be a text"
        );
    }

    #[test]
    fn lists_and_objects_name_what_is_wrong_in_them() {
        let items = |field: &Field| {
            field.items("a list of texts", |index, raw| {
                field.item(index, raw).text().map(drop)
            })
        };
        assert_eq!(
            message("[\"a\", 1]", items),
            "x[1] is a number; it must be a text"
        );
        assert_eq!(
            message("1", items),
            "x is a number; it must be a list of texts"
        );
        let members =
            |field: &Field| field.members("an object", |_, member| member.boolean().map(drop));
        assert_eq!(
            with(r#"{"a": true, "b": null}"#, |field| members(&field)),
            Ok(())
        );
        assert_eq!(
            message(r#"{"a": true, "b": 0}"#, members),
            "x.b is a number; it must be true or false"
        );
        let error = with(r#"{"\ud83d": 0}"#, |field| members(&field)).unwrap_err();
        assert_eq!(error.code(), "invalid_json");
    }
}
