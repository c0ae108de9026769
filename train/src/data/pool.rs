//! A bounded number of open files, for data in more files than a process may have open.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::error::DataError;

/// Most files that are open at once; systems allow 256 and more.
const OPEN_FILES: usize = 64;

/// Files that are opened when they are first read; the least recently read ones are closed.
///
/// They are read at offsets instead of being mapped into memory: a file that was truncated gives an
/// error instead of a signal, the operating system reads only the requested range instead of a
/// window around it, and no number of shards uses up the address space.
#[derive(Debug, Default)]
pub(super) struct FilePool {
    /// Most recently read first.
    open: Mutex<VecDeque<(PathBuf, File)>>,
}

impl FilePool {
    /// Reads `bytes` at `offset` of a file that begins with `header`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, begins with another header, or is too short.
    pub fn read(
        &self,
        path: &Path,
        header: &[u8],
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), DataError> {
        // A panic of another thread cannot have left the list in an invalid state.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let is_wanted = |(other, _): &(PathBuf, File)| other.as_os_str() == path.as_os_str();
        match open.iter().position(is_wanted) {
            Some(0) => {}
            Some(place) => {
                let wanted = open.remove(place).expect("it was found there");
                open.push_front(wanted);
            }
            None => {
                let mut file = File::open(path).map_err(DataError::io("read", path))?;
                let mut found = vec![0; header.len()];
                read_at(&mut file, 0, &mut found).map_err(failed(path))?;
                if found != header {
                    return Err(DataError::Damaged {
                        path: path.to_owned(),
                        reason: "its header is not of this version".to_owned(),
                    });
                }
                open.truncate(OPEN_FILES - 1);
                open.push_front((path.to_owned(), file));
            }
        }
        let (_, file) = &mut open[0];
        read_at(file, offset, bytes).map_err(failed(path))
    }
}

fn read_at(file: &mut File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DataError {
    let path = path.to_owned();
    move |error| match error.kind() {
        ErrorKind::UnexpectedEof => DataError::Damaged {
            path,
            reason: "it ends early".to_owned(),
        },
        _ => DataError::io("read", &path)(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn many_files_are_read_with_few_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = |number: usize| folder.path().join(format!("{number}"));
        for number in 0..3 * OPEN_FILES {
            fs::write(path(number), format!("head{number:04}")).unwrap();
        }
        let pool = FilePool::default();
        // Forwards and backwards.
        for number in (0..3 * OPEN_FILES).chain((0..3 * OPEN_FILES).rev()) {
            let mut bytes = [0; 4];
            pool.read(&path(number), b"head", 4, &mut bytes).unwrap();
            assert_eq!(bytes, *format!("{number:04}").as_bytes());
            assert!(pool.open.lock().unwrap().len() <= OPEN_FILES);
        }
        // What is open needs no name.
        fs::remove_file(path(0)).unwrap();
        pool.read(&path(0), b"head", 4, &mut [0; 4]).unwrap();
    }

    #[test]
    fn other_short_and_absent_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let pool = FilePool::default();
        let read = |bytes: &mut [u8]| pool.read(&path, b"head", 4, bytes);
        assert!(matches!(read(&mut [0; 4]), Err(DataError::Io { .. })));
        fs::write(&path, "hea").unwrap();
        assert!(matches!(read(&mut [0; 4]), Err(DataError::Damaged { .. })));
        fs::write(&path, "tailtail").unwrap();
        assert!(matches!(read(&mut [0; 4]), Err(DataError::Damaged { .. })));
        fs::write(&path, "headtail").unwrap();
        assert!(matches!(read(&mut [0; 5]), Err(DataError::Damaged { .. })));
        assert!(read(&mut [0; 4]).is_ok());
    }
}
