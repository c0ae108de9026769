//! Globs of files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use globset::GlobBuilder;
use walkdir::WalkDir;

use super::super::error::DataError;

/// The files that match, sorted by path, each once.
///
/// `*` stays within a folder and `**` does not; symbolic links are followed.
pub(super) fn expand(
    source_name: &str,
    patterns: &[String],
) -> Result<BTreeSet<PathBuf>, DataError> {
    let mut files = BTreeSet::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern)
            .literal_separator(true)
            .build()
            .map_err(|error| DataError::Pattern {
                source_name: source_name.to_owned(),
                pattern: pattern.clone(),
                message: error.kind().to_string(),
            })?;
        let matcher = glob.compile_matcher();
        let before = files.len();
        let mut matched = false;
        let base = literal_prefix(pattern);
        let here = Path::new(".");
        let start = if base.as_os_str().is_empty() {
            here
        } else {
            &base
        };
        if start.exists() {
            for entry in WalkDir::new(start).follow_links(true) {
                let entry = entry.map_err(|error| {
                    let path = error.path().unwrap_or(start).to_owned();
                    DataError::io("read", &path)(error.into())
                })?;
                let path = if base.as_os_str().is_empty() {
                    entry.path().strip_prefix(here).unwrap_or(entry.path())
                } else {
                    entry.path()
                };
                if entry.file_type().is_file() && matcher.is_match(path) {
                    matched = true;
                    files.insert(path.to_owned());
                }
            }
        }
        if !matched {
            return Err(DataError::NoMatch {
                source_name: source_name.to_owned(),
                pattern: pattern.clone(),
            });
        }
        tracing::debug!(
            "source {source_name:?}: {pattern}: {} new file(s)",
            files.len() - before
        );
    }
    Ok(files)
}

/// The folder (or file) at the start of a pattern that no wildcard is part of.
fn literal_prefix(pattern: &str) -> PathBuf {
    let is_literal =
        |part: &&std::ffi::OsStr| !part.to_string_lossy().contains(['*', '?', '[', '{', '\\']);
    Path::new(pattern).iter().take_while(is_literal).collect()
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
