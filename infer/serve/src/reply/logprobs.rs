//! Log-probabilities as replies have them: those of completions in four lists, those of chats as objects.

use firebox_model::sampling::Scored;
use firebox_text::Tokenizer;
use serde_json::{Map, Value, json};

/// What stands for minus infinity, which JSON has not.
const LEAST: f32 = -9999.0;

/// A token of a reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The token.
    pub id: u32,
    /// Where its text begins, in characters from the beginning of the reply's text.
    pub offset: usize,
    /// How likely it was; `None` for the first token of a prompt.
    pub scored: Option<Scored>,
}

/// The object of a completion.
pub fn of_completion(entries: &[Entry], tokenizer: &Tokenizer) -> Value {
    let tokens: Vec<String> = entries
        .iter()
        .map(|entry| tokenizer.token_text(entry.id))
        .collect();
    let chosen = |entry: &Entry| {
        let scored = entry.scored.as_ref();
        scored.map(|scored| number(scored.log_probability))
    };
    let likeliest = |(entry, text): (&Entry, &String)| {
        let scored = entry.scored.as_ref()?;
        let mut values: Map<String, Value> = Map::new();
        for &(id, value) in &scored.likeliest {
            larger(&mut values, tokenizer.token_text(id), value);
        }
        larger(&mut values, text.clone(), scored.log_probability);
        Some(values)
    };
    json!({
        "token_logprobs": entries.iter().map(chosen).collect::<Vec<Option<Value>>>(),
        "top_logprobs": entries.iter().zip(&tokens).map(likeliest).collect::<Vec<_>>(),
        "text_offset": entries.iter().map(|entry| entry.offset).collect::<Vec<usize>>(),
        "tokens": tokens,
    })
}

/// The object of a chat's message, with `count` of the likeliest tokens of each position.
pub fn of_chat(entries: &[Entry], count: usize, tokenizer: &Tokenizer) -> Value {
    let token = |id: u32, value: f32| {
        json!({
            "token": tokenizer.token_text(id), "logprob": number(value), "bytes": tokenizer.token_bytes(id),
        })
    };
    let content = entries.iter().filter_map(|entry| {
        let scored = entry.scored.as_ref()?;
        let mut object = token(scored.id, scored.log_probability);
        let likeliest = scored.likeliest.iter().take(count);
        object["top_logprobs"] = likeliest.map(|&(id, value)| token(id, value)).collect();
        Some(object)
    });
    json!({ "content": content.collect::<Vec<Value>>() })
}

/// Of tokens with the same text, such as two halves of characters, the larger value stays.
fn larger(values: &mut Map<String, Value>, text: String, value: f32) {
    let value = number(value);
    match values.get(&text).map(Value::as_f64) {
        Some(own) if own >= value.as_f64() => (),
        _ => {
            values.insert(text, value);
        }
    }
}

fn number(value: f32) -> Value {
    // NaN becomes the least, too.
    value.max(LEAST).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u32, value: f32, likeliest: &[(u32, f32)]) -> Entry {
        Entry {
            id,
            offset: 3,
            scored: Some(Scored {
                id,
                log_probability: value,
                likeliest: likeliest.to_vec(),
            }),
        }
    }

    #[test]
    fn completions_have_four_lists_of_equal_length() {
        let first = Entry {
            id: 97,
            offset: 0,
            scored: None,
        };
        let likely = entry(98, -0.1, &[(98, -0.1), (256, -2.5)]);
        let found = of_completion(&[first, likely], &Tokenizer::bytes());
        let expected = json!({
            "token_logprobs": [null, -0.1f32], "top_logprobs": [null, { "b": -0.1f32, "<|endoftext|>": -2.5 }],
            "text_offset": [0, 3], "tokens": ["a", "b"],
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn the_chosen_token_is_among_the_likeliest_in_any_case() {
        let found = of_completion(&[entry(97, -5.0, &[(98, -0.5)])], &Tokenizer::bytes());
        assert_eq!(found["top_logprobs"], json!([{ "b": -0.5, "a": -5.0 }]));
        let alone = of_completion(&[entry(97, -5.0, &[])], &Tokenizer::bytes());
        assert_eq!(alone["top_logprobs"], json!([{ "a": -5.0 }]));
    }

    #[test]
    fn of_tokens_with_the_same_text_the_larger_value_stays() {
        let likeliest = [(0xC3, -0.5), (0xFF, -1.0), (98, -2.0)];
        for id in [0xC3, 0xFE] {
            let value = if id == 0xC3 { -0.5 } else { -7.0 };
            let found = of_completion(&[entry(id, value, &likeliest)], &Tokenizer::bytes());
            let top = json!([{ "\u{FFFD}": -0.5, "b": -2.0 }]);
            assert_eq!(
                (&found["top_logprobs"], &found["token_logprobs"]),
                (&top, &json!([value]))
            );
        }
    }

    #[test]
    fn the_likeliest_token_has_the_largest_value_to_the_last_bit() {
        for bits in [0x3DCC_CCCDu32, 0x3F80_0001, 0x3727_C5AC, 0x0000_0001] {
            let value = -f32::from_bits(bits);
            let found = of_completion(
                &[entry(97, value, &[(97, value), (98, -99.0)])],
                &Tokenizer::bytes(),
            );
            let read: Value = serde_json::from_str(&found.to_string()).unwrap();
            let top = read["top_logprobs"][0].as_object().unwrap().values();
            let largest = top
                .map(|value| value.as_f64().unwrap())
                .fold(f64::MIN, f64::max);
            assert_eq!(read["token_logprobs"][0].as_f64(), Some(largest));
            assert_eq!(largest as f32, value);
        }
    }

    #[test]
    fn what_json_lacks_is_a_number() {
        let found = of_completion(
            &[entry(97, f32::NEG_INFINITY, &[(98, f32::NAN)])],
            &Tokenizer::bytes(),
        );
        assert_eq!(found["token_logprobs"], json!([-9999.0]));
        assert_eq!(
            found["top_logprobs"],
            json!([{ "b": -9999.0, "a": -9999.0 }])
        );
    }

    #[test]
    fn chats_have_bytes_also_of_halves_of_characters() {
        let found = of_chat(
            &[entry(0xC3, -0.5, &[(0xC3, -0.5), (98, -1.5)])],
            1,
            &Tokenizer::bytes(),
        );
        let likeliest = json!([{ "token": "\u{FFFD}", "logprob": -0.5, "bytes": [0xC3] }]);
        let expected = json!({ "content": [
            { "token": "\u{FFFD}", "logprob": -0.5, "bytes": [0xC3], "top_logprobs": likeliest },
        ] });
        assert_eq!(found, expected);
    }
}
