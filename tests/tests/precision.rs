//! Weights that are held in 16 bits, of which nothing is rounded that was stored so, and in 8 bits, which stand for numbers.
//! Nothing else is lost.

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use firebox_checkpoint::{Accept, CheckpointError, SaveOptions, load, save};
use firebox_console::advice::Advise as _;
use firebox_kernels::Int8;
use firebox_kernels::dtype::{WeightDtype, WeightFormat};
use firebox_model::cache::KeyValueCache;
use firebox_model::config::ModelConfig;
use firebox_model::decode::Piece;
use firebox_model::evaluate::evaluate;
use firebox_model::language_model::{LanguageModel, token_tensor};
use firebox_model::network::Local;
use firebox_model::parameters::{MapParameter, VisitParameter, map, visit};
use firebox_runtime::device::is_host;
use firebox_runtime::on_every_device;
use firebox_tests::models::{model, sequences, tiny};
use firebox_tests::tensors::relative_error;
use tempfile::TempDir;

on_every_device!(
    weights_are_held_as_they_are_stored,
    text_is_as_likely_as_with_the_same_weights_in_f32,
    text_is_as_likely_as_with_the_numbers_that_8_bits_stand_for,
    decoding_with_the_cache_equals_one_forward_pass,
    a_model_that_trains_is_held_in_f32,
);

const HALVES: [WeightDtype; 2] = [WeightDtype::Bf16, WeightDtype::F16];

/// A checkpoint whose weights are stored in this type.
fn stored(config: &ModelConfig, dtype: WeightDtype, device: &Device) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions {
        dtype,
        ..SaveOptions::default()
    };
    save(&model(config, device), folder.path(), &options, |_| ()).unwrap();
    folder
}

/// The model with its weights in this format. `None` on a GPU that lacks it, where that is an error.
fn held(
    folder: &TempDir,
    format: impl Into<WeightFormat>,
    device: &Device,
) -> Option<LanguageModel> {
    let format = format.into();
    let opened = load(folder.path(), Accept::Nothing, device, format);
    let holds = match format {
        WeightFormat::Plain(dtype) => is_host(device) || device.supports_dtype(dtype.tensor_type()),
        WeightFormat::Int8 => is_host(device),
    };
    if holds {
        return Some(opened.unwrap().model);
    }
    assert!(
        matches!(opened, Err(CheckpointError::Device { .. })),
        "{opened:?}"
    );
    None
}

/// Name, bytes of a number, and the numbers of each parameter.
#[derive(Default)]
struct Parameters(Vec<(String, usize, Vec<f32>)>);

impl VisitParameter for Parameters {
    fn visit<const D: usize>(&mut self, path: &str, parameter: &Param<Tensor<D>>) {
        let value = parameter.val();
        let bytes = value.dtype().size();
        let numbers = value.into_data().iter::<f32>().collect();
        self.0.push((path.to_owned(), bytes, numbers));
    }
}

fn parameters(model: &LanguageModel) -> Parameters {
    let mut parameters = Parameters::default();
    visit(model, &mut parameters);
    parameters
}

fn configs() -> [ModelConfig; 3] {
    let mut tied = tiny();
    tied.tied_embeddings = true;
    [tiny(), tiny().dense_baseline(), tied]
}

fn weights_are_held_as_they_are_stored(device: Device) {
    for dtype in HALVES {
        let folder = stored(&tiny(), dtype, &device);
        let whole = load(folder.path(), Accept::Nothing, &device, WeightDtype::F32).unwrap();
        let Some(held) = held(&folder, dtype, &device) else {
            continue;
        };
        let native = device.supports_dtype(dtype.tensor_type());
        let expected = parameters(&whole.model).0;
        for (found, expected) in parameters(&held).0.into_iter().zip(expected) {
            let (path, bytes, numbers) = found;
            assert_eq!((&path, &numbers), (&expected.0, &expected.2));
            let kept = path.contains("norm") || path.ends_with("router.weight");
            assert_eq!(bytes == 4, kept || !native, "{path}");
        }
    }
}

fn text_is_as_likely_as_with_the_same_weights_in_f32(device: Device) {
    for config in configs() {
        for dtype in HALVES {
            let folder = stored(&config, dtype, &device);
            let text = sequences(&config, 5, 12, &[0, 7, 0, 3, 11]);
            let nats = |model: LanguageModel| {
                evaluate(&mut Local::new(&model), text.iter().cloned(), 50, 2, |_| ())
                    .nats_per_token
            };
            let whole = load(folder.path(), Accept::Nothing, &device, WeightDtype::F32).unwrap();
            let expected = nats(whole.model);
            if let Some(found) = held(&folder, dtype, &device).map(nats) {
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{dtype}: {found} against {expected}"
                );
            }
        }
    }
}

/// Replaces the weights of products by what they are in 8 bits, and an embedding by what it is in bf16.
struct Rounded<'a>(&'a Device);

impl MapParameter for Rounded<'_> {
    fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
        let in_f32 = ["norm", "router.weight", "logit_bias"];
        if in_f32.iter().any(|part| path.contains(part)) {
            return value;
        }
        let (shape, data) = (value.dims(), value.into_data());
        if path == "embedding" {
            let rounded = data.convert_dtype(DType::BF16).convert_dtype(DType::F32);
            return Tensor::from_data(rounded, self.0);
        }
        let values: Vec<f32> = data.iter().collect();
        let held = Int8::quantize(&values, shape, self.0);
        held.expect("small weights").dequantized()
    }
}

fn text_is_as_likely_as_with_the_numbers_that_8_bits_stand_for(device: Device) {
    for config in configs() {
        let folder = stored(&config, WeightDtype::F32, &device);
        let Some(found) = held(&folder, WeightFormat::Int8, &device) else {
            continue;
        };
        let whole = load(folder.path(), Accept::Nothing, &device, WeightDtype::F32).unwrap();
        let text = sequences(&config, 5, 12, &[0, 7, 0, 3, 11]);
        let nats = |model: LanguageModel| {
            evaluate(&mut Local::new(&model), text.iter().cloned(), 50, 2, |_| ()).nats_per_token
        };
        let plain = nats(whole.model.clone());
        let (found, expected) = (nats(found), nats(map(whole.model, &mut Rounded(&device))));
        assert!(
            (found - expected).abs() < 1e-6,
            "{found} against {expected}"
        );
        // 8 bits make a difference.
        assert!((plain - expected).abs() > 1e-5, "{plain}, {expected}");
    }
}

fn decoding_with_the_cache_equals_one_forward_pass(device: Device) {
    let formats = [WeightDtype::Bf16.into(), WeightFormat::Int8];
    let cases = configs()
        .into_iter()
        .flat_map(|config| formats.map(|format| (config.clone(), format)));
    for (config, format) in cases {
        let folder = stored(&config, WeightDtype::Bf16, &device);
        let text = &sequences(&config, 2, 20, &[])[..];
        let Some(model) = held(&folder, format, &device) else {
            continue;
        };
        let rows = |from: usize, to: usize| {
            let rows = text.iter().map(move |sequence| &sequence.tokens[from..to]);
            token_tensor(rows, &device)
        };
        let whole = model.forward(rows(0, 20)).logits;
        let mut cache = KeyValueCache::new(&config, 2, 20, &device);
        for (from, to) in [(0, 7), (7, 8), (8, 12), (12, 13), (13, 20)] {
            let values = |x: Tensor<2>| x.into_data().iter::<f32>().collect::<Vec<f32>>();
            let pieces = Piece::of_all(text.iter().map(|sequence| &sequence.tokens[from..to]));
            let found = model.decode(&pieces, &mut cache).expect("logits");
            let found = values(found);
            let expected = whole.clone().narrow(1, to - 1, 1).squeeze_dim::<2>(1);
            let error = relative_error(&found, &values(expected));
            assert!(error < 5e-6, "position {to}: off by {error:.1e}");
        }
    }
}

fn a_model_that_trains_is_held_in_f32(device: Device) {
    let folder = stored(&tiny(), WeightDtype::F32, &device);
    let device = device.autodiff();
    for (format, refusal) in [
        (WeightDtype::Bf16.into(), "bf16 cannot be trained"),
        (WeightFormat::Int8, "int8 cannot be trained"),
    ] {
        let error = load(folder.path(), Accept::Nothing, &device, format).unwrap_err();
        assert!(error.to_string().contains(refusal), "{error}");
        assert!(error.hint().is_some());
    }
}
