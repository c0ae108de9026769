//! What templates expect of Python.

use std::fmt::Write as _;
use std::io;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, escape_formatter};
use serde::Serialize as _;
use serde_json::ser::{Formatter, Serializer};

/// Writes a value as Python does.
pub fn format(output: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = match (value.kind(), value.is_true()) {
        (ValueKind::None, _) => "None",
        (ValueKind::Bool, true) => "True",
        (ValueKind::Bool, false) => "False",
        _ => return escape_formatter(output, state, value),
    };
    output.write_str(text).map_err(Error::from)
}

/// The time now, as `datetime.strftime` writes it.
pub fn strftime_now(format: &str) -> Result<String, Error> {
    let now = jiff::ZonedDateTime::now();
    jiff::fmt::strtime::format(format, &now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// `tojson` of `transformers`: `json.dumps` with its arguments, where characters beyond ASCII stay what they are by default.
pub fn to_json(value: &Value, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let separators: Option<Vec<String>> = arguments.get("separators")?;
    let sort_keys: Option<bool> = arguments.get("sort_keys")?;
    let ascii: Option<bool> = arguments.get("ensure_ascii")?;
    arguments.assert_all_used()?;

    let failed =
        |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = serde_json::to_value(value).map_err(failed)?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    let default = match indent {
        None => [", ", ": "],
        Some(_) => [",", ": "],
    };
    let separators = match separators.as_deref() {
        None => default,
        Some([item, key]) => [item.as_str(), key],
        Some(_) => {
            let message = "tojson: separators are a pair of texts";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    };
    let dumps = Dumps {
        separators,
        indent,
        depth: 0,
        empty: true,
    };
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, dumps);
    json.serialize(&mut serializer).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(match ascii {
        Some(true) => escape(&text),
        _ => text,
    })
}

/// Characters beyond ASCII, which stand in texts alone, as escapes of UTF-16.
fn escape(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(text, "\\u{unit:04x}").expect("a text can always be written to");
        }
    }
    text
}

/// JSON as `json.dumps` writes it.
struct Dumps<'a> {
    /// Between items, and between keys and values.
    separators: [&'a str; 2],
    /// Spaces for each level, where each item has a line.
    indent: Option<usize>,
    /// Lists and objects that are open.
    depth: usize,
    /// Whether the innermost one has no item yet.
    empty: bool,
}

impl Dumps<'_> {
    fn open<W: io::Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close<W: io::Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }

    fn item<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.separators[0].as_bytes())?;
        }
        self.empty = false;
        self.line(writer)
    }

    fn line<W: io::Write + ?Sized>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(writer, "\n{:1$}", "", indent * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for Dumps<'_> {
    fn begin_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.separators[1].as_bytes())
    }
}
