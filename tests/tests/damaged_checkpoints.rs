//! Whatever is wrong with a checkpoint's files is said in a sentence.

use std::fs;
use std::path::{Path, PathBuf};

use firebox_checkpoint::{
    Accept, CheckpointError, INDEX_FILE, MODEL_FILE, NamedTensor, TensorStore, write_tensors,
};
use firebox_console::terminal::sentence;
use firebox_kernels::dtype::WeightDtype;
use firebox_runtime::device;
use firebox_tests::fixtures;
use firebox_tests::models::bits;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

fn load(folder: &Path) -> Result<firebox_checkpoint::Checkpoint, CheckpointError> {
    firebox_checkpoint::load(
        folder,
        Accept::Nothing,
        &device::select("flex").expect("flex"),
        WeightDtype::F32,
    )
}

/// A copy of a fixture's checkpoint.
fn copy(case: &str) -> TempDir {
    let copy = TempDir::new().unwrap();
    for (name, content) in fixtures::files(&fixtures::folder(case)) {
        if name != "expected.safetensors" {
            fs::write(copy.path().join(name), content).unwrap();
        }
    }
    copy
}

/// The sentence that a copy of a fixture ends in after it was changed.
fn error(case: &str, change: impl FnOnce(&Path)) -> String {
    let copy = copy(case);
    change(copy.path());
    let error = load(copy.path())
        .map(|_| ())
        .expect_err("a checkpoint that should be refused");
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 2000, "{text}");
    text
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

/// Writes the checkpoint's tensors anew, each as the function says, or not at all.
fn rewrite(
    folder: &Path,
    change: impl Fn(&str, Vec<usize>, Vec<f32>) -> Option<(String, Vec<usize>, Vec<f32>)>,
) {
    let path = folder.join(MODEL_FILE);
    let store = TensorStore::open(folder).unwrap();
    let tensors: Vec<NamedTensor<'_>> = store
        .tensors()
        .filter_map(|(name, info)| {
            let values = store.read(name).unwrap();
            change(name, info.shape.clone(), values)
        })
        .map(|(name, shape, values)| NamedTensor::float(name, shape, move || values.clone()))
        .collect();
    let new = folder.join("new");
    write_tensors(&new, &tensors, WeightDtype::F32).unwrap();
    fs::rename(new, path).unwrap();
}

const GATE: &str = "model.layers.1.block_sparse_moe.gate.weight";
const EXPERT: &str = "model.layers.0.block_sparse_moe.experts.3.w2.weight";

#[test]
fn names_and_shapes_of_both_sides_are_listed() {
    let text = error("mixtral-mqa", |folder| {
        rewrite(folder, |name, shape, values| match name {
            GATE => Some((format!("{name}_old"), shape, values)),
            EXPERT => None,
            "model.norm.weight" => Some((name.to_owned(), vec![4, 8], values)),
            _ => Some((name.to_owned(), shape, values)),
        });
    });
    assert_says(
        &text,
        &[
            "2 missing",
            &format!("{GATE} [8, 32]"),
            &format!("{EXPERT} [32, 24]"),
            "1 with another shape (model.norm.weight [4, 8], expected [32])",
            &format!("1 not part of the model ({GATE}_old [8, 32])"),
        ],
    );
    // A tensor under the other spelling's name does not replace it.
    let text = error("mixtral-tied-fused", |folder| {
        rewrite(folder, |name, shape, values| {
            let half = name.ends_with("layers.0.mlp.experts.down_proj");
            let name = if half {
                "model.layers.0.mlp.experts.up_proj"
            } else {
                name
            };
            Some((name.to_owned(), shape, values))
        });
    });
    assert_says(
        &text,
        &[
            "1 missing",
            "experts.0.w2.weight",
            "experts.up_proj [4, 32, ",
        ],
    );
    let text = error("mixtral-mqa", |folder| {
        edit_config(folder, "num_local_experts", json!(9))
    });
    assert_says(&text, &["missing", "experts.8.w1.weight", "[9, 32]"]);
    let text = error("mixtral-tied-fused", |folder| {
        edit_config(folder, "num_local_experts", json!(5))
    });
    assert_says(
        &text,
        &["with another shape", "down_proj [4, ", "expected [5, "],
    );
    let text = error("mixtral-mqa", |folder| {
        edit_config(folder, "num_hidden_layers", json!(1))
    });
    assert_says(
        &text,
        &["not part of the model", "model.layers.1.", "more)"],
    );
}

fn edit_config(folder: &Path, key: &str, value: Value) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_selection_bias_of_some_routers_alone_is_refused() {
    let name = "model.layers.1.mlp.gate.e_score_correction_bias";
    let text = error("dots1", |folder| {
        rewrite(folder, |found, shape, values| {
            (found != name).then(|| (found.to_owned(), shape, values))
        });
    });
    assert_says(&text, &[name, "missing"]);
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let text = error("mixtral-mqa", |folder| {
            rewrite(folder, |name, shape, mut values| {
                if name == EXPERT {
                    values[17] = value;
                }
                Some((name.to_owned(), shape, values))
            });
        });
        assert_says(&text, &[EXPERT, "not finite"]);
    }
}

#[test]
fn packed_experts_have_both_of_their_tensors() {
    // Names of the same length, so that the header stays as long as it is.
    let renamed = |from: &str, to: &str| {
        error("gpt-oss-mxfp4", |folder| {
            let path = folder.join(MODEL_FILE);
            let mut bytes = fs::read(&path).unwrap();
            let place = bytes
                .windows(from.len())
                .position(|part| part == from.as_bytes());
            bytes[place.unwrap()..][..to.len()].copy_from_slice(to.as_bytes());
            fs::write(path, bytes).unwrap();
        })
    };
    let lone = renamed(
        "layers.1.mlp.experts.down_proj_scales",
        "layers.1.mlp.experts.down_proj_scaled",
    );
    assert_says(&lone, &["layers.1.mlp.experts.down_proj_", "U8"]);
    // The largest exponent is not a number.
    let text = error("gpt-oss-mxfp4", |folder| {
        let path = folder.join(MODEL_FILE);
        let mut bytes = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let name = "model.layers.1.mlp.experts.gate_up_proj_scales";
        let start = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[8 + length + start + 5] = 255;
        fs::write(path, bytes).unwrap();
    });
    assert_says(&text, &["layers.1.mlp.experts.gate_up_proj_scales"]);
}

#[test]
fn a_head_that_is_not_tied_after_all_is_refused() {
    let text = error("qwen3", |folder| {
        rewrite(folder, |name, shape, mut values| {
            if name == "lm_head.weight" {
                values[100] += 1.0;
            }
            Some((name.to_owned(), shape, values))
        });
    });
    assert_says(&text, &["tie_word_embeddings = true", "lm_head.weight"]);
}

/// A safetensors file with this header and as many zero bytes.
fn raw(header: &str, bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(vec![0; bytes]);
    file
}

#[test]
fn hostile_headers_are_refused() {
    let entry = |dtype: &str, shape: &str, start: u64, end: u64| {
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}")
    };
    let one = entry("F32", "[2]", 0, 8);
    let files: [(&str, Vec<u8>); 13] = [
        ("empty", Vec::new()),
        ("shorter than a length", vec![1, 2, 3]),
        (
            "of absurd length",
            [u64::MAX.to_le_bytes().to_vec(), vec![b'{'; 64]].concat(),
        ),
        (
            "longer than the file",
            [1_000_000u64.to_le_bytes().to_vec(), vec![b'{'; 64]].concat(),
        ),
        ("no JSON", raw("{]", 0)),
        ("no object", raw("[1, 2]", 0)),
        (
            "no UTF-8",
            [2u64.to_le_bytes().to_vec(), vec![0xff, 0xfe]].concat(),
        ),
        (
            "overlapping",
            raw(
                &format!("{{\"a\":{one},\"b\":{}}}", entry("F32", "[2]", 4, 12)),
                12,
            ),
        ),
        (
            "with a gap",
            raw(
                &format!("{{\"a\":{one},\"b\":{}}}", entry("F32", "[2]", 12, 20)),
                20,
            ),
        ),
        (
            "beyond the end",
            raw(&format!("{{\"a\":{}}}", entry("F32", "[200]", 0, 800)), 8),
        ),
        (
            "of another size",
            raw(&format!("{{\"a\":{}}}", entry("F32", "[3]", 0, 8)), 8),
        ),
        (
            "overflowing",
            raw(
                &format!(
                    "{{\"a\":{}}}",
                    entry("F32", "[4294967296,4294967296,4]", 0, 8)
                ),
                8,
            ),
        ),
        ("with bytes left over", raw(&format!("{{\"a\":{one}}}"), 9)),
    ];
    for (what, content) in files {
        let text = error("mixtral-mqa", |folder| {
            fs::write(folder.join(MODEL_FILE), &content).unwrap();
        });
        assert!(
            text.contains("model.safetensors is damaged: "),
            "{what}: {text}"
        );
    }
    let integers = raw(&format!("{{\"a\":{}}}", entry("I32", "[2]", 0, 8)), 8);
    let text = error("mixtral-mqa", |folder| {
        fs::write(folder.join(MODEL_FILE), integers).unwrap();
    });
    assert_says(&text, &["tensor a has type I32", "F32, F16 and BF16"]);
}

#[test]
fn sizes_that_the_files_cannot_have_are_refused_at_once() {
    let largest = json!(1 << 24);
    for key in [
        "num_hidden_layers",
        "num_local_experts",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
    ] {
        for case in ["mixtral-mqa", "mixtral-tied-fused"] {
            let text = error(case, |folder| {
                edit_config(folder, "head_dim", json!(8));
                edit_config(folder, key, largest.clone());
            });
            assert_says(&text, &["16777216"]);
        }
    }
}

/// Changes the index of the sharded fixture.
fn index_error(change: impl FnOnce(&mut Value, &Path)) -> String {
    error("olmoe-bf16-shards", |folder| {
        let path = folder.join(INDEX_FILE);
        let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut index, folder);
        fs::write(path, index.to_string()).unwrap();
    })
}

#[test]
fn an_index_that_lies_is_refused() {
    const NORM: &str = "model.norm.weight";
    for name in [
        "../model-00001-of-00003.safetensors",
        "/etc/passwd",
        "..",
        "",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
    ] {
        let text = index_error(|index, _| index["weight_map"][NORM] = json!(name));
        assert_says(&text, &["is not a file name", &format!("{name:?}")]);
    }
    let text = index_error(|index, _| index["weight_map"][NORM] = json!("absent.safetensors"));
    assert_says(&text, &["the shard absent.safetensors is missing"]);
    let text = index_error(|_, folder| {
        fs::remove_file(folder.join("model-00002-of-00003.safetensors")).unwrap();
    });
    assert_says(
        &text,
        &["the shard model-00002-of-00003.safetensors is missing"],
    );
    let text = index_error(|index, _| {
        let there = index["weight_map"][NORM] == json!("model-00003-of-00003.safetensors");
        let other = if there { 1 } else { 3 };
        index["weight_map"][NORM] = json!(format!("model-0000{other}-of-00003.safetensors"));
    });
    assert_says(&text, &[NORM, "is listed in model-0000"]);
    let text = index_error(|index, _| {
        index["weight_map"]
            .as_object_mut()
            .unwrap()
            .shift_remove(NORM);
    });
    assert_says(&text, &[NORM, "which the index does not list for it"]);
    let text = index_error(|index, _| index["weight_map"] = json!(["a"]));
    assert_says(&text, &["model.safetensors.index.json is damaged"]);
    let text = index_error(|_, folder| {
        fs::copy(
            folder.join("model-00001-of-00003.safetensors"),
            folder.join(MODEL_FILE),
        )
        .unwrap();
    });
    assert_says(
        &text,
        &["contains both model.safetensors and model.safetensors.index.json"],
    );
}

/// One of the files of a checkpoint, and what is done to it.
#[derive(Debug, Clone)]
enum Damage {
    Cut(prop::sample::Index),
    Byte(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        // Mostly among the first bytes, where the meaning is.
        match self {
            Self::Cut(index) => bytes.truncate(index.index(bytes.len())),
            Self::Byte(index, value) => {
                let place = index.index(bytes.len().min(6000));
                bytes[place] = *value;
            }
            Self::Insert(index, more) => {
                let place = index.index(bytes.len().min(6000));
                bytes.splice(place..place, more.iter().copied());
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        1 => index().prop_map(Damage::Cut),
        6 => (index(), prop_oneof![any::<u8>(), Just(b'9'), Just(b'"'), Just(b'}')])
            .prop_map(|(index, byte)| Damage::Byte(index, byte)),
        2 => (index(), proptest::collection::vec(any::<u8>(), 1..4))
            .prop_map(|(index, more)| Damage::Insert(index, more)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the bytes are, the reader ends in a model of finite weights or in a sentence.
    #[test]
    fn damaged_files_end_in_a_sentence(
        case in prop::sample::select(vec!["mixtral-tied-fused", "olmoe-bf16-shards", "llama-f16"]),
        file in any::<prop::sample::Index>(),
        damages in proptest::collection::vec(damage(), 1..4),
    ) {
        let copy = copy(case);
        let names: Vec<PathBuf> = fixtures::files(copy.path()).into_keys().map(|name| copy.path().join(name)).collect();
        let path = file.get(&names);
        let mut bytes = fs::read(path).unwrap();
        for damage in &damages {
            if !bytes.is_empty() {
                damage.apply(&mut bytes);
            }
        }
        fs::write(path, bytes).unwrap();
        match load(copy.path()) {
            Ok(checkpoint) => {
                let finite = |bits: &Vec<u32>| bits.iter().all(|&bits| f32::from_bits(bits).is_finite());
                prop_assert!(bits(&checkpoint.model).values().all(finite));
            }
            Err(error) => {
                let text = sentence(&error);
                prop_assert!(!text.is_empty() && !text.contains('\n'), "{}", text);
            }
        }
    }
}
