//! Compares the traces of two models: rounding is accepted, and a fault is reported by layer and part.

use std::path::Path;

use burn::module::Param;
use burn::tensor::Tensor;
use firebox_checkpoint::{Accept, load, read_config};
use firebox_console::report::Verdict;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::ModelConfig;
use firebox_model::feed_forward::FeedForward;
use firebox_model::language_model::LanguageModel;
use firebox_model::layer::Layer;
use firebox_model::matrix::Matrix;
use firebox_model::moe::MixtureOfExperts;
use firebox_model::parts::layer_parts;
use firebox_model::vision::{CrossBlock, Picture, Tower, TowerPart};
use firebox_runtime::device;
use firebox_runtime::on_every_device;
use tempfile::TempDir;

use super::tokens::read_pictures;
use super::*;
use crate::testing::{TinyCheckpoint, seeing_config, tiny_config};

on_every_device!(devices_agree, devices_agree_on_pictures);

/// A checkpoint, tokens for it, and its trace on the default device.
struct Case {
    checkpoint: TinyCheckpoint,
    tokens: Tokens,
    config: ModelConfig,
    pictures: Vec<Picture>,
    reference: TraceFile,
    folder: TempDir,
}

/// A comparison of nothing yet, with up to so many tokens of the built-in text.
pub(super) fn options(checkpoint: &TinyCheckpoint, tokens: usize) -> Options {
    Options {
        checkpoint: checkpoint.path().to_owned(),
        accept: Vec::new(),
        candidates: Vec::new(),
        text: None,
        images: Vec::new(),
        special_tokens: false,
        tokens,
        gradients: false,
        tolerance: None,
        threads: None,
    }
}

impl Case {
    fn new(config: &ModelConfig) -> Self {
        Self::seeing(config, &[])
    }

    /// One whose text sees these pictures.
    fn seeing(config: &ModelConfig, pictures: &[&str]) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/pictures");
        let checkpoint = TinyCheckpoint::new(config, 4);
        let config = read_config(checkpoint.path(), Accept::Nothing).unwrap();
        let options = Options {
            images: pictures.iter().map(|name| fixtures.join(name)).collect(),
            ..options(&checkpoint, 96)
        };
        let tokens = Tokens::choose(checkpoint.path(), &config, &options).unwrap();
        let config = config.model;
        let folder = tempfile::tempdir().unwrap();
        let model = open(&checkpoint, device::default_name());
        let pictures = read_pictures(checkpoint.path(), &config, tokens.images()).unwrap();
        let reference = traced(&folder, &model, (&tokens, &pictures), None);
        Self {
            checkpoint,
            tokens,
            config,
            pictures,
            reference,
            folder,
        }
    }

    fn model(&self, device: &str) -> LanguageModel {
        open(&self.checkpoint, device)
    }

    fn differences(&self, model: &LanguageModel) -> Differences {
        let input = (&self.tokens, &self.pictures[..]);
        let traced = traced(&self.folder, model, input, Some(&self.reference));
        let tolerances = Tolerances::of(WeightDtype::F32.into());
        compare_traces(
            &self.reference,
            &traced,
            &self.tokens,
            &self.config,
            &tolerances,
        )
        .unwrap()
    }
}

fn open(checkpoint: &TinyCheckpoint, device: &str) -> LanguageModel {
    let device = device::select(device).unwrap();
    load(
        checkpoint.path(),
        Accept::Nothing,
        &device,
        WeightDtype::F32,
    )
    .unwrap()
    .model
}

fn traced(
    folder: &TempDir,
    model: &LanguageModel,
    (tokens, pictures): (&Tokens, &[Picture]),
    reference: Option<&TraceFile>,
) -> TraceFile {
    let matrices = trace_parts(Observed::Alone(model), tokens, pictures, reference).unwrap();
    let name = if reference.is_some() {
        "traced"
    } else {
        "reference"
    };
    let path = folder.path().join(name);
    TraceFile::write(&path, &timings(model), &matrices).unwrap();
    TraceFile::open(&path).unwrap()
}

fn timings(model: &LanguageModel) -> Timings {
    Timings {
        threads: 1,
        load_seconds: 0.5,
        first_result_seconds: 1.0,
        prefill_tokens_per_second: 1000.0,
        decode_tokens_per_second: Some(100.0),
        peak_memory: None,
        router_bias: model.router_bias(),
    }
}

fn devices_agree(device: &'static str) {
    for config in [tiny_config(), tiny_config().dense_baseline()] {
        let case = Case::new(&config);
        let differences = case.differences(&case.model(device));
        assert_eq!(differences.faults, []);
        assert_eq!(
            differences.parts.len(),
            layer_parts(&case.config, false).len() + 1
        );
        assert!(
            differences.divergence_max < 1e-9,
            "{}",
            differences.divergence_max
        );
        assert_eq!(
            (differences.greedy.tokens, differences.greedy.differing),
            (96, 0)
        );
        if device == device::default_name() {
            assert_eq!(differences.logits.all, Difference::default());
        }
    }
}

fn devices_agree_on_pictures(device: &'static str) {
    let case = Case::seeing(&seeing_config(), &["opaque.png"]);
    let differences = case.differences(&case.model(device));
    assert_eq!(differences.faults, []);
}

/// What has a parameter of a model in f32.
trait HasParameter<const D: usize> {
    fn parameter(&mut self) -> &mut Param<Tensor<D>>;
}

impl<const D: usize> HasParameter<D> for Param<Tensor<D>> {
    fn parameter(&mut self) -> &mut Param<Tensor<D>> {
        self
    }
}

impl<const D: usize> HasParameter<D> for Matrix<D> {
    fn parameter(&mut self) -> &mut Param<Tensor<D>> {
        match self {
            Self::Float(weight) => weight,
            Self::Int8(_) => panic!("{self:?}"),
        }
    }
}

fn scaled<const D: usize>(of: &mut impl HasParameter<D>, factor: f32) {
    let parameter = of.parameter();
    *parameter = parameter.clone().map(|weight| weight.mul_scalar(factor));
}

fn moe(model: &mut LanguageModel, layer: usize) -> &mut MixtureOfExperts {
    match &mut model.blocks[layer].text_mut().unwrap().feed_forward {
        FeedForward::Moe(moe) => moe,
        FeedForward::Dense(_) => panic!("layer {layer} is dense"),
    }
}

/// Scales the weights of one expert in a stack.
fn scale_expert(of: &mut impl HasParameter<3>, index: usize, factor: f32) {
    let experts = of.parameter();
    *experts = experts.clone().map(|stack| {
        let [_, rows, columns] = stack.dims();
        let range = [index..index + 1, 0..rows, 0..columns];
        let expert = stack.clone().slice(range.clone()).mul_scalar(factor);
        stack.slice_assign(range, expert)
    });
}

#[test]
fn a_fault_is_reported_by_layer_and_part() {
    type Break = fn(&mut LanguageModel);
    let cases: [(&str, Break); 8] = [
        ("embedding", |model| {
            scaled(model.embedding.as_mut().unwrap(), 1.001)
        }),
        ("layer 0, norm before attention", |model| {
            scaled(
                &mut model.blocks[0].text_mut().unwrap().attention_norm.gamma,
                1.001,
            )
        }),
        ("layer 0, attention", |model| {
            scaled(
                &mut model.blocks[0]
                    .text_mut()
                    .unwrap()
                    .attention
                    .output_mut()
                    .weight,
                1.001,
            )
        }),
        ("layer 1, attention", |model| {
            scaled(
                &mut model.blocks[1]
                    .text_mut()
                    .unwrap()
                    .attention
                    .output_mut()
                    .weight,
                1.001,
            )
        }),
        ("layer 1, norm before the feed-forward", |model| {
            scaled(
                &mut model.blocks[1].text_mut().unwrap().feed_forward_norm.gamma,
                1.001,
            );
        }),
        ("layer 1, experts", |model| {
            scale_expert(&mut moe(model, 1).experts.down, 2, 1.001)
        }),
        ("final norm", |model| {
            scaled(&mut model.norm.as_mut().unwrap().gamma, 1.001)
        }),
        ("head", |model| scaled(model.head.as_mut().unwrap(), 1.001)),
    ];
    let case = Case::new(&tiny_config());
    for (place, damage) in cases {
        let mut model = case.model(device::default_name());
        damage(&mut model);
        let differences = case.differences(&model);
        let first = differences.faults.first().expect(place);
        assert_eq!(first.place, place);
        // Computed alone, no other part differs: the later differences follow from this one.
        let parts = &differences.parts;
        let faulty = parts
            .iter()
            .filter(|part| part.difference.relative > differences.tolerances.part);
        assert_eq!(
            faulty.map(PartDifference::place).collect::<Vec<_>>(),
            [place]
        );
    }
}

#[test]
fn pictures_are_compared_part_by_part() {
    type Break = fn(&mut LanguageModel);
    fn tower(model: &mut LanguageModel) -> &mut Tower {
        &mut model.vision.as_mut().unwrap().tower
    }
    fn cross(model: &mut LanguageModel) -> &mut CrossBlock {
        match &mut model.blocks[1] {
            Layer::Cross(block) => block,
            Layer::Text(_) => panic!("layer 1 attends to pictures"),
        }
    }
    let cases: [(&str, Break); 8] = [
        ("tower, embedding", |model| {
            scaled(&mut tower(model).patch_embedding, 1.01)
        }),
        ("tower, layer 0", |model| {
            scaled(&mut tower(model).layers[0].attention.value.weight, 1.01)
        }),
        ("tower, norm between the encoders", |model| {
            scaled(&mut tower(model).norm_after.gamma, 1.01)
        }),
        ("tower, second encoder, layer 0", |model| {
            scaled(
                &mut tower(model).global_layers[0].feed_forward.down.weight,
                1.01,
            )
        }),
        ("projection of the tower's output", |model| {
            scaled(&mut model.vision.as_mut().unwrap().projector.weight, 1.01)
        }),
        ("layer 1, norm before attention", |model| {
            scaled(&mut cross(model).attention_norm.gamma, 1.01)
        }),
        ("layer 1, cross-attention", |model| {
            scaled(&mut cross(model).cross_attention.key.weight, -1.0)
        }),
        ("layer 1, feed-forward", |model| {
            scaled(&mut cross(model).feed_forward.down, 1.01)
        }),
    ];
    let case = Case::seeing(&seeing_config(), &["opaque.png", "palette.png"]);
    let vision = case.config.vision.as_ref().unwrap();
    let parts = TowerPart::all(vision).len() + layer_parts(&case.config, true).len() + 1;
    let same = case.differences(&case.model(device::default_name()));
    assert_eq!((same.faults.len(), same.parts.len()), (0, parts));
    assert_eq!(same.layers.len(), 4);
    assert_eq!(same.logits.all, Difference::default());
    for (place, damage) in cases {
        let mut model = case.model(device::default_name());
        damage(&mut model);
        let differences = case.differences(&model);
        assert_eq!(differences.faults.first().expect(place).place, place);
        let parts = &differences.parts;
        let faulty = parts
            .iter()
            .filter(|part| part.difference.relative > differences.tolerances.part);
        assert_eq!(
            faulty.map(PartDifference::place).collect::<Vec<_>>(),
            [place]
        );
    }
    // Without pictures it is the text model that is compared.
    let blind = Case::new(&seeing_config());
    let same = blind.differences(&blind.model(device::default_name()));
    let layers: Vec<usize> = same.layers.iter().map(|layer| layer.layer).collect();
    assert_eq!((same.faults.len(), layers), (0, vec![0, 2]));
    assert_ne!(
        case.reference.matrix(trace_file::LOGITS).unwrap(),
        blind.reference.matrix(trace_file::LOGITS).unwrap()
    );
}

#[test]
fn a_router_with_other_selections_is_a_fault() {
    let case = Case::new(&tiny_config());
    let mut model = case.model(device::default_name());
    // Reverses the order of every token's logits.
    scaled(&mut moe(&mut model, 1).router.weight, -1.0);
    let differences = case.differences(&model);
    let places: Vec<&str> = differences
        .faults
        .iter()
        .map(|fault| fault.place.as_str())
        .take(2)
        .collect();
    assert_eq!(places, ["layer 1, router", "layer 1, expert selection"]);
    let flips = differences.layers[1].flips.as_ref().unwrap();
    assert!(flips.first > 48 && flips.largest_gap > 0.1, "{flips:?}");
    assert_eq!(differences.layers[0].flips.as_ref().unwrap().flipped, 0);
    let untouched = differences.layers[1].hidden.untouched_tokens;
    assert_eq!(untouched, 96 - flips.flipped);
}

#[test]
fn nan_is_a_fault() {
    let case = Case::new(&tiny_config());
    let mut model = case.model(device::default_name());
    scaled(
        &mut model.blocks[1]
            .text_mut()
            .unwrap()
            .attention
            .output_mut()
            .weight,
        f32::NAN,
    );
    let differences = case.differences(&model);
    assert_eq!(differences.faults[0].place, "layer 1, attention");
    assert_eq!(differences.faults[0].figure, f64::INFINITY);
}

/// A comparison with a reference, a device that differs and one that failed.
fn comparison() -> Comparison {
    let case = Case::new(&tiny_config());
    let mut model = case.model(device::default_name());
    scale_expert(&mut moe(&mut model, 1).experts.gate, 1, 1.1);
    let measured = |differences| {
        Outcome::Measured(Box::new(Measured {
            timings: timings(&model),
            nats_per_token: 5.5,
            bits_per_byte: Some(7.9),
            differences,
        }))
    };
    let failure = Failure {
        reason: "the device was lost".to_owned(),
        hint: Some("find it".to_owned()),
        log: "error: <lost>".to_owned(),
    };
    let outcomes = [
        ("flex", measured(None)),
        ("wgpu", measured(Some(case.differences(&model)))),
        ("cuda", Outcome::Failed(failure)),
    ];
    let row = |(name, outcome): (&str, Outcome)| Row {
        name: name.to_owned(),
        device: name.to_owned(),
        dtype: "f32".to_owned(),
        layout: RankLayout::ONE,
        outcome,
    };
    Comparison {
        checkpoint: "checkpoint".into(),
        layers: 2,
        moe_layers: 2,
        text: case.tokens.source().to_owned(),
        tokens: 96,
        sequences: 3,
        pictures: 0,
        reference: Some("flex".to_owned()),
        rows: outcomes.into_iter().map(row).collect(),
    }
}

#[test]
fn faults_and_failures_are_at_the_top_of_text_and_page() {
    let comparison = comparison();
    let summary = comparison.summary();
    let bad: Vec<&str> = summary
        .iter()
        .filter(|line| line.0 == Verdict::Bad)
        .map(|line| line.1.as_str())
        .collect();
    assert!(
        bad[0].starts_with("wgpu differs from flex in layer 1, experts: relative difference "),
        "{bad:?}"
    );
    assert!(bad.contains(&"cuda failed: the device was lost"), "{bad:?}");
    let (text, page) = (comparison.to_string(), comparison.page().render());
    for line in &bad {
        assert!(text.contains(line) && page.contains(line), "{line}");
    }
    assert!(
        page.contains("error: &lt;lost&gt;") && page.contains("<svg"),
        "{page}"
    );
}

#[test]
fn a_failed_device_takes_precedence_over_one_that_differs() {
    let mut comparison = comparison();
    let error = comparison.verdict().unwrap_err();
    assert_eq!(error.to_string(), "cuda failed: the device was lost");
    assert_eq!(
        (error.exit_code(), error.hint().as_deref()),
        (1, Some("find it"))
    );
    comparison.rows.truncate(2);
    let error = comparison.verdict().unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(
        error
            .to_string()
            .starts_with("wgpu differs from flex in layer 1, experts: "),
        "{error}"
    );
    comparison.rows.truncate(1);
    assert!(comparison.verdict().is_ok());
}
