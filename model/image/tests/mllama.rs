//! The same values as Hugging Face's processor of Mllama, bit for bit, from the files to the tiles.

use std::fs;
use std::path::PathBuf;

use firebox_image::{PREPROCESSOR_FILE, Picture, Processor};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/pictures");
    PathBuf::from(fixtures).join(name)
}

/// The processor of one of the settings.
fn processor(setting: &Value) -> Processor {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(PREPROCESSOR_FILE);
    let file = json!({
        "size": { "height": setting["tile"], "width": setting["tile"] },
        "max_image_tiles": setting["tiles"],
        "image_mean": setting["image_mean"],
        "image_std": setting["image_std"],
    });
    fs::write(&path, file.to_string()).unwrap();
    Processor::load(&path).unwrap()
}

#[test]
fn pictures_are_those_of_mllama_to_the_last_bit() {
    let file = fs::read(fixture("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&file).unwrap();
    let integers = |name: &str| -> Vec<i64> {
        let data = expected.tensor(name).unwrap().data().chunks_exact(8);
        data.map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()))
            .collect()
    };
    let settings: Vec<Value> =
        serde_json::from_slice(&fs::read(fixture("settings.json")).unwrap()).unwrap();
    assert_eq!(settings.len(), 3);
    for name in ["opaque", "transparent", "palette"] {
        let picture = Picture::open(&fixture(&format!("{name}.png"))).unwrap();
        let rgb = expected.tensor(&format!("{name}.rgb")).unwrap();
        assert_eq!(rgb.shape(), [picture.height(), picture.width(), 3]);
        assert!(rgb.data() == picture.rgb(), "{name}: pixels over white");
        for (number, setting) in settings.iter().enumerate() {
            let processor = processor(setting);
            let tiles = processor.process(&picture);
            let key = |part: &str| format!("{name}.{number}.{part}");
            let values = expected.tensor(&key("pixel_values")).unwrap();
            assert_eq!(
                (values.dtype(), values.shape()),
                (Dtype::F32, &processor.shape()[..])
            );
            let own: Vec<u8> = tiles
                .pixel_values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            assert!(own == values.data(), "{}", key("pixel_values"));
            assert_eq!(
                integers(&key("aspect_ratio_ids")),
                [tiles.aspect_ratio_id as i64]
            );
            assert_eq!(integers(&key("num_tiles")), [tiles.used as i64]);
            let used = |tile| i64::from(tile < tiles.used);
            let mask: Vec<i64> = (0..processor.max_tiles()).map(used).collect();
            assert_eq!(integers(&key("aspect_ratio_mask")), mask);
        }
    }
}
