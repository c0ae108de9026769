//! Valid and invalid configurations, with their error messages.

use std::path::Path;

use firebox_model::config::{AttentionKind, LayerConfig};
use proptest::prelude::*;

use super::load::parse;
use super::{
    BatchRamp, ConfigError, Muon, RunConfig, Share, SourceKind, SplitKind, TokenizerConfig, load,
};
use firebox_console::advice::Advise as _;
use firebox_console::terminal::sentence;

pub(super) const SMALL: &str = r#"
[model]
layers = 2
d_model = 64
heads = 4
context_length = 32

[model.experts]
count = 4
top_k = 2
d_ff = 48

[tokenizer]
kind = "bytes"

[[data.source]]
name = "text"
files = ["*.txt"]

[train]
steps = 100

[optimizer]
learning_rate = 0.001

[schedule]
batch_tokens = 256
"#;

pub(super) fn read(text: &str, set: &[&str]) -> Result<RunConfig, ConfigError> {
    let set: Vec<String> = set.iter().map(|argument| (*argument).to_owned()).collect();
    parse(Path::new("run.toml"), text, &set, None)
}

/// The error and its hint, as they are printed.
pub(super) fn message(result: Result<RunConfig, ConfigError>) -> String {
    let error = result.expect_err("is refused");
    let hint = error.hint().map(|hint| format!("\nhint: {hint}"));
    format!("{}{}", sentence(&error), hint.unwrap_or_default())
}

/// The message for the small configuration with one line replaced.
fn replaced(from: &str, to: &str) -> String {
    assert_eq!(SMALL.matches(from).count(), 1, "{from} stands once");
    message(read(&SMALL.replace(from, to), &[]))
}

fn set(arguments: &[&str]) -> String {
    message(read(SMALL, arguments))
}

#[test]
fn defaults_are_filled_in() {
    let config = read(SMALL, &[]).unwrap();
    assert_eq!(
        (
            config.model.kv_heads,
            config.model.head_dim,
            config.model.vocab_size
        ),
        (1, 16, 257)
    );
    assert_eq!(config.data.source[0].share, Share::Epochs(1));
    assert!(config.data.document_mask && !config.data.special_tokens);
    assert_eq!(
        config.schedule.batch_tokens,
        BatchRamp {
            start: 256,
            end: 256,
            ramp_steps: 0
        }
    );
    assert_eq!(
        (config.optimizer.beta2, config.checkpoint.keep_last),
        (0.95, 2)
    );
}

#[test]
fn a_resolved_file_reads_back_to_the_same_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let more: [(&str, &[&str]); 11] = [
        (
            "quickstart.toml",
            &[
                "model.router.balance=quantile",
                "model.router.balance_coefficient=0",
                "model.router.scores=sigmoid",
            ],
        ),
        ("quickstart.toml", &[]),
        ("shakespeare.toml", &[]),
        ("gpt4.toml", &[]),
        (
            "quickstart.toml",
            &[
                "model.feed_forward=dense",
                "data.cache=prepared",
                "model.router.balance=pooled",
                "data.document_mask=false",
            ],
        ),
        (
            "quickstart.toml",
            &[
                "schedule.decay=wsd",
                "data.source.0.epochs=1",
                "schedule.batch_tokens=8192",
            ],
        ),
        (
            "quickstart.toml",
            &[
                "model.qk_norm=head",
                "model.dense.layers=[0, 2]",
                "model.attention=[\"window\", \"nope\"]",
                "model.window=32",
            ],
        ),
        (
            "gpt4.toml",
            &[
                "model.vision.cross_attention_layers=[3, 8]",
                "model.vision.width=1280",
                "model.vision.heads=16",
                "model.vision.layers=32",
                "model.vision.global_layers=8",
                "model.vision.tile_size=448",
                "model.vision.patch_size=14",
                "model.vision.max_tiles=4",
                "data.source=[{ name = 'pairs', jsonl = ['a'], image = 'image', weight = 1 }]",
            ],
        ),
        (
            "shakespeare.toml",
            &["data.source=[{ name = 'a', jsonl = ['a'], weight = 1 }]"],
        ),
        (
            "quickstart.toml",
            &[
                "data.validation={}",
                "data.validation.source=[{ name = 'own', jsonl = ['a'], field = 'b' }]",
            ],
        ),
        (
            "quickstart.toml",
            &["data.validation.source=[{ name = 'own', files = ['a'], max_bytes = 7 }]"],
        ),
    ];
    for (name, set) in more {
        let set: Vec<String> = set.iter().map(|argument| (*argument).to_owned()).collect();
        let config = load(&folder.join(name), &set).unwrap();
        let text = config.to_toml().unwrap();
        assert_eq!(read(&text, &[]).unwrap(), config, "{text}");
    }
}

#[test]
fn overrides_reach_every_place() {
    let arguments = [
        "model.experts.count=8",
        "model.dense.layers=[1]",
        "data.source.0.files=[\"a\", \"b\"]",
        "train.sample.prompt=To be, or = not",
        "schedule.batch_tokens={ start = 64, end = 128, ramp_steps = 3 }",
        "schedule.batch_tokens.end = 256",
    ];
    let config = read(SMALL, &arguments).unwrap();
    assert_eq!(config.model.moe.unwrap().experts.count, 8);
    assert_eq!(
        config.data.source[0].text.kind,
        SourceKind::Files {
            files: vec!["a".into(), "b".into()]
        }
    );
    assert_eq!(config.train.sample.unwrap().prompt, "To be, or = not");
    assert_eq!(
        config.schedule.batch_tokens,
        BatchRamp {
            start: 64,
            end: 256,
            ramp_steps: 3
        }
    );

    let config = read(SMALL, &["tokenizer.kind=bpe", "tokenizer.vocab_size=512"]).unwrap();
    assert_eq!(
        (config.tokenizer, config.model.vocab_size),
        (TokenizerConfig::Bpe { vocab_size: 512 }, 512)
    );
}

#[test]
fn unknown_keys_are_named_with_the_nearest_known_one() {
    insta::assert_snapshot!(replaced("d_model = 64", "d_modle = 64"), @r"
    run.toml:4: model.d_modle = 64 is not a known key of model; allowed: vocab_size, layers, d_model, heads, kv_heads, head_dim, context_length, rotary_dim, rope_theta, norm_epsilon, tied_embeddings, initializer_range, qk_norm, attention_bias, sinks, attention, window, feed_forward, latent, rope_scaling, multipliers, dense, experts, router, vision
    hint: did you mean `d_model`?
    ");
    insta::assert_snapshot!(replaced("[optimizer]", "[optimiser]"), @r"
    run.toml:23: optimiser is not a known section; allowed: model, tokenizer, data, train, optimizer, schedule, checkpoint, plan
    hint: did you mean `optimizer`?
    ");
    insta::assert_snapshot!(set(&["train.stepz=5"]), @r"
    run.toml: train.stepz = 5 (from --set) is not a known key of train; allowed: init, accept, frozen, steps, seed, zero_outputs, micro_batch, precision, log_every, validate_every, validation_tokens, sample
    hint: did you mean `steps`?
    ");
    insta::assert_snapshot!(replaced("d_ff = 48", "d_ff = 48\ncapacity = 2"), @"run.toml:12: model.experts.capacity = 2 is not a known key of model.experts; allowed: count, top_k, d_ff, activation, limit, alpha, biases, shared_d_ff, shared_gate");
    insta::assert_snapshot!(set(&["schedule.decay=linear"]), @r#"run.toml: schedule.decay = "linear" (from --set) must be "cosine" or "wsd""#);
    insta::assert_snapshot!(set(&["train.precision=f16"]), @r#"
    run.toml: train.precision = "f16" (from --set) must be "f32" or "bf16"
    hint: did you mean `bf16`?
    "#);
}

#[test]
fn wrong_types_say_what_is_allowed() {
    insta::assert_snapshot!(replaced("layers = 2", "layers = \"2\""), @r#"
    run.toml:3: model.layers = "2" must be a non-negative integer
    hint: write it without quotes
    "#);
    insta::assert_snapshot!(replaced("layers = 2", "layers = -2"), @"run.toml:3: model.layers = -2 must be a non-negative integer");
    insta::assert_snapshot!(replaced("steps = 100", "steps = 1e2"), @"run.toml:21: train.steps = 100.0 must be a non-negative integer");
    insta::assert_snapshot!(replaced("batch_tokens = 256", "batch_tokens = true"), @"run.toml:27: schedule.batch_tokens = true must be an integer, or a table with start, end and ramp_steps");
    insta::assert_snapshot!(replaced("batch_tokens = 256", "batch_tokens = { start = 64 }"), @r"
    run.toml:27: schedule.batch_tokens.end is missing
    hint: configs/quickstart.toml explains every key and its default
    ");
    insta::assert_snapshot!(replaced("[[data.source]]", "[data.source]"), @r"
    run.toml:16: data.source must be a list
    hint: write [[data.source]], with double brackets
    ");
    insta::assert_snapshot!(replaced("[train]", "[[train]]"), @r"
    run.toml:20: train must be a table, not a list of tables
    hint: write [train], with single brackets
    ");
    insta::assert_snapshot!(replaced("learning_rate = 0.001", "learning_rate = \"high\""), @r#"run.toml:24: optimizer.learning_rate = "high" must be a number"#);
    insta::assert_snapshot!(set(&["train.sample.prompt=5"]), @r#"
    run.toml: train.sample.prompt = 5 (from --set) must be a string
    hint: write train.sample.prompt = "5"
    "#);
    insta::assert_snapshot!(set(&["model.tied_embeddings=yes"]), @r#"run.toml: model.tied_embeddings = "yes" (from --set) must be true or false"#);
}

#[test]
fn values_out_of_range_say_what_is_allowed() {
    insta::assert_snapshot!(set(&["model.heads=5"]), @r"
    run.toml: model.heads = 5 (from --set) must divide model.d_model = 64, because model.head_dim is not set
    hint: set model.head_dim, or change one of the two
    ");
    insta::assert_snapshot!(replaced("heads = 4", "heads = 4\nkv_heads = 3"), @r"
    run.toml:6: model.kv_heads = 3 must divide heads = 4 (all key/value heads serve the same number of query heads)
    hint: allowed values: 1, 2, 4
    ");
    insta::assert_snapshot!(replaced("top_k = 2", "top_k = 5"), @r"
    run.toml:10: model.experts.top_k = 5 must lie between 1 and experts.count = 4
    hint: 2 of 8 and 2 of 16 are common; top_k = count selects all experts
    ");
    insta::assert_snapshot!(replaced("layers = 2", "layers = 9_000_000_000_000"), @r"
    run.toml:3: model.layers = 9000000000000 must lie between 1 and 65536
    hint: models have some dozens of layers
    ");
    insta::assert_snapshot!(replaced("learning_rate = 0.001", "learning_rate = nan"), @"run.toml:24: optimizer.learning_rate = nan must be above 0 and finite in f32");
    insta::assert_snapshot!(replaced("batch_tokens = 256", "batch_tokens = 31"), @"run.toml:27: schedule.batch_tokens = 31 must be at least model.context_length = 32, one sequence");
    insta::assert_snapshot!(replaced("steps = 100", "steps = 0"), @"run.toml:21: train.steps = 0 must be between 1 and 100000000");
    insta::assert_snapshot!(set(&["schedule.warmup_steps=100"]), @r"
    run.toml: schedule.warmup_steps = 100 (from --set) must be below train.steps = 100
    hint: otherwise the learning rate never reaches its peak; 10 is 10 % of the steps
    ");
    insta::assert_snapshot!(set(&["schedule.warmup_steps=90", "schedule.decay=wsd"]), @"run.toml: schedule.cooldown_fraction = 0.2 (default) overlaps with the warm-up: schedule.warmup_steps = 90 of train.steps = 100");
    insta::assert_snapshot!(set(&["tokenizer.kind=bpe", "tokenizer.vocab_size=256"]), @r"
    run.toml: tokenizer.vocab_size = 256 (from --set) must be between 257 and 16777216
    hint: the 256 bytes and end of text are always ids
    ");
}

#[test]
fn missing_keys_are_named() {
    insta::assert_snapshot!(replaced("[tokenizer]\nkind = \"bytes\"", ""), @r"
    run.toml: tokenizer is missing; every run needs this section
    hint: configs/quickstart.toml explains every key and its default
    ");
    insta::assert_snapshot!(replaced("layers = 2", ""), @r"
    run.toml:2: model.layers is missing
    hint: configs/quickstart.toml explains every key and its default
    ");
    insta::assert_snapshot!(set(&["tokenizer.kind=file", "tokenizer.path=missing/tokenizer.json"]), @r#"
    run.toml:13: tokenizer.end_of_text is missing, but tokenizer.kind = "file" requires it
    hint: set it to the token that ends a document, such as "<|endoftext|>" or "</s>"
    "#);
    insta::assert_snapshot!(replaced("files = [\"*.txt\"]", "url = \"a.txt\""), @r"
    run.toml:16: data.source.0.sha256 is missing, but url requires it
    hint: `sha256sum FILE` prints it
    ");
}

#[test]
fn a_tokenizer_file_that_cannot_be_opened_is_named() {
    let path = "tokenizer.path=missing/tokenizer.json";
    let text = set(&["tokenizer.kind=file", path, "tokenizer.end_of_text=</s>"]);
    let start =
        "run.toml: tokenizer.path = \"missing/tokenizer.json\" (from --set) cannot be used: ";
    assert!(text.starts_with(start), "{text}");
}

#[test]
fn keys_without_effect_are_refused() {
    insta::assert_snapshot!(set(&["schedule.cooldown_fraction=0.1"]), @r#"
    run.toml: schedule.cooldown_fraction = 0.1 (from --set) has no effect with schedule.decay = "cosine"
    hint: remove it, or set decay = "wsd"
    "#);
    insta::assert_snapshot!(replaced("kind = \"bytes\"", "kind = \"bytes\"\nvocab_size = 300"), @r#"
    run.toml:15: tokenizer.vocab_size = 300 has no effect unless tokenizer.kind is "bpe"
    hint: remove it, or set tokenizer.kind = "bpe"
    "#);
    insta::assert_snapshot!(set(&["tokenizer.kind=bpe", "tokenizer.vocab_size=300", "tokenizer.end_of_text=x"]), @r#"
    run.toml: tokenizer.end_of_text = "x" (from --set) has no effect unless tokenizer.kind is "file"
    hint: remove it, or set tokenizer.kind = "file"
    "#);
    insta::assert_snapshot!(set(&["data.source.0.sha256=00"]), @r#"
    run.toml: data.source.0.sha256 = "00" (from --set) has no effect without url
    hint: remove it
    "#);
    insta::assert_snapshot!(set(&["data.source.0.field=text"]), @r#"
    run.toml: data.source.0.field = "text" (from --set) has no effect without jsonl or parquet
    hint: remove it
    "#);
    insta::assert_snapshot!(set(&["data.source.0.epochs=1", "data.source.0.weight=1"]), @r"
    run.toml: data.source.0.epochs = 1 (from --set) has no effect together with weight
    hint: set epochs for every source, or weight for every source
    ");
    insta::assert_snapshot!(set(&["schedule.batch_tokens={ start = 64, end = 64, ramp_steps = 5 }"]), @r"
    run.toml: schedule.batch_tokens.ramp_steps = 5 (from --set) has no effect when start equals end
    hint: write batch_tokens = 64
    ");
    insta::assert_snapshot!(set(&["schedule.batch_tokens={ start = 64, end = 96, ramp_steps = 0 }"]), @r"
    run.toml: schedule.batch_tokens.start = 64 (from --set) has no effect when ramp_steps is 0
    hint: write batch_tokens = 96
    ");
}

#[test]
fn keys_of_the_recipe_are_checked() {
    let optimizer = |set: &[&str]| read(SMALL, set).unwrap().optimizer;
    assert_eq!(
        (optimizer(&[]).muon, optimizer(&[]).muon_momentum),
        (Muon::None, None)
    );
    let dense = optimizer(&["optimizer.muon=dense"]);
    assert_eq!((dense.muon, dense.muon_momentum), (Muon::Dense, Some(0.95)));
    insta::assert_snapshot!(set(&["optimizer.muon_momentum=0.9"]), @r#"
    run.toml: optimizer.muon_momentum = 0.9 (from --set) has no effect without optimizer.muon
    hint: remove it, or set muon = "dense" or "all"
    "#);
    insta::assert_snapshot!(set(&["optimizer.muon=all", "optimizer.muon_momentum=1"]), @"run.toml: optimizer.muon_momentum = 1 (from --set) must be at least 0 and below 1");
    let all = optimizer(&["optimizer.muon=all", "optimizer.expert_interval=4"]);
    assert_eq!((dense.expert_interval, all.expert_interval), (1, 4));
    optimizer(&["optimizer.muon=dense", "optimizer.expert_interval=1"]);
    insta::assert_snapshot!(set(&["optimizer.muon=dense", "optimizer.expert_interval=4"]), @r#"
    run.toml: optimizer.expert_interval = 4 (from --set) has no effect without Muon for the experts
    hint: set it to 1, or muon to "all"
    "#);
    insta::assert_snapshot!(set(&["optimizer.muon=all", "optimizer.expert_interval=0"]), @"run.toml: optimizer.expert_interval = 0 (from --set) must be between 1 and 100");
    insta::assert_snapshot!(set(&["optimizer.muon=experts"]), @r#"run.toml: optimizer.muon = "experts" (from --set) must be "none" or "dense" or "all""#);
    insta::assert_snapshot!(set(&["model.router.balance=quantile", "model.router.bias_update_rate=0.01"]), @r#"
    run.toml: model.router.bias_update_rate = 0.01 (from --set) must be 0 with router.balance = "quantile", which has neither a loss nor a rate
    hint: remove it, or choose another balance
    "#);
    insta::assert_snapshot!(set(&["model.router.balance=quantile", "model.router.groups=2"]), @r#"
    run.toml: model.router.groups = 2 (from --set) must be 1 with router.balance = "quantile": whether a token selects an expert then depends on the other experts of its group too
    hint: balance = "per-layer" with a bias_update_rate balances groups
    "#);
}

#[test]
fn layers_may_attend_to_a_window() {
    let set = [
        "model.attention=[\"window\", \"full\"]",
        "model.window=8",
        "model.layers=3",
    ];
    let layers = read(SMALL, &set).unwrap().model.layers;
    let kinds: Vec<AttentionKind> = layers.iter().map(|layer| layer.attention).collect();
    let window = AttentionKind::Window(8);
    assert_eq!(kinds, [window, AttentionKind::Full, window]);
    insta::assert_snapshot!(message(read(SMALL, &set[..1])), @r"
    run.toml:2: model.window is missing
    hint: configs/quickstart.toml explains every key and its default
    ");
    insta::assert_snapshot!(message(read(SMALL, &set[1..])), @r#"
    run.toml: model.window = 8 (from --set) has no effect unless model.attention contains "window"
    hint: attention = ["window"] gives every layer a window
    "#);
    insta::assert_snapshot!(message(read(SMALL, &["model.attention=[\"local\"]"])), @r#"run.toml: model.attention.0 = "local" (from --set) must be "full" or "window" or "nope""#);
    insta::assert_snapshot!(message(read(SMALL, &["model.attention=window"])), @r#"run.toml: model.attention = "window" (from --set) must be a list"#);
}

#[test]
fn a_dense_model_needs_no_experts() {
    let dense = SMALL.replace(
        "[model.experts]\ncount = 4\ntop_k = 2\nd_ff = 48\n",
        "[model.dense]\nd_ff = 70\n",
    );
    let model = |set: &[&str]| read(&dense, set).unwrap().model;
    assert_eq!(
        model(&["model.feed_forward=dense"]).layers,
        [LayerConfig::dense(70); 2]
    );
    insta::assert_snapshot!(message(read(&dense, &[])), @r"
    run.toml:2: model.experts is missing
    hint: configs/quickstart.toml explains every key and its default
    ");
}

#[test]
fn a_rope_scaling_has_the_keys_of_its_kind() {
    let scaled = |table: &str| {
        read(
            &SMALL.replace(
                "[model.experts]",
                &format!("[model.rope_scaling]\n{table}\n[model.experts]"),
            ),
            &[],
        )
    };
    assert!(scaled("kind = \"linear\"\nfactor = 4.0").is_ok());
    insta::assert_snapshot!(message(scaled("kind = \"ntk\"\nfactor = 4.0")), @r#"run.toml:9: model.rope_scaling.kind = "ntk" must be "linear" or "llama3" or "yarn""#);
    insta::assert_snapshot!(message(scaled("kind = \"linear\"")), @r"
    run.toml:8: model.rope_scaling.factor is missing
    hint: configs/quickstart.toml explains every key and its default
    ");
    insta::assert_snapshot!(message(scaled("factor = 4.0")), @r"
    run.toml:8: model.rope_scaling.kind is missing
    hint: configs/quickstart.toml explains every key and its default
    ");
    insta::assert_snapshot!(message(scaled("kind = \"yarn\"\nfactor = 4.0")), @r"
    run.toml:8: model.rope_scaling.original_context is missing
    hint: configs/quickstart.toml explains every key and its default
    ");
    insta::assert_snapshot!(message(scaled("kind = \"yarn\"\nfactor = \"4\"")), @r#"
    run.toml:10: model.rope_scaling.factor = "4" must be a number
    hint: write it without quotes
    "#);
    insta::assert_snapshot!(message(scaled("kind = \"linear\"\nfactor = 4.0\nbeta_fast = 32.0")), @r#"
    run.toml:11: model.rope_scaling.beta_fast = 32.0 has no effect unless model.rope_scaling.kind = "yarn"
    hint: remove it
    "#);
    insta::assert_snapshot!(message(scaled("kind = \"linear\"\nfactor = 4.0\noriginal_context = 32")), @r#"
    run.toml:11: model.rope_scaling.original_context = 32 has no effect unless model.rope_scaling.kind = "llama3" or "yarn"
    hint: remove it
    "#);
    insta::assert_snapshot!(message(scaled("kind = \"linear\"\nfactor = 0.5")), @r"
    run.toml:10: model.rope_scaling.factor = 0.5 must lie between 1 and 1000000
    hint: a factor of 4 is for a context four times as long as that of the pretraining
    ");
}

#[test]
fn single_layers_of_an_moe_model_may_be_dense() {
    let layers = |set: &[&str]| read(SMALL, set).unwrap().model.layers;
    assert_eq!(
        layers(&["model.dense.layers=[1]"]),
        [LayerConfig::MOE, LayerConfig::dense(2 * 48)]
    );
    assert_eq!(
        layers(&["model.dense={ layers = [0], d_ff = 40 }"]),
        [LayerConfig::dense(40), LayerConfig::MOE]
    );
    insta::assert_snapshot!(set(&["model.dense.layers=[2]"]), @r"
    run.toml: model.dense.layers = [2] (from --set) must be layer indices from 0 to 1 in ascending order
    hint: [0] makes the first layer dense
    ");
    insta::assert_snapshot!(set(&["model.dense={ layers = [0, 1] }"]), @r#"
    run.toml: model.dense.layers = [0, 1] (from --set) must name at least one layer, but not all
    hint: omit [model.dense] to make every layer MoE, or set feed_forward = "dense" to make every layer dense
    "#);
    insta::assert_snapshot!(set(&["model.dense.d_ff=40"]), @r"
    run.toml:2: model.dense.layers is missing
    hint: configs/quickstart.toml explains every key and its default
    ");
    insta::assert_snapshot!(set(&["model.dense.layers=[0]", "model.feed_forward=dense"]), @r#"
    run.toml: model.dense.layers = [0] (from --set) has no effect with model.feed_forward = "dense"
    hint: remove it, or set feed_forward = "moe"
    "#);
    insta::assert_snapshot!(set(&["model.qk_norm=heads"]), @r#"
    run.toml: model.qk_norm = "heads" (from --set) must be "none" or "projection" or "head"
    hint: did you mean `head`?
    "#);
    insta::assert_snapshot!(set(&["model.vocab_size=257"]), @r"
    run.toml: model.vocab_size = 257 (from --set) has no effect without train.init
    hint: remove it; the tokenizer determines the number of ids
    ");
}

#[test]
fn sources_are_checked_together() {
    insta::assert_snapshot!(replaced("files = [\"*.txt\"]", "files = [\"*.txt\"]\ncargo = [\"rs\"]"), @r"
    run.toml:16: data.source.0 must have exactly one of files, cargo, jsonl, parquet, tokens and url, but has files and cargo
    hint: write one [[data.source]] for each
    ");
    insta::assert_snapshot!(replaced("files = [\"*.txt\"]", ""), @r"
    run.toml:16: data.source.0 must have exactly one of files, cargo, jsonl, parquet, tokens and url, but has none
    hint: write one [[data.source]] for each
    ");
    let second = |keys: &str| replaced("[train]", &format!("[[data.source]]\n{keys}\n[train]"));
    insta::assert_snapshot!(second("name = \"more\"\ncargo = [\"rs\"]\nweight = 2"), @r"
    run.toml:16: data.source.0.weight is missing, but other sources have one
    hint: set epochs for every source, or weight for every source
    ");
    insta::assert_snapshot!(second("name = \"text\"\ncargo = [\"rs\"]"), @r#"run.toml:21: data.source.1.name = "text" must be unique, but data.source.0 has the same name"#);
    insta::assert_snapshot!(second("name = \"more\"\ncargo = [\".rs\"]"), @r#"
    run.toml:22: data.source.1.cargo = [".rs"] must be a list of one or more file extensions without dots
    hint: for example cargo = ["rs"] or cargo = ["md"]
    "#);
}

#[test]
fn validation_text_is_split_off_or_of_its_own() {
    let own = "data.validation.source=[{ name = 'own', jsonl = ['a.jsonl'] }]";
    let validation = |set: &[&str]| read(SMALL, set).unwrap().data.validation;
    let split = validation(&[]).split;
    assert_eq!((split.fraction, split.by), (0.01, Some(SplitKind::Hash)));
    // With text of its own, nothing else is given away unless that is asked for.
    for set in [&[own][..], &[own, "data.validation.fraction=0"]] {
        let found = validation(set);
        assert_eq!((found.split.fraction, found.split.by), (0.0, None));
        assert_eq!(found.source[0].name, "own");
    }
    let both = validation(&[
        own,
        "data.validation.fraction=0.5",
        "data.validation.by=tail",
    ])
    .split;
    assert_eq!((both.fraction, both.by), (0.5, Some(SplitKind::Tail)));

    insta::assert_snapshot!(set(&["data.validation.fraction=0"]), @r"
    run.toml: data.validation.fraction = 0 (from --set) must be above 0 and below 1
    hint: 0.01 holds out 1 %; 0 is allowed with a [[data.validation.source]], which is used for validation only
    ");
    insta::assert_snapshot!(set(&[own, "data.validation.fraction=1"]), @r"
    run.toml: data.validation.fraction = 1 (from --set) must be at least 0 and below 1
    hint: 0 holds out [[data.validation.source]] alone
    ");
    insta::assert_snapshot!(set(&[own, "data.validation.by=tail"]), @r#"
    run.toml: data.validation.by = "tail" (from --set) has no effect without data.validation.fraction
    hint: remove it, or set a fraction above 0 to hold out text of the training sources as well
    "#);
    insta::assert_snapshot!(set(&[own, "data.validation.source.0.weight=2"]), @r"
    run.toml: data.validation.source.0.weight = 2 (from --set) has no effect in a source that is used for validation only
    hint: remove it
    ");
    insta::assert_snapshot!(set(&[own, "data.validation.source.0.name=text"]), @r#"run.toml: data.validation.source.0.name = "text" (from --set) must be unique, but data.source.0 has the same name"#);
    insta::assert_snapshot!(set(&["data.validation.source=[{ name = 'own' }]"]), @r"
    run.toml: data.validation.source.0 (from --set) must have exactly one of files, cargo, jsonl, parquet, tokens and url, but has none
    hint: write one [[data.validation.source]] for each
    ");
}

#[test]
fn captions_of_pictures_are_documents() {
    let source = |keys: &str| format!("data.source=[{{ name = 'pictures', {keys} }}]");
    let kind = |keys: &str| {
        let config = read(SMALL, &[&source(keys)]).unwrap();
        // What a run saves reads back.
        let saved = read(&config.to_toml().unwrap(), &[]).unwrap();
        assert_eq!(saved.data, config.data);
        config.data.source[0].text.kind.clone()
    };
    let emoji = kind("cargo = 'twemoji-assets'");
    let cargo = "twemoji-assets".to_owned();
    assert_eq!(emoji, SourceKind::Emoji { cargo });
    let pairs = SourceKind::Pairs {
        jsonl: vec!["a.jsonl".to_owned()],
        image: "path".to_owned(),
        field: "caption".to_owned(),
        concept: None,
    };
    assert_eq!(kind("jsonl = ['a.jsonl'], image = 'path'"), pairs);
    assert!(pairs.has_pictures() && emoji.has_pictures());

    let refused = |keys: &str| set(&[&source(keys)]);
    let error = refused("cargo = 'rs'");
    assert!(
        error.contains("must be \"twemoji-assets\", or a list of file extensions"),
        "{error}"
    );
    let error = refused("cargo = 3");
    assert!(
        error.contains("must be a list of file extensions, or the name of a package"),
        "{error}"
    );
    let error = refused("files = ['a.txt'], image = 'path'");
    assert!(
        error.contains("has no effect without jsonl") && error.contains("image"),
        "{error}"
    );
    let error = refused("jsonl = ['a.jsonl'], concept = 'kind'");
    assert!(
        error.contains("has no effect without image") && error.contains("concept"),
        "{error}"
    );
    let error = set(&[
        &source("cargo = 'twemoji-assets'"),
        "data.validation.by=tail",
    ]);
    assert!(
        error.contains("captions of pictures, which are held out whole"),
        "{error}"
    );
}

#[test]
fn tokens_need_the_tokenizer_that_made_them() {
    let tokens = "data.source=[{ name = 'shards', tokens = ['*.bin'] }]";
    for (also, expected) in [
        (
            "tokenizer={ kind = 'bytes' }",
            "must be \"file\", because source \"shards\" is tokens, which belong to the tokenizer that made them",
        ),
        (
            "tokenizer={ kind = 'bpe', vocab_size = 300 }",
            "must be \"file\", because source \"shards\" is tokens, which belong to the tokenizer that made them",
        ),
        (
            "data.validation.by=tail",
            "must be \"hash\", because the documents of source \"shards\" are tokens, which are held out whole",
        ),
    ] {
        let error = set(&[tokens, also]);
        assert!(
            error.contains(expected) && error.contains("hint: "),
            "{error}"
        );
    }
    let field = "data.source=[{ name = 'shards', tokens = ['*.bin'], field = 'text' }]";
    let error = set(&[field]);
    assert!(
        error.contains("has no effect without jsonl or parquet"),
        "{error}"
    );
}

#[test]
fn models_that_see_have_pictures_to_see() {
    let vision = "model.vision={ cross_attention_layers = [1], width = 8, heads = 2, layers = 1, tile_size = 16, patch_size = 8 }";
    let emoji = "data.source=[{ name = 'pictures', cargo = 'twemoji-assets' }]";
    let config = read(SMALL, &[vision, emoji, "data.pictures.shift=2"]).unwrap();
    let tiles = config.data.source[0].text.tiles.unwrap();
    assert_eq!((tiles.tile_size, tiles.max_tiles), (16, 1));
    let saved = read(&config.to_toml().unwrap(), &[]).unwrap();
    assert_eq!(saved.data, config.data);

    let error = set(&[vision]);
    assert!(
        error.contains("must have a source with pictures, because the model sees them"),
        "{error}"
    );
    let error = set(&[vision, emoji, "data.pictures.shift=17"]);
    assert!(
        error.contains("must be at most model.vision.tile_size = 16"),
        "{error}"
    );
    let error = set(&[vision, emoji, "data.pictures.withheld=1.5"]);
    assert!(error.contains("must be between 0 and 1"), "{error}");
    let error = set(&[vision, emoji, "train.frozen=text"]);
    assert!(
        error.contains("must not be \"text\" without train.init"),
        "{error}"
    );
    let error = set(&[
        vision,
        emoji,
        "model.vision.max_tiles=2",
        "model.vision.aspect_ratios=[[1, 2]]",
    ]);
    assert!(
        error.contains("must be all rows and columns of at most 2 tiles"),
        "{error}"
    );
    for (key, value) in [
        ("data.pictures.shift", "1"),
        ("data.pictures.withheld", "0.5"),
        ("train.frozen", "text"),
        ("train.frozen", "nothing"),
        ("optimizer.gate_rate", "2.0"),
    ] {
        let error = set(&[&format!("{key}={value}")]);
        assert!(
            error.contains(key) && error.contains("has no effect without [model.vision]"),
            "{error}"
        );
    }
}

#[test]
fn fields_are_accepted_of_a_checkpoint_alone() {
    insta::assert_snapshot!(set(&["train.accept=['lab_notes']"]), @r#"
    run.toml: train.accept = ["lab_notes"] (from --set) has no effect without train.init
    hint: remove it; random weights have no config.json
    "#);
}

#[test]
fn special_tokens_are_ordinary_text_unless_the_data_says_otherwise() {
    let special = |set: &[&str]| read(SMALL, set).unwrap().data.special_tokens;
    assert!(!special(&[]) && !special(&["data.special_tokens=false"]));
    assert!(special(&["data.special_tokens=true"]));
    insta::assert_snapshot!(set(&["data.special_tokens=1"]), @"run.toml: data.special_tokens = 1 (from --set) must be true or false");
}

#[test]
fn set_arguments_that_cannot_be_applied_are_refused() {
    insta::assert_snapshot!(set(&["train.steps"]), @r"
    --set train.steps: `=` is missing
    hint: write it as dotted.path=value, such as train.steps=200
    ");
    insta::assert_snapshot!(set(&["train..steps=4"]), @r"
    --set train..steps=4: `train..steps` is not a dotted path
    hint: write it as dotted.path=value, such as train.steps=200
    ");
    insta::assert_snapshot!(set(&["train.steps.first=4"]), @r"
    --set train.steps.first=4: train.steps is neither a table nor a list
    hint: set train.steps itself: train.steps=VALUE
    ");
    insta::assert_snapshot!(set(&["data.source.1.name=x"]), @r"
    --set data.source.1.name=x: data.source has 1 item; `1` is not a valid index
    hint: the only valid index is 0
    ");
    insta::assert_snapshot!(set(&["data.source.0.files=[a.txt]"]), @r#"
    --set data.source.0.files=[a.txt]: `[a.txt]` is not valid TOML: string values must be quoted, expected literal string
    hint: a value is TOML, such as 3, 0.5, true, ["a", "b"] or "text"; inside a shell, put single quotes around the whole argument
    "#);
}

#[test]
fn a_file_that_is_not_a_configuration_is_refused() {
    insta::assert_snapshot!(message(read("[model]\nlayers = 4\n\nNot a TOML file.\n", &[])), @"run.toml:4: not valid TOML: key with no value, expected `=`");
    insta::assert_snapshot!(message(load(Path::new("missing.toml"), &[])), @r"
    cannot read missing.toml: No such file or directory (os error 2)
    hint: the configs folder of the repository contains examples, such as configs/quickstart.toml
    ");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("binary.toml");
    std::fs::write(&path, [0xff, 0x00, 0xfe]).unwrap();
    let text = message(load(&path, &[])).replace(&path.display().to_string(), "binary.toml");
    insta::assert_snapshot!(text, @"cannot read binary.toml: stream did not contain valid UTF-8");
}

proptest! {
    #[test]
    fn a_ramp_never_shrinks_and_ends_at_its_end(
        start in 1_u64..10_000, growth in 1_u64..10_000, ramp_steps in 1_u64..50, context in 1_usize..600,
    ) {
        let ramp = BatchRamp { start, end: start + growth, ramp_steps };
        let batches: Vec<u64> = (0..ramp_steps + 3).map(|step| ramp.sequences_at(step, context)).collect();
        prop_assert!(batches.is_sorted() && batches[0] >= 1);
        let last = batches[ramp_steps as usize] * context as u64;
        prop_assert!(last.abs_diff(ramp.end) <= context as u64 / 2 || last == context as u64);
        let total: u64 = batches.iter().sum::<u64>() * context as u64;
        prop_assert_eq!(ramp.total_tokens(ramp_steps + 3, context), total as u128);
    }

    #[test]
    fn no_argument_panics(path in "[a-z0-9._]{0,24}", value in ".{0,12}") {
        // Any argument gives an error or a configuration.
        if let Err(error) = read(SMALL, &[&format!("{path}={value}")]) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
