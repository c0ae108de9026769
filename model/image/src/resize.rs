//! Resizing as Pillow does it with its antialiasing bilinear filter, to the last bit.
//!
//! Each output pixel is a weighted mean of the input pixels below a triangle around its centre, whose half width is
//! one output pixel where the picture shrinks and one input pixel where it grows. Weights are integers with
//! [`FRACTION_BITS`] bits after the point. Rows are resized first, then columns, and both give 8 bits.

use super::picture::Picture;

/// Bits of a weight after the point: those that 32 bits hold beside 8 of a pixel and 2 to spare.
const FRACTION_BITS: u32 = 32 - 8 - 2;

/// A picture of this size, all of it.
pub(crate) fn resize(picture: &Picture, width: usize, height: usize) -> Picture {
    let rows = match width == picture.width() {
        true => picture.clone(),
        false => horizontally(picture, width),
    };
    match height == rows.height() {
        true => rows,
        false => vertically(&rows, height),
    }
}

/// The input pixels that make one output pixel: the first of them, and the weight of each.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// The taps of each of `output` pixels, of a line of `input` pixels.
fn taps(input: usize, output: usize) -> impl Iterator<Item = Taps> {
    let scale = input as f64 / output as f64;
    let half_width = scale.max(1.0);
    let narrowing = 1.0 / half_width;
    (0..output).map(move |place| {
        let centre = (place as f64 + 0.5) * scale;
        // Casts to integers cut off, and what lies before the line becomes 0.
        let first = (centre - half_width + 0.5) as usize;
        let end = ((centre + half_width + 0.5) as usize).min(input);
        let weight = |pixel: usize| {
            let distance = (pixel as f64 - centre + 0.5) * narrowing;
            (1.0 - distance.abs()).max(0.0)
        };
        let sum: f64 = (first..end).map(weight).sum();
        let one = f64::from(1_u32 << FRACTION_BITS);
        let rounded = |pixel| (0.5 + weight(pixel) / sum * one) as i32;
        Taps {
            first,
            weights: (first..end).map(rounded).collect(),
        }
    })
}

/// A sum of weighted pixels as a pixel, rounded. Weights may add up to a little more than 1.
fn rounded(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

/// One half, where sums begin.
const HALF: i32 = 1 << (FRACTION_BITS - 1);

fn horizontally(picture: &Picture, width: usize) -> Picture {
    let taps: Vec<Taps> = taps(picture.width(), width).collect();
    let mut rgb = Vec::with_capacity(width * picture.height() * 3);
    for row in picture.rgb().chunks_exact(picture.width() * 3) {
        for Taps { first, weights } in &taps {
            let mut sums = [HALF; 3];
            for (pixel, weight) in row[first * 3..].chunks_exact(3).zip(weights) {
                for channel in 0..3 {
                    sums[channel] += i32::from(pixel[channel]) * weight;
                }
            }
            rgb.extend(sums.map(rounded));
        }
    }
    Picture::new(width, picture.height(), rgb)
}

fn vertically(picture: &Picture, height: usize) -> Picture {
    let stride = picture.width() * 3;
    let mut rgb = Vec::with_capacity(stride * height);
    let mut sums = vec![HALF; stride];
    for Taps { first, weights } in taps(picture.height(), height) {
        sums.fill(HALF);
        for (row, weight) in picture.rgb()[first * stride..]
            .chunks_exact(stride)
            .zip(weights)
        {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        rgb.extend(sums.iter().map(|&sum| rounded(sum)));
    }
    Picture::new(picture.width(), height, rgb)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: usize, values: &[u8]) -> Picture {
        let rgb = values.iter().flat_map(|&value| [value; 3]).collect();
        Picture::new(width, values.len() / width, rgb)
    }

    #[test]
    fn the_same_size_and_one_colour_stay() {
        let picture = grey(3, &[0, 100, 200, 50, 150, 250]);
        assert_eq!(resize(&picture, 3, 2), picture);
        for level in [0, 1, 127, 254, 255] {
            let plain = resize(&grey(7, &[level; 7 * 5]), 3, 11);
            assert_eq!(plain, grey(3, &[level; 3 * 11]));
        }
    }

    #[test]
    fn halves_are_weighted_by_a_triangle() {
        // Two input pixels an output pixel: the triangle reaches over four, of which the inner two count three times
        // as much as the outer. At an edge one of the outer is missing.
        let halved = |values: [u8; 6]| resize(&grey(6, &values), 3, 1);
        assert_eq!(halved([0, 0, 0, 200, 200, 200]), grey(3, &[0, 100, 200]));
        assert_eq!(halved([0, 80, 0, 0, 0, 0]), grey(3, &[34, 10, 0]));
        assert_eq!(halved([0, 0, 80, 0, 0, 0]), grey(3, &[11, 30, 0]));
    }
}
