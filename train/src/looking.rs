//! Whether a model looks at the pictures: the loss of held-out captions behind their own picture, behind another one and
//! behind none, and how often the right caption of several is the likeliest.
//!
//! A model that does not look has the same loss three times. One that does has the lowest behind the right picture, and may
//! have a higher one without than a model of text alone, which has learned to do without.

use burn::tensor::activation::log_softmax;
use firebox_console::numbers::percent;
use firebox_model::evaluate::Evaluation;
use firebox_model::language_model::LanguageModel;
use firebox_model::moe::stats::HealthSums;
use firebox_text::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::data::{Captioned, HeldOutCaptions, HeldOutPicture, shuffled};
use crate::rows::Row;

/// Captions among which the right one is to be found.
pub const CANDIDATES: usize = 16;

/// Pictures for which that is tried.
const TRIED: usize = 100;

/// Rows that are computed at once.
const ROWS: usize = 48;

/// How well the held-out captions of one kind are predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptionLoss {
    /// Why they are held out.
    pub held_out: HeldOutPicture,
    /// Number of captions.
    pub captions: u64,
    /// Number of predicted tokens, ends of captions among them.
    pub tokens: u64,
    /// Number of UTF-8 bytes of the predicted tokens.
    pub bytes: u64,
    /// Nats per token behind the right picture.
    pub right: f64,
    /// Nats per token behind another picture.
    pub other: f64,
    /// Nats per token behind none.
    pub none: f64,
    /// Part of the pictures for which the right caption is the likeliest of [`CANDIDATES`], by its sum of nats.
    pub found: f64,
    /// Number of pictures for which that was tried; fewer than so many captions are too few.
    pub tried: u64,
}

impl CaptionLoss {
    /// One line for people.
    pub fn sentence(&self) -> String {
        let Self {
            captions,
            right,
            other,
            none,
            found,
            tried,
            ..
        } = self;
        let what = self.held_out.plural();
        let of_several = match tried {
            0 => String::new(),
            _ => format!("; right caption of {CANDIDATES}: {}", percent(*found)),
        };
        format!(
            "{captions} captions of new {what}: {right:.4} nats per token behind the right picture, {other:.4} behind \
             another, {none:.4} behind none{of_several}"
        )
    }
}

/// Nats and targets of a caption.
#[derive(Debug, Clone, Copy, Default)]
struct Nats {
    nats: f64,
    targets: u64,
}

/// Evaluates held-out captions: all of them behind their pictures, and each kind. `progress` is called with the number of rows
/// done.
pub fn evaluate(
    model: &LanguageModel,
    parts: &[HeldOutCaptions],
    tokenizer: &Tokenizer,
    mut progress: impl FnMut(u64),
) -> (Evaluation, Vec<CaptionLoss>) {
    let mut done = 0;
    let mut health = HealthSums::default();
    let mut losses = Vec::new();
    for HeldOutCaptions { part, captions } in parts {
        let mut measure = |rows: &[Captioned], health: Option<&mut HealthSums>| {
            let found = nats(model, rows, health);
            done += rows.len() as u64;
            progress(done);
            found
        };
        let right = measure(captions, Some(&mut health));
        let order = shuffled(captions.len(), 0);
        // The one before it in some order.
        let mut others = captions.clone();
        for (place, &index) in order.iter().enumerate() {
            let before = order[(place + order.len() - 1) % order.len()];
            others[index].picture = captions[before].picture.clone();
        }
        let other = measure(&others, None);
        let without: Vec<Captioned> = captions.iter().map(Captioned::without_picture).collect();
        let none = measure(&without, None);
        let tried: &[usize] = match captions.len() < CANDIDATES {
            true => &[],
            false => &order[..order.len().min(TRIED)],
        };
        let found = tried.iter().filter(|&&index| {
            let candidates = candidates(captions, index);
            let nats = measure(&candidates, None);
            nats[1..].iter().all(|wrong| nats[0].nats < wrong.nats)
        });
        let found = found.count();
        let mean = |nats: &[Nats]| {
            let sum: f64 = nats.iter().map(|caption| caption.nats).sum();
            let targets: u64 = nats.iter().map(|caption| caption.targets).sum();
            sum / targets.max(1) as f64
        };
        losses.push(CaptionLoss {
            held_out: *part,
            captions: captions.len() as u64,
            tokens: captions.iter().map(Captioned::targets).sum(),
            bytes: captions
                .iter()
                .map(|caption| tokenizer.bytes_of(caption.learned()))
                .sum(),
            right: mean(&right),
            other: mean(&other),
            none: mean(&none),
            found: found as f64 / tried.len().max(1) as f64,
            tried: tried.len() as u64,
        });
    }
    (whole(&losses, &health), losses)
}

/// The rows that [`evaluate`] computes.
pub fn rows(parts: &[HeldOutCaptions]) -> u64 {
    let rows = |part: &HeldOutCaptions| {
        let captions = part.captions.len();
        let tried = if captions < CANDIDATES {
            0
        } else {
            captions.min(TRIED)
        };
        (3 * captions + CANDIDATES * tried) as u64
    };
    parts.iter().map(rows).sum()
}

/// All captions behind their own pictures.
fn whole(losses: &[CaptionLoss], health: &HealthSums) -> Evaluation {
    let tokens: u64 = losses.iter().map(|loss| loss.tokens).sum();
    let bytes: u64 = losses.iter().map(|loss| loss.bytes).sum();
    let nats: f64 = losses
        .iter()
        .map(|loss| loss.right * loss.tokens as f64)
        .sum();
    let nats_per_token = nats / tokens.max(1) as f64;
    Evaluation {
        tokens,
        bytes,
        nats_per_token,
        perplexity: nats_per_token.exp(),
        bits_per_byte: nats / std::f64::consts::LN_2 / bytes.max(1) as f64,
        layers: health.health(),
    }
}

/// A caption, and others behind the same picture: those that come after it, without copies of it.
fn candidates(captions: &[Captioned], right: usize) -> Vec<Captioned> {
    let right_one = &captions[right];
    let behind_it = |caption: &Captioned| Captioned {
        picture: right_one.picture.clone(),
        ..caption.clone()
    };
    let order = shuffled(captions.len(), 1 + right as u64);
    let others = order.iter().map(|&index| &captions[index]);
    let others = others.filter(|caption| caption.sequence != right_one.sequence);
    let others = others.take(CANDIDATES - 1).map(behind_it);
    std::iter::once(right_one.clone()).chain(others).collect()
}

/// The nats of each caption.
fn nats(
    model: &LanguageModel,
    captions: &[Captioned],
    mut health: Option<&mut HealthSums>,
) -> Vec<Nats> {
    let device = model.device();
    let mut found = Vec::with_capacity(captions.len());
    for rows in captions.chunks(ROWS) {
        let batch = Captioned::batch(rows, model, &device);
        let [count, length] = batch.tokens.dims();
        let output = model.forward_batch(&batch);
        let vocabulary = output.logits.dims()[2];
        let of_targets = log_softmax(output.logits.reshape([count * length, vocabulary]), 1)
            .gather(1, batch.targets.clone().unsqueeze_dim(1));
        let values: Vec<f32> = of_targets.into_data().iter().collect();
        for (row, values) in rows.iter().zip(values.chunks(length)) {
            let learned = row.given.min(row.sequence.valid)..row.sequence.valid;
            let nats = values[learned].iter().map(|&value| -f64::from(value)).sum();
            found.push(Nats {
                nats,
                targets: row.targets(),
            });
        }
        if let Some(health) = &mut health
            && let Some(terms) = HealthSums::terms(&output.routing, batch.valid.as_ref())
        {
            let layers: Vec<usize> = output.routing.iter().map(|routing| routing.layer).collect();
            let terms: Vec<f32> = terms.into_data().iter().collect();
            health.add(&layers, batch.valid_tokens, &terms);
        }
    }
    found
}
