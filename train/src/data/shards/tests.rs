//! Sets that are written, read and checked.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;

use super::*;

/// Sets of documents of these lengths, in a temporary folder. Tokens are 1, 2, 3, … throughout, with a
/// 0 at the end of each document.
pub fn sets(sources: &[Vec<usize>]) -> (tempfile::TempDir, Arc<Vec<TokenSet>>) {
    let folder = tempfile::tempdir().unwrap();
    let files = Arc::default();
    let mut next = 1;
    let sets = sources.iter().enumerate().map(|(index, lengths)| {
        let mut writer = SetWriter::create(folder.path(), &format!("{index}"), 1 << 17).unwrap();
        for &length in lengths {
            let mut tokens: Vec<u32> = (next..next + length as u32).collect();
            tokens.push(0);
            next += length as u32;
            writer.extend(&tokens).unwrap();
            writer.end_document(length as u64).unwrap();
        }
        TokenSet::new(folder.path(), &writer.finish().unwrap(), &files)
    });
    let sets = Arc::new(sets.collect());
    (folder, sets)
}

fn write(folder: &Path, documents: &[Vec<u32>], width: u32, shard_tokens: u64) -> SetManifest {
    let mut writer = SetWriter::with_shard_tokens(folder, "set", width, shard_tokens).unwrap();
    for document in documents {
        let (first, second) = document.split_at(document.len() / 2);
        writer.extend(first).unwrap();
        writer.extend(second).unwrap();
        writer.end_document(document.len() as u64 * 3).unwrap();
    }
    writer.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_is_read(
        documents in prop::collection::vec(prop::collection::vec(0u32..60_000, 1..20), 1..12),
        wide: bool,
        shard_tokens in 1u64..30,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let scale = if wide { 70_000 } else { 1 };
        let documents: Vec<Vec<u32>> =
            documents.iter().map(|tokens| tokens.iter().map(|id| id * scale).collect()).collect();
        let mut manifest = write(folder.path(), &documents, if wide { 4 } else { 2 }, shard_tokens);
        prop_assert!(!manifest.check(folder.path()).unwrap());
        let set = TokenSet::new(folder.path(), &manifest, &Arc::default());
        prop_assert_eq!(set.documents(), documents.len() as u64);
        prop_assert_eq!(manifest.shards.len() as u64, manifest.tokens.div_ceil(shard_tokens));
        let mut whole = Vec::new();
        for (number, document) in documents.iter().enumerate() {
            let mut tokens = Vec::new();
            let place = set.document(number as u64).unwrap();
            set.read(place.tokens, &mut tokens).unwrap();
            prop_assert_eq!(&tokens, document);
            prop_assert_eq!(place.bytes, document.len() as u64 * 3);
            whole.extend(tokens);
        }
        let mut tokens = Vec::new();
        set.read(0..set.tokens(), &mut tokens).unwrap();
        prop_assert_eq!(tokens, whole);
    }
}

fn set_modified(path: &Path, time: SystemTime) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(time).unwrap();
}

#[test]
fn damage_is_found_by_size_or_time_and_content() {
    let folder = tempfile::tempdir().unwrap();
    let mut manifest = write(folder.path(), &[vec![1, 2, 3, 9], vec![4, 9]], 2, 4);
    let now = SystemTime::now();
    for file in [
        shard_name("set", 0),
        shard_name("set", 1),
        index_name("set"),
    ] {
        let path = folder.path().join(&file);
        let content = fs::read(&path).unwrap();
        let mut flipped = content.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [&content[..content.len() - 1], &content[..5], &flipped, &[]] {
            fs::write(&path, damaged).unwrap();
            set_modified(&path, now + Duration::from_secs(5));
            assert!(manifest.check(folder.path()).is_err(), "{file:?}");
        }
        // The same content at another time is known from then on.
        fs::write(&path, content).unwrap();
        set_modified(&path, now + Duration::from_secs(9));
        assert!(manifest.check(folder.path()).unwrap());
        assert!(!manifest.check(folder.path()).unwrap());
    }
    fs::remove_file(folder.path().join(shard_name("set", 1))).unwrap();
    assert!(manifest.check(folder.path()).is_err());
}

/// With sparse files, which most file systems of Unix have.
#[cfg(unix)]
#[test]
fn a_large_set_is_opened_without_reading_it() {
    let folder = tempfile::tempdir().unwrap();
    let shard_tokens = SHARD_BYTES / 4;
    let file = |name: &str, magic, width, length| {
        let path = folder.path().join(name);
        let mut file = File::create(&path).unwrap();
        file.write_all(&header(magic, width)).unwrap();
        file.set_len(length).unwrap();
        FileManifest {
            stamp: Stamp::of(&file.metadata().unwrap()),
            sha256: String::new(),
        }
    };
    let shard = |number| {
        let length = HEADER_BYTES as u64 + SHARD_BYTES;
        file(&shard_name("set", number), TOKENS_MAGIC, 4, length)
    };
    let documents = 100 << 20;
    let shards: Vec<FileManifest> = (0..1000).map(shard).collect();
    let mut manifest = SetManifest {
        name: "set".to_owned(),
        documents,
        bytes: 0,
        tokens: 1000 * shard_tokens,
        width: 4,
        shard_tokens,
        shards,
        index: file("set.index", INDEX_MAGIC, 16, 16 + documents * 16),
    };
    // 268 GB, of which a hundredth could not be read in a second.
    let start = Instant::now();
    assert!(!manifest.check(folder.path()).unwrap());
    let set = TokenSet::new(folder.path(), &manifest, &Arc::default());
    let mut tokens = Vec::new();
    for number in 0..1000 {
        let end = (number + 1) * shard_tokens;
        set.read(end - 3..end, &mut tokens).unwrap();
    }
    set.document(documents - 1).unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(tokens, [0; 3000]);
}

#[test]
fn large_vocabularies_get_wide_tokens() {
    let folder = tempfile::tempdir().unwrap();
    for (vocab_size, width) in [(257, 2), (65_536, 2), (65_537, 4)] {
        assert_eq!(
            SetWriter::create(folder.path(), "set", vocab_size)
                .unwrap()
                .manifest
                .width,
            width
        );
    }
}
