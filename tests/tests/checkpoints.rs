//! Checkpoints on the disk: nothing is lost on a round trip, whatever the type, the shards and the device.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use firebox_checkpoint::{INDEX_FILE, SaveOptions, TensorStore};
use firebox_console::advice::Advise as _;
use firebox_infer::export::Export;
use firebox_kernels::dtype::WeightDtype;
use firebox_runtime::on_every_device;
use firebox_tests::fixtures;
use firebox_tests::models::bits;
use tempfile::TempDir;

on_every_device!(a_round_trip_changes_no_bit);

fn a_round_trip_changes_no_bit(device: Device) {
    let load = |folder: &Path| firebox_checkpoint::load(folder, &device, WeightDtype::F32);
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
    for case in ["mixtral-mqa", "olmoe-bf16-shards", "qwen3-moe", "llama-f16"] {
        let path = fixtures::folder(case);
        let output = TempDir::new().unwrap();
        let export = Export {
            dtype: None,
            shard_bytes: None,
        };
        let folder = output.path().join("exported");
        export.write(&path, &folder, |_, _| ()).expect("exported");
        let [theirs, ours] = [path, folder].map(|folder| {
            let store = TensorStore::open(&folder).expect("weights");
            let tensors = store.tensors().map(|(name, info)| {
                let values = store.read(name, 0..info.elements()).expect(name);
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
        dtype: Some(WeightDtype::Bf16),
        shard_bytes: None,
    };
    let path = fixtures::folder("qwen3");
    let error = export.write(&path, folder.path(), |_, _| ()).unwrap_err();
    assert!(
        error.to_string().ends_with("exists and is not empty"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 2);
    assert_eq!(fixtures::files(folder.path()).len(), 1);
}
