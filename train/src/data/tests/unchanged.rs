//! Text that is prepared once, read again where it may have changed, and continued with in a resume.

use std::fs;
use std::time::Duration;

use super::super::folder::{MANIFEST, TOKENIZER};
use super::super::*;
use super::{TEXTS, Workplace};

#[test]
fn unchanged_text_is_prepared_once() {
    let workplace = Workplace::new(&TEXTS);
    let config = workplace.config(&[]);
    let first = prepare(&config, false).unwrap();
    let marker = first.folder.join("marker");
    fs::write(&marker, "").unwrap();
    // Neither the share nor the place is part of the content.
    let again = prepare(&workplace.config(&["data.source.0.epochs=3"]), false).unwrap();
    assert!(marker.exists());
    assert_eq!(again.content_hash, first.content_hash);
    assert_eq!(again.sources[0].text, first.sources[0].text);

    workplace.write("003.txt", "to endure");
    let changed = prepare(&config, false).unwrap();
    assert_ne!(changed.content_hash, first.content_hash);
    let bpe = workplace.config(&["tokenizer.kind=\"bpe\"", "tokenizer.vocab_size=270"]);
    let bpe = prepare(&bpe, false).unwrap();
    assert_ne!(bpe.content_hash, changed.content_hash);
    assert!((257..=270).contains(&bpe.tokenizer.vocab_size()));
}

/// An hour: files that were changed so long ago can be trusted.
const LONG: u64 = 3600;

/// Texts that were last changed long ago.
fn settled() -> Workplace {
    let workplace = Workplace::new(&TEXTS);
    for index in 0..TEXTS.len() {
        workplace.age(&format!("{index:03}.txt"), LONG);
    }
    workplace
}

/// Other text than `TEXTS[3]`, of the same size.
const SWAPPED: &str = "to endure";

#[test]
fn text_is_read_again_only_when_size_or_time_or_names_change() {
    assert_eq!(SWAPPED.len(), TEXTS[3].len());
    let workplace = settled();
    let hash = |set: &[&str]| prepare(&workplace.config(set), false).unwrap().content_hash;
    let first = hash(&[]);
    // Nobody can see this, so whoever finds the old text has not read the new one.
    workplace.write("003.txt", SWAPPED);
    workplace.age("003.txt", LONG);
    assert_eq!(hash(&[]), first);
    // What is read in another way is another matter.
    assert_ne!(hash(&["data.source.0.max_bytes=1000"]), first);

    workplace.age("003.txt", LONG - 1);
    let swapped = hash(&[]);
    assert_ne!(swapped, first);
    workplace.write("003.txt", TEXTS[3]);
    workplace.age("003.txt", LONG);
    assert_eq!(hash(&[]), first);
    workplace.write("004.txt", "shorter");
    workplace.age("004.txt", LONG);
    assert_ne!(hash(&[]), first);
    workplace.write("004.txt", TEXTS[4]);
    workplace.age("004.txt", LONG);

    workplace.write("9.txt", "one more");
    workplace.age("9.txt", LONG);
    assert_ne!(hash(&[]), first);
    fs::remove_file(workplace.path().join("9.txt")).unwrap();
    assert_eq!(hash(&[]), first);
    let [from, to] = ["003.txt", "9.txt"].map(|name| workplace.path().join(name));
    fs::rename(from, to).unwrap();
    assert_ne!(hash(&[]), first);
}

#[test]
fn files_behind_the_limit_do_not_matter() {
    let workplace = settled();
    let limit = ["data.source.0.max_bytes=100", "data.validation.by=\"tail\""];
    let hash = || {
        prepare(&workplace.config(&limit), false)
            .unwrap()
            .content_hash
    };
    let first = hash();
    workplace.write("003.txt", SWAPPED);
    workplace.age("003.txt", LONG);
    // 19 + 21 + 31 + 9 + 21 bytes.
    workplace.write("005.txt", "It is not read any more.");
    workplace.write("9.txt", "Nor is this.");
    assert_eq!(hash(), first);
    workplace.age("003.txt", LONG + 1);
    assert_ne!(hash(), first);
}

#[test]
fn recently_changed_files_and_damaged_records_are_not_trusted() {
    let workplace = settled();
    let config = workplace.config(&[]);
    let hash = || prepare(&config, false).unwrap().content_hash;
    // A clock that differs from the file system's: a change may come to have the time of the one before it.
    let write = |text: &str| {
        workplace.write("003.txt", text);
        let file = fs::File::options()
            .write(true)
            .open(workplace.path().join("003.txt"));
        let time = workplace.1 + Duration::from_secs(100);
        file.unwrap().set_modified(time).unwrap();
    };
    write(TEXTS[3]);
    let first = hash();
    write(SWAPPED);
    assert_ne!(hash(), first);

    workplace.age("003.txt", LONG);
    let swapped = hash();
    let records = workplace.path().join("cache/sources");
    let files = fs::read_dir(&records).unwrap().flatten();
    let mut files = files.map(|entry| entry.path());
    let record = files.find(|path| path.extension().is_some()).unwrap();
    let whole = fs::read(&record).unwrap();
    for damaged in ["", "{", "{\"files\": 8}"] {
        fs::write(&record, damaged).unwrap();
        assert_eq!(hash(), swapped);
        assert_eq!(fs::read(&record).unwrap(), whole);
    }
}

#[test]
fn a_change_without_a_trace_is_found_when_the_text_is_needed() {
    let workplace = settled();
    let config = workplace.config(&[]);
    let first = prepare(&config, false).unwrap();
    workplace.write("003.txt", SWAPPED);
    workplace.age("003.txt", LONG);
    fs::remove_dir_all(&first.folder).unwrap();
    let second = prepare(&config, false).unwrap();
    assert_ne!(second.content_hash, first.content_hash);
    assert_eq!(
        prepare(&config, false).unwrap().content_hash,
        second.content_hash
    );
}

#[test]
fn a_resume_reads_no_source() {
    let workplace = settled();
    let config = workplace.config(&[]);
    let first = prepare(&config, false).unwrap();
    let hash = first.content_hash.clone();
    let resumed = || resume(&config, &hash, false).unwrap();
    let sequence = |prepared: &Prepared| {
        let stream = prepared.training_stream(8, 0, 1).unwrap();
        stream.sequence(0).unwrap()
    };
    let expected = sequence(&first);
    let is_the_same = |prepared: Option<Prepared>| {
        let prepared = prepared.expect("the run's data");
        assert_eq!(sequence(&prepared), expected);
        assert_eq!(prepared.held_out, first.held_out);
        assert_eq!(prepared.sources, first.sources);
    };

    // The run continues with its own text, and a new one sees the change.
    workplace.write("003.txt", SWAPPED);
    is_the_same(resumed());
    assert_ne!(prepare(&config, false).unwrap().content_hash, hash);
    is_the_same(resumed());
    for index in 0..TEXTS.len() {
        fs::remove_file(workplace.path().join(format!("{index:03}.txt"))).unwrap();
    }
    is_the_same(resumed());

    // Without the prepared tokens, the sources are needed, and have to be the same.
    fs::remove_dir_all(&first.folder).unwrap();
    assert!(matches!(
        resume(&config, &hash, false),
        Err(DataError::NoMatch { .. })
    ));
    for (index, text) in TEXTS.iter().enumerate() {
        workplace.write(&format!("{index:03}.txt"), text);
    }
    is_the_same(resumed());
    fs::write(first.folder.join("training-0-00000.tokens"), "damaged").unwrap();
    is_the_same(resumed());
    workplace.write("003.txt", SWAPPED);
    is_the_same(resumed());
    fs::remove_dir_all(&first.folder).unwrap();
    assert!(resumed().is_none());
    for no_hash in ["", "short", "../../../../../../tmp/x", "ørgrebørgrebørgreb"] {
        assert!(resume(&config, no_hash, false).unwrap().is_none());
    }
}

#[test]
fn prepared_files_at_another_time_are_read_once() {
    let workplace = settled();
    let config = workplace.config(&[]);
    let folder = prepare(&config, false).unwrap().folder;
    let manifest = || fs::read(folder.join(MANIFEST)).unwrap();
    let (path, before) = (folder.join("training-0-00000.tokens"), manifest());
    let touch = |seconds| {
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(workplace.1 - Duration::from_secs(seconds))
            .unwrap();
    };
    touch(LONG);
    prepare(&config, false).unwrap();
    let renewed = manifest();
    assert_ne!(renewed, before);
    prepare(&config, false).unwrap();
    assert_eq!(manifest(), renewed);

    // The same size at another time, with other content.
    let content = fs::read(&path).unwrap();
    let mut flipped = content.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&path, flipped).unwrap();
    touch(LONG + 1);
    prepare(&config, false).unwrap();
    assert_eq!(fs::read(&path).unwrap(), content);
}

#[test]
fn damaged_and_unfinished_folders_are_made_again() {
    let workplace = Workplace::new(&TEXTS);
    let config = workplace.config(&[]);
    let prepared = prepare(&config, false).unwrap();
    let folder = prepared.folder.clone();
    let sequence = prepared
        .training_stream(8, 0, 1)
        .unwrap()
        .sequence(0)
        .unwrap();
    for file in [
        "training-0-00000.tokens",
        "validation-0.index",
        MANIFEST,
        TOKENIZER,
    ] {
        fs::write(folder.join(file), "damaged").unwrap();
        let unfinished = Unfinished::create(&folder).unwrap();
        fs::write(unfinished.path().join("left"), "half").unwrap();
        let left = unfinished.path().to_owned();
        std::mem::forget(unfinished);
        let again = prepare(&config, false).unwrap();
        assert_eq!(
            again.training_stream(8, 0, 1).unwrap().sequence(0).unwrap(),
            sequence,
            "{file}"
        );
        assert!(!left.exists());
    }
}

#[test]
fn processes_that_prepare_at_once_do_not_disturb_each_other() {
    let workplace = Workplace::new(&TEXTS);
    let config = workplace.config(&[]);
    let hashes = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| prepare(&config, false).unwrap().content_hash))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert!(hashes.iter().all(|hash| *hash == hashes[0]));
}
