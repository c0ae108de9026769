//! The values of a GGUF file's metadata.

use std::fmt;

use serde_json::{Value as Json, json};

/// The kind of a number in metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberKind {
    /// An unsigned byte.
    U8,
    /// A signed byte.
    I8,
    /// Two bytes, unsigned.
    U16,
    /// Two bytes, signed.
    I16,
    /// Four bytes, unsigned.
    U32,
    /// Four bytes, signed.
    I32,
    /// Four bytes with a fraction.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// Eight bytes, unsigned.
    U64,
    /// Eight bytes, signed.
    I64,
    /// Eight bytes with a fraction.
    F64,
}

/// The number of the type of texts in a file.
pub(super) const TEXT: u32 = 8;
/// The number of the type of arrays in a file.
pub(super) const ARRAY: u32 = 9;

impl NumberKind {
    /// All of them, with their numbers in a file.
    const NUMBERED: [(u32, Self); 11] = [
        (0, Self::U8),
        (1, Self::I8),
        (2, Self::U16),
        (3, Self::I16),
        (4, Self::U32),
        (5, Self::I32),
        (6, Self::F32),
        (7, Self::Bool),
        (10, Self::U64),
        (11, Self::I64),
        (12, Self::F64),
    ];

    /// That of a number in a file; `None` for another type.
    pub(super) fn of(number: u32) -> Option<Self> {
        let mut all = Self::NUMBERED.into_iter();
        all.find(|(known, _)| *known == number)
            .map(|(_, kind)| kind)
    }

    /// Its number in a file.
    pub(super) fn number(self) -> u32 {
        let mut all = Self::NUMBERED.into_iter();
        let found = all.find(|(_, kind)| *kind == self);
        found.expect("every kind has a number").0
    }

    /// Bytes of one.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The number of these little-endian bytes; `None` if they are a truth value other than 0 and 1.
    ///
    /// # Panics
    ///
    /// When there are not as many bytes as one has.
    pub(super) fn decode(self, bytes: &[u8]) -> Option<Number> {
        fn word<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().expect("the bytes of a number")
        }
        Some(match self {
            Self::U8 => Number::Unsigned(word::<1>(bytes)[0].into()),
            Self::I8 => Number::Signed(i8::from_le_bytes(word(bytes)).into()),
            Self::U16 => Number::Unsigned(u16::from_le_bytes(word(bytes)).into()),
            Self::I16 => Number::Signed(i16::from_le_bytes(word(bytes)).into()),
            Self::U32 => Number::Unsigned(u32::from_le_bytes(word(bytes)).into()),
            Self::I32 => Number::Signed(i32::from_le_bytes(word(bytes)).into()),
            Self::F32 => Number::Single(f32::from_le_bytes(word(bytes))),
            Self::Bool => match word::<1>(bytes)[0] {
                0 => Number::Bool(false),
                1 => Number::Bool(true),
                _ => return None,
            },
            Self::U64 => Number::Unsigned(u64::from_le_bytes(word(bytes))),
            Self::I64 => Number::Signed(i64::from_le_bytes(word(bytes))),
            Self::F64 => Number::Double(f64::from_le_bytes(word(bytes))),
        })
    }

    /// Appends the little-endian bytes of a number of this kind.
    ///
    /// # Panics
    ///
    /// When the number is not of this kind, or beyond its range.
    pub(super) fn encode(self, number: Number, bytes: &mut Vec<u8>) {
        match (self, number) {
            (Self::Bool, Number::Bool(value)) => bytes.push(value.into()),
            (Self::F32, Number::Single(value)) => bytes.extend_from_slice(&value.to_le_bytes()),
            (Self::F64, Number::Double(value)) => bytes.extend_from_slice(&value.to_le_bytes()),
            (Self::U8 | Self::U16 | Self::U32 | Self::U64, Number::Unsigned(value)) => {
                let all = value.to_le_bytes();
                let (kept, cut) = all.split_at(self.bytes());
                assert!(cut.iter().all(|&byte| byte == 0), "{number} as {self:?}");
                bytes.extend_from_slice(kept);
            }
            (Self::I8 | Self::I16 | Self::I32 | Self::I64, Number::Signed(value)) => {
                bytes.extend_from_slice(&value.to_le_bytes()[..self.bytes()]);
            }
            (kind, number) => panic!("{number} as {kind:?}"),
        }
    }
}

/// A number of any kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// Without a sign.
    Unsigned(u64),
    /// With one.
    Signed(i64),
    /// In four bytes.
    Single(f32),
    /// In eight bytes.
    Double(f64),
    /// A truth value.
    Bool(bool),
}

impl Number {
    /// As an integer of 0 or above.
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => value.try_into().ok(),
            Self::Single(_) | Self::Double(_) | Self::Bool(_) => None,
        }
    }

    /// As a truth value, which an integer may stand for.
    pub fn as_flag(self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(value),
            number => number.as_u64().map(|value| value != 0),
        }
    }

    /// As a number with a fraction; of one in four bytes, the shortest decimal number that it stands for, such as 1e-5.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            Self::Single(value) => value.to_string().parse().ok(),
            Self::Double(value) => Some(value),
            Self::Bool(_) => None,
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => value.fmt(formatter),
            Self::Signed(value) => value.fmt(formatter),
            Self::Single(value) => value.fmt(formatter),
            Self::Double(value) => value.fmt(formatter),
            Self::Bool(value) => value.fmt(formatter),
        }
    }
}

/// A value of a key in metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A number; its kind is how it is written.
    Number(NumberKind, Number),
    /// A text.
    Text(String),
    /// Many numbers of a kind, in their bytes.
    Numbers(NumberKind, Vec<u8>),
    /// Many texts.
    Texts(Vec<String>),
}

impl Value {
    /// A size, in four bytes as most readers expect it.
    pub fn size(value: usize) -> Self {
        match u32::try_from(value) {
            Ok(value) => Self::Number(NumberKind::U32, Number::Unsigned(value.into())),
            Err(_) => Self::Number(NumberKind::U64, Number::Unsigned(value as u64)),
        }
    }

    /// A number with a fraction, in four bytes.
    pub fn single(value: f64) -> Self {
        Self::Number(NumberKind::F32, Number::Single(value as f32))
    }

    /// A truth value.
    pub fn flag(value: bool) -> Self {
        Self::Number(NumberKind::Bool, Number::Bool(value))
    }

    /// A text.
    pub fn text(value: impl Into<String>) -> Self {
        Self::Text(value.into())
    }

    /// Integers in four bytes each.
    pub fn integers(values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        Self::Numbers(NumberKind::I32, bytes.collect())
    }

    /// Truth values.
    pub fn flags(values: impl Iterator<Item = bool>) -> Self {
        Self::Numbers(NumberKind::Bool, values.map(u8::from).collect())
    }

    /// As an integer of 0 or above.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(_, number) => number.as_u64(),
            _ => None,
        }
    }

    /// As a number.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(_, number) => number.as_f64(),
            _ => None,
        }
    }

    /// As a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Number(_, Number::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    /// As a text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// As many texts.
    pub fn as_texts(&self) -> Option<&[String]> {
        match self {
            Self::Texts(texts) => Some(texts),
            _ => None,
        }
    }

    /// As many numbers.
    pub fn as_numbers(&self) -> Option<impl ExactSizeIterator<Item = Number> + '_> {
        match self {
            Self::Numbers(kind, bytes) => {
                let numbers = bytes.chunks_exact(kind.bytes());
                Some(numbers.map(|bytes| kind.decode(bytes).expect("a number that was checked")))
            }
            _ => None,
        }
    }
}

impl Value {
    /// The same in JSON; of many, those that a message can show.
    pub(super) fn to_json(&self) -> Json {
        match self {
            Self::Number(_, Number::Bool(value)) => json!(value),
            Self::Number(_, Number::Unsigned(value)) => json!(value),
            Self::Number(_, Number::Signed(value)) => json!(value),
            Self::Number(_, number) => json!(number.as_f64()),
            Self::Text(text) => json!(text),
            many @ (Self::Numbers(..) | Self::Texts(_)) => json!(many.to_string()),
        }
    }
}

/// Values shown in a message; of many, how many they are.
impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(_, number) => number.fmt(formatter),
            Self::Text(text) => write!(formatter, "{text:?}"),
            Self::Numbers(kind, bytes) => {
                write!(formatter, "{} numbers", bytes.len() / kind.bytes())
            }
            Self::Texts(texts) => write!(formatter, "{} texts", texts.len()),
        }
    }
}
