//! Captions of pictures: their loss behind the right picture, behind another one and behind none, and whether the right one
//! is found among several. The numbers are those of a validation during training; see [`firebox_model::looking`].

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use firebox_console::numbers::{counted, grouped, percent};
use firebox_console::report::{Cell, Table};
use firebox_model::captions::Captioned;
use firebox_model::looking::{CANDIDATES, CaptionLoss, Effort, Look, look, whole};
use firebox_model::moe::stats::HealthSums;
use firebox_model::network::Network;
use firebox_text::documents::{CAPTION_FIELD, Pair, Pairs, TextError};
use firebox_text::packing::PackingError;
use serde::Serialize;

use super::{Routers, check_finite};
use crate::InferError;
use crate::engine::{Engine, warn_of_special_places};
use crate::pictures::PictureReader;

/// Losses that differ by less, in nats per token, do not show that a model looks.
const ALIKE: f64 = 1e-3;

/// Pictures with captions, in files of JSON lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionData {
    /// A pair a line.
    pub files: Vec<PathBuf>,
    /// The field with the path of a picture, from the folder of the lines.
    pub image: String,
    /// The field with its caption; `None` for [`CAPTION_FIELD`].
    pub caption: Option<String>,
    /// The field by which pairs are told apart: other pictures and captions are of the same group.
    pub group: Option<String>,
    /// Whether pairs that cannot be used are left out, instead of being an error.
    pub skips: bool,
    /// The most pairs, the first ones.
    pub most: Option<usize>,
}

/// Pairs of the same group.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// What the field of the group says; `None` where pairs are not told apart.
    pub name: Option<String>,
    /// In the order of the lines.
    pub pairs: Vec<ReadPair>,
}

/// A pair that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadPair {
    /// Where it stands: the file and its line.
    pub place: String,
    /// The caption.
    pub caption: String,
    /// The picture's file.
    pub picture: PathBuf,
    /// What the model reads of both.
    pub captioned: Captioned,
}

impl CaptionData {
    /// Reads and encodes the captions and the pictures as training does; those without a caption are left out.
    ///
    /// # Errors
    ///
    /// When the model sees no pictures, there is no pair, or one cannot be used: its picture cannot be read, or its caption
    /// cannot be encoded or is beyond the context.
    pub fn read(&self, engine: &Engine) -> Result<CaptionSet, InferError> {
        let reader = PictureReader::new(&engine.folder, engine.model.config())?;
        let mut set = CaptionSet::default();
        let mut numbers = HashMap::new();
        let mut special_places = 0;
        let mut without_caption = 0;
        let caption = self.caption.as_deref().unwrap_or(CAPTION_FIELD);
        'files: for file in &self.files {
            let pairs = Pairs::open(file, &self.image, caption, self.group.as_deref());
            for pair in pairs.map_err(PackingError::from)? {
                if self.most.is_some_and(|most| set.pairs() >= most) {
                    break 'files;
                }
                let read = pair.map_err(|error| PackingError::from(error).into());
                let read = read.and_then(|pair| self.read_pair(engine, &reader, pair));
                let (group, pair) = match read {
                    Ok(Some(read)) => read,
                    Ok(None) => {
                        without_caption += 1;
                        continue;
                    }
                    // A disk that cannot be read is not the fault of the pair.
                    Err(error) if self.skips && !is_of_the_file(&error) => {
                        tracing::debug!("left out: {error}");
                        set.left_out += 1;
                        set.first_left_out.get_or_insert_with(|| error.to_string());
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                special_places += engine.tokenizer.special_places(&pair.caption);
                let groups = &mut set.groups;
                let number = *numbers.entry(group.clone()).or_insert_with(|| {
                    groups.push(Group {
                        name: group,
                        pairs: Vec::new(),
                    });
                    groups.len() - 1
                });
                set.groups[number].pairs.push(pair);
            }
        }
        warn_of_special_places(&engine.tokenizer, special_places);
        if without_caption > 0 {
            let pairs = counted(without_caption, "pair");
            tracing::warn!("left out {pairs} whose caption is empty");
        }
        match set.groups.is_empty() {
            true => Err(InferError::NoPairs {
                files: self.files.clone(),
                left_out: set.left_out,
            }),
            false => Ok(set),
        }
    }

    /// A pair and its group; `None` if it has no caption.
    fn read_pair(
        &self,
        engine: &Engine,
        reader: &PictureReader,
        pair: Pair,
    ) -> Result<Option<(Option<String>, ReadPair)>, InferError> {
        let Pair {
            caption,
            picture,
            group,
        } = pair;
        if caption.text.is_empty() {
            return Ok(None);
        }
        let in_line = |error: InferError| InferError::Pair {
            place: caption.name.clone(),
            error: Box::new(error),
        };
        let tokenizer = &engine.tokenizer;
        let ids = tokenizer.encode(&caption.text);
        let ids = ids.map_err(|error| in_line(error.into()))?;
        let document: Vec<u32> = tokenizer.document(&ids).collect();
        engine.check(&document).map_err(in_line)?;
        let config = engine.model.config();
        // The token that stands for the picture, all of the caption, and the one that ends it, which is not read.
        if document.len() > config.context_length {
            return Err(in_line(InferError::LongCaption {
                tokens: document.len(),
                context: config.context_length,
            }));
        }
        let tiles = reader.open(&picture).map_err(in_line)?;
        let image_token = config.image_token().expect("a model that sees pictures");
        let beginning = tokenizer.bos_ids().len();
        let captioned = Captioned::new(
            Some(tiles),
            image_token,
            &document,
            beginning,
            config.context_length,
            None,
        );
        let pair = ReadPair {
            place: caption.name,
            caption: caption.text,
            picture,
            captioned,
        };
        Ok(Some((group, pair)))
    }
}

/// Whether an error is about all of a file, not about one of its lines.
fn is_of_the_file(error: &InferError) -> bool {
    matches!(
        error,
        InferError::Text(PackingError::Text(
            // What ends a file is not the fault of a pair.
            TextError::Io(_)
                | TextError::Damaged { .. }
                | TextError::TooLarge { .. }
                | TextError::Foreign { .. }
                | TextError::DanglingLink { .. }
        ))
    )
}

/// Pairs that were read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CaptionSet {
    /// In the order in which they first occur.
    pub groups: Vec<Group>,
    /// Pairs that were left out.
    pub left_out: u64,
    /// What is wrong with the first of them.
    pub first_left_out: Option<String>,
}

impl CaptionSet {
    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.groups.iter().map(|group| group.pairs.len()).sum()
    }

    /// Captions that [`evaluate`] computes.
    pub fn rows(&self, effort: Effort) -> u64 {
        let groups = self.groups.iter();
        groups.map(|group| effort.rows_of(group.pairs.len())).sum()
    }
}

/// A loss behind the right picture, behind another one and behind none.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Behind {
    /// Behind the right picture.
    pub right: f64,
    /// Behind another picture; `None` where a caption has none, being the only one of its group.
    pub other: Option<f64>,
    /// Behind none.
    pub none: f64,
}

/// How well captions are predicted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Losses {
    /// Number of captions.
    pub captions: u64,
    /// Number of predicted tokens, ends of captions among them.
    pub tokens: u64,
    /// Number of UTF-8 bytes of the predicted tokens.
    pub bytes: u64,
    /// Mean cross-entropy in nats per token.
    pub nats_per_token: Behind,
    /// Comparable between tokenizers; see [`Evaluation::bits_per_byte`](firebox_model::evaluate::Evaluation::bits_per_byte).
    pub bits_per_byte: Behind,
    /// Part of the pictures for which the right caption is the likeliest of [`CANDIDATES`]; `None` if that was not tried.
    pub found: Option<f64>,
    /// Number of pictures for which that was tried.
    pub tried: u64,
}

impl From<&CaptionLoss> for Losses {
    fn from(loss: &CaptionLoss) -> Self {
        let bits = |nats| loss.bits_per_byte(nats);
        Self {
            captions: loss.captions,
            tokens: loss.tokens,
            bytes: loss.bytes,
            nats_per_token: Behind {
                right: loss.right,
                other: loss.other,
                none: loss.none,
            },
            bits_per_byte: Behind {
                right: bits(loss.right),
                other: loss.other.map(bits),
                none: bits(loss.none),
            },
            found: (loss.tried > 0).then_some(loss.found),
            tried: loss.tried,
        }
    }
}

/// The losses of a group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupLosses {
    /// What the field of the group says.
    pub group: String,
    /// Its losses.
    #[serde(flatten)]
    pub losses: Losses,
}

/// The result of `cargo infer eval --image`; the fields are those of its `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CaptionReport {
    /// All captions.
    #[serde(flatten)]
    pub all: Losses,
    /// Captions among which the right one is looked for.
    pub candidates: usize,
    /// Those of each group; empty where pairs are not told apart.
    pub groups: Vec<GroupLosses>,
    /// Captions that are the only ones of their group, and so have no other picture.
    pub alone: u64,
    /// Pairs that were left out.
    pub left_out: u64,
    /// What the routers did behind the right pictures.
    #[serde(flatten)]
    pub routers: Routers,
    /// Captions per second, each of which is computed several times, without loading the model and reading the pictures.
    pub captions_per_second: f64,
    /// The device's name.
    pub device: String,
}

/// Evaluates on pairs, those of a group together; `progress` is called with the number of captions that were computed. Returns
/// also what the model made of each pair, group by group.
///
/// # Errors
///
/// When a loss is not finite.
pub fn evaluate(
    engine: &Engine,
    network: &mut (impl Network + ?Sized),
    set: &CaptionSet,
    effort: Effort,
    mut progress: impl FnMut(u64),
) -> Result<(CaptionReport, Vec<Vec<Look>>), InferError> {
    let started = Instant::now();
    let (mut done, mut health) = (0, HealthSums::default());
    let (mut looks, mut losses) = (Vec::new(), Vec::new());
    for group in &set.groups {
        let captions = group.pairs.iter().map(|pair| pair.captioned.clone());
        let captions: Vec<Captioned> = captions.collect();
        let found = look(network, &captions, effort, &mut health, |rows| {
            done += rows;
            progress(done);
        });
        let learned = captions.iter().map(Captioned::learned);
        let bytes = learned
            .map(|tokens| engine.tokenizer.bytes_of(tokens))
            .sum();
        losses.push(CaptionLoss::of(found.iter(), bytes));
        looks.push(found);
    }
    let bytes = losses.iter().map(|loss| loss.bytes).sum();
    let all = CaptionLoss::of(looks.iter().flatten(), bytes);
    let of_all = [Some(all.right), all.other, Some(all.none)];
    for nats in of_all.into_iter().flatten() {
        check_finite(engine, nats)?;
    }
    let evaluation = whole(losses.iter(), &health);
    let named = set.groups.iter().zip(&losses);
    let named = named.filter_map(|(group, loss)| {
        Some(GroupLosses {
            group: group.name.clone()?,
            losses: loss.into(),
        })
    });
    let report = CaptionReport {
        groups: named.collect(),
        captions_per_second: all.captions as f64 / started.elapsed().as_secs_f64(),
        all: (&all).into(),
        candidates: CANDIDATES,
        alone: looks.iter().filter(|looks| looks.len() == 1).count() as u64,
        left_out: set.left_out,
        routers: Routers::of(evaluation, engine.model.config()),
        device: engine.device.clone(),
    };
    Ok((report, looks))
}

impl CaptionReport {
    /// Warnings: of experts that collapse, of a model that does not look, and of captions without others.
    pub fn warnings(&self) -> Vec<String> {
        let Behind { right, other, none } = self.all.nats_per_token;
        let is_alike = |nats: f64| (right - nats).abs() < ALIKE;
        let blind = "the losses behind the right picture, another one and none are alike: the model does not look at the \
                     pictures";
        let blind = (other.is_none_or(is_alike) && is_alike(none)).then(|| blind.to_owned());
        let alone = (self.alone > 0).then(|| {
            let captions = counted(self.alone.into(), "caption");
            format!("{captions} without others in the same group: there is no other picture to compare with")
        });
        let warnings = self.routers.warning().into_iter();
        warnings.chain(blind).chain(alone).collect()
    }

    /// What captions are behind, for the headings of losses: another picture only where there is one.
    fn headings(&self) -> impl Iterator<Item = &'static str> {
        let all = [
            ("right picture", true),
            ("another", self.has_others()),
            ("none", true),
        ];
        all.into_iter()
            .filter_map(|(heading, is_there)| is_there.then_some(heading))
    }

    /// The cells below the [headings](Self::headings).
    fn cells(&self, Behind { right, other, none }: Behind) -> impl Iterator<Item = String> {
        let digits = |loss: f64| format!("{loss:.4}");
        let other = other.map_or("-".to_owned(), digits);
        let other = self.has_others().then_some(other);
        std::iter::once(digits(right))
            .chain(other)
            .chain([digits(none)])
    }

    fn has_others(&self) -> bool {
        self.rows()
            .any(|(_, losses)| losses.nats_per_token.other.is_some())
    }

    /// A row for each group, and one for all.
    fn rows(&self) -> impl Iterator<Item = (&str, &Losses)> {
        let groups = self.groups.iter();
        let groups = groups.map(|group| (group.group.as_str(), &group.losses));
        groups.chain([("all", &self.all)])
    }

    /// Losses in nats per token.
    pub fn losses(&self) -> Table {
        let chance = percent(1.0 / self.candidates as f64);
        let right = format!("right of {}", self.candidates);
        let table = Table::new("Nats per token, behind")
            .texts([""])
            .numbers(["captions", "tokens"].into_iter().chain(self.headings()))
            .numbers([right, "tried".to_owned()])
            .note(format!(
                "Right of {}: the right caption is the likeliest of so many, which chance finds in {chance}.",
                self.candidates
            ));
        self.rows().fold(table, |table, (name, losses)| {
            let found = losses.found.map_or("-".to_owned(), percent);
            let cells = [
                name.to_owned(),
                grouped(losses.captions),
                grouped(losses.tokens),
            ];
            let cells = cells.into_iter().chain(self.cells(losses.nats_per_token));
            let cells = cells.chain([found, grouped(losses.tried)]);
            table.row(cells.map(Cell::from))
        })
    }

    /// Losses in bits per byte.
    pub fn bits(&self) -> Table {
        let headings = std::iter::once("bytes").chain(self.headings());
        let table = Table::new("Bits per byte, behind").texts([""]);
        let table = table.numbers(headings);
        self.rows().fold(table, |table, (name, losses)| {
            let cells = [name.to_owned(), grouped(losses.bytes)].into_iter();
            let cells = cells.chain(self.cells(losses.bits_per_byte));
            table.row(cells.map(Cell::from))
        })
    }
}

impl fmt::Display for CaptionReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}\n{}", self.losses(), self.bits())?;
        write!(
            formatter,
            "\n{:.0} captions/s on {}\n",
            self.captions_per_second, self.device
        )?;
        write!(formatter, "{}", self.routers)
    }
}
