//! GGUF files: every architecture comes back bit by bit, and what llama.cpp would compute otherwise is refused.

use std::fs;
use std::path::Path;

use firebox_checkpoint::{
    Accept, BlockType, CheckpointError, GgufOptions, GgufValue, Notes, TensorStore, gguf_metadata,
    gguf_types, load, load_shard, read_config, save_gguf,
};
use firebox_kernels::Weight;
use firebox_kernels::dtype::{WeightDtype, WeightFormat};
use firebox_model::config::{
    AttentionBias, AttentionKind, ExpertActivation, LatentConfig, LayerConfig, ModelConfig,
    Multipliers, QkNorm, RopeScaling, Scores,
};
use firebox_model::feed_forward::FeedForward;
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::{RankLayout, Shard};
use firebox_model::testing::{moe, tiny};
use firebox_runtime::device;
use firebox_tests::models::bits;
use firebox_tests::{binaries, fixtures};
use tempfile::TempDir;

/// Rows of whole blocks of Q8_0.
fn wide() -> ModelConfig {
    let mut config = ModelConfig {
        d_model: 32,
        head_dim: 8,
        rotary_dim: 8,
        ..tiny()
    };
    moe(&mut config).experts.d_ff = 64;
    config
}

fn dense() -> ModelConfig {
    ModelConfig {
        layers: vec![LayerConfig::dense(64); 2],
        moe: None,
        ..wide()
    }
}

/// DeepSeek-V3's mixture behind a dense layer.
fn sigmoid() -> ModelConfig {
    let mut config = ModelConfig {
        layers: vec![LayerConfig::dense(96), LayerConfig::MOE, LayerConfig::MOE],
        qk_norm: QkNorm::Head,
        ..wide()
    };
    let mixture = moe(&mut config);
    mixture.experts.shared_d_ff = 128;
    mixture.router.scores = Scores::Sigmoid;
    (mixture.router.scaling, mixture.router.normalize) = (2.5, true);
    (mixture.router.groups, mixture.router.top_groups) = (4, 2);
    config
}

/// The same with latent attention; 40 values of a query, of which 8 are rotated.
fn latent(query_rank: Option<usize>) -> ModelConfig {
    ModelConfig {
        qk_norm: QkNorm::None,
        kv_heads: 4,
        head_dim: 40,
        rotary_dim: 8,
        norm_epsilon: LatentConfig::NORM_EPSILON,
        latent: Some(LatentConfig {
            rank: 32,
            query_rank,
            value_dim: 24,
            interleaved: true,
        }),
        ..sigmoid()
    }
}

/// YaRN that leaves queries and keys as long as they are, and lengthens scores.
fn latent_yarn(mscale_all_dim: f64) -> RopeScaling {
    RopeScaling::Yarn {
        factor: 4.0,
        original_context: 16,
        beta_fast: 20.0,
        beta_slow: 1.5,
        attention_factor: Some(1.0),
        truncate: true,
        mscale_all_dim,
    }
}

/// A model for each architecture, by its name, and some that need more than their architecture's usual keys.
fn architectures() -> Vec<(&'static str, ModelConfig)> {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 16,
    };
    let yarn = |attention_factor| RopeScaling::Yarn {
        factor: 4.0,
        original_context: 16,
        beta_fast: 20.0,
        beta_slow: 1.5,
        attention_factor,
        truncate: true,
        mscale_all_dim: 0.0,
    };
    let with = |config: ModelConfig, change: &dyn Fn(&mut ModelConfig)| {
        let mut config = config;
        change(&mut config);
        config
    };
    vec![
        ("llama", wide()),
        ("llama", with(wide(), &|c| c.tied_embeddings = true)),
        (
            "llama",
            with(dense(), &|c| c.attention_bias = AttentionBias::All),
        ),
        ("llama", with(dense(), &|c| c.rope_scaling = Some(llama3))),
        (
            "llama",
            with(dense(), &|c| {
                c.rope_scaling = Some(RopeScaling::Linear { factor: 3.5 })
            }),
        ),
        (
            "qwen2",
            with(dense(), &|c| c.attention_bias = AttentionBias::Qkv),
        ),
        (
            "qwen3",
            with(dense(), &|c| {
                (c.qk_norm, c.tied_embeddings) = (QkNorm::Head, true);
                (c.head_dim, c.rotary_dim) = (16, 16);
                c.rope_scaling = Some(yarn(Some(1.25)));
            }),
        ),
        (
            "qwen3moe",
            with(wide(), &|c| {
                c.qk_norm = QkNorm::Head;
                c.rope_scaling = Some(yarn(None));
            }),
        ),
        (
            "qwen2moe",
            with(wide(), &|c| {
                c.attention_bias = AttentionBias::Qkv;
                c.tied_embeddings = true;
                moe(c).router.normalize = false;
                (moe(c).experts.shared_d_ff, moe(c).experts.shared_gate) = (96, true);
            }),
        ),
        (
            "olmoe",
            with(wide(), &|c| {
                (c.qk_norm, c.kv_heads) = (QkNorm::Projection, 4);
                moe(c).router.normalize = false;
            }),
        ),
        (
            "smollm3",
            with(dense(), &|c| {
                c.layers = vec![LayerConfig::dense(64); 5];
                c.layers[3].attention = AttentionKind::Nope;
            }),
        ),
        (
            "granitemoe",
            with(wide(), &|c| {
                c.multipliers = Multipliers {
                    embedding: 12.0,
                    residual: 0.22,
                    attention: Some(0.125),
                    logits_divisor: 6.0,
                };
            }),
        ),
        ("dots1", with(sigmoid(), &|c| c.kv_heads = 4)),
        (
            "glm4moe",
            with(sigmoid(), &|c| {
                (c.rotary_dim, c.attention_bias) = (4, AttentionBias::Qkv);
            }),
        ),
        ("deepseek2", latent(Some(64))),
        (
            "deepseek2",
            with(latent(None), &|c| {
                c.tied_embeddings = true;
                c.rope_scaling = Some(latent_yarn(0.7));
            }),
        ),
        (
            "deepseek2",
            with(latent(Some(32)), &|c| {
                c.rope_scaling = Some(latent_yarn(0.0))
            }),
        ),
        (
            "gpt-oss",
            with(wide(), &|c| {
                (c.sinks, c.attention_bias) = (true, AttentionBias::All);
                c.layers = vec![LayerConfig::MOE; 4];
                c.layers[0].attention = AttentionKind::Window(5);
                c.layers[2].attention = AttentionKind::Window(5);
                moe(c).experts.activation = ExpertActivation::ClampedSwiglu {
                    alpha: 1.702,
                    limit: 7.0,
                };
                (moe(c).experts.biases, moe(c).router.logit_bias) = (true, true);
            }),
        ),
        (
            "gpt-oss",
            with(wide(), &|c| {
                (c.sinks, c.attention_bias) = (true, AttentionBias::All);
                c.layers[1].attention = AttentionKind::Window(5);
                moe(c).experts.activation = ExpertActivation::ClampedSwiglu {
                    alpha: 1.702,
                    limit: 7.0,
                };
                (moe(c).experts.biases, moe(c).router.logit_bias) = (true, true);
            }),
        ),
    ]
}

fn model(config: &ModelConfig) -> LanguageModel {
    let device = device::select("flex").expect("flex");
    let mut model = LanguageModel::random(config, 7, &device);
    let mixture = config.moe.as_ref();
    if mixture.is_some_and(|mixture| mixture.router.scores == Scores::Sigmoid) {
        let biases = config.moe_layers().map(|layer| {
            let experts = mixture.map_or(0, |mixture| mixture.experts.count);
            (0..experts)
                .map(|expert| (layer * 7 + expert) as f32 / 16.0 - 0.4)
                .collect()
        });
        model.set_router_bias(&biases.collect::<Vec<Vec<f32>>>());
    }
    model
}

fn options(kind: BlockType) -> GgufOptions {
    let mut notes = Notes::of_tokens(&[3, 5], Some(1));
    notes.set_document_mask(true);
    let id = |key: &str, id| {
        (
            format!("tokenizer.ggml.{key}_token_id"),
            GgufValue::size(id),
        )
    };
    GgufOptions {
        kind,
        notes,
        metadata: vec![id("eos", 3), id("eot", 5), id("bos", 1)],
    }
}

fn open(path: &Path) -> Result<firebox_checkpoint::Checkpoint, CheckpointError> {
    let device = device::select("flex").expect("flex");
    load(path, Accept::Nothing, &device, WeightDtype::F32)
}

/// A configuration without what acts in training alone.
fn computed(config: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    config.initializer_range = 0.02;
    if let Some(mixture) = &mut config.moe {
        let router = &mut mixture.router;
        router.balance = firebox_model::config::BalanceKind::Pooled;
        (router.balance_coefficient, router.z_coefficient) = (0.0, 0.0);
    }
    config
}

#[test]
fn every_architecture_comes_back_bit_by_bit() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    for (number, (name, config)) in architectures().into_iter().enumerate() {
        let what = format!("{number}: {name}");
        config
            .validate()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let model = model(&config);
        let kind = BlockType::Plain(WeightDtype::F32);
        save_gguf(&model, &path, &options(kind), |_, _| ())
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let metadata = gguf_metadata(&path).unwrap();
        assert_eq!(
            metadata["general.architecture"].as_text(),
            Some(name),
            "{what}"
        );
        let read = open(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
        let (mut expected, mut found) = (computed(&config), computed(read.model.config()));
        let (mut theirs, ours) = (bits(&read.model), bits(&model));
        if config.tied_embeddings && !found.tied_embeddings {
            // llama.cpp wants a head, which is a second embedding.
            assert_eq!(
                theirs.remove("head").map(|head| head.len()),
                Some(37 * 32),
                "{what}"
            );
            (expected.tied_embeddings, found.tied_embeddings) = (false, false);
        }
        assert_eq!(expected, found, "{what}");
        assert!(
            theirs == ours,
            "{what}: {:?} {:?}",
            theirs.keys(),
            ours.keys()
        );
        assert_eq!(read.model.router_bias(), model.router_bias(), "{what}");
        assert_eq!(read.eos_ids, [3, 5], "{what}");
        assert!(read.notes.document_mask(), "{what}");
        let text = read_config(&path, Accept::Nothing).unwrap();
        assert_eq!(text.bos_id, Some(1), "{what}");
    }
}

#[test]
fn what_was_read_is_written_again_byte_by_byte() {
    let folder = TempDir::new().unwrap();
    let files = ["first.gguf", "second.gguf", "third.gguf"];
    let [first, second, third] = files.map(|name| folder.path().join(name));
    for (name, config) in architectures() {
        for kind in BlockType::ALL {
            let model = model(&config);
            let unfit = save_gguf(&model, &first, &options(kind), |_, _| ()).unwrap();
            assert_eq!(unfit, 0, "{name} in {kind}");
            let read = open(&first).unwrap_or_else(|error| panic!("{name} in {kind}: {error}"));
            save_gguf(&read.model, &second, &options(kind), |_, _| ()).unwrap();
            // A head that a tied model got for llama.cpp is a parameter of its own from then on.
            let mut same = [&first, &second];
            if config.tied_embeddings && !read.model.config().tied_embeddings {
                let read = open(&second).unwrap();
                save_gguf(&read.model, &third, &options(kind), |_, _| ()).unwrap();
                same = [&second, &third];
            }
            let [written, again] = same.map(|path| fs::read(path).unwrap());
            assert!(written == again, "{name} in {kind}");
        }
    }
}

#[test]
fn a_rank_reads_its_part() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let device = device::select("flex").expect("flex");
    let plain = folder.path().join("plain");
    fs::create_dir(&plain).unwrap();
    let f32 = BlockType::Plain(WeightDtype::F32);
    for (config, kind) in [
        (wide(), f32),
        (wide(), BlockType::Q8),
        (latent(Some(64)), f32),
        (latent(None), BlockType::Q8),
    ] {
        let model = model(&config);
        save_gguf(&model, &path, &options(kind), |_, _| ()).unwrap();
        let whole = open(&path).unwrap();
        let saved = firebox_checkpoint::SaveOptions::default();
        firebox_checkpoint::save(&whole.model, &plain, &saved, |_| ()).unwrap();
        let layout = RankLayout {
            pipeline: 2,
            tensor: 2,
            expert: 1,
        };
        for rank in 0..4 {
            let part = |place: &Path| {
                let config = read_config(place, Accept::Nothing).unwrap();
                let shard = Shard::new(&config.model, layout, rank).unwrap();
                bits(&load_shard(place, &config, &device, WeightDtype::F32, &shard).unwrap())
            };
            assert!(part(&path) == part(&plain), "rank {rank} in {kind}");
        }
    }
}

/// The sentence in which an export ends after a change of a configuration.
fn refusal(config: &ModelConfig, change: impl FnOnce(&mut ModelConfig)) -> String {
    let mut config = config.clone();
    change(&mut config);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let kind = BlockType::Plain(WeightDtype::F32);
    let error = save_gguf(&model(&config), &path, &options(kind), |_, _| ()).unwrap_err();
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    error.to_string()
}

#[test]
fn what_llama_cpp_computes_otherwise_is_refused() {
    let of = |name: &str| {
        let mut all = architectures().into_iter();
        all.find(|(known, _)| *known == name).unwrap().1
    };
    let window = |config: &mut ModelConfig| {
        let layers = config.layers.iter_mut();
        layers.for_each(|layer| layer.attention = AttentionKind::Window(4));
    };
    for (words, found) in [
        (
            "qwen3moe divides the weights of a token's experts by their sum, and this model does not",
            refusal(&of("qwen3moe"), |c| moe(c).router.normalize = false),
        ),
        (
            "olmoe does not divide the weights of a token's experts by their sum, and this model does",
            refusal(&of("olmoe"), |c| moe(c).router.normalize = true),
        ),
        (
            "olmoe has as many key/value heads as query heads",
            refusal(&of("olmoe"), |c| c.kv_heads = 2),
        ),
        (
            "llama attends to all positions, and layer 0 of this model to a window of 4",
            refusal(&of("llama"), window),
        ),
        (
            "qwen3moe has experts in every layer, and this model has dense layers",
            refusal(&of("qwen3moe"), |c| c.layers[1] = LayerConfig::dense(64)),
        ),
        (
            "qwen3 has no bias of attention's output",
            refusal(&of("qwen3"), |c| c.attention_bias = AttentionBias::All),
        ),
        (
            "qwen2 has heads that are 32 wide together",
            refusal(&of("qwen2"), |c| (c.head_dim, c.rotary_dim) = (16, 16)),
        ),
        (
            "smollm3 has rotary positions in layer 2, and this model has none there",
            refusal(&of("smollm3"), |c| {
                c.layers[2].attention = AttentionKind::Nope
            }),
        ),
        (
            "smollm3 has no rotary positions in every fourth layer, and layer 3 of this model has",
            refusal(&of("smollm3"), |c| {
                c.layers[3].attention = AttentionKind::Full;
                c.layers[4].attention = AttentionKind::Nope;
            }),
        ),
        (
            "gpt-oss clamps activations at 7",
            refusal(&of("gpt-oss"), |c| {
                moe(c).experts.activation = ExpertActivation::ClampedSwiglu {
                    alpha: 1.702,
                    limit: 5.0,
                };
            }),
        ),
        (
            "gpt-oss rounds the places between which YaRN mixes frequencies",
            refusal(&of("gpt-oss"), |c| {
                c.rope_scaling = Some(RopeScaling::Yarn {
                    factor: 4.0,
                    original_context: 16,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    attention_factor: None,
                    truncate: false,
                    mscale_all_dim: 0.0,
                });
            }),
        ),
        (
            "qwen2 does not scale rotary positions as Llama 3 does",
            refusal(&of("qwen2"), |c| {
                c.rope_scaling = Some(RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_context: 16,
                });
            }),
        ),
        (
            "deepseek2 turns neighbours by positions",
            refusal(&latent(None), |c| {
                c.latent.as_mut().unwrap().interleaved = false;
            }),
        ),
        (
            "deepseek2 adds rms_norm_eps in the norms of latents too, and this model 0.000001 there and 0.00001 elsewhere",
            refusal(&latent(None), |c| c.norm_epsilon = 1e-5),
        ),
        (
            "deepseek2 scales all scores where YaRN lengthens rotated queries and keys",
            refusal(&latent(None), |c| {
                c.rope_scaling = Some(RopeScaling::Yarn {
                    factor: 4.0,
                    original_context: 16,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    attention_factor: None,
                    truncate: true,
                    mscale_all_dim: 1.0,
                });
            }),
        ),
        (
            "deepseek2 scales all scores where positions are scaled without YaRN",
            refusal(&latent(None), |c| {
                c.rope_scaling = Some(RopeScaling::Linear { factor: 2.0 })
            }),
        ),
        (
            "deepseek2 takes a model of 27 layers for one whose queries have no latent",
            refusal(&latent(Some(64)), |c| c.layers = vec![LayerConfig::MOE; 27]),
        ),
        (
            "deepseek2 has no bias of attention's output",
            refusal(&latent(None), |c| c.attention_bias = AttentionBias::All),
        ),
        (
            "no architecture of llama.cpp that computes models of the type firebox",
            refusal(&of("llama"), |c| moe(c).router.scores = Scores::Sigmoid),
        ),
    ] {
        assert!(found.contains(words), "{found}");
    }
}

#[test]
fn a_value_that_is_refused_is_named_by_its_key() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    for (config, key, value, words) in [
        (
            wide(),
            "llama.expert_used_count",
            9,
            "llama.expert_used_count = 9: must lie between 1 and llama.expert_count = ",
        ),
        (
            latent(None),
            "deepseek2.attention.value_length_mla",
            0,
            "deepseek2.attention.value_length_mla = 0: must lie between 1 and ",
        ),
        (
            latent(None),
            "deepseek2.expert_gating_func",
            1,
            "deepseek2.expert_gating_func must be 2, the sigmoid of each logit",
        ),
        (
            latent(None),
            "deepseek2.attention.head_count_kv",
            4,
            "deepseek2.attention.head_count_kv must be 1: all heads share one latent",
        ),
    ] {
        let kind = BlockType::Plain(WeightDtype::F32);
        save_gguf(&model(&config), &path, &options(kind), |_, _| ()).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let place = bytes
            .windows(key.len())
            .position(|part| part == key.as_bytes());
        // Behind the key: the type of its value, and the value.
        let place = place.unwrap() + key.len() + 4;
        bytes[place] = value;
        fs::write(&path, &bytes).unwrap();
        let error = open(&path).map(drop).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn unknown_keys_and_types_are_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let write = |metadata: Vec<(String, GgufValue)>| {
        let mut options = options(BlockType::Plain(WeightDtype::F32));
        options.metadata.extend(metadata);
        save_gguf(&model(&wide()), &path, &options, |_, _| ()).unwrap();
    };
    let with = |key: &str, value: GgufValue| {
        write(vec![(key.to_owned(), value)]);
        open(&path).map(drop).unwrap_err().to_string()
    };
    for (words, found) in [
        (
            "llama.attention.sliding_window = 4: mixtral has no such field",
            with("llama.attention.sliding_window", GgufValue::size(4)),
        ),
        (
            "it is one of 3 parts of a model",
            with("split.count", GgufValue::size(3)),
        ),
        (
            "the key llama.block_count occurs twice",
            with("llama.block_count", GgufValue::size(2)),
        ),
        (
            "general.alignment = 48: must be a power of two",
            with("general.alignment", GgufValue::size(48)),
        ),
    ] {
        assert!(found.contains(words), "{found}");
    }
    // What is known to say nothing of the computation can be accepted.
    let device = device::select("flex").expect("flex");
    write(vec![("llama.note".to_owned(), GgufValue::text("mine"))]);
    let accept = ["llama.note".to_owned()];
    load(&path, Accept::Flag(&accept), &device, WeightDtype::F32).unwrap();

    write(Vec::new());
    let mut bytes = fs::read(&path).unwrap();
    let name = b"blk.1.ffn_up_exps.weight";
    let place = bytes
        .windows(name.len())
        .position(|part| part == name)
        .unwrap();
    // Behind the name: the number of dimensions, three of them, and the type.
    bytes[place + name.len() + 4 + 3 * 8] = 12;
    fs::write(&path, &bytes).unwrap();
    let error = open(&path).map(drop).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{}: tensor blk.1.ffn_up_exps.weight has type Q4_K; of GGUF files Firebox reads F32, F16, BF16 and Q8_0",
            path.display()
        )
    );
}

/// What a command prints.
fn infer(arguments: &[&str]) -> String {
    let output = binaries::infer(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A small checkpoint that was trained on the fixtures' corpus, documents by themselves, and a text that it can be evaluated on.
fn trained(folder: &Path) -> (String, String) {
    let config = folder.join("run.toml");
    let path = |path: &Path| path.to_str().unwrap().replace('\\', "/");
    let corpus = path(&fixtures::folder("corpus"));
    let text = format!(
        "[model]\nlayers = 2\nd_model = 32\nheads = 4\ncontext_length = 64\n\
         [model.experts]\ncount = 4\ntop_k = 2\nd_ff = 64\n\
         [tokenizer]\nkind = \"bpe\"\nvocab_size = 400\n\
         [data]\ncache = '{}'\ndocument_mask = true\n[data.validation]\nfraction = 0.2\n\
         [[data.source]]\nname = \"plays\"\nfiles = ['{corpus}/plays/*.txt']\n\
         [[data.source]]\nname = \"notes\"\njsonl = ['{corpus}/notes.jsonl']\nfield = \"text\"\n\
         [train]\nsteps = 3\n[optimizer]\nlearning_rate = 1e-2\n[schedule]\nwarmup_steps = 1\nbatch_tokens = 256\n",
        path(&folder.join("cache"))
    );
    fs::write(&config, text).unwrap();
    let out = folder.join("run");
    let [config, out] = [&config, &out].map(|path| path.to_str().unwrap().to_owned());
    let run = binaries::train(&["run", &config, "--out", &out])
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    (out, format!("{corpus}/notes.jsonl"))
}

#[test]
fn the_commands_read_what_export_writes() {
    let folder = TempDir::new().unwrap();
    let (run, text) = trained(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (file, again) = (path("model.gguf"), path("again"));
    infer(&["export", &run, "--gguf", &file]);
    let eval = |place: &str| -> serde_json::Value {
        let json = infer(&["eval", place, "--data", &text, "--json"]);
        let mut report: serde_json::Value = serde_json::from_str(&json).unwrap();
        let fields = report.as_object_mut().unwrap();
        fields.retain(|key, _| {
            !["checkpoint", "seconds", "tokens_per_second"].contains(&key.as_str())
        });
        report
    };
    let of_run = eval(&run);
    assert_eq!(of_run, eval(&file));
    let generate = |place: &str| {
        infer(&[
            "generate",
            place,
            "--prompt",
            "fn gr",
            "--max-tokens",
            "20",
            "--temperature",
            "0",
        ])
    };
    assert_eq!(generate(&run), generate(&file));
    infer(&[
        "compare",
        &file,
        "--devices",
        "flex",
        "--layouts",
        "1x1,2x1",
    ]);
    infer(&["export", &file, "--output", &again]);
    assert_eq!(of_run, eval(&again));

    // A file keeps its type, unless another one is asked for.
    let (q8, kept) = (path("q8.gguf"), path("kept.gguf"));
    infer(&["export", &run, "--gguf", &q8, "--dtype", "q8_0"]);
    infer(&["export", &q8, "--gguf", &kept]);
    assert_eq!(gguf_types(Path::new(&kept)).unwrap(), [BlockType::Q8]);
    assert_eq!(eval(&q8), eval(&kept));
    // Its blocks are what 8 bits are in memory.
    let held = |format: WeightFormat| {
        let device = device::select(device::default_name()).unwrap();
        let opened = load(Path::new(&q8), Accept::Nothing, &device, format).unwrap();
        let block = opened.model.blocks[1].text().unwrap();
        let FeedForward::Moe(mixture) = &block.feed_forward else {
            panic!("a mixture")
        };
        let numbers = |weight: Weight<3>| weight.dequantized().into_data().iter().collect();
        let stacks = [&mixture.experts.gate, &mixture.experts.down];
        stacks.map(|stack| -> Vec<f32> { numbers(stack.weight()) })
    };
    assert_eq!(held(WeightFormat::Int8), held(WeightDtype::F32.into()));
    let likelihood = |dtype: &str| -> f64 {
        let arguments = ["eval", &q8, "--data", &text, "--dtype", dtype, "--json"];
        let report: serde_json::Value = serde_json::from_str(&infer(&arguments)).unwrap();
        report["nats_per_token"].as_f64().unwrap()
    };
    let (wide, narrow) = (likelihood("f32"), likelihood("int8"));
    assert!(
        (wide - narrow).abs() < 1e-3 && wide != narrow,
        "{wide}, {narrow}"
    );
    infer(&["export", &q8, "--gguf", &kept, "--type", "f16"]);
    let f16 = BlockType::Plain(WeightDtype::F16);
    assert_eq!(gguf_types(Path::new(&kept)).unwrap(), [f16]);
    let folder_in_blocks = [
        "export",
        &run,
        "--output",
        &path("blocks"),
        "--dtype",
        "q8_0",
    ];
    let output = binaries::infer(&folder_in_blocks).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("--dtype q8_0: a folder has weights in f32, bf16 or f16"),
        "{errors}"
    );

    // Where a folder is needed, the sentence says how to make one.
    let shard = ["shard", &file, "--tensor", "2", "--output", &path("ranks")];
    let output = binaries::infer(&shard).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("cargo infer export") && errors.contains("--output FOLDER"),
        "{errors}"
    );
    let both = binaries::infer(&["export", &run, "--gguf", &file, "--output", &again])
        .output()
        .unwrap();
    assert_eq!(both.status.code(), Some(2));
}

#[test]
fn fixtures_of_transformers_are_exported_or_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let mut exported = Vec::new();
    for (case, place) in fixtures::cases() {
        let read = open(&place).unwrap();
        let kind = BlockType::Plain(read.dtype.unwrap_or_default());
        match save_gguf(&read.model, &path, &options(kind), |_, _| ()) {
            Err(CheckpointError::GgufExport { reason }) => {
                assert!(reason.contains("llama.cpp"), "{reason}")
            }
            Err(error) => panic!("{case}: {error}"),
            Ok(_) => {
                let again = open(&path).unwrap();
                assert!(bits(&again.model) == bits(&read.model), "{case}");
                let store = TensorStore::open(&path).unwrap();
                assert!(store.tensors().count() > 5, "{case}");
                exported.push(case);
            }
        }
    }
    assert_eq!(
        exported,
        [
            "glm4-moe",
            "granite-moe",
            "llama-f16",
            "llama3-rope",
            "mixtral-long",
            "mixtral-mqa",
            "mixtral-tied-fused",
            "olmoe-bf16-shards",
            "qwen3",
            "qwen3-yarn",
        ]
    );
}
