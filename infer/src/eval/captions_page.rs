//! What a model makes of captions and pictures, as an HTML page.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use firebox_console::numbers::percent;
use firebox_console::report::{Page, Plate, Verdict, Word};
use firebox_image::encode_png;
use firebox_model::captions::Captioned;
use firebox_model::config::VisionConfig;
use firebox_model::looking::{Choice, Effort, Look, OtherPicture, choose, token_nats};
use firebox_model::network::Network;

use super::captions::{Behind, CaptionReport, CaptionSet, ReadPair};
use super::maps::{self, Map};
use crate::InferError;
use crate::engine::Engine;
use crate::pictures::PictureReader;

/// Pictures of each kind.
const SHOWN: usize = 8;

/// The most pixels of a side of a picture on the page.
const SIDE: usize = 320;

/// What covers a picture where the model does not look.
const VEIL: [u8; 3] = [20, 23, 26];

/// How much of the picture that hides at most.
const HIDDEN: f64 = 0.82;

/// Whose the pictures are that Cargo puts on a machine for `cargo train run configs/vision.toml`; their licence asks for it.
const TWEMOJI: &str = "Pictures of Twemoji, by Twitter and other contributors, CC BY 4.0: https://github.com/jdecked/twemoji";

/// A pair by its group and its place there.
type Place = (usize, usize);

/// The page of an evaluation: its tables, and pictures that chance chooses, those with the highest loss, and those with the
/// lowest.
///
/// # Errors
///
/// When a picture cannot be read again.
pub fn page(
    engine: &Engine,
    network: &mut dyn Network,
    set: &CaptionSet,
    looks: &[Vec<Look>],
    report: &CaptionReport,
    effort: Effort,
) -> Result<Page, InferError> {
    let Behind { right, other, none } = report.all.nats_per_token;
    let page = Page::new("Does the model look at pictures?")
        .about(engine.folder.display().to_string())
        .about(format!(
            "{} captioned pictures on {}, {} left out",
            report.all.captions, report.device, report.left_out
        ));
    let pairs = || set.groups.iter().flat_map(|group| &group.pairs);
    let page = match pairs().any(|pair| is_twemoji(&pair.picture)) {
        true => page.about(TWEMOJI),
        false => page,
    };
    let verdict = match other.is_none_or(|other| right < other) && right < none {
        true => Verdict::Good,
        false => Verdict::Bad,
    };
    let another = other.map_or(String::new(), |other| {
        format!("{other:.4} behind another, ")
    });
    let mut page = page.summary(
        verdict,
        format!(
            "{right:.4} nats per token behind the right picture, {another}{none:.4} behind none"
        ),
    );
    if let Some(found) = report.all.found {
        let chance = 1.0 / report.candidates as f64;
        let verdict = match found > 2.0 * chance {
            true => Verdict::Good,
            false => Verdict::Bad,
        };
        page = page.summary(
            verdict,
            format!(
                "the right caption of {} is found for {} of {} pictures; chance finds it for {}",
                report.candidates,
                percent(found),
                report.all.tried,
                percent(chance)
            ),
        );
    }
    for warning in report.warnings() {
        page = page.summary(Verdict::Notable, warning);
    }
    let mut page = page
        .section("Losses")
        .table(report.losses())
        .table(report.bits());
    let mut gallery = Gallery::new(engine, network, set, looks, effort)?;
    for (heading, text, places) in chosen(looks) {
        let plates = places.into_iter().map(|place| gallery.plate(place));
        let plates: Vec<Plate> = plates.collect::<Result<_, _>>()?;
        page = page.section(heading).text(text).plates(plates);
    }
    Ok(page)
}

/// Whether a picture is of the package twemoji-assets, as it lies in Cargo's folder of packages.
fn is_twemoji(picture: &Path) -> bool {
    let mut parts = picture.components();
    parts.any(|part| {
        let name = part.as_os_str().to_string_lossy();
        name.strip_prefix("twemoji-assets-")
            .is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
    })
}

/// Which pictures are shown, with a heading and a sentence.
fn chosen(looks: &[Vec<Look>]) -> Vec<(&'static str, &'static str, Vec<Place>)> {
    let all = looks.iter().enumerate();
    let all = all.flat_map(|(group, looks)| (0..looks.len()).map(move |place| (group, place)));
    let mut by_loss: Vec<Place> = all.collect();
    let order = firebox_model::permutation::shuffled(by_loss.len(), 0);
    let random = order.into_iter().map(|index| by_loss[index]);
    let random: Vec<Place> = random.take(SHOWN).collect();
    let loss = |&(group, place): &Place| {
        let look = &looks[group][place];
        look.right / look.tokens.max(1) as f64
    };
    by_loss.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
    let count = by_loss.len().min(SHOWN);
    let best = by_loss[..count].to_vec();
    let worst = by_loss.iter().rev().take(count).copied().collect();
    vec![
        (
            "Random pictures",
            "Chosen by chance, always the same ones. Below each picture stand the words of its caption, and where the layers \
             that attend to pictures look while the word is predicted: the mean of their heads, of all of them together, \
             clear where they look most and dark where they do not. The numbers are the word's nats behind this picture, \
             and behind none.",
            random,
        ),
        (
            "Highest loss",
            "The captions that the model predicts worst behind their own picture, in nats per token.",
            worst,
        ),
        (
            "Lowest loss",
            "The captions that it predicts best; short and common ones come first.",
            best,
        ),
    ]
}

/// Makes plates of pictures.
struct Gallery<'a> {
    engine: &'a Engine,
    network: &'a mut dyn Network,
    reader: PictureReader,
    vision: &'a VisionConfig,
    set: &'a CaptionSet,
    looks: &'a [Vec<Look>],
    effort: Effort,
    /// Of each group.
    captions: Vec<Vec<Captioned>>,
    /// The highest loss that is shown with a bar of all the room, in nats per token.
    highest: f64,
}

impl<'a> Gallery<'a> {
    fn new(
        engine: &'a Engine,
        network: &'a mut dyn Network,
        set: &'a CaptionSet,
        looks: &'a [Vec<Look>],
        effort: Effort,
    ) -> Result<Self, InferError> {
        let vision = engine.model.config().vision.as_ref();
        let captions = set.groups.iter().map(|group| {
            let pairs = group.pairs.iter();
            pairs.map(|pair| pair.captioned.clone()).collect()
        });
        let highest = looks.iter().flatten().map(|look| {
            let other = look.other.map_or(look.none, |other| other.nats);
            let most = look.right.max(other).max(look.none);
            most / look.tokens.max(1) as f64
        });
        Ok(Self {
            reader: PictureReader::new(&engine.folder, engine.model.config())?,
            vision: vision.expect("a model that sees pictures"),
            captions: captions.collect(),
            highest: highest.fold(f64::MIN_POSITIVE, f64::max),
            engine,
            network,
            set,
            looks,
            effort,
        })
    }

    fn plate(&mut self, (group, index): Place) -> Result<Plate, InferError> {
        let (set, looks) = (self.set, self.looks);
        let of_group = &set.groups[group];
        let (pair, look) = (&of_group.pairs[index], &looks[group][index]);
        let (address, size) = self.picture(pair)?;
        // The folder of the lines is the same for most.
        let place = pair.place.rsplit(['/', '\\']).next().unwrap_or_default();
        let about = match &of_group.name {
            Some(name) => format!("{name}, {place}"),
            None => place.to_owned(),
        };
        let (about, other) = match look.other {
            None => (about, None),
            Some(OtherPicture { caption, nats }) => {
                let other = &of_group.pairs[caption].caption;
                let about = format!("{about}; another picture: that of {other:?}");
                (about, Some(("another", nats)))
            }
        };
        let mut plate = Plate::new(address, size, &pair.caption).about(about);
        let right = std::iter::once(("right picture", look.right));
        for (name, nats) in right.chain(other).chain([("none", look.none)]) {
            let loss = nats / look.tokens.max(1) as f64;
            plate = plate.bar(name, loss / self.highest, format!("{loss:.3}"));
        }
        let captions = &self.captions[group];
        let choice = match &look.choice {
            Some(choice) => Some(choice.clone()),
            None => choose(self.network, captions, index, self.effort.rows),
        };
        if let Some(choice) = &choice {
            plate = with_choice(plate, choice, &of_group.pairs);
        }
        let plate = self
            .words(&pair.captioned)
            .into_iter()
            .fold(plate, Plate::word);
        Ok(plate)
    }

    /// The words of a caption, with a map for each.
    fn words(&mut self, captioned: &Captioned) -> Vec<Word> {
        let right = token_nats(self.network, std::slice::from_ref(captioned), 1).remove(0);
        let none = token_nats(self.network, &[captioned.without_picture()], 1).remove(0);
        let words = maps::words(&self.engine.tokenizer, captioned.learned());
        let maps = maps::maps(self.network, self.vision, captioned, &words);
        let words = words.into_iter().zip(maps);
        let words = words.map(|(word, map)| {
            let sum = |nats: &[f64]| nats[word.tokens.clone()].iter().sum::<f64>();
            Word {
                map: map_address(&map),
                note: format!("{:.2} (none: {:.2})", sum(&right), sum(&none)),
                text: word.text,
            }
        });
        words.collect()
    }

    /// A picture as the model sees it, with the room of its tiles, and the sides of that.
    fn picture(&self, pair: &ReadPair) -> Result<(String, (usize, usize)), InferError> {
        let opened = firebox_image::Picture::open(&pair.picture)?;
        let (picture, [rows, columns]) = self.reader.fit(&opened);
        let tile = self.reader.tile();
        let (width, height) = (columns * tile, rows * tile);
        let scale = (SIDE as f64 / width.max(height) as f64).min(1.0);
        let scaled = |side: usize| ((side as f64 * scale).round() as usize).max(1);
        let size @ (width, height) = (scaled(width), scaled(height));
        let picture = match scale < 1.0 {
            true => picture.resized(
                scaled(picture.width()).min(width),
                scaled(picture.height()).min(height),
            ),
            false => picture,
        };
        let mut rgba = vec![0; width * height * 4];
        for (row, line) in picture.rgb().chunks(picture.width() * 3).enumerate() {
            let target = rgba[row * width * 4..].chunks_mut(4);
            for (target, pixel) in target.zip(line.chunks(3)) {
                target.copy_from_slice(&[pixel[0], pixel[1], pixel[2], 255]);
            }
        }
        Ok((address(&encode_png(width, height, &rgba)), size))
    }
}

fn with_choice(plate: Plate, choice: &Choice, pairs: &[ReadPair]) -> Plate {
    let chosen = choice.chosen();
    let mut order: Vec<usize> = (0..choice.nats.len()).collect();
    // The right one comes after what is as likely.
    order.sort_by(|&a, &b| choice.nats[a].total_cmp(&choice.nats[b]).then(b.cmp(&a)));
    let rank = 1 + order
        .iter()
        .position(|&place| place == 0)
        .expect("the right one");
    let of = choice.candidates.len();
    let (verdict, sentence) = match choice.is_right() {
        true => (
            Verdict::Good,
            format!("its caption is the likeliest of {of}"),
        ),
        false => (
            Verdict::Bad,
            format!(
                "its caption is number {rank} of {of}; the likeliest is {:?}",
                pairs[choice.candidates[chosen]].caption
            ),
        ),
    };
    let captions = order.into_iter().map(|place| {
        let verdict = match place {
            0 => Some(Verdict::Good),
            _ if place == chosen => Some(Verdict::Bad),
            _ => None,
        };
        let caption = pairs[choice.candidates[place]].caption.clone();
        (verdict, caption, format!("{:.2}", choice.nats[place]))
    });
    plate.choice(verdict, sentence, captions)
}

/// A map as a picture: clear where the model looks most, a veil where it does not.
fn map_address(map: &Map) -> String {
    let highest = map.values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let pixels = map.values.iter().map(|value| {
        let alpha = HIDDEN * (1.0 - value / highest) * f64::from(u8::MAX);
        [VEIL[0], VEIL[1], VEIL[2], alpha.round() as u8]
    });
    let pixels: Vec<[u8; 4]> = pixels.collect();
    address(&encode_png(map.width, map.height, pixels.as_flattened()))
}

/// A `data:` URL of a PNG file.
fn address(file: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(file))
}
