//! Models that see pictures: values, losses, gradients and greedy text against what Hugging Face's transformers gives for the
//! same checkpoint, on every backend; see `fixtures/README.md`.
//!
//! Tolerances are of `‖a − b‖ / ‖b‖` over a whole tensor, as for models of text. The gradient of a gate is a sum over
//! everything that may nearly cancel, so that single ones have a tolerance of their own, and all gates of a model together that
//! of a tensor. In `mllama` one gate's gradient is a sixtieth of its neighbours', and its error, 1e-7, no larger than theirs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use firebox_checkpoint::{
    Accept, NamedTensor, SaveOptions, load, named_gradients, read_config, save, write_tensors,
};
use firebox_infer::export::{Export, Format};
use firebox_infer::trace::{TraceInput, trace};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::generate::{Ended, Options, Receiver, Request, Token, generate_all};
use firebox_model::language_model::{LanguageModel, token_tensor};
use firebox_model::layout::Placement;
use firebox_model::network::Local;
use firebox_model::parameters::{VisitParameter, visit};
use firebox_model::sampling::Sampling;
use firebox_model::vision::{Picture, PictureBatch};
use firebox_runtime::device::{default_name, select};
use firebox_runtime::testing::values;
use firebox_tests::fixtures;
use firebox_tests::tensors::{Tensors, relative_error};

const VALUES: f64 = 5e-6;
const GRADIENTS: f64 = 5e-5;
const GATES: f64 = 5e-4;

macro_rules! on_every_checkpoint {
    ($($module:ident = $folder:literal),+ $(,)?) => {
        $(mod $module {
            fn values_and_gradients(device: &str) {
                super::values_and_gradients_are_those_of_transformers($folder, device);
            }

            fn text_alone(device: &str) {
                super::a_text_alone_passes_over_the_layers_of_pictures($folder, device);
            }

            fn greedy_tokens(device: burn::tensor::Device) {
                super::greedy_tokens_are_those_of_transformers($folder, &device);
            }

            firebox_runtime::on_every_device!(values_and_gradients, text_alone, greedy_tokens);
        })+
    };
}

on_every_checkpoint! {
    mllama = "vision/mllama",
    mllama_moe = "vision/mllama-moe",
}

/// Which values of a tensor are compared: not those at padding, nor those of empty places for pictures.
struct Compared {
    tokens: Vec<bool>,
    pictures: Vec<bool>,
}

impl Compared {
    fn of(expected: &Tensors) -> Self {
        let flags = |name, test: fn(i64) -> bool| {
            let all = expected.integers(name).into_iter();
            all.map(test).collect::<Vec<bool>>()
        };
        Self {
            tokens: flags("attention_mask", |flag| flag == 1),
            pictures: flags("aspect_ratio_ids", |id| id != 0),
        }
    }

    fn values(&self, name: &str, kind: &str, tensors: &Tensors) -> Vec<f32> {
        let values = tensors.floats(name);
        let counted = match kind {
            "hidden" | "router_logits" | "logits" => &self.tokens,
            "vision" | "projected" => &self.pictures,
            _ => return values,
        };
        let parts = values.chunks(values.len() / counted.len()).zip(counted);
        let parts = parts.filter(|(_, counted)| **counted);
        parts.flat_map(|(part, _)| part.to_vec()).collect()
    }
}

/// The name in a trace of a tensor of the reference, which numbers routers from 0 on, whichever their layers.
fn in_trace(name: &str, routers: &[String]) -> String {
    match name.strip_prefix("router_logits.") {
        Some(number) => routers[number.parse::<usize>().expect("a number")].clone(),
        None => name.to_owned(),
    }
}

fn values_and_gradients_are_those_of_transformers(case: &str, device: &str) {
    let path = fixtures::folder(case);
    let input = path.join("expected.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("trace.safetensors");
    trace(&path, &[], device, &input, &output, true).expect("a trace");
    let (found, expected) = (Tensors::read(&output), Tensors::read(&input));

    let mut names = expected.names();
    names.retain(|name| {
        let other = ["greedy.", "image.", "text_only.", "labels"];
        !other.iter().any(|other| name.starts_with(other))
    });
    names.sort();
    let mut routers = found.names();
    routers.retain(|name| name.starts_with("router_logits."));
    routers.sort();
    let mut of_trace: Vec<String> = names.iter().map(|name| in_trace(name, &routers)).collect();
    let mut found_names = found.names();
    of_trace.sort();
    found_names.sort();
    assert_eq!(found_names, of_trace, "{case}: names");

    let compared = Compared::of(&expected);
    let mut gates = [Vec::new(), Vec::new()];
    let mut largest: BTreeMap<&str, f64> = BTreeMap::new();
    for name in &names {
        let (kind, _) = name.split_once('.').unwrap_or((name, ""));
        let own = in_trace(name, &routers);
        assert_eq!(found.shape(&own), expected.shape(name), "{case}: {name}");
        if kind.ends_with("_mask") || kind.ends_with("_ids") {
            assert_eq!(found.integers(&own), expected.integers(name), "{name}");
            continue;
        }
        let error = relative_error(
            &compared.values(&own, kind, &found),
            &compared.values(name, kind, &expected),
        );
        let is_gate =
            name.ends_with("gate") || name.contains("gate_attn") || name.contains("gate_ffn");
        let (kind, tolerance) = match (kind, is_gate) {
            ("grad", true) => ("gates", GATES),
            ("grad", false) => (kind, GRADIENTS),
            _ => (kind, VALUES),
        };
        assert!(
            error < tolerance,
            "{case} on {device}: {name} is off by {error:.1e}, allowed {tolerance:.1e}"
        );
        if kind == "gates" {
            gates[0].extend(found.floats(&own));
            gates[1].extend(expected.floats(name));
        }
        let worst = largest.entry(kind).or_default();
        *worst = worst.max(error);
    }
    let error = relative_error(&gates[0], &gates[1]);
    assert!(
        error < GRADIENTS,
        "{case} on {device}: all gates are off by {error:.1e}"
    );
    let errors: Vec<String> = largest
        .iter()
        .map(|(kind, error)| format!("{kind} {error:.1e}"))
        .collect();
    println!("{case} on {device}: {}", errors.join(", "));
}

/// An input of the same tokens without pictures.
fn without_pictures(expected: &Tensors, path: &Path) {
    let tensors = ["input_ids", "attention_mask"].map(|name| {
        let shape = expected.shape(name);
        NamedTensor::int(name, shape, expected.integers(name))
    });
    write_tensors(path, &tensors, WeightDtype::F32).expect("a file");
}

fn a_text_alone_passes_over_the_layers_of_pictures(case: &str, device: &str) {
    let path = fixtures::folder(case);
    let expected = Tensors::read(&path.join("expected.safetensors"));
    let folder = tempfile::tempdir().expect("a folder");
    let [input, output] = ["in", "out"].map(|name| folder.path().join(name));
    without_pictures(&expected, &input);
    trace(&path, &[], device, &input, &output, true).expect("a trace");
    let compared = Compared::of(&expected);
    let error = relative_error(
        &compared.values("logits", "logits", &Tensors::read(&output)),
        &compared.values("text_only.logits", "logits", &expected),
    );
    assert!(error < VALUES, "{case} on {device}: off by {error:.1e}");
}

/// The pictures of each row of a reference.
fn pictures(case: &str) -> (TraceInput, Vec<Vec<Picture>>) {
    let path = fixtures::folder(case).join("expected.safetensors");
    let input = TraceInput::read(&path).expect("pictures");
    let batch = input.pictures.as_ref().expect("pictures");
    let rows = batch.pictures.chunks(batch.slots);
    let rows = rows.map(|row| row.iter().flatten().cloned().collect());
    let rows = rows.collect();
    (input, rows)
}

/// Receives several texts.
struct Texts(Vec<Vec<u32>>);

impl Receiver for Texts {
    fn token(&mut self, text: usize, token: Token) -> bool {
        self.0[text].push(token.id);
        true
    }

    fn ended(&mut self, _: usize, _: Ended) {}
}

/// With the cache, one by one and together, and without.
fn greedy_tokens_are_those_of_transformers(case: &str, device: &Device) {
    let path = fixtures::folder(case);
    let model = load(&path, Accept::Nothing, device, WeightDtype::F32)
        .expect("fixture")
        .model;
    let expected = Tensors::read(&path.join("expected.safetensors"));
    let (_, pictures) = pictures(case);
    let expected: Vec<Vec<u32>> = (0..pictures.len())
        .map(|row| {
            let ids = expected.integers(&format!("greedy.{row}")).into_iter();
            ids.map(|id| id as u32).collect()
        })
        .collect();
    let request = |row: usize| {
        let pictures = &pictures[row];
        let prompt = expected[row][..12].to_vec();
        Request {
            pictures: (!pictures.is_empty()).then(|| Arc::new(model.look(pictures))),
            ..Request::new(prompt, 12, Sampling::greedy())
        }
    };
    for batch in [1, 3] {
        let mut texts = Texts(vec![Vec::new(); pictures.len()]);
        let options = Options {
            batch,
            step_tokens: 5,
            ..Options::new(&[])
        };
        let requests = (0..pictures.len()).map(request);
        generate_all(&mut Local::new(&model), requests, &options, &mut texts);
        for (row, text) in texts.0.iter().enumerate() {
            assert_eq!(text, &expected[row][12..], "{case}: row {row} of {batch}");
        }
    }
    for (row, pictures) in pictures.iter().enumerate() {
        let text = &expected[row][..expected[row].len() - 1];
        let logits = logits(&model, text, pictures);
        let vocabulary = model.config().vocab_size;
        for place in 11..text.len() {
            let row_of = &logits[place * vocabulary..][..vocabulary];
            let likeliest = (0..vocabulary).max_by(|&a, &b| row_of[a].total_cmp(&row_of[b]));
            let next = expected[row][place + 1] as usize;
            assert_eq!(likeliest, Some(next), "{case}: row {row} without the cache");
        }
    }
}

fn logits(model: &LanguageModel, text: &[u32], pictures: &[Picture]) -> Vec<f32> {
    let image_token = model.config().image_token().expect("a model that sees");
    let tokens = token_tensor([text].into_iter(), &model.device());
    let placement = match pictures.is_empty() {
        true => Placement::causal(),
        false => {
            let batch = PictureBatch::of_text(pictures.to_vec(), text, image_token);
            Placement::causal().seeing(model.sight(&batch))
        }
    };
    values(model.trace(tokens, &placement).output.logits)
}

/// What tokens see by the rule is what the processor of transformers says.
#[test]
fn image_tokens_say_what_is_seen() {
    for case in ["vision/mllama", "vision/mllama-moe"] {
        let (input, pictures) = pictures(case);
        let config = read_config(&fixtures::folder(case), Accept::Nothing).expect("fixture");
        let image_token = config.model.image_token().expect("a model that sees");
        let batch = input.pictures.as_ref().expect("pictures");
        let tiles = batch.visible.len() / (input.ids.len() * batch.slots);
        for (row, pictures) in pictures.iter().enumerate() {
            let ids = &input.ids[row * input.sequence..][..input.sequence];
            let own = PictureBatch::of_text(pictures.clone(), ids, image_token);
            for (token, &valid) in input.valid[row * input.sequence..][..input.sequence]
                .iter()
                .enumerate()
            {
                if !valid {
                    continue;
                }
                let places = batch.slots * tiles;
                let all = &batch.visible[(row * input.sequence + token) * places..][..places];
                let own = &own.visible[token * pictures.len() * tiles..][..pictures.len() * tiles];
                assert_eq!(own, &all[..own.len()], "{case}: token {token} of row {row}");
                assert!(!all[own.len()..].contains(&true));
            }
        }
    }
}

/// Config, tensors and their names are written as they were read.
#[test]
fn a_checkpoint_is_written_as_it_was_read() {
    for case in ["vision/mllama", "vision/mllama-moe"] {
        let path = fixtures::folder(case);
        let device = select(default_name()).expect("a device");
        let read = load(&path, Accept::Nothing, &device, WeightDtype::F32).expect("fixture");
        let folder = tempfile::tempdir().expect("a folder");
        let options = SaveOptions {
            notes: read.notes,
            ..SaveOptions::default()
        };
        save(&read.model, folder.path(), &options, |_| {}).expect("a checkpoint");
        let config = |path: &Path| {
            let config = read_config(path, Accept::Nothing).expect("a config.json");
            (config.model, config.family, config.eos_ids, config.bos_id)
        };
        assert_eq!(config(folder.path()), config(&path));
        let tensors = |path: &Path| {
            let file = Tensors::read(&path.join("model.safetensors"));
            let of = |name: String| {
                let bits: Vec<u32> = file.floats(&name).into_iter().map(f32::to_bits).collect();
                (name.clone(), (file.shape(&name), bits))
            };
            file.names().into_iter().map(of).collect::<BTreeMap<_, _>>()
        };
        assert!(tensors(folder.path()) == tensors(&path), "{case}: tensors");
    }
}

/// Its logits are those of the model that sees pictures, without pictures, to the last bit.
#[test]
fn the_text_part_is_a_checkpoint_of_its_family() {
    for (case, family) in [("vision/mllama", "llama"), ("vision/mllama-moe", "mixtral")] {
        let path = fixtures::folder(case);
        let folder = tempfile::tempdir().expect("a folder");
        let [text, input, whole, left] =
            ["text", "in", "whole", "left"].map(|name| folder.path().join(name));
        let export = Export {
            format: Format::Folder {
                dtype: None,
                shard_bytes: None,
            },
            text_only: true,
        };
        export
            .write(&path, &[], &text, |_, _| {})
            .expect("an export");
        let config = read_config(&text, Accept::Nothing).expect("a config.json");
        assert_eq!(config.family.model_type, family);
        let expected = Tensors::read(&path.join("expected.safetensors"));
        without_pictures(&expected, &input);
        // The text model has no row for the image token.
        let ids = expected.integers("input_ids").into_iter();
        let vocabulary = config.model.vocab_size as i64;
        let ids: Vec<i64> = ids.map(|id| id % vocabulary).collect();
        let shape = expected.shape("input_ids");
        let tokens = [NamedTensor::int("input_ids", shape, ids)];
        write_tensors(&input, &tokens, WeightDtype::F32).expect("a file");
        for (checkpoint, output) in [(&path, &whole), (&text, &left)] {
            trace(checkpoint, &[], default_name(), &input, output, false).expect("a trace");
        }
        let bits = |path: &Path| {
            let values = Tensors::read(path).floats("logits").into_iter();
            values.map(f32::to_bits).collect::<Vec<u32>>()
        };
        assert!(bits(&whole) == bits(&left), "{case}: logits");
        // There is nothing more to leave out.
        let again = export.write(&text, &[], &folder.path().join("again"), |_, _| {});
        let error = again.expect_err("a text model").to_string();
        assert!(error.contains("sees no pictures"), "{error}");
    }
}

/// Names as in memory of transformers.
#[test]
fn both_spellings_are_read() {
    for case in ["vision/mllama", "vision/mllama-moe"] {
        let path = fixtures::folder(case);
        let device = select(default_name()).expect("a device").autodiff();
        let model = load(&path, Accept::Nothing, &device, WeightDtype::F32)
            .expect("fixture")
            .model;
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::copy(path.join("config.json"), folder.path().join("config.json")).expect("a copy");
        // What is named like gradients: the parameters themselves, as gradients of half their squares.
        let mut halves = HalfSquares(None);
        visit(&model, &mut halves);
        let gradients = halves.0.expect("a sum").backward();
        let tensors = named_gradients(&model, &gradients);
        let file = folder.path().join("model.safetensors");
        write_tensors(&file, &tensors, WeightDtype::F32).expect("a file");
        let names = Tensors::read(&file).names();
        assert!(names.contains(&"model.language_model.norm.weight".to_owned()));
        let again = load(folder.path(), Accept::Nothing, &device, WeightDtype::F32)
            .expect("the other spelling")
            .model;
        let text: Vec<u32> = (3..17).collect();
        assert_eq!(logits(&model, &text, &[]), logits(&again, &text, &[]));
        let (_, pictures) = pictures(case);
        let image = model.config().image_token().expect("a model that sees");
        let text = [&[image], &text[..]].concat();
        let pictures = &pictures[0];
        assert_eq!(
            logits(&model, &text, pictures),
            logits(&again, &text, pictures)
        );
    }
}

/// Half of the sum of the squares of all parameters.
struct HalfSquares(Option<Tensor<1>>);

impl VisitParameter for HalfSquares {
    fn visit<const D: usize>(&mut self, _: &str, parameter: &Param<Tensor<D>>) {
        let half = parameter.val().square().sum().mul_scalar(0.5);
        self.0 = Some(match self.0.take() {
            Some(sum) => sum + half,
            None => half,
        });
    }
}
