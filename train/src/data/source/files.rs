//! Globs of files.
//!
//! They match as a shell's and Python's do: `*` stays within a name, `**` stands for any folders, and a name that begins
//! with a dot matches only where the pattern writes the dot. Only folders that a pattern can match in are read. Links are
//! followed, but `**` does not enter a folder again that it is already in. FIFOs, sockets and devices match nothing.

mod pattern;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use self::pattern::{Part, Pattern, parse};
use super::super::error::DataError;

/// The files that match, sorted by path. Each path comes once, however many patterns match it; a file that has two
/// paths, by a link, comes twice. A link that leads nowhere comes too if it matches, so that opening it is an error.
pub(super) fn expand(
    source_name: &str,
    patterns: &[String],
) -> Result<BTreeSet<PathBuf>, DataError> {
    let mut files = BTreeSet::new();
    for pattern in patterns {
        let parsed = parse(pattern).map_err(|message| DataError::Pattern {
            source_name: source_name.to_owned(),
            pattern: pattern.clone(),
            message,
        })?;
        let mut walk = Walk::default();
        for pattern in &parsed {
            walk.begin(pattern)?;
        }
        if walk.found.is_empty() {
            return Err(DataError::NoMatch {
                source_name: source_name.to_owned(),
                pattern: pattern.clone(),
            });
        }
        let before = files.len();
        files.append(&mut walk.found);
        tracing::debug!(
            "source {source_name:?}: {pattern}: {} new file(s)",
            files.len() - before
        );
    }
    Ok(files)
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    File,
    Folder,
    /// A link that leads nowhere, or in a circle.
    Dangling,
    /// Nothing, or what is never read.
    Nothing,
}

#[derive(Debug, Default)]
struct Walk {
    found: BTreeSet<PathBuf>,
    /// The folders that the walk is in, without links, from the outermost.
    inside: Vec<PathBuf>,
}

impl Walk {
    fn begin(&mut self, pattern: &Pattern) -> Result<(), DataError> {
        let start = Path::new(if pattern.is_absolute { "/" } else { "" });
        self.folder(start, &[&pattern.parts])
    }

    /// Finds what matches one of these rests of a pattern in a folder.
    fn folder(&mut self, folder: &Path, rests: &[&[Part]]) -> Result<(), DataError> {
        let here = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let mut rests = rests.to_vec();
        let goes_deeper = rests.iter().any(|rest| is_folders(rest));
        if goes_deeper {
            let real = fs::canonicalize(here).map_err(DataError::io("read", here))?;
            // By a link back to where the walk is, `**` would find everything again, under ever longer paths.
            if self.inside.contains(&real) {
                rests.retain(|rest| !is_folders(rest));
            }
            self.inside.push(real);
        }
        self.names(folder, here, rests)?;
        if goes_deeper {
            self.inside.pop();
        }
        Ok(())
    }

    /// Finds the names that these rests of a pattern begin with in a folder, which is read from `here`.
    fn names(
        &mut self,
        folder: &Path,
        here: &Path,
        mut rests: Vec<&[Part]>,
    ) -> Result<(), DataError> {
        // `**` may also stand for no folder at all.
        for index in 0..rests.len() {
            if is_folders(rests[index]) {
                rests.push(&rests[index][1..]);
            }
        }
        // Names that are known are not looked for: the folder may be one that can be entered and not be read.
        for rest in &rests {
            if let [Part::Name(name), after @ ..] = rest {
                self.entry(&folder.join(name), &[after])?;
            }
        }
        rests.retain(|rest| matches!(rest, [Part::Folders | Part::Glob { .. }, ..]));
        if rests.is_empty() {
            return Ok(());
        }
        for entry in fs::read_dir(here).map_err(DataError::io("read", here))? {
            let name = entry.map_err(DataError::io("read", here))?.file_name();
            let mut afters: Vec<&[Part]> = Vec::new();
            for rest in &rests {
                if rest[0].matches(&name) {
                    match rest[0] {
                        Part::Folders => afters.push(rest),
                        _ => afters.push(&rest[1..]),
                    }
                }
            }
            if !afters.is_empty() {
                self.entry(&folder.join(name), &afters)?;
            }
        }
        Ok(())
    }

    /// A path that a pattern matches up to these rests.
    fn entry(&mut self, path: &Path, rests: &[&[Part]]) -> Result<(), DataError> {
        let matches = rests.iter().any(|rest| rest.is_empty());
        match find(path)? {
            Found::File | Found::Dangling if matches => {
                self.found.insert(path.to_owned());
                Ok(())
            }
            Found::Folder => {
                let below: Vec<&[Part]> = rests
                    .iter()
                    .copied()
                    .filter(|rest| !rest.is_empty())
                    .collect();
                match below.is_empty() {
                    true => Ok(()),
                    false => self.folder(path, &below),
                }
            }
            Found::File | Found::Dangling | Found::Nothing => Ok(()),
        }
    }
}

fn is_folders(rest: &[Part]) -> bool {
    matches!(rest, [Part::Folders, ..])
}

fn find(path: &Path) -> Result<Found, DataError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(Found::Folder),
        Ok(found) if found.is_file() => Ok(Found::File),
        Ok(_) => Ok(Found::Nothing),
        Err(_) if path.is_symlink() => Ok(Found::Dangling),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Found::Nothing)
        }
        Err(error) => Err(DataError::io("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use firebox_console::advice::Advise as _;

    use super::*;

    #[test]
    fn matches_are_sorted_and_each_comes_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("b/c")).unwrap();
        for name in ["b/c/2.txt", "b/1.txt", "a.txt", "a.md"] {
            fs::write(root.join(name), name).unwrap();
        }
        let expand = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns
                .iter()
                .map(|p| root.join(p).display().to_string())
                .collect();
            let relative = |path: PathBuf| path.strip_prefix(root).unwrap().display().to_string();
            super::expand("s", &patterns)
                .map(|files| files.into_iter().map(relative).collect::<Vec<_>>())
        };
        assert_eq!(
            expand(&["**/*.txt", "a.*"]).unwrap(),
            ["a.md", "a.txt", "b/1.txt", "b/c/2.txt"]
        );
        assert_eq!(expand(&["*.txt"]).unwrap(), ["a.txt"]);
        assert_eq!(expand(&["b/1.txt"]).unwrap(), ["b/1.txt"]);
        assert_eq!(expand(&["b/{1,9}.txt"]).unwrap(), ["b/1.txt"]);

        let error = expand(&["*.txt", "c/*.txt"]).unwrap_err();
        assert!(
            error.to_string().contains("c/*.txt\" matches no file") && error.exit_code() == 2,
            "{error}"
        );
        let error = expand(&["[.txt"]).unwrap_err();
        assert!(matches!(error, DataError::Pattern { .. }), "{error}");
    }

    /// A folder with these empty files, and what patterns find in it.
    struct Layout(tempfile::TempDir);

    impl Layout {
        fn new(files: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for file in files {
                let path = folder.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            Self(folder)
        }

        fn find(&self, pattern: &str) -> Vec<String> {
            let root = self.0.path();
            // Not `join`, to which a pattern that begins with a slash is a path of its own.
            match expand("s", &[format!("{}/{pattern}", root.display())]) {
                Ok(files) => {
                    let relative =
                        |path: &PathBuf| path.strip_prefix(root).unwrap().display().to_string();
                    files.iter().map(relative).collect()
                }
                Err(DataError::NoMatch { .. }) => Vec::new(),
                Err(error) => vec![error.to_string()],
            }
        }
    }

    #[test]
    fn a_dot_at_the_start_has_to_be_written() {
        let layout = Layout::new(&[
            "a.txt",
            ".b.txt",
            ".git/c.txt",
            "d/.e/f.txt",
            "d/g.txt",
            "..h.txt",
            "[x].txt",
        ]);
        for (pattern, expected) in [
            ("*.txt", &["[x].txt", "a.txt"][..]),
            ("**/*.txt", &["[x].txt", "a.txt", "d/g.txt"]),
            ("**", &["[x].txt", "a.txt", "d/g.txt"]),
            (".*", &["..h.txt", ".b.txt"]),
            ("[.]b.txt", &[]),
            ("?b.txt", &[]),
            ("{.b,a}.txt", &[".b.txt", "a.txt"]),
            (".git/*.txt", &[".git/c.txt"]),
            ("**/.*/*.txt", &[".git/c.txt", "d/.e/f.txt"]),
            (".*/**", &[".git/c.txt"]),
            ("d/**/.e/*", &["d/.e/f.txt"]),
            ("./d/./*.txt", &["d/g.txt"]),
            ("d//g.txt", &["d/g.txt"]),
            ("d//*.txt", &["d/g.txt"]),
            (".//d///*.txt", &["d/g.txt"]),
            ("**//g.txt", &["d/g.txt"]),
            ("d//**", &["d/g.txt"]),
            ("{d/,}/g.txt", &["d/g.txt"]),
            ("{d//g,a}.txt", &["a.txt", "d/g.txt"]),
            ("d/../a.*", &["d/../a.txt"]),
            ("[[]x].txt", &["[x].txt"]),
            ("\\[x\\].txt", &["[x].txt"]),
            ("{d/g,a}.t{x,}t", &["a.txt", "d/g.txt"]),
            ("a.txt/**", &[]),
            ("*.txt/.", &[]),
            ("*.txt/", &[]),
            ("d", &[]),
        ] {
            assert_eq!(layout.find(pattern), expected, "{pattern}");
        }
        let many = "{a,b}".repeat(20);
        assert!(layout.find(&many)[0].contains("more than 1000 patterns"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_not_in_circles() {
        use std::os::unix::fs::symlink;
        let layout = Layout::new(&["a/1.txt", "b/2.txt"]);
        let root = layout.0.path();
        symlink("/nowhere/gone", root.join("a/old-backup")).unwrap();
        symlink("/nowhere/gone", root.join("a/lost.txt")).unwrap();
        symlink("self", root.join("a/self")).unwrap();
        symlink("..", root.join("a/up")).unwrap();
        symlink("../b", root.join("a/c")).unwrap();
        symlink("../a", root.join("b/d")).unwrap();
        symlink("1.txt", root.join("a/again.txt")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("a/socket.txt")).unwrap();
        // A link that leads nowhere is found where it matches; a file that has two paths is found twice.
        assert_eq!(
            layout.find("a/*.txt"),
            ["a/1.txt", "a/again.txt", "a/lost.txt"]
        );
        assert_eq!(layout.find("a/o*/*"), Vec::<String>::new());
        assert_eq!(layout.find("a/socket.txt"), Vec::<String>::new());
        assert_eq!(layout.find("a/up/b/2.txt"), ["a/up/b/2.txt"]);
        assert_eq!(layout.find("a/u*/b/*.txt"), ["a/up/b/2.txt"]);
        assert_eq!(layout.find("a/c/**/2.txt"), ["a/c/2.txt"]);
        assert_eq!(layout.find("**/2.txt"), ["a/c/2.txt", "b/2.txt"]);
    }

    #[cfg(unix)]
    #[test]
    fn folders_that_need_not_be_read_may_be_closed() {
        use std::os::unix::fs::PermissionsExt as _;
        let layout = Layout::new(&["a.txt", "closed/b.txt"]);
        let closed = layout.0.path().join("closed");
        let set = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
        set(0o311);
        assert_eq!(layout.find("*.txt"), ["a.txt"]);
        assert_eq!(layout.find("closed/b.txt"), ["closed/b.txt"]);
        // Nothing is closed to the superuser.
        if fs::read_dir(&closed).is_err() {
            assert!(layout.find("**/*.txt")[0].starts_with("cannot read"));
        }
        set(0o755);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        /// Whatever the pattern, the result is files or an error.
        #[test]
        fn any_pattern_ends_well(pattern in "[ab.*?/{},\\[\\]!\\\\]{1,10}") {
            let layout = Layout::new(&["a", "b/a", ".a/b", "b/.b"]);
            for found in layout.find(&pattern) {
                let is_file = layout.0.path().join(&found).is_file();
                proptest::prop_assert!(is_file || found.contains("is not a glob"), "{found}");
            }
        }
    }

    #[test]
    fn a_pattern_without_a_folder_starts_at_the_working_directory() {
        // Tests run in the crate's folder.
        let files = expand("s", &["Cargo.tom?".to_owned(), "src/li*.rs".to_owned()]).unwrap();
        assert_eq!(
            files.into_iter().collect::<Vec<_>>(),
            [Path::new("Cargo.toml"), Path::new("src/lib.rs")]
        );
    }
}
