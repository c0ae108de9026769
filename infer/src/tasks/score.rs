//! Log-likelihoods of items.

use std::path::Path;

use firebox_model::generate::{Ended, Options, Receiver, Request, Token, generate_all};
use firebox_model::network::Network;
use firebox_model::sampling::{Sampling, Scored as ScoredToken};

use super::{Choices, Continuations, Fraction, Item, Report, Scored, TaskError};
use crate::InferError;
use crate::engine::Engine;

/// A text to score: the last so many tokens of a request.
struct Continuation {
    tokens: Vec<u32>,
    scored: usize,
    /// The most that can be scored of these tokens.
    kept: usize,
    /// Whether tokens in front were left out.
    is_cut: bool,
}

/// Scores items with the network of an engine, `batch` texts at once; `progress` is called with the number of texts done.
///
/// # Errors
///
/// When a text cannot be encoded or has no token to score, or a score is not finite.
pub fn score(
    engine: &Engine,
    network: &mut dyn Network,
    (file, items): (&Path, &[(usize, Item)]),
    batch: usize,
    progress: impl FnMut(u64),
) -> Result<Report, InferError> {
    let (mut texts, mut cut) = (Vec::new(), 0);
    for (line, item) in items {
        for (what, context, continuation) in item.texts() {
            let text = encode(engine, context, &continuation)?;
            if text.scored == 0 {
                return Err(InferError::Tasks(TaskError::NoToken {
                    file: file.to_owned(),
                    line: *line,
                    what,
                }));
            }
            if text.scored > text.kept {
                return Err(InferError::Tasks(TaskError::TooLong {
                    file: file.to_owned(),
                    line: *line,
                    what,
                    tokens: text.scored,
                    context: engine.model.config().context_length,
                }));
            }
            cut += usize::from(text.is_cut);
            texts.push(text);
        }
    }
    let mut sums = Sums {
        found: vec![Sum::default(); texts.len()],
        scored: texts.iter().map(|text| text.scored).collect(),
        seen: texts.iter().map(|text| text.tokens.len() - 1).collect(),
        done: 0,
        progress,
    };
    let tokens = texts.iter().map(|text| text.tokens.len() as u64).sum();
    let requests = texts.into_iter().map(|text| Request {
        likeliest: Some(1),
        scores_prompt: true,
        ..Request::new(text.tokens, 0, Sampling::default())
    });
    let options = Options {
        batch,
        ..Options::new(&[])
    };
    generate_all(network, requests, &options, &mut sums);
    let scored = sums.scored;
    let mut found = sums.found.into_iter().zip(scored);
    let items: Vec<Scored> = items
        .iter()
        .map(|(line, item)| item.scored(*line, found.by_ref().take(item.count())))
        .collect();
    let nats = items.iter().flat_map(|item| &item.log_likelihoods);
    if let Some(nats) = nats.copied().find(|nats| !nats.is_finite()) {
        return Err(InferError::NotFinite {
            device: engine.device.clone(),
            nats,
        });
    }
    Ok(Report {
        choices: choices(&items),
        continuations: continuations(&items),
        tokens,
        cut,
        device: engine.device.clone(),
        items,
    })
}

/// Encodes context and continuation together, as lm-evaluation-harness does; of what exceeds the model's context, the end is kept.
fn encode(engine: &Engine, context: &str, continuation: &str) -> Result<Continuation, InferError> {
    // Tokens mostly begin with a space.
    let end = context.trim_end().len();
    let (context, spaces) = context.split_at(end);
    let mut before = engine.prompt(context)?.len();
    let mut whole = engine.prompt(&format!("{context}{spaces}{continuation}"))?;
    if context.is_empty() {
        // What a document begins with, or what ends the one in front.
        let start = engine.prompt("")?;
        before = start.len();
        whole = [
            start,
            engine
                .tokenizer
                .encode(&format!("{spaces}{continuation}"))?,
        ]
        .concat();
    }
    let before = before.clamp(1, whole.len());
    // One token fewer than lm-evaluation-harness keeps, which does not count the last one, since it is not read.
    let most = engine.model.config().context_length;
    let start = whole.len().saturating_sub(most);
    let tokens = whole[start..].to_vec();
    Ok(Continuation {
        scored: whole.len() - before,
        kept: tokens.len() - 1,
        is_cut: start > 0,
        tokens,
    })
}

impl Item {
    /// What each text is, its context and its continuation.
    fn texts(&self) -> Vec<(String, &str, String)> {
        match self {
            Self::Choices {
                question, choices, ..
            } => {
                let of_choice = |(place, choice): (usize, &String)| {
                    (
                        format!("choice {place}"),
                        question.as_str(),
                        format!(" {choice}"),
                    )
                };
                choices.iter().enumerate().map(of_choice).collect()
            }
            Self::Continuation {
                context,
                continuation,
            } => vec![("continuation".to_owned(), context, continuation.clone())],
        }
    }

    /// Number of texts that are scored.
    pub fn count(&self) -> usize {
        match self {
            Self::Choices { choices, .. } => choices.len(),
            Self::Continuation { .. } => 1,
        }
    }

    fn scored(&self, line: usize, sums: impl Iterator<Item = (Sum, usize)>) -> Scored {
        let (sums, tokens): (Vec<Sum>, Vec<usize>) = sums.unzip();
        let log_likelihoods: Vec<f64> = sums.iter().map(|sum| sum.nats).collect();
        let (chosen, chosen_by_length, answer) = match self {
            Self::Choices {
                choices, answer, ..
            } => {
                let by_length = log_likelihoods.iter().zip(choices);
                let by_length =
                    by_length.map(|(nats, choice)| nats / choice.chars().count() as f64);
                (
                    largest(log_likelihoods.iter().copied()),
                    largest(by_length),
                    Some(*answer),
                )
            }
            Self::Continuation { .. } => (None, None, None),
        };
        Scored {
            line,
            is_greedy: sums.iter().map(|sum| sum.is_greedy).collect(),
            log_likelihoods,
            tokens,
            chosen,
            chosen_by_length,
            answer,
        }
    }
}

/// The place of the first of the largest numbers.
fn largest(values: impl Iterator<Item = f64>) -> Option<usize> {
    let best = values
        .enumerate()
        .reduce(|best, value| if value.1 > best.1 { value } else { best });
    best.map(|(place, _)| place)
}

fn choices(items: &[Scored]) -> Option<Choices> {
    let of = |chosen: fn(&Scored) -> Option<usize>| -> Vec<bool> {
        let questions = items.iter().filter(|item| item.answer.is_some());
        questions.map(|item| chosen(item) == item.answer).collect()
    };
    let right = of(|item| item.chosen);
    (!right.is_empty()).then(|| {
        let questions = items.iter().filter(|item| item.answer.is_some());
        let chances = questions.map(|item| 1.0 / item.tokens.len() as f64);
        Choices {
            count: right.len(),
            chance: chances.sum::<f64>() / right.len() as f64,
            accuracy: Fraction::of(&right),
            accuracy_by_length: Fraction::of(&of(|item| item.chosen_by_length)),
        }
    })
}

fn continuations(items: &[Scored]) -> Option<Continuations> {
    let texts: Vec<&Scored> = items.iter().filter(|item| item.answer.is_none()).collect();
    let greedy: Vec<bool> = texts.iter().map(|item| item.is_greedy[0]).collect();
    (!texts.is_empty()).then(|| {
        let nats: f64 = texts.iter().map(|item| -item.log_likelihoods[0]).sum();
        let tokens: usize = texts.iter().map(|item| item.tokens[0]).sum();
        Continuations {
            count: texts.len(),
            accuracy: Fraction::of(&greedy),
            perplexity: (nats / texts.len() as f64).exp(),
            nats_per_token: nats / tokens as f64,
        }
    })
}

/// What is known of a text's continuation.
#[derive(Debug, Clone, Copy)]
struct Sum {
    nats: f64,
    is_greedy: bool,
}

impl Default for Sum {
    fn default() -> Self {
        Self {
            nats: 0.0,
            is_greedy: true,
        }
    }
}

/// Adds up the last scores of each text.
struct Sums<P> {
    found: Vec<Sum>,
    /// How many tokens of each count.
    scored: Vec<usize>,
    /// Scores of each that are still to come.
    seen: Vec<usize>,
    done: u64,
    progress: P,
}

impl<P: FnMut(u64)> Receiver for Sums<P> {
    fn prompt_scored(&mut self, text: usize, scores: Vec<ScoredToken>) {
        let sum = &mut self.found[text];
        for score in scores {
            if self.seen[text] <= self.scored[text] {
                sum.nats += f64::from(score.log_probability);
                let likeliest = score.likeliest.first().map(|(id, _)| *id);
                sum.is_greedy &= likeliest == Some(score.id);
            }
            self.seen[text] -= 1;
        }
    }

    fn token(&mut self, _: usize, _: Token) -> bool {
        false
    }

    fn ended(&mut self, _: usize, _: Ended) {
        self.done += 1;
        (self.progress)(self.done);
    }
}
