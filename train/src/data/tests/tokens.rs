//! The tokens of documents, by every kind of tokenizer.

use firebox_text::documents::TEXT_FIELD;
use firebox_text::packing::PackedText;

use super::super::*;
use super::{TEXTS, Workplace};

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
