//! What the first rank asks all ranks to compute, and what they tell it.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::batch::Sequence;
use crate::captions::Captioned;
use crate::moe::loads::ExpertLoads;
use crate::network::{Part, PictureWeights, Session};
use crate::sampling::Drawn;
use crate::timeline::Span;
use crate::vision::{Picture, PictureBatch, TowerPart};

/// Something that every rank does its part of.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Step<'a> {
    /// An empty cache takes the place of the one before.
    Begin(Session),
    /// Changes of the cache, then a pass of new tokens of some of its sequences.
    Decode {
        edits: Cow<'a, [Edit]>,
        parts: Cow<'a, [Part<'a>]>,
    },
    /// From now on each stage records when it computes.
    Record,
    /// What was recorded since this was asked last.
    Spans,
    /// What experts did since this was asked last.
    ExpertLoads,
    /// A pass of sequences without a cache, and their loss.
    Batch(Cow<'a, [Sequence]>),
    /// A pass of rows of `length` tokens without a cache, and its values.
    Trace {
        ids: Cow<'a, [u32]>,
        valid: Cow<'a, [bool]>,
        length: usize,
        pictures: Option<Cow<'a, PictureBatch>>,
    },
    /// A pass of captions behind their pictures without a cache, and the nats of their targets.
    Captions(Captions<'a>),
    /// A pass of captions without a cache, and how much they attend to their pictures.
    Attention(Captions<'a>),
    /// There is nothing more to do.
    End,
}

/// Captions as they are sent: a picture that several have is sent once.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Captions<'a> {
    pictures: Vec<Cow<'a, Picture>>,
    rows: Vec<CaptionRow<'a>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CaptionRow<'a> {
    sequence: Cow<'a, Sequence>,
    given: usize,
    /// The place of its picture.
    picture: Option<usize>,
}

impl<'a> Captions<'a> {
    pub fn new(captions: &'a [Captioned]) -> Self {
        let mut distinct: Vec<&Arc<Picture>> = Vec::new();
        let rows = captions.iter().map(|caption| CaptionRow {
            sequence: Cow::Borrowed(&caption.sequence),
            given: caption.given,
            picture: caption.picture.as_ref().map(|picture| {
                let known = distinct
                    .iter()
                    .position(|known| Arc::ptr_eq(known, picture));
                known.unwrap_or_else(|| {
                    distinct.push(picture);
                    distinct.len() - 1
                })
            }),
        });
        let rows = rows.collect();
        let pictures = distinct.into_iter();
        Self {
            pictures: pictures.map(|picture| Cow::Borrowed(&**picture)).collect(),
            rows,
        }
    }

    /// The captions that were sent.
    pub fn read(&self) -> Vec<Captioned> {
        let pictures = self.pictures.iter();
        let pictures = pictures.map(|picture| Arc::new(picture.clone().into_owned()));
        let pictures: Vec<Arc<Picture>> = pictures.collect();
        let rows = self.rows.iter().map(|row| Captioned {
            sequence: row.sequence.clone().into_owned(),
            given: row.given,
            picture: row.picture.map(|place| pictures[place].clone()),
        });
        rows.collect()
    }
}

/// A change of the cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Edit {
    Truncate {
        sequence: usize,
        length: usize,
    },
    Fork {
        from: usize,
        length: usize,
        to: usize,
    },
    /// A sequence sees the pictures of this number, or none.
    Show {
        sequence: usize,
        number: Option<u64>,
    },
    /// These pictures have this number from now on.
    Look {
        number: u64,
        pictures: Vec<Picture>,
    },
    /// Nobody will see the pictures of this number any more.
    Forget {
        number: u64,
    },
}

/// What the first tensor rank of a stage tells of a step.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// Of a [`Step::Decode`], from the last stage.
    Drawn(Vec<Drawn>),
    /// Of a [`Step::ExpertLoads`], from every stage: of its MoE layers.
    ExpertLoads(Vec<ExpertLoads>),
    /// Of a [`Step::Spans`], from every stage.
    Spans(Vec<Span>),
    /// Of a [`Step::Batch`], from every stage.
    Sums {
        /// From the last stage.
        nats: Option<f32>,
        /// Of the stage's MoE layers.
        layers: Vec<usize>,
        health: Vec<f32>,
    },
    /// Of a [`Step::Captions`], from every stage.
    Captions {
        /// Of all targets, row by row; from the last stage.
        nats: Option<Vec<f64>>,
        /// Of the stage's MoE layers.
        layers: Vec<usize>,
        health: Vec<f32>,
    },
    /// Of a [`Step::Attention`], from every stage.
    Attention(Vec<PictureWeights>),
    /// Of a [`Step::Trace`], from every stage.
    Trace {
        /// The residual stream before each block, and on the last stage after the final norm.
        hidden: Vec<Vec<f32>>,
        routing: Vec<Routed>,
        /// From the last stage.
        logits: Option<Vec<f32>>,
        /// What the tower made of pictures, from stages that have it.
        vision: Option<Seen>,
    },
}

/// What the tower made of the pictures of a batch, with shapes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Seen {
    pub parts: Vec<(TowerPart, [usize; 4], Vec<f32>)>,
    /// `[rows, keys, d_model]`
    pub states: ([usize; 3], Vec<f32>),
}

/// What a router did.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Routed {
    pub layer: usize,
    /// `[tokens, experts]`
    pub logits: Vec<f32>,
    /// `[tokens, experts]`
    pub probabilities: Vec<f32>,
    /// `[tokens, top_k]`
    pub chosen: Vec<u32>,
}
