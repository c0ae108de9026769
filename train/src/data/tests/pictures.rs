//! Captions of pictures as documents.

use std::collections::{BTreeMap, BTreeSet};

use firebox_console::advice::Advise as _;

use super::super::hash::hash;
use super::super::source::{Entry, open};
use super::super::split::{HeldOutPicture, held_out, split_entry};
use super::super::*;
use super::Workplace;
use crate::config::{SourceConfig, Split};

const EMOJI: &str = "data.source=[{ name = 'emoji', cargo = 'twemoji-assets' }]";

fn entries(source: &SourceConfig) -> Vec<Entry> {
    open(source, None, false)
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

#[test]
fn emoji_are_split_by_concept_and_by_combination() {
    let workplace = Workplace::new(&[]);
    let config = workplace.config(&[EMOJI, "data.validation.fraction=0.1"]);
    let source = &config.data.source[0].text;
    let entries = entries(source);
    let pictures = |entry: &Entry| entry.picture.clone().unwrap();
    let captions: BTreeSet<&str> = entries
        .iter()
        .map(|entry| &entry.document.text[..])
        .collect();
    let concepts: BTreeSet<String> = entries
        .iter()
        .map(|entry| pictures(entry).concept)
        .collect();
    assert_eq!(
        (entries.len(), captions.len(), concepts.len()),
        (3944, 3944, 1914)
    );
    assert!(entries.iter().all(|entry| pictures(entry).path.is_file()));

    let mut sets: BTreeMap<Option<&str>, BTreeSet<String>> = BTreeMap::new();
    let mut counts: BTreeMap<Option<&str>, usize> = BTreeMap::new();
    for entry in &entries {
        let text = &entry.document.text;
        let side = held_out(text, &pictures(entry), 0.1).map(|held_out| match held_out {
            HeldOutPicture::Concept => "concept",
            HeldOutPicture::Combination => "combination",
        });
        *counts.entry(side).or_default() += 1;
        sets.entry(side)
            .or_default()
            .insert(pictures(entry).concept);
        // Documents are on the same sides.
        let sides = split_entry(entry, &hash(text.as_bytes()), config.data.validation.split);
        assert_eq!(sides.training.is_empty(), side.is_some());
        assert_eq!(format!("{}{}", sides.training, sides.validation), *text);
        let all = split_entry(entry, &hash(text.as_bytes()), Split::EVERYTHING);
        assert_eq!(all.validation, text);
    }
    let expected = [
        (None, 3352),
        (Some("combination"), 214),
        (Some("concept"), 378),
    ];
    assert_eq!(counts, BTreeMap::from(expected));
    let trained = &sets[&None];
    assert!(sets[&Some("concept")].is_disjoint(trained));
    assert!(sets[&Some("combination")].is_subset(trained));
}

#[test]
fn captions_are_prepared_as_texts() {
    let workplace = Workplace::new(&[]);
    let config = workplace.config(&[EMOJI, "data.validation.fraction=0.1"]);
    let prepared = prepare(&config, false).unwrap();
    assert_eq!(prepared.sources[0].text.documents, 3352);
    assert_eq!(prepared.held_out.documents, 214 + 378);
    let held_out = std::fs::read_to_string(prepared.validation_text()).unwrap();
    assert!(held_out.lines().count() == 592 && held_out.contains(" skin tone\"}"));
    // Unchanged files give the same data again.
    let again = prepare(&config, false).unwrap();
    assert_eq!(again.content_hash, prepared.content_hash);
}

/// A source of pairs: eight pictures of two concepts.
fn pairs(workplace: &Workplace, keys: &str) -> String {
    let lines: String = (0..8)
        .map(|number| {
            let concept = ["cat", "dog"][number % 2];
            format!(
                "{{\"image\": \"pictures/{number}.png\", \"caption\": \"{concept} {number}\", \"kind\": \"{concept}\"}}\n"
            )
        })
        .collect();
    workplace.write("pairs.jsonl", &lines);
    let folder = workplace.path().display();
    format!("data.source=[{{ name = 'pairs', jsonl = ['{folder}/*.jsonl'], {keys} }}]")
}

#[test]
fn pairs_are_read_from_json_lines() {
    let workplace = Workplace::new(&[]);
    let set = pairs(&workplace, "image = 'image'");
    let config = workplace.config(&[&set]);
    let read = entries(&config.data.source[0].text);
    assert_eq!(read.len(), 8);
    assert_eq!(read[3].document.text, "dog 3");
    let picture = read[3].picture.clone().unwrap();
    assert_eq!(picture.path, workplace.path().join("pictures/3.png"));
    assert_eq!(
        (&picture.concept[..], picture.has_siblings),
        ("dog 3", false)
    );

    // All pictures of a concept are on the same side.
    let set = pairs(&workplace, "image = 'image', concept = 'kind'");
    for fraction in ["0.2", "0.4", "0.6", "0.8"] {
        let fraction = format!("data.validation.fraction={fraction}");
        let config = workplace.config(&[&set, &fraction]);
        let mut sides: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
        for entry in entries(&config.data.source[0].text) {
            let split = config.data.validation.split;
            let hash = hash(entry.document.text.as_bytes());
            let side = split_entry(&entry, &hash, split).training.is_empty();
            sides
                .entry(entry.picture.unwrap().concept)
                .or_default()
                .insert(side);
        }
        assert_eq!(sides.len(), 2);
        assert!(sides.values().all(|sides| sides.len() == 1), "{sides:?}");
    }
}

#[test]
fn pairs_without_their_fields_are_named() {
    let workplace = Workplace::new(&[]);
    for (keys, expected) in [
        (
            "image = 'file'",
            "pairs.jsonl:1: the object at column 1 has no field \"file\", only \"image\", \"caption\", \"kind\"",
        ),
        (
            "image = 'image', concept = 'group'",
            "pairs.jsonl:1: the object at column 1 has no field \"group\"",
        ),
        (
            "image = 'image', field = 'text'",
            "pairs.jsonl:1: the object at column 1 has no field \"text\"",
        ),
    ] {
        let set = pairs(&workplace, keys);
        let error = prepare(&workplace.config(&[&set]), false).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
}

const VISION: &str = "model.vision={ cross_attention_layers = [1], width = 8, heads = 2, layers = 1, tile_size = 30, \
                      patch_size = 10, max_tiles = 2 }";

/// Pictures that are read, and twelve captions of them.
fn gallery(workplace: &Workplace, extra: &str) -> String {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/pictures");
    let names = ["opaque.png", "palette.png", "transparent.png"];
    for name in names {
        let path = workplace.path().join(name);
        std::fs::copy(format!("{fixtures}/{name}"), path).unwrap();
    }
    let lines: String = (0..12)
        .map(|number| {
            let name = names[number % 3];
            format!("{{\"image\": \"{name}\", \"caption\": \"number {number} of {name}\"}}\n")
        })
        .collect();
    workplace.write("pairs.jsonl", &(lines + extra));
    let folder = workplace.path().display();
    format!("data.source=[{{ name = 'pairs', jsonl = ['{folder}/*.jsonl'], image = 'image' }}]")
}

#[test]
fn pictures_are_prepared_with_their_captions() {
    let workplace = Workplace::new(&[]);
    let set = gallery(&workplace, "");
    let config = workplace.config(&[
        VISION,
        &set,
        "model.context_length=32",
        "schedule.batch_tokens=32",
    ]);
    let prepared = prepare(&config, false).unwrap();
    let stream = prepared.caption_stream(&config, 0).unwrap();
    let count = stream.rows().unwrap();
    assert_eq!(count, prepared.sources[0].text.documents);
    let held_out = prepared.held_out_captions(32, 100).unwrap();
    assert_eq!(
        (held_out.len(), held_out[0].part),
        (1, HeldOutPicture::Concept)
    );
    assert_eq!(count + held_out[0].captions.len() as u64, 12);
    let one = prepared.held_out_captions(32, 1).unwrap();
    assert_eq!(one[0].captions.len(), 1);

    // Each picture is with its caption.
    let processor = config.data.source[0].text.tiles.unwrap().processor();
    for index in 0..count {
        let captioned = stream.captioned(index).unwrap();
        let caption = prepared
            .tokenizer
            .decode(&captioned.learned()[..captioned.learned().len() - 1]);
        let name = caption.rsplit(' ').next().unwrap();
        let picture = firebox_image::Picture::open(&workplace.path().join(name)).unwrap();
        let expected = processor.process(&picture);
        let found = captioned.picture.unwrap();
        assert_eq!(found.pixels, expected.pixel_values, "{caption}");
        assert_eq!(found.arrangement, expected.aspect_ratio_id);
        assert_eq!(
            found.used.iter().filter(|used| **used).count(),
            expected.used
        );
    }
    // The same again, without reading pictures; and other data when a picture changes.
    let again = resume(&config, &prepared.content_hash, false)
        .unwrap()
        .unwrap();
    let first = |prepared: &Prepared| {
        prepared
            .caption_stream(&config, 0)
            .unwrap()
            .captioned(0)
            .unwrap()
    };
    assert_eq!(first(&again), first(&prepared));
    std::fs::copy(
        workplace.path().join("palette.png"),
        workplace.path().join("opaque.png"),
    )
    .unwrap();
    let changed = prepare(&config, false).unwrap();
    assert_ne!(changed.content_hash, prepared.content_hash);
    // A model of text alone reads the same captions as texts.
    let text = prepare(&workplace.config(&[&set]), false).unwrap();
    assert_eq!(text.sources[0].text, prepared.sources[0].text);
    assert_ne!(text.content_hash, changed.content_hash);
}

#[test]
fn some_pictures_are_withheld() {
    let workplace = Workplace::new(&[]);
    let set = gallery(&workplace, "").replace("image =", "epochs = 20, image =");
    let seen = |withheld: &str| {
        let config = workplace.config(&[
            VISION,
            &set,
            &format!("data.pictures.withheld={withheld}"),
            "model.context_length=32",
            "schedule.batch_tokens=32",
        ]);
        let prepared = prepare(&config, false).unwrap();
        let stream = prepared.caption_stream(&config, 0).unwrap();
        let rows = 0..stream.rows().unwrap();
        let rows: Vec<_> = rows.map(|row| stream.captioned(row).unwrap()).collect();
        rows
    };
    let (all, some, none) = (seen("0.0"), seen("0.3"), seen("1.0"));
    assert!(all.iter().all(|row| row.picture.is_some()));
    assert!(none.iter().all(|row| row.picture.is_none()));
    let withheld = some.iter().filter(|row| row.picture.is_none()).count();
    let part = withheld as f64 / some.len() as f64;
    assert!(some.len() > 100 && (part - 0.3).abs() < 0.1, "{part}");
    for ((all, some), none) in all.iter().zip(&some).zip(&none) {
        // The captions and their order are the same, and so are the pictures that are shown.
        assert_eq!(all.sequence, some.sequence);
        assert_eq!(all.without_picture(), *none);
        assert!(some.picture.is_none() || some == all);
    }
}

#[test]
fn text_stands_beside_captions() {
    let workplace = Workplace::new(&super::TEXTS);
    let set = gallery(&workplace, "");
    let folder = workplace.path().display();
    let texts = format!(", {{ name = 'texts', files = ['{folder}/*.txt'], epochs = 3 }}]");
    let both = set.replace(" }]", &format!(", epochs = 2 }}{texts}"));
    let config = workplace.config(&[
        VISION,
        &both,
        "data.validation.fraction=0.3",
        "model.context_length=32",
        "schedule.batch_tokens=64",
    ]);
    let prepared = prepare(&config, false).unwrap();
    let stream = prepared.caption_stream(&config, 0).unwrap();
    let rows: Vec<_> = (0..stream.rows().unwrap())
        .map(|row| stream.captioned(row).unwrap())
        .collect();
    let [captions, text] = &prepared.sources[..] else {
        panic!("two sources");
    };
    let windows = (3 * text.text.tokens).div_ceil(32);
    let with = rows.iter().filter(|row| row.picture.is_some()).count() as u64;
    assert_eq!(
        (with, rows.len() as u64),
        (
            2 * captions.text.documents,
            2 * captions.text.documents + windows
        )
    );
    // Sequences of text are those of a model of text alone.
    let end = prepared.document_end();
    assert!(end.is_some());
    for row in &rows {
        let positions = row.sequence.positions.as_ref().expect("positions");
        assert_eq!((row.sequence.tokens.len(), positions.len()), (32, 32));
        assert_eq!(positions[0], 0);
    }
    let [captions, text] = [&prepared.sources[0], &prepared.sources[1]];
    assert!((captions.part + text.part - 1.0).abs() < 1e-12);
    let part = with as f64 / rows.len() as f64;
    assert!(
        (captions.part - part).abs() < 0.05,
        "{} {part}",
        captions.part
    );
    // Held out are captions by themselves, and text by itself.
    assert!(!prepared.held_out_captions(32, 100).unwrap().is_empty());
    let parts = prepared.validation(32, 10_000).unwrap();
    assert_eq!(
        parts
            .iter()
            .map(|part| &part.source[..])
            .collect::<Vec<_>>(),
        ["texts"]
    );
    // A source of pictures there must be.
    let alone = format!("data.source=[{}", &texts[2..]);
    let set = [VISION.to_owned(), alone];
    let error = crate::config::load(&workplace.path().join("run.toml"), &set).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("must have a source with pictures"),
        "{error}"
    );
}

#[test]
fn broken_pictures_fail_or_are_left_out() {
    let workplace = Workplace::new(&[]);
    let line = |name: &str| format!("{{\"image\": \"{name}\", \"caption\": \"{name}\"}}\n");
    let set = gallery(
        &workplace,
        &(line("cut.png") + &line("absent.png") + &line("page.png")),
    );
    let whole = std::fs::read(workplace.path().join("opaque.png")).unwrap();
    std::fs::write(workplace.path().join("cut.png"), &whole[..whole.len() / 2]).unwrap();
    workplace.write("page.png", "<html>");
    let error = prepare(&workplace.config(&[VISION, &set]), false).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("source \"pairs\": ")
            && text.contains("cut.png is a PNG that ends too soon"),
        "{text}"
    );
    assert_eq!(
        error.hint().unwrap(),
        "copy or download it again; on_error = \"skip\" leaves such pictures out"
    );
    let skip = set.replace("image =", "on_error = 'skip', image =");
    let config = workplace.config(&[VISION, &skip]);
    let mut reader = open(&config.data.source[0].text, None, false).unwrap();
    assert_eq!(reader.by_ref().map(Result::unwrap).count(), 12);
    assert_eq!(reader.left_out().count, 3);
    let prepared = prepare(&config, false).unwrap();
    assert!(prepared.sources[0].text.documents < 12);
    // Nobody looks at pictures for a model of text alone.
    let texts = workplace.config(&[&set]);
    assert_eq!(entries(&texts.data.source[0].text).len(), 15);
}
