//! Checkpoints on the disk: nothing is lost on a round trip, whatever the type, the shards and the device.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use firebox_checkpoint::{
    Accept, INDEX_FILE, MODEL_FILE, NamedTensor, SaveOptions, TensorStore, checkpoint_folder,
    write_tensors,
};
use firebox_console::advice::Advise as _;
use firebox_infer::export::{Export, Format};
use firebox_kernels::dtype::WeightDtype;
use firebox_runtime::device::{default_name, select};
use firebox_runtime::on_every_device;
use firebox_tests::fixtures;
use firebox_tests::models::bits;
use tempfile::TempDir;

on_every_device!(a_round_trip_changes_no_bit);

fn a_round_trip_changes_no_bit(device: Device) {
    let load = |folder: &Path| {
        firebox_checkpoint::load(folder, Accept::Nothing, &device, WeightDtype::F32)
    };
    for (case, path) in fixtures::cases() {
        let first = load(&path).expect("fixture");
        let own = first.dtype.expect("one type");
        for dtype in WeightDtype::ALL {
            for shard_bytes in [None, Some(20_000)] {
                let what = format!("{case} in {dtype}, shards of {shard_bytes:?}");
                let options = SaveOptions {
                    dtype,
                    shard_bytes,
                    notes: first.notes.clone(),
                };
                let (once, twice) = (TempDir::new().unwrap(), TempDir::new().unwrap());
                firebox_checkpoint::save(&first.model, once.path(), &options, |_| ())
                    .expect("saved");
                let second = load(once.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
                firebox_checkpoint::save(&second.model, twice.path(), &options, |_| ())
                    .expect("saved");

                if [own, WeightDtype::F32].contains(&dtype) {
                    assert_eq!(bits(&first.model), bits(&second.model), "{what}");
                }
                assert_eq!(second.dtype, Some(dtype), "{what}");
                assert_eq!(second.eos_ids, first.eos_ids, "{what}");
                assert_eq!(first.model.config(), second.model.config(), "{what}");
                let (once, twice) = (fixtures::files(once.path()), fixtures::files(twice.path()));
                assert_eq!(once, twice, "{what}: another save gives other files");
                assert_eq!(
                    once.contains_key(INDEX_FILE),
                    shard_bytes.is_some(),
                    "{what}"
                );
                let shards = once
                    .iter()
                    .filter(|(name, _)| name.ends_with(".safetensors"));
                assert!(shard_bytes.is_none() || shards.count() >= 2, "{what}");
            }
        }
    }
}

#[test]
fn what_transformers_wrote_is_written_again_bit_by_bit() {
    // Its own names and type: tensors are the same, whatever file they are in.
    for case in [
        "mixtral-mqa",
        "olmoe-bf16-shards",
        "qwen3-moe",
        "llama-f16",
        "deepseek-v3",
        "deepseek-v3-direct",
        "gpt-oss",
        "granite-moe",
        "qwen2-moe",
    ] {
        let path = fixtures::folder(case);
        let output = TempDir::new().unwrap();
        let export = Export {
            format: Format::Folder {
                dtype: None,
                shard_bytes: None,
            },
            text_only: false,
        };
        let folder = output.path().join("exported");
        export
            .write(&path, &[], &folder, |_, _| ())
            .expect("exported");
        let [theirs, ours] = [path, folder].map(|folder| {
            let store = TensorStore::open(&folder).expect("weights");
            let tensors = store.tensors().map(|(name, info)| {
                let values = store.read(name).expect(name);
                let bits: Vec<u32> = values.into_iter().map(f32::to_bits).collect();
                (name.to_owned(), (info.dtype, info.shape.clone(), bits))
            });
            tensors.collect::<BTreeMap<_, _>>()
        });
        assert_eq!(
            theirs.keys().collect::<Vec<_>>(),
            ours.keys().collect::<Vec<_>>(),
            "{case}"
        );
        assert!(theirs == ours, "{case}: values differ");
    }
}

#[test]
fn an_export_never_overwrites() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("thesis.txt"), "dear").unwrap();
    let export = Export {
        format: Format::Folder {
            dtype: Some(WeightDtype::Bf16),
            shard_bytes: None,
        },
        text_only: false,
    };
    let path = fixtures::folder("qwen3");
    let error = export
        .write(&path, &[], folder.path(), |_, _| ())
        .unwrap_err();
    assert!(
        error.to_string().ends_with("exists and is not empty"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 2);
    assert_eq!(fixtures::files(folder.path()).len(), 1);
}

/// A copy of a fixture without its expected values.
fn copy(case: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, content) in fixtures::files(&fixtures::folder(case)) {
        if !name.starts_with("expected") {
            fs::write(folder.path().join(name), content).unwrap();
        }
    }
    folder
}

/// The tensors of a single-file fixture, under other names, and one more.
fn rewrite(folder: &Path, rename: impl Fn(&str) -> String, more: Vec<NamedTensor<'static>>) {
    let store = TensorStore::open(folder).unwrap();
    let tensors = store.tensors().map(|(name, info)| {
        let values = store.read(name).unwrap();
        NamedTensor::float(rename(name), info.shape.clone(), move || values.clone())
    });
    let tensors: Vec<_> = tensors.chain(more).collect();
    let path = folder.join(MODEL_FILE);
    write_tensors(&path, &tensors, WeightDtype::F32).unwrap();
}

#[test]
fn files_as_tools_leave_them_give_the_same_model() {
    let device = select(default_name()).unwrap();
    let load = |folder: &Path| {
        firebox_checkpoint::load(folder, Accept::Nothing, &device, WeightDtype::F32)
    };
    let same = |folder: &TempDir, case: &str, what: &str| {
        let found = load(folder.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
        let expected = load(&fixtures::folder(case)).unwrap();
        assert_eq!(bits(&found.model), bits(&expected.model), "{what}");
    };

    let case = "mixtral-mqa";
    let folder = copy(case);
    let index = folder.path().join(INDEX_FILE);
    let store = TensorStore::open(folder.path()).unwrap();
    for file in [MODEL_FILE, "model-00001-of-00002.safetensors"] {
        let files = store
            .tensors()
            .map(|(name, _)| (name.to_owned(), file.into()));
        let map: serde_json::Map<String, serde_json::Value> = files.collect();
        fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
        same(
            &folder,
            case,
            "an index of the single file, or of shards that are gone",
        );
    }
    // Shards that are there: which of the two counts is not known.
    let shard = folder.path().join("model-00001-of-00002.safetensors");
    fs::copy(folder.path().join(MODEL_FILE), shard).unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("contains both"), "{error}");

    let folder = copy(case);
    let buffer = "model.layers.0.self_attn.rotary_emb.inv_freq";
    let frequencies = NamedTensor::float(buffer, [3], || vec![1.0, 0.1, 0.01]);
    rewrite(folder.path(), str::to_owned, vec![frequencies]);
    same(&folder, case, "stored frequencies");
    let other = NamedTensor::float("model.layers.0.self_attn.other", [1], || vec![1.0]);
    rewrite(folder.path(), str::to_owned, vec![other]);
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("self_attn.other"), "{error}");

    // Published files hold a layer behind the last one, which predicts the token after the next.
    for (case, layers) in [("glm4-moe", 2), ("deepseek-v3", 3)] {
        let folder = copy(case);
        let further = |name: &str| {
            let name = format!("model.layers.{layers}.{name}.weight");
            NamedTensor::float(name, [2], || vec![1.0, 2.0])
        };
        let further = ["eh_proj", "enorm"].map(further);
        rewrite(folder.path(), str::to_owned, further.into());
        same(&folder, case, "a layer that predicts further tokens");
        let other = format!("model.layers.{}.enorm.weight", layers + 1);
        let tensor = NamedTensor::float(other.clone(), [1], || vec![1.0]);
        rewrite(folder.path(), str::to_owned, vec![tensor]);
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&other), "{error}");
    }

    let case = "mixtral-tied-fused";
    let folder = copy(case);
    let head = |name: &str| name.replace("model.embed_tokens.weight", "lm_head.weight");
    rewrite(folder.path(), head, Vec::new());
    same(&folder, case, "a tied embedding under the head's name");
}

#[test]
fn a_path_that_is_not_a_checkpoint_leads_on() {
    let hint = |path: &Path| {
        let error = checkpoint_folder(path).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.advice().hint.unwrap_or_default()
    };
    let name = Path::new("somebody/A-Model_1.5");
    assert!(hint(name).contains("hf download somebody/A-Model_1.5"));

    // A run that is not there.
    assert!(hint(Path::new("runs/none")).starts_with("use a run folder, such as"));

    let cache = TempDir::new().unwrap();
    let snapshot = cache.path().join("snapshots/0123abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(cache.path().join("refs")).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    let leads = format!("use {}", snapshot.display());
    assert_eq!(hint(cache.path()), leads);
    assert_eq!(hint(&cache.path().join("snapshots")), leads);

    let pickle = copy("llama-f16");
    fs::rename(
        pickle.path().join(MODEL_FILE),
        pickle.path().join("pytorch_model.bin"),
    )
    .unwrap();
    let device = select(default_name()).unwrap();
    let error = firebox_checkpoint::load(pickle.path(), Accept::Nothing, &device, WeightDtype::F32)
        .unwrap_err();
    let hint = error.advice().hint.unwrap_or_default();
    assert!(hint.contains("pickle"), "{error}: {hint}");
}
