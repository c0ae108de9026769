//! The draw itself, of logits that may lie on several ranks, each with a part of the vocabulary.
//!
//! The ranks exchange each row's likeliest token, the counts by which `select` finds what `top_k` and `top_p` leave (up to
//! eight rounds each), and the best of what each of them drew: what is drawn is what a rank with all of the vocabulary draws,
//! to the last bit.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Sampling;
use super::noise::Noise;
use super::penalties::Penalties;
use super::select::{Candidates, Choice, Scores, select};

/// All-gather among the ranks that share the vocabulary, in the order of their parts.
pub trait Exchange {
    /// The messages of all ranks, of which `own` is this rank's.
    fn all<T: Serialize + DeserializeOwned>(&mut self, own: T) -> Vec<T>;
}

/// The whole vocabulary is here.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Exchange for Alone {
    fn all<T>(&mut self, own: T) -> Vec<T> {
        vec![own]
    }
}

/// What a token is drawn from.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Of this rank's part of the vocabulary.
    pub logits: &'a [f32],
    /// How it is drawn.
    pub sampling: Sampling,
    /// The prompt; only penalties look at it.
    pub prompt: &'a [u32],
    /// What was generated after it; only penalties look at it.
    pub generated: &'a [u32],
    /// Number of tokens that were generated.
    pub position: usize,
}

/// Memory to draw tokens in, a piece for each row.
#[derive(Debug, Clone, Default)]
pub struct Memory(Vec<(Penalties, Candidates)>);

/// A row's tokens while one is drawn.
struct Draw<'a> {
    /// After the penalties.
    logits: &'a [f32],
    row: Row<'a>,
    /// The likeliest token of all ranks, and its logit.
    likeliest: (f32, u32),
}

impl Draw<'_> {
    /// What makes probabilities of the logits; `None` if the likeliest token is taken.
    fn scores(&self) -> Option<Scores> {
        let (largest, temperature) = (f64::from(self.likeliest.0), self.row.sampling.temperature);
        (temperature != 0.0 && largest.is_finite()).then_some(Scores {
            largest,
            temperature,
        })
    }

    /// The best of this rank's tokens, of which only `candidates` may be drawn if they are given: the one with the smallest
    /// `−ln(u) / p`, which is the largest `ln p + g`.
    fn best(&self, first: u32, candidates: Option<&Candidates>) -> (f64, u32) {
        let (_, likeliest) = self.likeliest;
        let Some(scores) = self.scores() else {
            return (0.0, likeliest);
        };
        let noise = Noise::new(self.row.sampling.seed, 0, self.row.position as u64);
        // It begins with the likeliest token, so that for most others 1 − u ≤ −ln(u) is too large already.
        let mut best = (noise.exponential(likeliest), likeliest);
        let mut consider = |id: u32| {
            let uniform = noise.uniform(id);
            if 1.0 - uniform < best.0 {
                let cost = -uniform.ln() / scores.weight(self.logits[(id - first) as usize]);
                if cost < best.0 {
                    best = (cost, id);
                }
            }
        };
        match candidates {
            Some(kept) => kept.ids().for_each(&mut consider),
            None => (first..first + self.logits.len() as u32).for_each(&mut consider),
        }
        best
    }
}

/// Draws a token from each row. The logits are those of the ids from `first` on.
pub fn draw(
    rows: &[Row],
    first: u32,
    Memory(memory): &mut Memory,
    exchange: &mut impl Exchange,
) -> Vec<u32> {
    if memory.len() < rows.len() {
        memory.resize_with(rows.len(), Default::default);
    }
    let (mut draws, mut candidates): (Vec<Draw>, Vec<&mut Candidates>) = rows
        .iter()
        .zip(memory)
        .map(|(&row, (penalties, candidates))| {
            let (prompt, generated) = (row.prompt, row.generated);
            let logits = penalties.apply(row.logits, first, &row.sampling, prompt, generated);
            let likeliest = likeliest(logits, first);
            let draw = Draw {
                logits,
                row,
                likeliest,
            };
            (draw, candidates)
        })
        .unzip();

    let own: Vec<(f32, u32)> = draws.iter().map(|draw| draw.likeliest).collect();
    for of_rank in exchange.all(own) {
        for (draw, found) in draws.iter_mut().zip(of_rank) {
            // Of equal ones the first, which is on an earlier rank.
            if found.0 > draw.likeliest.0
                || found.0 == draw.likeliest.0 && found.1 < draw.likeliest.1
            {
                draw.likeliest = found;
            }
        }
    }

    let choices = draws
        .iter()
        .zip(&mut candidates)
        .filter_map(|(draw, candidates)| {
            let scores = draw.scores()?;
            Choice::is_needed(&draw.row.sampling).then_some(Choice {
                logits: draw.logits,
                first,
                scores,
                sampling: draw.row.sampling,
                candidates,
            })
        });
    select(&mut choices.collect::<Vec<_>>(), exchange);

    let own = draws.iter().zip(&candidates).map(|(draw, candidates)| {
        let needed = Choice::is_needed(&draw.row.sampling);
        draw.best(first, needed.then_some(&**candidates))
    });
    let of_ranks = exchange.all(own.collect::<Vec<(f64, u32)>>());
    let best = of_ranks.into_iter().reduce(|mut best, of_rank| {
        for (best, found) in best.iter_mut().zip(of_rank) {
            if found.0 < best.0 {
                *best = found;
            }
        }
        best
    });
    let best = best.expect("a rank has its own");
    best.into_iter().map(|(_, id)| id).collect()
}

/// The largest logit and its id, the smallest one among equals; minus infinity and the first id if there is nothing else
/// but NaN.
fn likeliest(logits: &[f32], first: u32) -> (f32, u32) {
    let mut best = (f32::NEG_INFINITY, first);
    for (id, &logit) in (first..).zip(logits) {
        if logit > best.0 {
            best = (logit, id);
        }
    }
    best
}
