//! The pictures of a prompt.

use std::path::PathBuf;

use firebox_model::vision::Picture;

use crate::InferError;
use crate::engine::Engine;
use crate::pictures::PictureReader;

/// Reads picture files as the model of an engine sees them; see [`PictureReader`].
///
/// # Errors
///
/// When there are some and the model sees no pictures, or a file cannot be read as one that it sees.
pub fn read_pictures(engine: &Engine, files: &[PathBuf]) -> Result<Vec<Picture>, InferError> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let reader = PictureReader::new(&engine.folder, engine.model.config())?;
    files.iter().map(|file| reader.open(file)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use firebox_checkpoint::PREPROCESSOR_FILE;
    use firebox_image::Processor;
    use firebox_kernels::dtype::WeightDtype;
    use firebox_model::sampling::Sampling;
    use firebox_runtime::device;

    use super::super::{Request, Speculation, generate};
    use super::*;
    use crate::testing::{TinyCheckpoint, seeing_config, tiny_config};

    fn fixture(name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/pictures");
        folder.join(name)
    }

    fn open(checkpoint: &TinyCheckpoint) -> Engine {
        let device = device::default_name();
        Engine::open(checkpoint.path(), &[], device, WeightDtype::F32).unwrap()
    }

    fn request(prompt: &str, pictures: Vec<Picture>) -> Request {
        Request {
            prompt: prompt.to_owned(),
            max_tokens: 12,
            sampling: Sampling::greedy(),
            pictures,
        }
    }

    fn text(engine: &Engine, request: &Request) -> Result<Vec<u8>, InferError> {
        let mut output = Vec::new();
        let speculation = Speculation::default();
        generate(engine, request, &speculation, &mut output, || false)?;
        Ok(output)
    }

    #[test]
    fn a_text_depends_on_the_picture_that_it_sees() {
        let engine = open(&TinyCheckpoint::new(&seeing_config(), 5));
        let read = |name: &str| read_pictures(&engine, &[fixture(name)]).unwrap();
        let with = |pictures| text(&engine, &request("fire", pictures)).unwrap();
        let (opaque, palette) = (with(read("opaque.png")), with(read("palette.png")));
        assert_eq!(opaque, with(read("opaque.png")));
        assert_ne!(opaque, palette);
        assert_ne!(opaque, with(Vec::new()));
        let both = [read("opaque.png"), read("palette.png")].concat();
        assert_ne!(with(both), palette);
        // It is shown as it was given.
        assert!(opaque.starts_with(b"fire") && opaque.ends_with(b"\n"));
    }

    #[test]
    fn image_tokens_stand_before_a_text_as_in_training() {
        let engine = open(&TinyCheckpoint::new(&seeing_config(), 5));
        let image = engine.model.config().image_token().unwrap();
        assert_eq!(
            engine.prompt_seeing("ab", 2).unwrap(),
            [image, image, 97, 98]
        );
        // No token that ends a document stands between a picture and its caption.
        assert_eq!(engine.prompt_seeing("", 1).unwrap(), [image]);
    }

    #[test]
    fn pictures_are_processed_as_the_folder_says() {
        let checkpoint = TinyCheckpoint::new(&seeing_config(), 5);
        let engine = open(&checkpoint);
        let read = || {
            read_pictures(&engine, &[fixture("opaque.png")])
                .unwrap()
                .remove(0)
        };
        let plain = read();
        let mut json = Processor::new(28, 2).to_json();
        json["image_mean"] = serde_json::json!([0.25, 0.25, 0.25]);
        fs::write(checkpoint.path().join(PREPROCESSOR_FILE), json.to_string()).unwrap();
        let moved = read();
        assert_eq!(
            (moved.arrangement, &moved.used),
            (plain.arrangement, &plain.used)
        );
        // Half of a level is half of the spread of 0.5.
        let size = 3 * 28 * 28;
        for (moved, plain) in moved.pixels[..size].iter().zip(&plain.pixels) {
            assert!((moved - plain - 0.5).abs() < 1e-6);
        }
    }

    #[test]
    fn what_cannot_be_seen_is_a_sentence() {
        let (seeing, blind) = (
            TinyCheckpoint::new(&seeing_config(), 5),
            TinyCheckpoint::new(&tiny_config(), 5),
        );
        let (engine, blind) = (open(&seeing), open(&blind));
        let message = |engine: &Engine, file: PathBuf| {
            let read = read_pictures(engine, &[file]);
            read.unwrap_err().to_string()
        };
        assert!(message(&blind, fixture("opaque.png")).contains("sees no pictures"));
        assert!(message(&engine, fixture("absent.png")).contains("absent.png"));
        assert!(message(&engine, fixture("settings.json")).contains("settings.json"));
        let picture = read_pictures(&engine, &[fixture("opaque.png")]).unwrap();
        let long = request(&"fire ".repeat(7), picture.clone());
        let error = text(&engine, &long).unwrap_err().to_string();
        assert!(
            error.contains("36 tokens") && error.contains("context of 32"),
            "{error}"
        );
        // The context ends the text, which would forget its picture.
        let near = request(&"fire ".repeat(6)[..28], picture);
        let mut output = Vec::new();
        let speculation = Speculation::default();
        let done = generate(&engine, &near, &speculation, &mut output, || false).unwrap();
        assert!(done.statistics.tokens <= 3, "{done:?}");
    }
}
