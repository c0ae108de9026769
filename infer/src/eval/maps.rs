//! Where a model looks while it predicts each word of a caption.

use std::ops::Range;

use firebox_model::captions::Captioned;
use firebox_model::config::VisionConfig;
use firebox_model::network::Network;
use firebox_text::{StreamDecoder, Tokenizer};

/// What stands for the token that ends a caption.
const END: &str = "(end)";

/// A word of a caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedWord {
    /// The word, without spaces around it.
    pub text: String,
    /// Its tokens among those of the caption.
    pub tokens: Range<usize>,
}

/// How much is looked at each part of a picture's tiles: the values of equal squares, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Map {
    /// Squares in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`, 0 where no patch is.
    pub values: Vec<f64>,
}

/// The words of a caption, which begin where its text has a space; the token that ends it is the last one.
pub fn words(tokenizer: &Tokenizer, caption: &[u32]) -> Vec<TokenizedWord> {
    let mut words: Vec<TokenizedWord> = Vec::new();
    let mut decoder = StreamDecoder::new(tokenizer, false);
    for (place, &id) in caption.iter().enumerate() {
        let is_end = place + 1 == caption.len() && tokenizer.eos_ids().contains(&id);
        let piece = match is_end {
            true => END.to_owned(),
            false => decoder.push(id).unwrap_or_default(),
        };
        let begins = is_end || piece.starts_with(char::is_whitespace);
        match words.last_mut() {
            Some(word) if !begins => {
                word.text += &piece;
                word.tokens.end += 1;
            }
            _ => words.push(TokenizedWord {
                text: piece,
                tokens: place..place + 1,
            }),
        }
    }
    for word in &mut words {
        word.text = word.text.trim().to_owned();
    }
    words
}

/// Where the model looks while it predicts each of these words: the mean over their tokens, over all layers that attend to
/// pictures, and their heads.
///
/// # Panics
///
/// When the caption has no picture.
pub fn maps(
    network: &mut (impl Network + ?Sized),
    vision: &VisionConfig,
    captioned: &Captioned,
    words: &[TokenizedWord],
) -> Vec<Map> {
    let layers = network.attention_to_pictures(std::slice::from_ref(captioned));
    let keys = vision.keys();
    // [length, keys]
    let mut weights = vec![0.0; layers.first().map_or(0, |layer| layer.weights.len())];
    for layer in &layers {
        for (sum, &value) in weights.iter_mut().zip(&layer.weights) {
            *sum += f64::from(value) / layers.len() as f64;
        }
    }
    let picture = captioned.picture.as_ref().expect("a picture");
    let arrangement = vision.aspect_ratios[picture.arrangement - 1];
    let of_word = |word: &TokenizedWord| {
        let mut mean = vec![0.0; keys];
        for token in word.tokens.clone() {
            // The input behind which the token is predicted.
            let row = &weights[(captioned.given + token) * keys..][..keys];
            for (sum, weight) in mean.iter_mut().zip(row) {
                *sum += weight / word.tokens.len() as f64;
            }
        }
        of_tiles(vision, arrangement, &mean)
    };
    words.iter().map(of_word).collect()
}

/// The map of the weights of positions, tile by tile.
fn of_tiles(vision: &VisionConfig, [rows, columns]: [usize; 2], weights: &[f64]) -> Map {
    let (tile, patch, side) = (
        vision.tile_size,
        vision.patch_size,
        vision.patches_per_side(),
    );
    // What is left of a tile beyond its last patch has no value.
    let square = greatest_divisor(tile, patch);
    let (per_tile, per_patch) = (tile / square, patch / square);
    let (width, height) = (columns * per_tile, rows * per_tile);
    let mut values = vec![0.0; width * height];
    for (number, weights) in weights
        .chunks(vision.positions())
        .take(rows * columns)
        .enumerate()
    {
        // The first position is that of the class.
        for (place, &weight) in weights[1..].iter().enumerate() {
            let top = number / columns * per_tile + place / side * per_patch;
            let left = number % columns * per_tile + place % side * per_patch;
            for row in top..top + per_patch {
                values[row * width + left..][..per_patch].fill(weight);
            }
        }
    }
    Map {
        width,
        height,
        values,
    }
}

fn greatest_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => greatest_divisor(b, a % b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::seeing_config;

    #[test]
    fn words_begin_at_spaces_and_the_end_is_one() {
        let tokenizer = Tokenizer::bytes();
        let caption: Vec<u32> = "red boiler".bytes().map(u32::from).chain([256]).collect();
        let found = words(&tokenizer, &caption);
        let word = |text: &str, tokens| TokenizedWord {
            text: text.to_owned(),
            tokens,
        };
        assert_eq!(
            found,
            [word("red", 0..3), word("boiler", 3..10), word(END, 10..11)]
        );
    }

    #[test]
    fn patches_lie_in_their_tiles() {
        // Two tiles of four by four patches, side by side, and a class in front of each.
        let mut vision = seeing_config().vision.unwrap();
        let weights: Vec<f64> = (0..34).map(f64::from).collect();
        let map = of_tiles(&vision, [1, 2], &weights);
        assert_eq!((map.width, map.height), (8, 4));
        assert_eq!(
            map.values[..8],
            [1.0, 2.0, 3.0, 4.0, 18.0, 19.0, 20.0, 21.0]
        );
        assert_eq!(
            map.values[24..],
            [13.0, 14.0, 15.0, 16.0, 30.0, 31.0, 32.0, 33.0]
        );
        // Of 28 pixels, two patches of 12 leave four, which are not read.
        vision.patch_size = 12;
        let map = of_tiles(&vision, [1, 1], &[0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!((map.width, map.height), (7, 7));
        assert_eq!(map.values[..7], [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 0.0]);
        assert_eq!(map.values[42..], [0.0; 7]);
    }
}
