//! What requests ask for.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use firebox_serve::client::Client;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Deserialize;
use serde::Serialize;
use serde_json::{Value, json};

use super::LoadError;
use crate::generate::Prompt;

/// Words of the text of which the server makes the tokens that prompts are drawn from.
const WORDS: usize = 6_000;

/// The most letters of such a word.
const LETTERS: u64 = 8;

/// What a word may end with.
const ENDS: [&str; 8] = [" ", " ", " ", ", ", ". ", "\n", "(", ") "];

/// A number of tokens, or a range of which each request draws one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// The smallest.
    pub least: usize,
    /// The largest.
    pub most: usize,
}

impl Lengths {
    /// The same for all.
    pub fn all(tokens: usize) -> Self {
        Self {
            least: tokens,
            most: tokens,
        }
    }

    /// The number, if there is only one.
    pub fn only(self) -> Option<usize> {
        (self.least == self.most).then_some(self.least)
    }

    fn draw(self, random: &mut ChaCha8Rng) -> usize {
        self.least + below(random, (self.most - self.least + 1) as u64) as usize
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.only() {
            Some(tokens) => write!(formatter, "{tokens}"),
            None => write!(formatter, "{}-{}", self.least, self.most),
        }
    }
}

impl FromStr for Lengths {
    type Err = String;

    /// Reads `128` or `100-200`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (least, most) = text.split_once('-').unwrap_or((text, text));
        match (least.parse(), most.parse()) {
            (Ok(least @ 1..), Ok(most)) if least <= most => Ok(Self { least, most }),
            _ => Err("must be an integer of at least 1, or a range such as 100-200".to_owned()),
        }
    }
}

/// Where prompts come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompts {
    /// Random tokens.
    Random {
        /// Tokens of a prompt.
        lengths: Lengths,
        /// Share of them, at the beginning, that all prompts have in common.
        prefix: f64,
    },
    /// These, over and over.
    Given(Vec<Prompt>),
}

/// What all requests have in common.
#[derive(Debug, Clone)]
pub(super) struct Workload {
    pub model: String,
    pub prompts: Prompts,
    pub new_tokens: Lengths,
    pub temperature: f64,
    pub seed: u64,
    /// The tokens that random prompts are drawn from; without them, prompts are random words.
    pub vocabulary: Option<Vec<u32>>,
}

impl Workload {
    /// The body of a request, which depends on its number and the seed alone.
    pub fn body(&self, number: u64) -> String {
        let mut random = generator(self.seed, number);
        let new_tokens = self.new_tokens.draw(&mut random);
        let mut seed = random.next_u64() >> 1;
        let mut count = new_tokens;
        let prompt = match &self.prompts {
            Prompts::Random { lengths, prefix } => {
                let tokens = lengths.draw(&mut random);
                let common = (tokens as f64 * prefix).round() as usize;
                // No request has this number.
                let mut of_all = generator(self.seed, u64::MAX);
                self.random_prompt(&mut of_all, common, &mut random, tokens - common)
            }
            Prompts::Given(prompts) => {
                let prompt = &prompts[(number % prompts.len() as u64) as usize];
                count = prompt.max_tokens.unwrap_or(new_tokens);
                seed = prompt.seed.unwrap_or(seed);
                prompt.prompt.as_str().into()
            }
        };
        let body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": count,
            "temperature": self.temperature,
            "seed": seed,
            "ignore_eos": true,
            "stream": true,
            "stream_options": { "include_usage": true, "continuous_usage_stats": true },
        });
        body.to_string()
    }

    /// Tokens of one generator, then of another.
    fn random_prompt(
        &self,
        first: &mut ChaCha8Rng,
        of_first: usize,
        second: &mut ChaCha8Rng,
        of_second: usize,
    ) -> Value {
        match &self.vocabulary {
            Some(ids) => {
                let draw = |random: &mut ChaCha8Rng| ids[below(random, ids.len() as u64) as usize];
                let mut prompt: Vec<u32> = (0..of_first).map(|_| draw(first)).collect();
                prompt.extend((0..of_second).map(|_| draw(second)));
                prompt.into()
            }
            None => {
                let mut prompt: String = (0..of_first).map(|_| word(first)).collect();
                prompt.extend((0..of_second).map(|_| word(second)));
                prompt.into()
            }
        }
    }
}

/// The different tokens of a text of random words, from the server's own tokenizer; `None` if it has no `/tokenize`.
///
/// # Errors
///
/// When the server is gone.
pub(super) async fn vocabulary(
    client: &Client,
    model: &str,
    seed: u64,
) -> Result<Option<Vec<u32>>, LoadError> {
    #[derive(Deserialize)]
    struct Tokens {
        tokens: Vec<u32>,
    }
    let mut random = generator(seed, u64::MAX - 1);
    let text: String = (0..WORDS).map(|_| word(&mut random)).collect();
    let silent = |error| LoadError::Silent {
        address: client.address().clone(),
        error,
    };
    // llama.cpp calls the text `content`, and finds nothing in others.
    for field in ["prompt", "content"] {
        let body = json!({ "model": model, field: text, "add_special_tokens": false });
        let reply = client.post("/tokenize", body.to_string()).await;
        let whole = reply.map_err(silent)?.whole().await.map_err(silent)?;
        // What answers otherwise has no such path.
        if let Ok(Tokens { tokens }) = serde_json::from_slice(&whole) {
            let different: BTreeSet<u32> = tokens.into_iter().collect();
            if !different.is_empty() {
                return Ok(Some(different.into_iter().collect()));
            }
        }
    }
    Ok(None)
}

/// The numbers of a request.
pub(super) fn generator(seed: u64, number: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(number);
    random
}

/// A number from 0 on.
fn below(random: &mut ChaCha8Rng, bound: u64) -> u64 {
    // The high half of a product: its bias is beyond notice for bounds so far below 2⁶⁴.
    ((u128::from(random.next_u64()) * u128::from(bound)) >> 64) as u64
}

/// A number from 0 to below 1.
pub(super) fn uniform(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

fn word(random: &mut ChaCha8Rng) -> String {
    let letters = 1 + below(random, LETTERS);
    let mut word: String = (0..letters)
        .map(|_| char::from(b'a' + below(random, 26) as u8))
        .collect();
    if below(random, 8) == 0 {
        word = word.to_uppercase();
    }
    word + ENDS[below(random, ENDS.len() as u64) as usize]
}
