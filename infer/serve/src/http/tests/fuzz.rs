//! Bodies that are almost right.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::client::Client;
use crate::testing::{Script, Server};

/// Fields of requests that are looked at.
const FIELDS: [&str; 32] = [
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
    "top_logprobs",
    "echo",
    "stream",
    "stream_options",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "suffix",
    "best_of",
    "tools",
    "response_format",
    "tokens",
    "add_special_tokens",
    "user",
];

const PATHS: [&str; 4] = [
    "/v1/completions",
    "/v1/chat/completions",
    "/tokenize",
    "/detokenize",
];

/// A change to the bytes of a body.
#[derive(Debug, Clone)]
enum Damage {
    Byte(usize, u8),
    Cut(usize),
    Repeat(usize, usize),
    Insert(usize, &'static str),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: usize| at % (bytes.len() + 1);
        match *self {
            Self::Byte(at, byte) => {
                let at = place(at);
                if at < bytes.len() {
                    bytes[at] = byte;
                }
            }
            Self::Cut(at) => bytes.truncate(place(at)),
            Self::Repeat(at, count) => {
                let from = place(at);
                let piece = bytes[from..(from + count).min(bytes.len())].to_vec();
                bytes.splice(from..from, piece);
            }
            Self::Insert(at, text) => {
                let at = place(at);
                bytes.splice(at..at, text.bytes());
            }
        }
    }
}

/// What is put in between.
const TEXTS: [&str; 18] = [
    "\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "NaN",
    "-",
    "1e999",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\u{FEFF}",
    "/*",
    "99999999999999999999",
    "[[[[[[[[[[[[[[[[",
];

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), 1usize..40).prop_map(|(at, count)| Damage::Repeat(at, count)),
        (any::<usize>(), prop::sample::select(&TEXTS[..]))
            .prop_map(|(at, text)| Damage::Insert(at, text)),
    ]
}

/// A value that some field may have, and others may not.
fn value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![
            0i64,
            1,
            -1,
            2,
            20,
            21,
            64,
            65,
            128,
            129,
            257,
            i64::MAX,
            i64::MIN
        ])
        .prop_map(Value::from),
        prop::sample::select(vec![0.5, 1.0, 1.5, -0.1, 2.1, 1e300, u64::MAX as f64])
            .prop_map(Value::from),
        "[a-z火\u{2028}\"\\\\]{0,6}".prop_map(Value::from),
        Just(json!({ "role": "user", "content": "a" })),
        Just(json!({ "type": "text", "text": "b" })),
    ];
    scalar.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(
                prop::sample::select(vec![
                    "role",
                    "content",
                    "type",
                    "text",
                    "include_usage",
                    "3",
                    "x"
                ]),
                inner,
                0..4,
            )
            .prop_map(|fields| json!(fields)),
        ]
    })
}

/// A request that is right, with other values and with damage.
fn body(fields: &[(&str, Value)], damages: &[Damage]) -> Vec<u8> {
    let mut body = json!({
        "prompt": "abc", "messages": [{ "role": "user", "content": "a" }], "tokens": [97], "max_tokens": 3,
    });
    for (field, value) in fields {
        body[*field] = value.clone();
    }
    let mut bytes = body.to_string().into_bytes();
    damages.iter().for_each(|damage| damage.apply(&mut bytes));
    bytes
}

#[test]
fn damaged_bodies_are_refused_or_answered() {
    let server = Server::scripted(Script::default());
    let client = Client::new(server.address.to_string().parse().unwrap(), None).unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |path: &str, body: Vec<u8>| {
        let answer = async {
            let reply = client.post(path, body).await.unwrap();
            (reply.status(), reply.whole().await.unwrap())
        };
        runtime.block_on(async { timeout(Duration::from_secs(20), answer).await.unwrap() })
    };
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(10_000)
    };
    let bodies = (
        prop::sample::select(&PATHS[..]),
        prop::collection::vec((prop::sample::select(&FIELDS[..]), value()), 0..3),
        prop::collection::vec(damage(), 0..3),
    );
    let mut refused = 0;
    let found = TestRunner::new(config).run(&bodies, |(path, fields, damages)| {
        let (status, answer) = ask(path, body(&fields, &damages));
        let answer = String::from_utf8(answer).unwrap();
        prop_assert!(
            status == 200 || (400..500).contains(&status),
            "{status}: {answer}"
        );
        if status != 200 {
            let error: Value = serde_json::from_str(&answer).unwrap();
            let keys: Vec<&String> = error["error"].as_object().unwrap().keys().collect();
            prop_assert_eq!(keys, ["message", "type", "param", "code"]);
        }
        Ok(())
    });
    found.unwrap();
    for path in PATHS {
        assert_eq!(ask(path, body(&[], &[])).0, 200);
        refused += usize::from(ask(path, body(&[("model", 3.into())], &[])).0 == 400);
    }
    assert_eq!(refused, PATHS.len());
}
