//! Configurations of runs that start from a checkpoint.

use std::fs;
use std::path::Path;

use firebox_checkpoint::families::Family;
use firebox_checkpoint::{CONFIG_FILE, Notes, config_json};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::{BalanceKind, LayerConfig, ModelConfig, RopeScaling, RouterConfig};
use firebox_text::TOKENIZER_FILE;
use firebox_text::{END_OF_TEXT, Tokenizer};
use serde_json::Value;

use crate::config::load::parse;
use crate::config::tests::{SMALL, message, read};
use crate::config::{ConfigError, RunConfig, TokenizerConfig};

const FROM: &str = r#"
[[data.source]]
name = "text"
files = ["*.txt"]

[train]
init = "FOLDER"
steps = 100

[optimizer]
learning_rate = 0.001

[schedule]
batch_tokens = 4096
"#;

/// A checkpoint without weights.
struct TestCheckpoint(tempfile::TempDir);

impl TestCheckpoint {
    fn new(model: &ModelConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::of_tokens(&[256], None);
        let text = config_json(model, &Family::of(model, false), &notes, WeightDtype::F32);
        fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
        let tokenizer = Tokenizer::bytes();
        tokenizer.save(&folder.path().join(TOKENIZER_FILE)).unwrap();
        Self(folder)
    }

    /// That of the small configuration with some values set.
    fn of(set: &[&str]) -> Self {
        Self::new(&read(SMALL, set).unwrap().model)
    }

    fn dense() -> Self {
        Self::of(&["model.feed_forward=dense"])
    }

    /// Adds a field to its config.json.
    fn with_field(self, field: &str, value: Value) -> Self {
        let path = self.0.path().join(CONFIG_FILE);
        let mut fields: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        fields[field] = value;
        fs::write(path, fields.to_string()).unwrap();
        self
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    /// The configuration of a run that starts from it.
    fn start(&self, set: &[&str]) -> Result<RunConfig, ConfigError> {
        read(&FROM.replace("FOLDER", self.path()), set)
    }

    fn refusal(&self, set: &[&str]) -> String {
        message(self.start(set)).replace(self.path(), "FOLDER")
    }
}

#[test]
fn an_moe_checkpoint_determines_the_model() {
    let [norm, dense] = ["model.qk_norm=head", "model.dense.layers=[0]"];
    let settings: [&[&str]; 3] = [
        &[],
        &[norm, dense, "model.router.normalize=false"],
        &[
            "model.kv_heads=2",
            "model.head_dim=6",
            "model.rope_theta=5e5",
        ],
    ];
    for set in settings {
        let mut expected = read(SMALL, set).unwrap().model;
        let origin = TestCheckpoint::new(&expected);
        let config = origin.start(&[]).unwrap();
        // As in a Hugging Face config.json: pooled, with half the coefficient for two experts per token.
        let router = &mut expected.moe.as_mut().unwrap().router;
        (router.balance, router.balance_coefficient) = (BalanceKind::Pooled, 0.005);
        assert_eq!(config.model, expected);
        let tokenizer = TokenizerConfig::File {
            path: origin.0.path().join(TOKENIZER_FILE),
            end_of_text: END_OF_TEXT.to_owned(),
        };
        assert_eq!(config.tokenizer, tokenizer);

        let per_layer = origin.start(&["model.router.balance=per-layer"]).unwrap();
        assert_eq!(per_layer.model, read(SMALL, set).unwrap().model);
        let quantile = origin.start(&["model.router.balance=quantile"]).unwrap();
        let router = quantile.model.moe.unwrap().router;
        assert_eq!(
            (router.balance, router.balance_coefficient),
            (BalanceKind::Quantile, 0.0)
        );
        // A file that sets every key gives the same model.
        let more = [
            &format!("train.init={}", origin.path()),
            "model.router.balance=per-layer",
        ];
        let whole = read(SMALL, &[set, &more].concat()).unwrap();
        assert_eq!(whole.model, per_layer.model);
    }
}

#[test]
fn outputs_of_a_checkpoint_do_not_begin_at_zero() {
    let origin = TestCheckpoint::dense();
    let error = origin.start(&["train.zero_outputs=true"]).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("train.zero_outputs") && text.contains("no effect with train.init"),
        "{text}"
    );
}

#[test]
fn a_dense_checkpoint_is_upcycled_or_stays_dense() {
    let origin = TestCheckpoint::dense();
    let kept = origin.start(&[]).unwrap().model;
    assert_eq!(
        (kept.layers, kept.moe),
        (vec![LayerConfig::dense(96); 2], None)
    );
    // The file of the MoE model describes its dense baseline too.
    let baseline = [
        "model.feed_forward=dense",
        "model.experts={ count = 4, top_k = 2 }",
    ];
    assert_eq!(origin.start(&baseline).unwrap().model.moe, None);

    let moe = [
        "model.feed_forward=moe",
        "model.experts.count=8",
        "model.experts.top_k=2",
    ];
    let model = origin.start(&moe).unwrap().model;
    let (upcycled, context_length) = (model.moe.unwrap(), model.context_length);
    assert_eq!(
        (
            upcycled.experts.count,
            upcycled.experts.d_ff,
            context_length
        ),
        (8, 96, 32)
    );
    assert_eq!(upcycled.router, RouterConfig::DEFAULT);
    let dense = "model.dense.layers=[1]";
    let partly = origin.start(&[&moe[..], &[dense]].concat()).unwrap();
    assert!(partly.model.dense_layers().eq([(1, 96)]));
    // New routers may be of any kind; copies of the feed-forward are what it was.
    let biased = origin.start(&[&moe[..], &["model.router.logit_bias=true"]].concat());
    assert!(biased.unwrap().model.moe.unwrap().router.logit_bias);
    for (set, key) in [
        ("model.experts.activation=clamped-swiglu", "activation"),
        ("model.experts.biases=true", "biases"),
    ] {
        let refusal = origin.refusal(&[&moe[..], &[set]].concat());
        let expected = format!("model.experts.{key} = ");
        assert!(
            refusal.contains(&expected) && refusal.contains("when upcycling"),
            "{refusal}"
        );
    }
}

#[test]
fn what_was_resolved_reads_back_with_and_without_the_checkpoint() {
    let moe: &[&str] = &["model.experts={ count = 4, top_k = 2 }"];
    let clamped = "model.experts.activation=clamped-swiglu";
    let cases: [(&[&str], &[&str]); 7] = [
        (
            &[
                clamped,
                "model.experts.biases=true",
                "model.router.logit_bias=true",
            ],
            &[],
        ),
        (&["model.feed_forward=dense"], &[]),
        (
            &[
                "model.feed_forward=dense",
                "model.initializer_range=0.0123456789012345",
            ],
            &["model.feed_forward=moe", "model.context_length=16", moe[0]],
        ),
        (&["model.router.bias_update_rate=0.01"], &["train.seed=3"]),
        (
            &["model.router.bias_update_rate=0.01"],
            &["model.router.balance=quantile"],
        ),
        (&["model.router.balance=quantile"], &["train.seed=3"]),
        (
            &["model.router.balance=quantile"],
            &["model.router.balance=per-layer"],
        ),
    ];
    for (shape, set) in cases {
        let origin = TestCheckpoint::of(shape);
        let config = origin.start(set).unwrap();
        let text = config.to_toml().unwrap();
        assert_eq!(read(&text, &[]).unwrap(), config, "{text}");

        let file = FROM.replace("FOLDER", origin.path());
        let set: Vec<String> = set.iter().map(|&argument| argument.to_owned()).collect();
        drop(origin);
        assert!(read(&text, &[]).is_err());
        let saved = text.parse().unwrap();
        for (text, set) in [(&text, &[][..]), (&file, &set), (&file, &[])] {
            let again = parse(Path::new("run.toml"), text, set, Some(&saved)).unwrap();
            assert_eq!(
                (&again.model, &again.tokenizer),
                (&config.model, &config.tokenizer)
            );
        }
        // A value that the file or an override sets is not replaced, so that a change is detected.
        let longer = ["model.layers=3".to_owned()];
        let other = parse(Path::new("run.toml"), &file, &longer, Some(&saved)).unwrap();
        assert_eq!(other.model.layers.len(), 3);
    }
}

#[test]
fn embeddings_may_be_padded_and_a_long_context_is_cut() {
    let mut model = read(SMALL, &[]).unwrap().model;
    model.context_length = 40_960;
    model.vocab_size = 320;
    let config = TestCheckpoint::new(&model).start(&[]).unwrap();
    assert_eq!(
        (config.model.vocab_size, config.model.context_length),
        (320, 2048)
    );
    let bpe = "tokenizer={ kind = 'bpe', vocab_size = 300 }";
    let config = TestCheckpoint::new(&model).start(&[bpe]).unwrap();
    assert_eq!(config.model.vocab_size, 320);
    assert_eq!(config.tokenizer, TokenizerConfig::Bpe { vocab_size: 300 });
}

#[test]
fn contradictions_name_both_values_and_the_checkpoint() {
    let origin = TestCheckpoint::of(&[]);
    insta::assert_snapshot!(origin.refusal(&["model.layers=3"]), @r"
    run.toml: model.layers = 3 (from --set) must be 2, as in the checkpoint FOLDER
    hint: remove it; the checkpoint determines it
    ");
    insta::assert_snapshot!(origin.refusal(&["model.qk_norm=head"]), @r#"
    run.toml: model.qk_norm = "head" (from --set) must be "none", as in the checkpoint FOLDER
    hint: remove it; the checkpoint determines it
    "#);
    insta::assert_snapshot!(origin.refusal(&["model.context_length=64"]), @r"
    run.toml: model.context_length = 64 (from --set) must be at most 32, the context of the checkpoint FOLDER
    hint: a longer context needs other rotary positions: set [model.rope_scaling], or model.rope_theta
    ");
    insta::assert_snapshot!(origin.refusal(&["model.experts.count=8"]), @r"
    run.toml: model.experts.count = 8 (from --set) must be 4, as in the checkpoint FOLDER
    hint: remove it; the checkpoint determines it
    ");
    insta::assert_snapshot!(origin.refusal(&["model.dense.layers=[0]"]), @r"
    run.toml: model.dense.layers = [0] (from --set) is not allowed, because the checkpoint FOLDER has none
    hint: remove it; the checkpoint determines it
    ");
    insta::assert_snapshot!(origin.refusal(&["model.router.normalize=false"]), @r"
    run.toml: model.router.normalize = false (from --set) must be true, as in the checkpoint FOLDER
    hint: remove it; the checkpoint determines it
    ");
    insta::assert_snapshot!(origin.refusal(&["model.feed_forward=dense"]), @r#"
    run.toml: model.feed_forward = "dense" (from --set) must be "moe", as in the checkpoint FOLDER
    hint: an MoE checkpoint cannot become dense; only a dense one can become MoE (upcycling)
    "#);
    insta::assert_snapshot!(origin.refusal(&["tokenizer={ kind = 'bpe', vocab_size = 300 }"]), @r"
    run.toml: tokenizer.vocab_size = 300 (from --set) gives 300 ids, but the checkpoint FOLDER has 257 embeddings
    hint: remove [tokenizer] to use the checkpoint's
    ");

    let origin = TestCheckpoint::dense();
    let moe = [
        "model.feed_forward=moe",
        "model.experts={ count = 4, top_k = 2 }",
    ];
    let upcycled = |more| origin.refusal(&[&moe[..], &[more]].concat());
    insta::assert_snapshot!(upcycled("model.router.normalize=false"), @r"
    run.toml: model.router.normalize = false (from --set) must be true when upcycling: identical experts reproduce the dense feed-forward only if their weights sum to 1
    hint: remove it, or set it to true
    ");
    insta::assert_snapshot!(upcycled("model.experts.d_ff=48"), @r"
    run.toml: model.experts.d_ff = 48 (from --set) must be 96, the width of the feed-forward in the checkpoint FOLDER
    hint: remove it; the checkpoint determines it
    ");
    insta::assert_snapshot!(upcycled("model.experts.top_k=5"), @r"
    run.toml: model.experts.top_k = 5 (from --set) must lie between 1 and experts.count = 4
    hint: 2 of 8 and 2 of 16 are common; top_k = count selects all experts
    ");
    insta::assert_snapshot!(origin.refusal(&moe[..1]), @r"
    run.toml: model.experts.count is missing, but the checkpoint FOLDER is dense
    hint: set it to the number of copies of its feed-forward, such as 8
    ");
    insta::assert_snapshot!(origin.refusal(&moe[1..]), @r#"
    run.toml: model.experts (from --set) has no effect because the checkpoint FOLDER is dense
    hint: set model.feed_forward = "moe" to upcycle it
    "#);
    let baseline = "model.experts={ count = 4, top_k = 2, d_ff = 40 }";
    insta::assert_snapshot!(origin.refusal(&["model.feed_forward=dense", baseline]), @r"
    run.toml: model.experts.d_ff = 40 (from --set) times experts.top_k = 2 must be 96, the width of the feed-forward in the checkpoint FOLDER
    hint: omit it, or set model.dense.d_ff
    ");
}

#[test]
fn a_context_is_extended_with_other_rotary_positions() {
    let origin = TestCheckpoint::of(&[]);
    let longer = "model.context_length=128";
    let scaling = "model.rope_scaling={ kind = 'yarn', factor = 4.0, original_context = 32 }";
    let extended = origin.start(&[longer, scaling]).unwrap().model;
    assert_eq!(extended.context_length, 128);
    assert!(matches!(
        extended.rope_scaling,
        Some(RopeScaling::Yarn { .. })
    ));
    let higher = origin
        .start(&[longer, "model.rope_theta=1e6"])
        .unwrap()
        .model;
    assert_eq!((higher.context_length, higher.rope_theta), (128, 1e6));
    // The checkpoint's own base is no other one, and without a longer context the checkpoint decides.
    let same = origin.refusal(&[longer, "model.rope_theta=10000.0"]);
    assert!(same.contains("must be at most 32"), "{same}");
    insta::assert_snapshot!(origin.refusal(&["model.rope_theta=1e6"]), @r"
    run.toml: model.rope_theta = 1000000.0 (from --set) must be 10000.0, as in the checkpoint FOLDER
    hint: remove it; the checkpoint determines it
    ");
    let scaled = origin.refusal(&[scaling]);
    assert!(
        scaled.contains("model.rope_scaling.") && scaled.contains("has none"),
        "{scaled}"
    );
    let spelled = origin.start(&["model.attention=['full', 'full']"]);
    assert_eq!(spelled.unwrap().model, origin.start(&[]).unwrap().model);
    insta::assert_snapshot!(origin.refusal(&[longer]), @r"
    run.toml: model.context_length = 128 (from --set) must be at most 32, the context of the checkpoint FOLDER
    hint: a longer context needs other rotary positions: set [model.rope_scaling], or model.rope_theta
    ");
}

/// A source with pictures.
const PICTURES: &str = "data.source=[{ name = 'emoji', cargo = 'twemoji-assets', weight = 1 }]";

#[test]
fn a_text_checkpoint_may_be_given_a_tower() {
    let tower = [
        "model.vision.cross_attention_layers=[1]",
        "model.vision.width=16",
        "model.vision.heads=2",
        "model.vision.layers=2",
        "model.vision.tile_size=8",
        "model.vision.patch_size=4",
        PICTURES,
    ];
    let origin = TestCheckpoint::of(&[]);
    let text = origin.start(&[]).unwrap().model;
    let seeing = origin.start(&tower).unwrap().model;
    assert_eq!(seeing.text_only(), text);
    assert_eq!(seeing.cross_layers().collect::<Vec<usize>>(), [1]);
    assert_eq!(seeing.vision.as_ref().unwrap().aspect_ratios, [[1, 1]]);
    // What a checkpoint has of one stays as it is.
    let own = TestCheckpoint::new(&seeing);
    assert_eq!(own.start(&[PICTURES]).unwrap().model, seeing);
    assert_eq!(own.start(&tower).unwrap().model, seeing);
    let refusal = own.refusal(&["model.vision.width=12", PICTURES]);
    assert!(
        refusal.contains("model.vision.width = 12") && refusal.contains("must be 16"),
        "{refusal}"
    );
    let refusal =
        origin.refusal(&[&tower[1..], &["model.vision.cross_attention_layers=[0]"]].concat());
    assert!(
        refusal.contains("must be layer indices from 1") && refusal.contains("hint: "),
        "{refusal}"
    );
}

#[test]
fn a_checkpoint_that_cannot_be_used_is_named() {
    let origin = TestCheckpoint::dense();
    fs::remove_file(origin.0.path().join(TOKENIZER_FILE)).unwrap();
    insta::assert_snapshot!(origin.refusal(&[]), @r"
    run.toml: tokenizer is missing, and the checkpoint FOLDER has no tokenizer.json
    hint: add a [tokenizer] section, or copy the model's tokenizer.json to the folder
    ");
    assert!(origin.start(&["tokenizer.kind=bytes"]).is_ok());
    fs::write(origin.0.path().join(CONFIG_FILE), "{}").unwrap();
    insta::assert_snapshot!(origin.refusal(&[]), @r#"run.toml:7: train.init = "FOLDER" cannot be used: FOLDER/config.json: model_type = null: Firebox reads llama, mistral, qwen2, qwen3, smollm3, mixtral, olmoe, qwen3_moe, qwen2_moe, granitemoe, dots1, glm4_moe, deepseek_v3, gpt_oss, mllama, firebox_vision, firebox"#);
    fs::remove_file(origin.0.path().join(CONFIG_FILE)).unwrap();
    insta::assert_snapshot!(origin.refusal(&[]), @r#"
    run.toml:7: train.init = "FOLDER" cannot be used: FOLDER is not a checkpoint: config.json is missing
    hint: a checkpoint is a folder with config.json and model.safetensors, such as runs/NAME/checkpoints/step-0000100
    "#);
    insta::assert_snapshot!(origin.refusal(&["train.init="]), @r#"
    run.toml: train.init = "" (from --set) must not be empty
    hint: remove it to start from random weights
    "#);
    insta::assert_snapshot!(origin.refusal(&["train.init=nowhere/at/all"]), @r#"
    run.toml: train.init = "nowhere/at/all" (from --set) cannot be used: nowhere/at/all does not exist
    hint: use a run folder, such as runs/quickstart, which `cargo train run configs/quickstart.toml` makes, or a folder with config.json and model.safetensors, relative to the working directory
    "#);

    let mut model = read(SMALL, &[]).unwrap().model;
    model.vocab_size = 200;
    insta::assert_snapshot!(TestCheckpoint::new(&model).refusal(&[]), @r#"
    run.toml:7: train.init = "FOLDER" has a tokenizer.json whose documents have ids up to 256, but a model with 200 embeddings
    hint: they do not belong to the same model; configure another tokenizer under [tokenizer]
    "#);
}

#[test]
fn unknown_fields_are_accepted_by_name() {
    let origin = TestCheckpoint::of(&[]).with_field("lab_stage", 2.into());
    insta::assert_snapshot!(origin.refusal(&[]), @r#"
    run.toml:7: train.init = "FOLDER" cannot be used: FOLDER/config.json: lab_stage = 2: mixtral has no such field, as far as Firebox knows
    hint: if it does not affect what the network computes, train.accept = ["lab_stage"] makes Firebox ignore it and keep it
    "#);
    let config = origin.start(&["train.accept=['lab_stage']"]).unwrap();
    assert_eq!(config.train.accept, ["lab_stage"]);
    let text = config.to_toml().unwrap();
    assert!(text.contains("accept = [\"lab_stage\"]"), "{text}");
    insta::assert_snapshot!(origin.refusal(&["train.accept=['lab_stage', 'lab_notes']"]), @r#"
    run.toml: train.accept = ["lab_stage", "lab_notes"] (from --set) cannot be used: train.accept lab_notes: FOLDER/config.json has no such field
    hint: omit it: the file has no other field that Firebox does not know
    "#);
}
