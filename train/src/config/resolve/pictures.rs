//! Rules of runs whose models see pictures, across the sections of a configuration.

use firebox_checkpoint::checkpoint_folder;
use firebox_image::{PREPROCESSOR_FILE, Processor};
use firebox_model::config::ModelConfig;

use super::{Checked, without_effect};
use crate::config::error::Problem;
use crate::config::{DataConfig, Frozen, OptimizerConfig, SourceConfig, TileLimits, TrainConfig};

const WITHOUT: &str = "without [model.vision]";

/// What is not trained of a model; `None` of one of text alone. A model that is given its tower by this run keeps its text by
/// default.
pub(super) fn frozen(
    written: Option<Frozen>,
    model: &ModelConfig,
    opens_eyes: bool,
) -> Checked<Option<Frozen>> {
    match (&model.vision, written) {
        (None, Some(_)) => Err(without_effect("train.frozen", WITHOUT).hint("remove it")),
        (None, None) => Ok(None),
        (Some(_), written) => Ok(Some(written.unwrap_or(match opens_eyes {
            true => Frozen::Text,
            false => Frozen::Nothing,
        }))),
    }
}

/// Checks what the sections say of pictures, and gives the sources the tiles of the model.
pub(super) fn check(
    model: &ModelConfig,
    data: &mut DataConfig,
    train: &TrainConfig,
    optimizer: &OptimizerConfig,
) -> Checked<()> {
    let Some(vision) = &model.vision else {
        for (key, given) in [
            ("data.pictures.shift", data.pictures.shift != 0),
            ("data.pictures.withheld", data.pictures.withheld != 0.0),
            ("optimizer.gate_rate", optimizer.gate_rate != 1.0),
        ] {
            if given {
                return Err(without_effect(key, WITHOUT).hint("remove it"));
            }
        }
        return Ok(());
    };
    let tiles = TileLimits::of(vision);
    if tiles.processor().aspect_ratios() != vision.aspect_ratios {
        let rule = format!(
            "must be all rows and columns of at most {} tiles, by rows and then by columns, because pictures are cut so",
            tiles.max_tiles
        );
        return Err(Problem::new("model.vision.aspect_ratios", rule).hint("remove it"));
    }
    if u64::from(data.pictures.shift) > tiles.tile_size as u64 {
        let rule = format!(
            "must be at most model.vision.tile_size = {}",
            tiles.tile_size
        );
        return Err(Problem::new("data.pictures.shift", rule));
    }
    if !(0.0..=1.0).contains(&data.pictures.withheld) {
        return Err(Problem::new(
            "data.pictures.withheld",
            "must be between 0 and 1",
        ));
    }
    if train.zero_outputs {
        return Err(Problem::new(
            "train.zero_outputs",
            "must be false for a model that sees pictures, whose gates begin at 0: behind a factor of 0, an output of 0 has no \
             gradient",
        )
        .hint("remove it"));
    }
    if train.frozen == Some(Frozen::Text) && train.init.is_none() {
        return Err(Problem::new(
            "train.frozen",
            "must not be \"text\" without train.init, because a text model with random weights would stay random",
        )
        .hint("name the checkpoint of a text model in train.init"));
    }
    check_processor(train, tiles)?;
    let training = data.source.iter_mut().map(|source| &mut source.text);
    let mut training: Vec<&mut SourceConfig> = training.collect();
    if !training.iter().any(|source| source.kind.has_pictures()) {
        let rule = "must have a source with pictures, because the model sees them ([model.vision])";
        return Err(Problem::new("data.source", rule).hint(
            "cargo = \"twemoji-assets\" reads small pictures and their names, and jsonl with image reads your own; other \
             sources give text beside them",
        ));
    }
    let validation = data.validation.source.iter_mut();
    let all = training
        .iter_mut()
        .map(|source| &mut **source)
        .chain(validation);
    all.filter(|source| source.kind.has_pictures())
        .for_each(|source| source.tiles = Some(tiles));
    Ok(())
}

/// Checks that the checkpoint which the run starts from has seen pictures as the run shows them.
fn check_processor(train: &TrainConfig, tiles: TileLimits) -> Checked<()> {
    // A run that continues does not need that checkpoint.
    let folder = train
        .origin()
        .and_then(|origin| checkpoint_folder(&origin).ok());
    let file = folder
        .map(|folder| folder.join(PREPROCESSOR_FILE))
        .filter(|file| file.is_file());
    let Some(file) = file else {
        return Ok(());
    };
    let unusable = || Problem::new("train.init", "cannot be used");
    let found = Processor::load(&file).map_err(|error| unusable().caused_by(error))?;
    match found == tiles.processor() {
        true => Ok(()),
        false => Err(Problem::new(
            "train.init",
            format!(
                "cannot be used: {} gives the levels of a pixel other values than −1 to 1, in which runs show pictures",
                file.display()
            ),
        )),
    }
}
