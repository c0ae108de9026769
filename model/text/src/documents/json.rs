//! One line of JSON, from which a single field is taken.
//!
//! What is accepted is what Python's `json` accepts: JSON, and the words NaN, Infinity and -Infinity, which it writes.
//! Only the value of the wanted field has to fit into a Rust type. All others are passed over, so numbers of any size,
//! halves of surrogate pairs and any depth of nesting are fine there. The last of several equal keys counts.
//!
//! `serde_json` refuses all of these even where a value is ignored, and builds maps that nobody needs.

use std::borrow::Cow;

/// Keys that are listed where the wanted one is missing.
const LISTED: usize = 6;

/// What is wrong with a line, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Byte of the line, from 0.
    pub at: usize,
    pub problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// Something else than what JSON allows there.
    Expected(&'static str),
    /// The line ends before its value does; whether that is within a string.
    Ended { in_string: bool },
    /// A value that is not an object; its kind.
    NotAnObject(&'static str),
    /// An object without the field; the first of the keys that it has.
    NoField(Vec<String>),
    /// The field is not a string; its kind.
    NotAString(&'static str),
    /// The field has an escape such as `\ud83d` without its other half.
    LoneSurrogate,
}

impl Fault {
    /// One sentence about a line, for a field of this name.
    pub fn describe(&self, line: &str, field: &str) -> String {
        let column = self.at + 1;
        match &self.problem {
            Problem::Expected(expected) => {
                let found = line[line.floor_char_boundary(self.at)..].chars().next();
                let found = found.map_or("nothing".to_owned(), |found| format!("{found:?}"));
                format!("invalid JSON at column {column}: expected {expected}, found {found}")
            }
            Problem::Ended { in_string: true } => {
                format!("invalid JSON at column {column}: the line ends within a string")
            }
            Problem::Ended { in_string: false } => {
                format!("invalid JSON at column {column}: the line ends before its value does")
            }
            Problem::NotAnObject(kind) => {
                format!(
                    "expected an object with a field {field:?} at column {column}, found {kind}"
                )
            }
            Problem::NoField(keys) if keys.is_empty() => {
                format!("the object at column {column} is empty: it has no field {field:?}")
            }
            Problem::NoField(keys) => {
                let names = listed(keys).join(", ");
                format!("the object at column {column} has no field {field:?}, only {names}")
            }
            Problem::NotAString(kind) => {
                format!("field {field:?} is not a string but {kind} at column {column}")
            }
            Problem::LoneSurrogate => format!(
                "field {field:?} has half of a surrogate pair at column {column}, which is not a character"
            ),
        }
    }
}

/// The first keys of an object, in quotes, and a sign where there are more.
pub(super) fn listed(keys: &[String]) -> Vec<String> {
    let names = keys.iter().take(LISTED).map(|key| format!("{key:?}"));
    let more = keys.get(LISTED).map(|_| "…".to_owned());
    names.chain(more).collect()
}

/// The string in a field of the object on a line. A dot in the field's name leads into the object within it: `meta.text` is
/// `text` in `meta`, and also the field of that very name, which counts where a line has both. So does, in general, what is
/// within fewer objects.
pub(super) fn string_field(line: &str, field: &str) -> Result<String, Fault> {
    let mut scanner = Scanner { line, at: 0 };
    scanner.pass_space();
    let start = scanner.at;
    if scanner.peek() != Some(b'{') {
        let kind = scanner.kind();
        scanner.pass_value()?;
        scanner.end()?;
        return Err(Fault {
            at: start,
            problem: Problem::NotAnObject(kind),
        });
    }
    let mut search = Search {
        field,
        path: Vec::new(),
        found: None,
        keys: Vec::new(),
    };
    search.object(&mut scanner)?;
    scanner.end()?;
    let fault = |at, problem| Err(Fault { at, problem });
    match search.found {
        None => fault(start, Problem::NoField(search.keys)),
        Some(Found {
            begin,
            end,
            kind: "a string",
            ..
        }) => {
            let quoted = &line[begin..end];
            match unescape(quoted) {
                Some(text) => Ok(text),
                None => fault(begin + lone_surrogate(quoted), Problem::LoneSurrogate),
            }
        }
        Some(Found { begin, kind, .. }) => fault(begin, Problem::NotAString(kind)),
    }
}

/// Looks for a field in an object and in those within it that its name leads into.
struct Search<'a> {
    field: &'a str,
    /// Where the names of the objects that are entered end in the field's name.
    path: Vec<usize>,
    found: Option<Found>,
    /// Names of the first other fields, each with those of the objects around it.
    keys: Vec<String>,
}

/// A value with the wanted name.
struct Found {
    /// The objects that it is in, as of the search.
    path: Vec<usize>,
    begin: usize,
    end: usize,
    kind: &'static str,
}

impl Search<'_> {
    /// Passes over an object. It goes no deeper than the field's name has dots.
    fn object(&mut self, scanner: &mut Scanner<'_>) -> Result<(), Fault> {
        scanner.at += 1;
        scanner.pass_space();
        if scanner.eat(b'}') {
            return Ok(());
        }
        // The part of the name that leads here ends before a dot.
        let (field, start) = (self.field, self.path.last().map_or(0, |end| end + 1));
        loop {
            let key = scanner.key()?;
            let plain = &key[1..key.len() - 1];
            let name = match plain.contains('\\') {
                true => unescape(key).map(Cow::Owned),
                false => Some(Cow::Borrowed(plain)),
            };
            let rest = name.and_then(|name| field[start..].strip_prefix(&*name));
            scanner.pass_space();
            let (begin, kind) = (scanner.at, scanner.kind());
            match rest {
                Some("") => {
                    scanner.pass_value()?;
                    let found = Found {
                        path: self.path.clone(),
                        begin,
                        end: scanner.at,
                        kind,
                    };
                    let fewest = self.found.as_ref().map(|found| found.path.len());
                    if fewest.is_none_or(|fewest| self.path.len() <= fewest) {
                        self.found = Some(found);
                    }
                }
                Some(rest) if rest.starts_with('.') => {
                    self.path.push(field.len() - rest.len());
                    let before = self.keys.len();
                    // An earlier object of this name does not count any more.
                    self.found
                        .take_if(|found| found.path.starts_with(&self.path));
                    match kind {
                        "an object" => self.object(scanner)?,
                        _ => scanner.pass_value()?,
                    }
                    self.path.pop();
                    if self.keys.len() == before {
                        self.other(start, plain);
                    }
                }
                _ => {
                    scanner.pass_value()?;
                    self.other(start, plain);
                }
            }
            scanner.pass_space();
            if scanner.eat(b'}') {
                return Ok(());
            }
            scanner.expect(b',', "`,` or `}`")?;
            scanner.pass_space();
        }
    }

    /// Notes the name of a field that is not the wanted one, in an object whose own name ends before `start`.
    fn other(&mut self, start: usize, name: &str) {
        if self.found.is_none() && self.keys.len() <= LISTED {
            self.keys.push(format!("{}{name}", &self.field[..start]));
        }
    }
}

/// What a quoted string stands for; `None` if it has half of a surrogate pair.
fn unescape(quoted: &str) -> Option<String> {
    serde_json::from_str(quoted).ok()
}

/// Where the first half of a surrogate pair without its other half is in a quoted string.
fn lone_surrogate(quoted: &str) -> usize {
    let unit = |at: usize| {
        let digits = quoted.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut at = 0;
    while let Some(found) = quoted[at..].find('\\') {
        at += found;
        at += match (unit(at), unit(at + 6)) {
            (Some(0xD800..0xDC00), Some(0xDC00..0xE000)) => 12,
            (Some(0xD800..0xE000), _) => return at,
            (Some(_), _) => 6,
            (None, _) => 2,
        };
    }
    0
}

struct Scanner<'a> {
    line: &'a str,
    /// Bytes that are read.
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.line.as_bytes().get(self.at).copied()
    }

    fn pass_space(&mut self) {
        self.pass_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    }

    /// How many bytes are passed over.
    fn pass_while(&mut self, is_passed: impl Fn(u8) -> bool) -> usize {
        let rest = &self.line.as_bytes()[self.at..];
        let count = rest.iter().position(|&byte| !is_passed(byte));
        let count = count.unwrap_or(rest.len());
        self.at += count;
        count
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), Fault> {
        match self.eat(byte) {
            true => Ok(()),
            false => Err(self.unexpected(expected)),
        }
    }

    fn end(&mut self) -> Result<(), Fault> {
        self.pass_space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("the end of the line")),
        }
    }

    fn unexpected(&self, expected: &'static str) -> Fault {
        let problem = match self.peek() {
            Some(_) => Problem::Expected(expected),
            None => Problem::Ended { in_string: false },
        };
        Fault {
            at: self.at,
            problem,
        }
    }

    /// What kind of value begins here.
    fn kind(&self) -> &'static str {
        match self.peek() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => "a number",
        }
    }

    /// A key in its quotes; the colon after it is passed over.
    fn key(&mut self) -> Result<&'a str, Fault> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a key in double quotes"));
        }
        let begin = self.at;
        self.pass_string()?;
        let key = &self.line[begin..self.at];
        self.pass_space();
        self.expect(b':', "`:`")?;
        Ok(key)
    }

    fn pass_value(&mut self) -> Result<(), Fault> {
        // What closes the arrays and objects around: a list instead of recursion, so that no depth exhausts the stack.
        let mut open = Vec::new();
        loop {
            self.pass_space();
            match self.peek() {
                Some(b'"') => self.pass_string()?,
                Some(b'-' | b'0'..=b'9') => self.pass_number()?,
                Some(b'{') => {
                    self.at += 1;
                    self.pass_space();
                    if !self.eat(b'}') {
                        self.key()?;
                        open.push(b'}');
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    self.pass_space();
                    if !self.eat(b']') {
                        open.push(b']');
                        continue;
                    }
                }
                _ => self.pass_word(&["true", "false", "null", "NaN", "Infinity"])?,
            }
            loop {
                let Some(&close) = open.last() else {
                    return Ok(());
                };
                self.pass_space();
                if self.eat(close) {
                    open.pop();
                    continue;
                }
                if close == b']' {
                    self.expect(b',', "`,` or `]`")?;
                } else {
                    self.expect(b',', "`,` or `}`")?;
                    self.pass_space();
                    self.key()?;
                }
                break;
            }
        }
    }

    fn pass_word(&mut self, words: &[&str]) -> Result<(), Fault> {
        let rest = &self.line[self.at..];
        match words.iter().find(|&&word| rest.starts_with(word)) {
            Some(word) => {
                self.at += word.len();
                Ok(())
            }
            None => Err(self.unexpected("a value")),
        }
    }

    fn pass_number(&mut self) -> Result<(), Fault> {
        if self.eat(b'-') && self.peek() == Some(b'I') {
            return self.pass_word(&["Infinity"]);
        }
        if !self.eat(b'0') {
            self.pass_digits()?;
        }
        if self.eat(b'.') {
            self.pass_digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            let _ = self.eat(b'+') || self.eat(b'-');
            self.pass_digits()?;
        }
        Ok(())
    }

    fn pass_digits(&mut self) -> Result<(), Fault> {
        match self.pass_while(|byte| byte.is_ascii_digit()) {
            0 => Err(self.unexpected("a digit")),
            _ => Ok(()),
        }
    }

    fn pass_string(&mut self) -> Result<(), Fault> {
        self.at += 1;
        loop {
            self.pass_while(|byte| byte >= b' ' && byte != b'"' && byte != b'\\');
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.pass_escape()?;
                }
                // What ends the line is no part of it.
                Some(b'\n' | b'\r') if self.line[self.at..].trim_ascii_start().is_empty() => {
                    return Err(self.ends_in_string());
                }
                Some(_) => return Err(self.unexpected("no control character within a string")),
                None => return Err(self.ends_in_string()),
            }
        }
    }

    fn ends_in_string(&self) -> Fault {
        Fault {
            at: self.at,
            problem: Problem::Ended { in_string: true },
        }
    }

    /// What follows a backslash.
    fn pass_escape(&mut self) -> Result<(), Fault> {
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    match self.peek() {
                        Some(digit) if digit.is_ascii_hexdigit() => self.at += 1,
                        Some(_) => return Err(self.unexpected("a hexadecimal digit")),
                        None => return Err(self.ends_in_string()),
                    }
                }
                Ok(())
            }
            Some(_) => Err(self.unexpected("one of \" \\ / b f n r t u after a backslash")),
            None => Err(self.ends_in_string()),
        }
    }
}
