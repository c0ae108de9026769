use std::sync::Arc;

use burn::tensor::Device;

use super::*;
use crate::cache::KeyValueCache;
use crate::captions::Captioned;
use crate::decode::Piece;
use crate::language_model::{LanguageModel, token_tensor};
use crate::layout::Placement;
use crate::testing::{picture, seeing, text, with_open_gates};
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, values};

on_every_device!(
    without_a_picture_the_model_is_its_text_model,
    closed_gates_leave_every_token_as_it_is,
    a_blind_row_is_that_row_alone,
    a_picture_in_company_is_that_picture_alone,
    decoding_equals_one_forward_pass,
    a_text_model_with_new_layers_says_what_it_said,
    attention_is_shared_out_among_what_is_seen,
    one_picture_of_all_captions_is_that_of_each,
);

/// The same f32 terms, added in another order.
const ROUNDING: f64 = 5e-6;

const IMAGE: u32 = 37;

fn model(device: &Device) -> LanguageModel {
    with_open_gates(LanguageModel::random(&seeing(), 7, device))
}

/// The logits of a row that sees pictures.
fn seen(model: &LanguageModel, tokens: &[u32], pictures: &[Picture]) -> Vec<f32> {
    let batch = PictureBatch::of_text(pictures.to_vec(), tokens, IMAGE);
    batch
        .check([1, tokens.len()], model.config().vision.as_ref().unwrap())
        .unwrap();
    let placement = Placement::causal().seeing(model.sight(&batch));
    let tokens = token_tensor([tokens].into_iter(), &model.device());
    values(model.trace(tokens, &placement).output.logits)
}

fn unseen(model: &LanguageModel, tokens: &[u32]) -> Vec<f32> {
    let tokens = token_tensor([tokens].into_iter(), &model.device());
    values(model.forward(tokens).logits)
}

/// Text with image tokens at these places.
fn row(images: &[usize]) -> Vec<u32> {
    let mut row = text(1, 14, 37).remove(0);
    images.iter().for_each(|&place| row[place] = IMAGE);
    row
}

/// A text model's parameters from those of a model that sees pictures.
struct TextOf<'a>(&'a LanguageModel);

impl crate::parameters::ParameterSource for TextOf<'_> {
    type Error = std::convert::Infallible;

    fn parameter<const D: usize>(
        &mut self,
        mut spec: crate::parameters::ParameterSpec<D>,
    ) -> Result<burn::module::Param<Tensor<D>>, Self::Error> {
        for (text, whole) in [("blocks.1.", "blocks.2."), ("blocks.0.", "blocks.0.")] {
            if let Some(rest) = spec.path.strip_prefix(text) {
                spec.path = format!("{whole}{rest}");
                break;
            }
        }
        struct Find<const D: usize>(String, Option<Tensor<D>>);
        impl<const E: usize> crate::parameters::VisitParameter for Find<E> {
            fn visit<const D: usize>(
                &mut self,
                path: &str,
                parameter: &burn::module::Param<Tensor<D>>,
            ) {
                if path == self.0 {
                    let data = parameter.val().into_data();
                    self.1 = Some(Tensor::from_data(data, &parameter.lazy_device()));
                }
            }
        }
        let mut find = Find(spec.path, None);
        crate::parameters::visit(self.0, &mut find);
        let value: Tensor<D> = find.1.expect("the parameter");
        let ranges = spec.shape.map(|size| 0..size);
        Ok(burn::module::Param::from_tensor(value.slice(ranges)))
    }
}

fn without_a_picture_the_model_is_its_text_model(device: Device) {
    let model = model(&device);
    let Ok(text) = LanguageModel::new(&seeing().text_only(), &mut TextOf(&model));
    let row = row(&[]);
    assert_eq!(unseen(&model, &row), unseen(&text, &row));
}

fn closed_gates_leave_every_token_as_it_is(device: Device) {
    let model = LanguageModel::random(&seeing(), 7, &device);
    let row = row(&[0, 5]);
    let pictures = [picture(1, 1), picture(2, 2)];
    assert_eq!(seen(&model, &row, &pictures), unseen(&model, &row));
    let open = with_open_gates(model);
    let (with, without) = (seen(&open, &row, &pictures), unseen(&open, &row));
    assert_close("open gates", &with, &without, 1e-2).unwrap_err();
}

fn a_blind_row_is_that_row_alone(device: Device) {
    let model = model(&device);
    let (first, blind) = (row(&[3]), row(&[]));
    let tiles = 2;
    let alone = PictureBatch::of_text(vec![picture(1, 2)], &first, IMAGE);
    let mut visible = alone.visible.clone();
    visible.extend(vec![false; blind.len() * tiles]);
    let batch = PictureBatch {
        slots: 1,
        pictures: vec![Some(picture(1, 2)), None],
        visible,
    };
    let rows = [first.as_slice(), &blind];
    let tokens = token_tensor(rows.into_iter(), &device);
    let placement = Placement::causal().seeing(model.sight(&batch));
    let together = values(model.trace(tokens, &placement).output.logits);
    let (of_first, of_blind) = together.split_at(together.len() / 2);
    let expected = unseen(&model, &blind);
    assert_close("the blind row", of_blind, &expected, ROUNDING).unwrap();
    let expected = seen(&model, &first, &[picture(1, 2)]);
    assert_close("the other row", of_first, &expected, ROUNDING).unwrap();
    // Its tokens before the picture are as blind, and not those after it.
    let before = 3 * 37;
    let expected = unseen(&model, &first);
    let (found, blind) = (&of_first[..before], &expected[..before]);
    assert_close("before the picture", found, blind, ROUNDING).unwrap();
    let (found, blind) = (&of_first[before..], &expected[before..]);
    assert_close("after the picture", found, blind, 1e-2).unwrap_err();
}

fn a_picture_in_company_is_that_picture_alone(device: Device) {
    let model = model(&device);
    let encoder = model.vision.as_ref().unwrap();
    let states = |pictures: &[&Picture]| values(encoder.states(pictures, &mut |_, values| values));
    let (one, two) = (picture(1, 1), picture(2, 2));
    let together = states(&[&one, &two]);
    let alone = [states(&[&one]), states(&[&two])].concat();
    assert_close("states", &together, &alone, ROUNDING).unwrap();
}

fn decoding_equals_one_forward_pass(device: Device) {
    let model = model(&device);
    // A picture first; two neighbours and a third one later; none.
    let rows = [row(&[0]), row(&[2, 3, 9]), row(&[])];
    let pictures = [
        vec![picture(1, 2)],
        vec![picture(2, 1), picture(3, 2), picture(4, 1)],
        Vec::new(),
    ];
    let whole = rows
        .iter()
        .zip(&pictures)
        .map(|(row, pictures)| match pictures.is_empty() {
            true => unseen(&model, row),
            false => seen(&model, row, pictures),
        });
    let whole: Vec<Vec<f32>> = whole.collect();
    let mut cache = KeyValueCache::new(&seeing(), 3, 20, &device);
    for (sequence, pictures) in pictures.iter().enumerate() {
        let keys = (!pictures.is_empty()).then(|| Arc::new(model.look(pictures)));
        cache.show(sequence, keys.as_ref());
    }
    let mut start = 0;
    for length in [3, 1, 1, 4, 1, 1, 3] {
        let end = start + length;
        let check = |cache: &mut KeyValueCache| {
            let pieces = Piece::of_all(rows.iter().map(|row| &row[start..end]));
            let found = values(model.decode(&pieces, cache).unwrap());
            for (row, found) in found.chunks(37).enumerate() {
                let expected = &whole[row][(end - 1) * 37..end * 37];
                let what = format!("row {row} up to {end}");
                assert_close(&what, found, expected, ROUNDING).unwrap();
            }
        };
        check(&mut cache);
        // What is forgotten can be read again.
        (0..3).for_each(|sequence| cache.truncate(sequence, start));
        check(&mut cache);
        start = end;
    }
    // Another sequence can begin with what one has read, and see the same.
    cache.truncate(0, 0);
    cache.show(0, None);
    cache.fork(1, 12, 0);
    let found = values(
        model
            .decode(&[Piece::new(0, &rows[1][12..])], &mut cache)
            .unwrap(),
    );
    assert_close("a fork", &found, &whole[1][13 * 37..], ROUNDING).unwrap();
}

fn a_text_model_with_new_layers_says_what_it_said(device: Device) {
    for tied in [false, true] {
        let config = ModelConfig {
            tied_embeddings: tied,
            ..seeing().text_only()
        };
        let text = LanguageModel::random(&config, 7, &device);
        let row = row(&[]);
        let expected = unseen(&text, &row);
        let model = text.with_vision(&seeing(), 3);
        let shapes = |list: Vec<crate::parameters::ParameterInfo>| {
            let shapes = list
                .into_iter()
                .map(|parameter| (parameter.path, parameter.shape));
            shapes.collect::<Vec<_>>()
        };
        struct Shapes(Vec<(String, Vec<usize>)>);
        impl crate::parameters::VisitParameter for Shapes {
            fn visit<const D: usize>(
                &mut self,
                path: &str,
                parameter: &burn::module::Param<Tensor<D>>,
            ) {
                self.0.push((path.to_owned(), parameter.dims().to_vec()));
            }
        }
        let mut found = Shapes(Vec::new());
        crate::parameters::visit(&model, &mut found);
        assert_eq!(found.0, shapes(LanguageModel::parameter_list(&seeing())));
        // A tied head is another order of the same sums.
        let check = |what: &str, found: &[f32]| match tied {
            false => assert_eq!(found, expected, "{what}"),
            true => assert_close(what, found, &expected, ROUNDING).unwrap(),
        };
        check("without pictures", &unseen(&model, &row));
        // Every token sees every tile, as no text of image tokens would have it.
        let batch = PictureBatch {
            slots: 1,
            pictures: vec![Some(picture(1, 2))],
            visible: vec![true; row.len() * 2],
        };
        let placement = Placement::causal().seeing(model.sight(&batch));
        let tokens = token_tensor([row.as_slice()].into_iter(), &device);
        let found = values(model.trace(tokens, &placement).output.logits);
        check("with a picture", &found);
        assert_eq!(
            unseen(&model.text_only(), &row),
            unseen(&with_vision_of(&config, &device), &row)
        );
    }
}

fn with_vision_of(config: &ModelConfig, device: &Device) -> LanguageModel {
    LanguageModel::random(config, 7, device).with_vision(&seeing(), 5)
}

fn attention_is_shared_out_among_what_is_seen(device: Device) {
    let model = model(&device);
    let rows = [picture(1, 1), picture(2, 2)].map(|seen| {
        let tokens = row(&[0]);
        Captioned::new(Some(seen), IMAGE, &tokens[1..], 0, 20, None)
    });
    let batch = Captioned::batch(&rows, &model);
    let layers = model.attention_to_pictures(&batch);
    let indices: Vec<usize> = layers.iter().map(|(layer, _)| *layer).collect();
    assert_eq!(indices, [1, 3]);
    let positions = model.config().vision.as_ref().unwrap().positions();
    for (layer, weights) in layers {
        let [_, length, keys] = weights.dims();
        let weights = values(weights);
        for (place, weights) in weights.chunks(keys).enumerate() {
            let used = if place < length { positions } else { keys };
            let sum: f32 = weights[..used].iter().sum();
            assert!((sum - 1.0).abs() < 1e-5, "layer {layer}, {place}: {sum}");
            assert!(weights[used..].iter().all(|&weight| weight == 0.0));
        }
    }
}

fn one_picture_of_all_captions_is_that_of_each(device: Device) {
    let model = model(&device);
    let shared = Arc::new(picture(1, 2));
    let logits = |own: &dyn Fn() -> Arc<Picture>| {
        let captions = text(3, 9, 37).into_iter().enumerate();
        let captions = captions.map(|(number, tokens)| Captioned {
            picture: Some(own()),
            ..Captioned::new(None, IMAGE, &tokens[number..], 0, 12, None)
        });
        let batch = Captioned::batch(&captions.collect::<Vec<_>>(), &model);
        values(model.forward_batch(&batch).logits)
    };
    let expected = logits(&|| Arc::new(picture(1, 2)));
    let found = logits(&|| shared.clone());
    assert_close("logits", &found, &expected, ROUNDING).unwrap();
    let other = logits(&|| Arc::new(picture(2, 2)));
    assert!(assert_close("logits", &other, &expected, 1e-2).is_err());
}
