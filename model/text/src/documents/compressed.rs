//! Files that are compressed with gzip or zstd, read as what is in them.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

use super::BUFFER;

/// Extensions of compressed files.
const EXTENSIONS: [&str; 3] = ["gz", "gzip", "zst"];

/// Whether an extension is that of a file that is compressed in a way that is read.
pub(super) fn is_extension(extension: &std::ffi::OsStr) -> bool {
    let mut known = EXTENSIONS.iter();
    known.any(|known| extension.eq_ignore_ascii_case(known))
}

/// What is wrong with compressed data.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Damaged(String);

/// The bytes of a file, or what is compressed in it.
pub(super) struct Input {
    source: Box<dyn Read + Send>,
    /// The name of the compression.
    compression: Option<&'static str>,
}

impl fmt::Debug for Input {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut input = formatter.debug_struct("Input");
        input
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

impl Input {
    /// # Errors
    ///
    /// When the file's first bytes cannot be read.
    pub fn new(file: File) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(BUFFER, file);
        let head = reader.fill_buf()?;
        let (source, compression): (Box<dyn Read + Send>, _) = match head {
            [0x1F, 0x8B, ..] => (Box::new(Members::new(reader)), Some("gzip")),
            // A frame, or one without data, with which files of pzstd begin.
            [0x28, 0xB5, 0x2F, 0xFD, ..] | [0x50..=0x5F, 0x2A, 0x4D, 0x18, ..] => {
                (Box::new(zstd::Decoder::with_buffer(reader)?), Some("zstd"))
            }
            _ => (Box::new(reader), None),
        };
        Ok(Self {
            source,
            compression,
        })
    }

    /// Whether what is read is larger than the file.
    pub fn is_compressed(&self) -> bool {
        self.compression.is_some()
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.source
            .read(buffer)
            .map_err(|error| match self.compression {
                None => error,
                Some(name) => {
                    let what = format!("its {name} data is damaged or cut off ({error})");
                    io::Error::new(error.kind(), Damaged(what))
                }
            })
    }
}

/// The members of a gzip file, one after the other. Zeros behind a member are passed over, as gzip and Python do: what fills up
/// the last block of a tape, or of a file that was made larger first.
struct Members<R> {
    /// `None` at the end of the file.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Members<R> {
    fn new(reader: R) -> Self {
        Self {
            member: Some(GzDecoder::new(reader)),
        }
    }

    /// The member behind one that has ended.
    fn after(member: GzDecoder<R>) -> io::Result<Option<GzDecoder<R>>> {
        let mut reader = member.into_inner();
        loop {
            let zeros = match reader.fill_buf() {
                Ok([]) => return Ok(None),
                Ok(next) => next.iter().take_while(|&&byte| byte == 0).count(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            match zeros {
                0 => return Ok(Some(GzDecoder::new(reader))),
                zeros => reader.consume(zeros),
            }
        }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.member = self.member.take().map_or(Ok(None), Self::after)?;
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests;
