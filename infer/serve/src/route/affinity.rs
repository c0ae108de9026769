//! What requests have in common that profit from the same cache.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes of a prompt, or of a message, that count: a few blocks of the cache.
const BEGINNING: usize = 256;

/// Messages of a chat that count: those of the system and the user, or of the first question and answer. Later ones differ from
/// turn to turn.
const MESSAGES: usize = 2;

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<Vec<&'a RawValue>>,
}

/// A key that requests share whose prompts begin alike; `None` where there is no prompt. Texts are compared as they are
/// written: what a client writes in two ways is another prompt here.
pub fn key(body: &[u8]) -> Option<u64> {
    let fields: Fields<'_> = serde_json::from_slice(body).ok()?;
    let messages = fields.messages.unwrap_or_default();
    let messages = messages.into_iter().take(MESSAGES);
    let texts = fields.prompt.into_iter().chain(messages);
    let mut texts = texts
        .map(|text| {
            let text = text.get().as_bytes();
            &text[..text.len().min(BEGINNING)]
        })
        .peekable();
    texts.peek()?;
    let mut hasher = DefaultHasher::new();
    texts.for_each(|text| text.hash(&mut hasher));
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn key_of(body: Value) -> Option<u64> {
        key(body.to_string().as_bytes())
    }

    #[test]
    fn prompts_that_begin_alike_have_one_key() {
        let begin = "x".repeat(300);
        let prompt = |text: &str| key_of(json!({ "max_tokens": text.len(), "prompt": text }));
        assert!(prompt("a").is_some());
        assert_eq!(prompt(&format!("{begin}a")), prompt(&format!("{begin}b")));
        assert_ne!(prompt("a"), prompt("b"));
        assert_ne!(
            key_of(json!({ "prompt": [1, 2] })),
            key_of(json!({ "prompt": [1, 3] }))
        );
    }

    #[test]
    fn the_turns_of_a_conversation_have_one_key() {
        let message = |content: &str| json!({ "role": "user", "content": content });
        let chat = |texts: &[&str]| {
            let messages: Vec<Value> = texts.iter().map(|text| message(text)).collect();
            key_of(json!({ "messages": messages }))
        };
        let system = "s".repeat(1000);
        assert_eq!(
            chat(&[&system, "hello"]),
            chat(&[&system, "hello", "yes?", "go"])
        );
        assert_ne!(chat(&[&system, "hello"]), chat(&[&system, "hi"]));
    }

    #[test]
    fn what_has_no_prompt_has_no_key() {
        for body in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"messages": 1}"#,
            r#"{"messages": []}"#,
        ] {
            assert_eq!(key(body.as_bytes()), None, "{body}");
        }
        assert_eq!(key(&[b'{', 0xFF]), None);
    }
}
