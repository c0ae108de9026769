//! The tensors of a trace that are about pictures.

use burn::tensor::Tensor;
use firebox_checkpoint::NamedTensor;
use firebox_model::language_model::VisionTrace;
use firebox_model::vision::{Picture, PictureBatch, TowerPart};

use super::named;

/// The pictures as they were read, of rows and tokens.
pub(super) fn given(batch: &PictureBatch, [rows, length]: [usize; 2]) -> Vec<NamedTensor<'static>> {
    let slots = batch.slots;
    let first = batch.pictures.iter().flatten().next();
    let first = first.expect("a batch with pictures");
    let tiles = first.used.len();
    let values = first.pixels.len();
    let side = (values / (3 * tiles)).isqrt();
    let pictures = batch.pictures.clone();
    let pixels = move || {
        let of = |picture: &Option<Picture>| match picture {
            Some(picture) => picture.pixels.clone(),
            None => vec![0.0; values],
        };
        pictures.iter().flat_map(of).collect()
    };
    let ids = batch.pictures.iter();
    let ids = ids.map(|picture| {
        picture
            .as_ref()
            .map_or(0, |picture| picture.arrangement as i64)
    });
    let used = batch.pictures.iter().flat_map(|picture| match picture {
        Some(picture) => picture.used.clone(),
        // As the processor writes an empty place.
        None => (0..tiles).map(|tile| tile == 0).collect(),
    });
    let visible = batch.visible.iter().map(|&visible| i64::from(visible));
    vec![
        NamedTensor::float("pixel_values", [rows, slots, tiles, 3, side, side], pixels),
        NamedTensor::int("aspect_ratio_ids", [rows, slots], ids.collect()),
        NamedTensor::int(
            "aspect_ratio_mask",
            [rows, slots, tiles],
            used.map(i64::from).collect(),
        ),
        NamedTensor::int(
            "cross_attention_mask",
            [rows, length, slots, tiles],
            visible.collect(),
        ),
    ]
}

/// What the tower made of them.
pub(super) fn computed(
    batch: &PictureBatch,
    rows: usize,
    vision: VisionTrace,
) -> Vec<NamedTensor<'static>> {
    let is_there: Vec<bool> = batch.pictures.iter().map(Option::is_some).collect();
    let part = |(part, values): (TowerPart, Tensor<4>)| {
        let name = match part {
            TowerPart::Embedded => "vision.embedded".to_owned(),
            TowerPart::Layer(number) => format!("vision.layer.{number}"),
            TowerPart::Encoded => "vision.encoded".to_owned(),
            TowerPart::GlobalLayer(number) => format!("vision.global.{number}"),
            TowerPart::Output => "vision.output".to_owned(),
            TowerPart::Projected => unreachable!("it is part of the states"),
        };
        let [_, tiles, positions, width] = values.dims();
        let shape = [rows, batch.slots, tiles, positions, width];
        let is_there = is_there.clone();
        let values = values.detach();
        NamedTensor::float(name, shape, move || {
            let values: Vec<f32> = values.to_data().iter::<f32>().collect();
            let size = tiles * positions * width;
            let mut pictures = values.chunks(size);
            let of_place = |&is_there: &bool| match is_there {
                true => pictures.next().expect("as many as there are").to_vec(),
                false => vec![0.0; size],
            };
            is_there.iter().flat_map(of_place).collect()
        })
    };
    let parts = vision.parts.into_iter().map(part);
    let states = std::iter::once(named("projected", vision.states));
    parts.chain(states).collect()
}
