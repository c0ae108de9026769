//! The BOS ids of a tokenizer: `<s>` for Llama and Mixtral, none for most others.

use tokenizers::{Encoding, Result, Token};

/// The ids that the post-processor puts before a text, without those that it puts after it.
///
/// A single token is post-processed in place of a text, so that nothing depends on how text is
/// encoded. Padding and truncation must be off already: padding may come first, too.
pub(super) fn bos_ids(inner: &tokenizers::Tokenizer) -> Result<Vec<u32>> {
    let probe = Token::new(0, "a".to_owned(), (0, 1));
    let probe = Encoding::from_tokens(vec![probe], 0);
    let processed = inner.post_process(probe, None, true)?;
    let text = processed
        .get_special_tokens_mask()
        .iter()
        .position(|&special| special == 0);
    // A template without the text has nothing before it.
    Ok(processed.get_ids()[..text.unwrap_or(0)].to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::Tokenizer;
    use super::super::tests::{json_with, with_post_processor};

    /// Three special tokens, with ids 257 to 259.
    const TOKENS: [&str; 3] = ["<s>", "<doc>", "</s>"];

    fn template(before: &[usize], after: &[usize]) -> Value {
        let token =
            |&index: &usize| json!({ "SpecialToken": { "id": TOKENS[index], "type_id": 0 } });
        let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
        let single: Vec<Value> = before
            .iter()
            .map(token)
            .chain([text("A")])
            .chain(after.iter().map(token))
            .collect();
        let special: serde_json::Map<String, Value> = TOKENS
            .iter()
            .enumerate()
            .map(|(index, &token)| {
                let entry = json!({ "id": token, "ids": [257 + index], "tokens": [token] });
                (token.to_owned(), entry)
            })
            .collect();
        json!({
            "type": "TemplateProcessing", "single": single, "pair": [text("A"), text("B")],
            "special_tokens": special,
        })
    }

    fn bos_ids_of(post_processor: &Value) -> Vec<u32> {
        with_post_processor(&TOKENS, post_processor, "<|endoftext|>")
            .bos_ids()
            .to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn only_ids_before_the_text_are_bos_ids(
            before in prop::collection::vec(0usize..3, 0..3),
            after in prop::collection::vec(0usize..3, 0..3),
            text in "\\PC{1,20}",
        ) {
            let template = template(&before, &after);
            // The form of Llama 3.
            let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true });
            let sequence = json!({ "type": "Sequence", "processors": [byte_level, template] });
            let ids = |tokens: &[usize]| tokens.iter().map(|&index| 257 + index as u32).collect::<Vec<u32>>();
            for post_processor in [&template, &sequence] {
                let tokenizer = with_post_processor(&TOKENS, post_processor, "<|endoftext|>");
                prop_assert_eq!(tokenizer.bos_ids(), ids(&before));
                // Must agree with an encoding that adds special tokens.
                let plain = tokenizer.encode(&text).unwrap();
                let full = tokenizer.inner.encode_fast(text.as_str(), true).unwrap();
                let expected = [ids(&before), plain.clone(), ids(&after)].concat();
                prop_assert_eq!(full.get_ids(), expected);
                prop_assert_eq!(tokenizer.prompt(&text).unwrap(), [ids(&before), plain.clone()].concat());
                let document: Vec<u32> = tokenizer.document(&plain).collect();
                prop_assert_eq!(document, [ids(&before), plain, vec![256]].concat());
            }
        }
    }

    #[test]
    fn other_post_processors_are_supported() {
        let bert = json!({ "type": "BertProcessing", "cls": ["<s>", 257], "sep": ["</s>", 259] });
        assert_eq!(bos_ids_of(&bert), [257]);
        let roberta = json!({
            "type": "RobertaProcessing", "cls": ["<s>", 257], "sep": ["</s>", 259],
            "trim_offsets": true, "add_prefix_space": false,
        });
        assert_eq!(bos_ids_of(&roberta), [257]);
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        });
        assert_eq!(bos_ids_of(&byte_level), [] as [u32; 0]);
        assert_eq!(bos_ids_of(&Value::Null), [] as [u32; 0]);
        let mut without_text = template(&[0], &[2]);
        without_text["single"].as_array_mut().unwrap().remove(1);
        assert_eq!(bos_ids_of(&without_text), [] as [u32; 0]);
    }

    #[test]
    fn padding_on_the_left_is_not_bos() {
        let mut json: Value =
            serde_json::from_str(&json_with(&TOKENS, &template(&[0], &[]))).unwrap();
        json["padding"] = json!({
            "strategy": { "Fixed": 8 }, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 259, "pad_type_id": 0, "pad_token": "</s>",
        });
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), "</s>").unwrap();
        assert_eq!(tokenizer.bos_ids(), [257]);
    }
}
