use firebox_console::advice::Advise as _;
use firebox_console::durable::FileError;
use firebox_text::documents::TEXT_FIELD;
use firebox_text::packing::PackedText;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::folder::MANIFEST;
use super::*;
use crate::config::load;

/// A folder with texts, a cache and a configuration that names them; and when it was made.
struct Workplace(tempfile::TempDir, SystemTime);

impl Workplace {
    fn new(documents: &[&str]) -> Self {
        let workplace = Self(tempfile::tempdir().unwrap(), SystemTime::now());
        for (index, text) in documents.iter().enumerate() {
            workplace.write(&format!("{index:03}.txt"), text);
        }
        workplace
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    /// Sets when a text was last changed, in seconds before now.
    fn age(&self, name: &str, seconds: u64) {
        let file = fs::File::options().write(true).open(self.path().join(name));
        let time = self.1 - Duration::from_secs(seconds);
        file.unwrap().set_modified(time).unwrap();
    }

    fn config(&self, set: &[&str]) -> RunConfig {
        let folder = self.path().display();
        self.write(
            "run.toml",
            &format!(
                "[model]\nlayers = 1\nd_model = 8\nheads = 2\ncontext_length = 8\n\
                 [model.experts]\ncount = 2\ntop_k = 1\nd_ff = 8\n\
                 [tokenizer]\nkind = \"bytes\"\n\
                 [data]\ncache = '{folder}/cache'\n\
                 [data.validation]\nfraction = 0.25\n\
                 [[data.source]]\nname = \"texts\"\nfiles = ['{folder}/*.txt']\n\
                 [train]\nsteps = 1\n[optimizer]\nlearning_rate = 0.001\n[schedule]\nbatch_tokens = 8\n"
            ),
        );
        let set: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
        load(&self.path().join("run.toml"), &set).unwrap()
    }
}

const TEXTS: [&str; 8] = [
    "To be, or not to be",
    "that is the question:",
    "Whether 'tis nobler in the mind",
    "to suffer",
    "the slings and arrows",
    "of outrageous fortune,",
    "ørgreb våben mod et hav af plager",
    "and by opposing end them.",
];

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

/// A `tokenizer.json` of bytes whose documents begin with `<s>`, of id 257, if they begin with any.
fn tokenizer_json(begins: bool) -> String {
    let mut json: serde_json::Value = serde_json::from_str(Tokenizer::bytes().to_json()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    added.push(added[0].clone());
    added[1]["id"] = 257.into();
    added[1]["content"] = "<s>".into();
    if begins {
        json["post_processor"] = serde_json::json!({
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [257], "tokens": ["<s>"] } },
        });
    }
    json.to_string()
}

#[test]
fn documents_begin_as_the_tokenizer_of_a_file_says() {
    let workplace = Workplace::new(&TEXTS);
    let path = workplace.path().join("tokenizer.json");
    let set = [
        "tokenizer.kind=\"file\"",
        &format!("tokenizer.path='{}'", path.display()),
        "tokenizer.end_of_text=\"<|endoftext|>\"",
    ];
    workplace.write("tokenizer.json", &tokenizer_json(false));
    let plain = prepare(&workplace.config(&set), false).unwrap();
    workplace.write("tokenizer.json", &tokenizer_json(true));
    let begins = prepare(&workplace.config(&set), false).unwrap();
    assert_ne!(begins.content_hash, plain.content_hash);
    assert_eq!(begins.tokenizer.to_json(), tokenizer_json(true));

    let stream = |prepared: &Prepared| {
        let set = &prepared.training[0];
        let documents = (0..set.documents()).map(|number| {
            let mut tokens = Vec::new();
            let document = set.document(number).unwrap();
            set.read(document.tokens, &mut tokens).unwrap();
            tokens
        });
        documents.collect::<Vec<_>>()
    };
    let expected: Vec<Vec<u32>> = stream(&plain)
        .into_iter()
        .map(|document| [vec![257], document].concat())
        .collect();
    assert!(expected.iter().all(|document| document.ends_with(&[256])));
    assert_eq!(stream(&begins), expected);
    let text = &begins.sources[0].text;
    assert_eq!(text.tokens, text.bytes + 2 * text.documents);

    // Evaluation reads the held-out text in the same way.
    let parts = begins.validation(8, u64::MAX).unwrap();
    let file = [begins.validation_text()];
    let read = PackedText::read(&begins.tokenizer, &file, TEXT_FIELD, None).unwrap();
    assert!(
        read.windows(8)
            .eq(parts[0].windows.iter().map(Vec::as_slice))
    );
    assert_eq!(parts[0].windows[0][0], 257);
    assert_eq!(parts[0].bytes, begins.held_out.bytes);

    // The key of these bytes: it depends on the content alone, so runs can be resumed elsewhere.
    let bytes = prepare(&workplace.config(&[]), false).unwrap();
    assert_eq!(stream(&bytes), stream(&plain));
    assert_eq!(&bytes.content_hash[..KEY_DIGITS], "ac2fd0276617f513");
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

#[test]
fn every_text_is_on_one_side_and_validation_is_what_evaluation_reads() {
    let workplace = Workplace::new(&TEXTS);
    for set in [
        &[][..],
        &["data.validation.by=\"tail\""],
        &["tokenizer.kind=\"bpe\"", "tokenizer.vocab_size=260"],
    ] {
        let prepared = prepare(&workplace.config(set), false).unwrap();
        let bytes: usize = TEXTS.iter().map(|text| text.len()).sum();
        assert_eq!(
            prepared.held_out.bytes + prepared.sources[0].text.bytes,
            bytes as u64
        );

        let file = [prepared.validation_text()];
        let read = |limit| PackedText::read(&prepared.tokenizer, &file, TEXT_FIELD, limit).unwrap();
        for context in [3, 8, 1000] {
            let parts = prepared.validation(context, u64::MAX).unwrap();
            let [part] = parts.as_slice() else {
                panic!("one source: {parts:?}");
            };
            let (whole, windows) = (read(None), part.windows.iter().map(Vec::as_slice));
            assert!(whole.windows(context).eq(windows));
            assert_eq!(
                (part.targets(), part.bytes),
                (whole.targets(), whole.bytes())
            );
            assert_eq!(part.targets(), prepared.held_out.tokens - 1);
        }
        let sample = prepared.validation(8, 17).unwrap();
        let whole = read(None);
        let windows: Vec<&[u32]> = whole.windows(8).collect();
        assert_eq!(sample[0].windows.len(), 2);
        assert!(
            sample[0]
                .windows
                .iter()
                .all(|window| windows.contains(&&window[..]))
        );
    }
}

#[test]
fn a_validation_source_is_held_out_whole_and_nothing_else_is() {
    let workplace = Workplace::new(&TEXTS);
    let held_out = ["Nothing of this is trained on.", "Nor of this: ågab."];
    let lines = held_out.map(|text| serde_json::json!({ "text": text }).to_string());
    workplace.write("held-out.jsonl", &lines.join("\n"));
    let path = workplace.path().join("held-out.jsonl");
    let own = format!(
        "data.validation.source=[{{ name = 'own', jsonl = ['{}'] }}]",
        path.display()
    );
    let config = workplace.config(&[&own, "data.validation.fraction=0"]);
    let prepared = prepare(&config, false).unwrap();
    let bytes = |texts: &[&str]| texts.iter().map(|text| text.len()).sum::<usize>() as u64;
    assert_eq!(prepared.sources.len(), 1);
    assert_eq!(prepared.sources[0].text.bytes, bytes(&TEXTS));
    assert_eq!(prepared.held_out.bytes, bytes(&held_out));
    let parts = prepared.validation(8, u64::MAX).unwrap();
    let names: Vec<&str> = parts.iter().map(|part| part.source.as_str()).collect();
    assert_eq!(names, ["own"]);
    let file = [path.clone()];
    let read = PackedText::read(&prepared.tokenizer, &file, TEXT_FIELD, None).unwrap();
    assert!(
        read.windows(8)
            .eq(parts[0].windows.iter().map(Vec::as_slice))
    );
    assert_eq!(parts[0].bytes, read.bytes());
    // Found again, and by a resume without the files.
    let hash = &prepared.content_hash;
    assert_eq!(&prepare(&config, false).unwrap().content_hash, hash);
    fs::remove_file(&path).unwrap();
    let resumed = resume(&config, hash, false)
        .unwrap()
        .expect("the run's data");
    assert_eq!(resumed.validation(8, u64::MAX).unwrap(), parts);

    // Beside a split of the training text, and as one more source to train on, it is other data.
    workplace.write("held-out.jsonl", &lines.join("\n"));
    let both = workplace.config(&[&own, "data.validation.fraction=0.25"]);
    let both = prepare(&both, false).unwrap();
    assert_ne!(&both.content_hash, hash);
    let parts = both.validation(8, u64::MAX).unwrap();
    let names: Vec<&str> = parts.iter().map(|part| part.source.as_str()).collect();
    assert_eq!(names, ["texts", "own"]);
    assert_eq!(
        both.held_out.bytes + both.sources[0].text.bytes,
        bytes(&TEXTS) + bytes(&held_out)
    );

    // A tokenizer is trained on training text alone.
    let bpe = [
        "tokenizer.kind=\"bpe\"",
        "tokenizer.vocab_size=270",
        "data.validation.fraction=0",
    ];
    let tokenizer = |name: &str, text: &str| {
        workplace.write(name, text);
        let path = workplace.path().join(name);
        let own = format!(
            "data.validation.source=[{{ name = 'own', files = ['{}'] }}]",
            path.display()
        );
        let config = workplace.config(&[&bpe[..], &[&own]].concat());
        prepare(&config, false)
            .unwrap()
            .tokenizer
            .to_json()
            .to_owned()
    };
    assert_eq!(
        tokenizer("1.held", "zzzzzz zzzzzz zzzzzz"),
        tokenizer("2.held", "qqqqqq qqqqqq")
    );

    workplace.write("empty.held", "");
    let path = workplace.path().join("empty.held");
    let empty = format!(
        "data.validation.source=[{{ name = 'own', files = ['{}'] }}]",
        path.display()
    );
    let error = prepare(&workplace.config(&[&empty]), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "source \"own\" is empty: it has no document with any text"
    );
}

#[test]
fn two_sources_are_seen_in_proportion_to_their_weights() {
    let workplace = Workplace::new(&TEXTS);
    workplace.write("other.md", "One document more, in Markdown.");
    let pattern = workplace.path().join("*.md").display().to_string();
    let mut config = workplace.config(&["data.source.0.weight=3.0", "data.validation.by=\"tail\""]);
    let mut other = config.data.source[0].clone();
    other.text.name = "other".to_owned();
    other.text.kind = crate::config::SourceKind::Files {
        files: vec![pattern],
    };
    other.share = Share::Weight(1.0);
    config.data.source.push(other);
    let prepared = prepare(&config, false).unwrap();
    assert_eq!(
        prepared
            .sources
            .iter()
            .map(|source| source.part)
            .collect::<Vec<_>>(),
        [0.75, 0.25]
    );
    assert!(prepared.training_stream(8, 0, 10_000).is_ok());
}

#[test]
fn faults_of_the_configuration_are_told_apart() {
    let one = Workplace::new(&["a single document"]);
    let error = prepare(&one.config(&[]), false).unwrap_err();
    assert!(
        matches!(error, DataError::OneSided { .. }) && error.exit_code() == 2,
        "{error}"
    );
    assert!(error.hint().unwrap().contains("tail"), "{error}");

    let empty = Workplace::new(&["", ""]);
    let error = prepare(&empty.config(&[]), false).unwrap_err();
    assert!(
        matches!(error, DataError::EmptySource { .. }) && error.exit_code() == 2,
        "{error}"
    );

    let none = Workplace::new(&[]);
    let error = prepare(&none.config(&[]), false).unwrap_err();
    assert!(
        error.to_string().contains("*.txt\" matches no file"),
        "{error}"
    );

    let workplace = Workplace::new(&TEXTS);
    let prepared = prepare(&workplace.config(&[]), false).unwrap();
    let error = prepared.training_stream(8, 0, 1000).unwrap_err();
    assert!(
        matches!(error, DataError::TooLittle { needed: 1000, .. }),
        "{error}"
    );

    workplace.write("cache-file", "");
    let path = workplace
        .path()
        .join("cache-file")
        .join("below")
        .display()
        .to_string();
    let error = prepare(&workplace.config(&[&format!("data.cache='{path}'")]), false).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::Io(FileError {
                action: "create",
                ..
            })
        ) && error.exit_code() == 1,
        "{error}"
    );
}

#[test]
fn text_becomes_special_tokens_only_where_the_configuration_says_so() {
    let mut texts = TEXTS;
    texts[0] = "To be<|endoftext|>or not to be, that is all the question";
    let workplace = Workplace::new(&texts);
    let set = ["data.validation.by=\"tail\""];
    let plain = prepare(&workplace.config(&set), false).unwrap();
    assert_eq!(plain.special_places, 1);
    assert!(!plain.tokenizer.takes_special_tokens());
    let config = workplace.config(&[set[0], "data.special_tokens=true"]);
    let special = prepare(&config, false).unwrap();
    assert_ne!(special.content_hash, plain.content_hash);
    let count = |prepared: &Prepared| prepared.sources[0].text.tokens;
    assert_eq!(
        count(&special) + "<|endoftext|>".len() as u64 - 1,
        count(&plain)
    );
    // Found again, it reads prompts in the same way.
    let found = prepare(&config, false).unwrap();
    assert_eq!(
        (found.special_places, &found.content_hash),
        (1, &special.content_hash)
    );
    assert_eq!(found.tokenizer.prompt("a<|endoftext|>").unwrap(), [97, 256]);
}

#[test]
fn a_long_document_is_encoded_part_by_part() {
    let workplace = Workplace::new(&[
        "short",
        "words and words, ".repeat(400_000).as_str(),
        "more",
    ]);
    let config = workplace.config(&["data.validation.by=\"tail\""]);
    let prepared = prepare(&config, false).unwrap();
    let text = &prepared.sources[0].text;
    assert_eq!((text.documents, text.tokens), (3, text.bytes + 3));
    let file = [prepared.validation_text()];
    let (context, limit) = (1000, u64::MAX);
    let eval = PackedText::read(&prepared.tokenizer, &file, TEXT_FIELD, None).unwrap();
    let [part] = &prepared.validation(context, limit).unwrap()[..] else {
        panic!("one source");
    };
    let windows: Vec<Vec<u32>> = eval.windows(context).map(<[u32]>::to_vec).collect();
    assert!(part.windows == windows, "other windows");
    assert_eq!((part.targets(), part.bytes), (eval.targets(), eval.bytes()));
}
