//! Whether a model looks at the pictures: the loss of captions behind their own picture, behind another one and behind none,
//! and how often the right caption of several is the likeliest.
//!
//! A model that does not look has the same loss three times. One that does has the lowest behind the right picture, and may
//! have a higher one without than a model of text alone, which has learned to do without.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::captions::Captioned;
use crate::evaluate::Evaluation;
use crate::moe::stats::HealthSums;
use crate::network::{CaptionNats, Network};
use crate::permutation::shuffled;

/// Captions among which the right one is to be found.
pub const CANDIDATES: usize = 16;

/// Pictures for which that is tried, where nobody says otherwise.
pub const TRIED: usize = 100;

/// Captions that are computed at once, where nobody says otherwise.
pub const ROWS: usize = 48;

/// How captions are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Pictures for which the right caption of several is looked for, at most.
    pub tried: usize,
    /// Captions that are computed at once.
    pub rows: usize,
}

impl Default for Effort {
    fn default() -> Self {
        Self {
            tried: TRIED,
            rows: ROWS,
        }
    }
}

impl Effort {
    /// Pictures of so many for which the right caption is looked for: none where there are too few others.
    fn tried_of(&self, captions: usize) -> usize {
        match captions < CANDIDATES {
            true => 0,
            false => captions.min(self.tried),
        }
    }

    /// The captions that [`look`] computes of so many.
    pub fn rows_of(&self, captions: usize) -> u64 {
        // Behind the right picture, another one and none.
        let pictures = if captions > 1 { 3 } else { 2 };
        (pictures * captions + CANDIDATES * self.tried_of(captions)) as u64
    }
}

/// What a model makes of a caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// Number of predicted tokens, the end of the caption among them.
    pub tokens: u64,
    /// Nats of these tokens behind the right picture.
    pub right: f64,
    /// Behind another picture; `None` for a caption without others.
    pub other: Option<OtherPicture>,
    /// Nats behind none.
    pub none: f64,
    /// The captions that were compared behind its picture; `None` where that was not tried.
    pub choice: Option<Choice>,
}

/// What a model makes of a caption behind another caption's picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OtherPicture {
    /// The caption whose picture it is.
    pub caption: usize,
    /// Nats behind it.
    pub nats: f64,
}

/// Captions behind the same picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The captions, the right one first; each differs from the right one.
    pub candidates: Vec<usize>,
    /// Nats of each.
    pub nats: Vec<f64>,
}

impl Choice {
    /// Whether the right one is the likeliest, by its sum of nats.
    pub fn is_right(&self) -> bool {
        self.nats[1..].iter().all(|&wrong| self.nats[0] < wrong)
    }

    /// The place of the likeliest candidate; that of a wrong one where it is as likely as the right one.
    pub fn chosen(&self) -> usize {
        let places = 0..self.nats.len();
        let likeliest = places.rev().min_by(|&a, &b| {
            let (a, b) = (self.nats[a], self.nats[b]);
            a.total_cmp(&b)
        });
        likeliest.expect("candidates")
    }
}

/// How well captions are predicted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptionLoss {
    /// Number of captions.
    pub captions: u64,
    /// Number of predicted tokens, ends of captions among them.
    pub tokens: u64,
    /// Number of UTF-8 bytes of the predicted tokens.
    pub bytes: u64,
    /// Nats per token behind the right picture.
    pub right: f64,
    /// Nats per token behind another picture; `None` where a caption has no other picture, since the mean of the others could
    /// not be compared with `right`.
    pub other: Option<f64>,
    /// Nats per token behind none.
    pub none: f64,
    /// Part of the pictures for which the right caption is the likeliest of [`CANDIDATES`], by its sum of nats.
    pub found: f64,
    /// Number of pictures for which that was tried; fewer than so many captions are too few.
    pub tried: u64,
}

impl CaptionLoss {
    /// That of looks at captions whose predicted tokens have so many bytes.
    pub fn of<'a>(looks: impl Iterator<Item = &'a Look> + Clone, bytes: u64) -> Self {
        let tokens: u64 = looks.clone().map(|look| look.tokens).sum();
        let per_token = |nats: f64| nats / tokens.max(1) as f64;
        let others = looks.clone().map(|look| Some(look.other?.nats));
        let choices = looks.clone().filter_map(|look| look.choice.as_ref());
        let tried = choices.clone().count();
        let found = choices.filter(|choice| choice.is_right()).count();
        Self {
            captions: looks.clone().count() as u64,
            tokens,
            bytes,
            right: per_token(looks.clone().map(|look| look.right).sum()),
            other: others.sum::<Option<f64>>().map(per_token),
            none: per_token(looks.clone().map(|look| look.none).sum()),
            found: found as f64 / tried.max(1) as f64,
            tried: tried as u64,
        }
    }

    /// The bits per byte of a loss in nats per token of these captions; see [`Evaluation::bits_per_byte`].
    pub fn bits_per_byte(&self, nats_per_token: f64) -> f64 {
        let nats = nats_per_token * self.tokens as f64;
        nats / std::f64::consts::LN_2 / self.bytes.max(1) as f64
    }
}

/// Looks at captions: the other picture and the other captions are of the same. A caption by itself has no other picture;
/// captions of one picture count as those of different ones. Adds to `health` what the routers do behind the right pictures.
/// `progress` is called with the number of captions that were computed since it was last.
///
/// # Panics
///
/// When the model sees no pictures.
pub fn look(
    network: &mut (impl Network + ?Sized),
    captions: &[Captioned],
    effort: Effort,
    health: &mut HealthSums,
    mut progress: impl FnMut(u64),
) -> Vec<Look> {
    let mut measure = |rows: &[Captioned], health: Option<&mut HealthSums>| {
        let nats = nats(network, rows, effort.rows, health, &mut progress);
        nats.into_iter().map(sum).collect::<Vec<f64>>()
    };
    let right = measure(captions, Some(health));
    let without: Vec<Captioned> = captions.iter().map(Captioned::without_picture).collect();
    let none = measure(&without, None);
    let mut looks: Vec<Look> = (0..captions.len())
        .map(|index| Look {
            tokens: captions[index].targets(),
            right: right[index],
            other: None,
            none: none[index],
            choice: None,
        })
        .collect();
    let order = shuffled(captions.len(), 0);
    if captions.len() > 1 {
        // The one before it in some order.
        let mut others = captions.to_vec();
        let mut pictures = vec![0; captions.len()];
        for (place, &index) in order.iter().enumerate() {
            let before = order[(place + order.len() - 1) % order.len()];
            others[index].picture = captions[before].picture.clone();
            pictures[index] = before;
        }
        let other = measure(&others, None);
        for (index, look) in looks.iter_mut().enumerate() {
            look.other = Some(OtherPicture {
                caption: pictures[index],
                nats: other[index],
            });
        }
    }
    for &index in &order[..effort.tried_of(captions.len())] {
        let candidates = candidates(captions, index);
        let nats = measure(&behind(captions, index, &candidates), None);
        looks[index].choice = Some(Choice { candidates, nats });
    }
    looks
}

/// The right caption of a picture and others, compared behind the picture as [`look`] does; `None` where there are too few
/// others. So many captions are computed at once.
///
/// # Panics
///
/// As there.
pub fn choose(
    network: &mut (impl Network + ?Sized),
    captions: &[Captioned],
    picture: usize,
    rows: usize,
) -> Option<Choice> {
    if captions.len() < CANDIDATES {
        return None;
    }
    let candidates = candidates(captions, picture);
    let behind = behind(captions, picture, &candidates);
    let nats = nats(network, &behind, rows, None, |_| ());
    let nats = nats.into_iter().map(sum).collect();
    Some(Choice { candidates, nats })
}

/// The nats of each predicted token of each caption, behind its picture; so many captions are computed at once.
///
/// # Panics
///
/// As [`look`].
pub fn token_nats(
    network: &mut (impl Network + ?Sized),
    captions: &[Captioned],
    rows: usize,
) -> Vec<Vec<f64>> {
    nats(network, captions, rows, None, |_| ())
}

/// All captions of some losses behind their own pictures.
pub fn whole<'a>(
    losses: impl Iterator<Item = &'a CaptionLoss> + Clone,
    health: &HealthSums,
) -> Evaluation {
    let tokens: u64 = losses.clone().map(|loss| loss.tokens).sum();
    let bytes: u64 = losses.clone().map(|loss| loss.bytes).sum();
    let nats: f64 = losses.map(|loss| loss.right * loss.tokens as f64).sum();
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

/// A caption, and those that come after it in some order, without copies of it.
fn candidates(captions: &[Captioned], right: usize) -> Vec<usize> {
    let order = shuffled(captions.len(), 1 + right as u64);
    let others = order.into_iter();
    let others = others.filter(|&index| captions[index].sequence != captions[right].sequence);
    std::iter::once(right)
        .chain(others.take(CANDIDATES - 1))
        .collect()
}

/// Captions behind a picture.
fn behind(captions: &[Captioned], picture: usize, candidates: &[usize]) -> Vec<Captioned> {
    let candidates = candidates.iter().map(|&candidate| Captioned {
        picture: captions[picture].picture.clone(),
        ..captions[candidate].clone()
    });
    candidates.collect()
}

fn sum(nats: Vec<f64>) -> f64 {
    nats.into_iter().sum()
}

/// The nats of each predicted token of each caption. As many batches are under way as keep every stage of a pipeline busy.
fn nats(
    network: &mut (impl Network + ?Sized),
    captions: &[Captioned],
    rows: usize,
    mut health: Option<&mut HealthSums>,
    mut progress: impl FnMut(u64),
) -> Vec<Vec<f64>> {
    let most = network.stages();
    let mut batches = captions.chunks(rows.max(1));
    let mut under_way = VecDeque::new();
    let mut found = Vec::with_capacity(captions.len());
    loop {
        while under_way.len() < most
            && let Some(batch) = batches.next()
        {
            network.submit_captions(batch);
            under_way.push_back(batch);
        }
        let Some(batch) = under_way.pop_front() else {
            return found;
        };
        let CaptionNats {
            nats,
            layers,
            health: terms,
        } = network.caption_nats();
        if let Some(health) = &mut health {
            let tokens = batch.iter().map(Captioned::targets).sum();
            health.add(&layers, tokens, &terms);
        }
        found.extend(nats);
        progress(batch.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(right: f64, choice: Option<Choice>) -> Look {
        Look {
            tokens: 2,
            right,
            other: Some(OtherPicture {
                caption: 0,
                nats: 3.0,
            }),
            none: 2.0,
            choice,
        }
    }

    #[test]
    fn a_tie_is_not_found() {
        let choice = |nats: [f64; 3]| Choice {
            candidates: vec![5, 3, 4],
            nats: nats.to_vec(),
        };
        let [found, tie, lost] = [[1.0, 2.0, 3.0], [1.0, 2.0, 1.0], [2.0, 1.0, 3.0]].map(choice);
        assert!(found.is_right() && !tie.is_right() && !lost.is_right());
        assert_eq!([&found, &tie, &lost].map(Choice::chosen), [0, 2, 1]);
        let looks = [
            look(1.0, Some(found)),
            look(2.0, Some(tie)),
            look(3.0, None),
        ];
        let loss = CaptionLoss::of(looks.iter(), 12);
        assert_eq!((loss.captions, loss.tokens, loss.tried), (3, 6, 2));
        assert_eq!((loss.right, loss.other, loss.found), (1.0, Some(1.5), 0.5));
        // One that is alone has no other picture, and what the rest has is not that of all.
        let alone = Look {
            other: None,
            ..looks[0].clone()
        };
        let with_one = CaptionLoss::of(looks.iter().chain([&alone]), 16);
        assert_eq!((with_one.captions, with_one.other), (4, None));
        let bits = loss.bits_per_byte(loss.right);
        assert!(
            (bits - 0.5 / std::f64::consts::LN_2).abs() < 1e-12,
            "{bits}"
        );
    }

    #[test]
    fn few_captions_are_no_choice() {
        let effort = Effort::default();
        assert_eq!(effort.rows_of(1), 2);
        assert_eq!(effort.rows_of(15), 45);
        assert_eq!(effort.rows_of(16), 48 + 16 * 16);
        assert_eq!(effort.rows_of(500), 1500 + 16 * 100);
    }
}
