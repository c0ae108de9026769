//! Parts of checkpoints: what a rank reads of a whole one and of its own folder, and the checkpoint that ranks make again.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use firebox_checkpoint::sharded::{
    LAYOUT_FILE, ShardedCheckpoint, Sharding, shard, unshard, verify,
};
use firebox_checkpoint::{
    Accept, CONFIG_FILE, CheckpointError, CheckpointParameters, INDEX_FILE, MODEL_FILE,
    NamedTensor, SaveOptions, TensorFile, read_config, save, write_tensors,
};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::{Holding, RankLayout, Shard, Slice};
use firebox_model::parameters::{Initializer, ParameterInfo, ParameterSource, ParameterSpec};
use firebox_model::testing::{clamped, tiny};
use firebox_runtime::device::{default_name, select};
use firebox_runtime::testing::values;
use firebox_tests::fixtures;

/// Lets the work go on.
fn on(_done: u64, _total: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Layouts of small models: as many stages and ranks as they can have, and some that do not divide them evenly.
fn layouts(config: &ModelConfig) -> Vec<RankLayout> {
    let most = config.layers.len();
    let numbers = [
        [1, 1, 1],
        [1, 2, 1],
        [most, 1, 1],
        [most, 3, 1],
        [most, 4, 2],
        [1, 4, 4],
    ];
    let layouts = numbers.map(|[pipeline, tensor, expert]| RankLayout {
        pipeline,
        tensor,
        expert,
    });
    let possible: Vec<RankLayout> = layouts
        .into_iter()
        .filter(|layout| layout.check(config).is_ok())
        .collect();
    assert!(possible.len() >= 3, "{possible:?}");
    possible
}

/// The values of a parameter, asked for as a module asks for it.
fn read<S: ParameterSource<Error = CheckpointError>>(
    source: &mut S,
    parameter: &ParameterInfo,
) -> (Vec<usize>, Vec<u32>) {
    fn asked<const D: usize, S: ParameterSource<Error = CheckpointError>>(
        source: &mut S,
        info: &ParameterInfo,
    ) -> (Vec<usize>, Vec<u32>) {
        let spec = ParameterSpec::<D> {
            path: info.path.clone(),
            role: info.role,
            axes: std::array::from_fn(|dimension| info.axes[dimension]),
            shape: std::array::from_fn(|dimension| info.shape[dimension]),
            initializer: Initializer::Zeros,
        };
        let parameter: Param<Tensor<D>> = source.parameter(spec).expect(&info.path);
        let bits = values(parameter.val()).into_iter().map(f32::to_bits);
        (parameter.dims().to_vec(), bits.collect())
    }
    match parameter.shape.len() {
        1 => asked::<1, S>(source, parameter),
        2 => asked::<2, S>(source, parameter),
        3 => asked::<3, S>(source, parameter),
        _ => asked::<4, S>(source, parameter),
    }
}

/// Compares what each rank gets with the slices of the whole parameters, bit by bit.
fn assert_slices<'a>(
    what: &str,
    whole: &BTreeMap<String, (Vec<usize>, Vec<u32>)>,
    config: &ModelConfig,
    layout: RankLayout,
    mut open: impl FnMut(&Shard) -> CheckpointParameters<'a>,
) {
    for shard in Shard::all(config, layout).unwrap() {
        let mut source = open(&shard);
        for parameter in LanguageModel::parameter_list(config) {
            let at = format!(
                "{what}, {layout}, rank {}: {}",
                shard.rank(),
                parameter.path
            );
            let (_, all) = &whole[&parameter.path];
            let expected = match shard.holding(&parameter) {
                Holding::Elsewhere => continue,
                Holding::Zeros(shape) => (shape.clone(), vec![0; shape.iter().product()]),
                Holding::Part(slice) => (slice.shape(), slice.take(all)),
            };
            assert!(read(&mut source, &parameter) == expected, "{at}");
        }
    }
}

fn whole(folder: &Path, device: &Device) -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
    let config = read_config(folder, Accept::Nothing).unwrap();
    let (model, family) = (&config.model, &config.family);
    let mut source =
        CheckpointParameters::open(folder, model, family, device, WeightDtype::F32).unwrap();
    let parameters = LanguageModel::parameter_list(model).into_iter();
    parameters
        .map(|parameter| {
            let values = read(&mut source, &parameter);
            (parameter.path, values)
        })
        .collect()
}

#[test]
fn a_rank_reads_the_slices_of_the_whole_checkpoint_bit_by_bit() {
    let device = select(default_name()).unwrap();
    for (case, folder) in fixtures::cases().into_iter().chain(fixtures::seeing()) {
        let config = read_config(&folder, Accept::Nothing).unwrap();
        let whole = whole(&folder, &device);
        for layout in layouts(&config.model) {
            assert_slices(&case, &whole, &config.model, layout, |shard| {
                let (model, family) = (&config.model, &config.family);
                let dtype = WeightDtype::F32;
                CheckpointParameters::open_shard(&folder, model, family, &device, dtype, shard)
                    .expect(&case)
            });
        }
    }
}

#[test]
fn a_rank_reads_the_same_from_its_own_folder_and_the_ranks_make_the_same_files() {
    let device = select(default_name()).unwrap();
    for (case, folder) in fixtures::cases().into_iter().chain(fixtures::seeing()) {
        let config = read_config(&folder, Accept::Nothing).unwrap();
        if case == "gpt-oss-mxfp4" {
            continue; // refused; see below
        }
        let whole = whole(&folder, &device);
        for layout in layouts(&config.model) {
            let target = tempfile::tempdir().unwrap();
            let [sharded, again] = ["sharded", "again"].map(|name| target.path().join(name));
            let Sharding::Written(summary) =
                shard(&folder, Accept::Nothing, layout, &sharded, on).expect(&case)
            else {
                panic!("{case} was there before");
            };
            let opened = ShardedCheckpoint::open(&sharded, Accept::Nothing).unwrap();
            assert_eq!(opened.layout(), layout);
            assert_slices(&case, &whole, &config.model, layout, |shard| {
                let parameters = opened.parameters(shard.rank(), &device, WeightDtype::F32);
                parameters.unwrap_or_else(|error| panic!("{case}, {layout}: {error}"))
            });

            let verified = verify(&sharded, Accept::Nothing, Some(&folder), on).unwrap();
            assert_eq!(verified.faults, [], "{case}, {layout}");
            assert_eq!(verified.summary, summary, "{case}, {layout}");
            unshard(&sharded, Accept::Nothing, &again, on).expect(&case);
            let mut expected = fixtures::files(&folder);
            expected.remove("expected.safetensors");
            assert!(fixtures::files(&again) == expected, "{case}, {layout}");
        }
    }
}

/// A checkpoint of this model, in this type.
fn saved(config: &ModelConfig, dtype: WeightDtype, shard_bytes: Option<u64>) -> tempfile::TempDir {
    let device = select(default_name()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions {
        dtype,
        shard_bytes,
        ..SaveOptions::default()
    };
    let model = LanguageModel::random(config, 3, &device);
    save(&model, folder.path(), &options, |_| ()).unwrap();
    folder
}

const LAYOUT: RankLayout = RankLayout {
    pipeline: 2,
    tensor: 4,
    expert: 2,
};

#[test]
fn every_type_in_one_file_and_in_shards_comes_back_byte_by_byte() {
    for dtype in WeightDtype::ALL {
        for shard_bytes in [None, Some(20_000)] {
            let folder = saved(&clamped(), dtype, shard_bytes);
            let files = fixtures::files(folder.path());
            assert_eq!(files.contains_key(INDEX_FILE), shard_bytes.is_some());
            let target = tempfile::tempdir().unwrap();
            let [sharded, again] = ["sharded", "again"].map(|name| target.path().join(name));
            shard(folder.path(), Accept::Nothing, LAYOUT, &sharded, on).unwrap();
            unshard(&sharded, Accept::Nothing, &again, on).unwrap();
            assert!(fixtures::files(&again) == files, "{dtype}, {shard_bytes:?}");
        }
    }
}

#[test]
fn a_rank_reads_no_more_than_its_slices() {
    let mut config = tiny();
    // Of a row that is cut, more lies between the parts of a rank than the 4 KiB that are read along.
    (config.heads, config.kv_heads, config.head_dim) = (8, 8, 256);
    config.moe.as_mut().unwrap().experts.d_ff = 4096;
    let folder = saved(&config, WeightDtype::F32, None);
    let device = select(default_name()).unwrap();
    let opened = read_config(folder.path(), Accept::Nothing).unwrap();
    for shard in Shard::all(&config, LAYOUT).unwrap() {
        let mut source = CheckpointParameters::open_shard(
            folder.path(),
            &config,
            &opened.family,
            &device,
            WeightDtype::F32,
            &shard,
        )
        .unwrap();
        assert_eq!(source.bytes_read(), 0);
        for parameter in LanguageModel::parameter_list(&config) {
            let Some(slice) = shard.slice(&parameter) else {
                continue;
            };
            let before = source.bytes_read();
            read(&mut source, &parameter);
            let bytes = source.bytes_read() - before;
            let wanted = 4 * slice.elements() as u64;
            assert_eq!(bytes, wanted, "{}", parameter.path);
        }
    }
}

/// What `verify` says after a change of a sharded checkpoint.
fn faults(change: impl FnOnce(&Path)) -> Vec<String> {
    let folder = saved(&tiny(), WeightDtype::Bf16, None);
    let target = tempfile::tempdir().unwrap();
    let sharded = target.path().join("sharded");
    shard(folder.path(), Accept::Nothing, LAYOUT, &sharded, on).unwrap();
    change(&sharded);
    let verified = verify(&sharded, Accept::Nothing, None, on).unwrap();
    verified.faults.iter().map(ToString::to_string).collect()
}

/// Changes a byte of a tensor of a rank.
fn damage(folder: &Path, rank: usize, tensor: &str) {
    let folder = folder.join(format!("rank-{rank:03}"));
    damage_file(&folder.join(MODEL_FILE), tensor);
}

/// Changes a byte of a tensor of a file.
fn damage_file(path: &Path, tensor: &str) {
    let stored = {
        let file = TensorFile::open(path).unwrap();
        let shape = file.tensors()[tensor].shape.clone();
        file.read_stored(tensor, &Slice::whole(shape)).unwrap()
    };
    let mut bytes = fs::read(path).unwrap();
    let place = bytes
        .windows(stored.len())
        .position(|window| window == stored);
    bytes[place.unwrap()] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_wrong_is_named_by_rank_and_tensor() {
    let norm = "model.layers.1.input_layernorm.weight";
    let query = "model.layers.0.self_attn.q_proj.weight";
    assert_eq!(faults(|_| ()), Vec::<String>::new());
    assert_eq!(
        faults(|folder| damage(folder, 6, norm)),
        [
            format!("rank-006: {norm} differs from a copy that an earlier rank has"),
            format!("rank-006: {norm} does not match its hash in layout.json"),
        ]
    );
    assert_eq!(
        faults(|folder| damage(folder, 2, query)),
        [format!(
            "rank-002: {query} does not match its hash in layout.json"
        )]
    );
    let missing = faults(|folder| fs::remove_dir_all(folder.join("rank-003")).unwrap());
    assert!(
        missing.len() == 1
            && missing[0].starts_with("rank-003: ")
            && missing[0].contains("missing"),
        "{missing:?}"
    );
    let exchanged = faults(|folder| {
        let [one, other] = [0, 7].map(|rank| folder.join(format!("rank-{rank:03}")));
        fs::remove_dir_all(&one).unwrap();
        fs::rename(other, one).unwrap();
    });
    assert!(
        exchanged
            .iter()
            .any(|fault| fault.starts_with("rank-000: ")),
        "{exchanged:?}"
    );
    let header = faults(|folder| {
        fs::write(folder.join("original/model.safetensors.header"), "nothing").unwrap();
    });
    assert_eq!(
        header,
        ["original/model.safetensors.header does not match its hash in layout.json"]
    );
}

/// A checkpoint with tensors that no rank has, and the folder that it is divided into, both in `target`.
fn with_kept_tensors(target: &Path) -> [PathBuf; 2] {
    let folders = ["checkpoint", "sharded"].map(|name| target.join(name));
    let [folder, sharded] = &folders;
    let original = fixtures::folder("glm4-moe");
    fs::create_dir(folder).unwrap();
    fs::copy(original.join(CONFIG_FILE), folder.join(CONFIG_FILE)).unwrap();
    let file = TensorFile::open(&original.join(MODEL_FILE)).unwrap();
    let tensors = file.tensors().iter().map(|(name, info)| {
        NamedTensor::float(name, info.shape.clone(), || file.read(name).unwrap())
    });
    // The layer behind the last one, which predicts a further token.
    let kept = [
        NamedTensor::float(KEPT, [3, 2], || vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        NamedTensor::float("model.layers.2.scale", [], || vec![7.0]),
    ];
    let tensors: Vec<_> = tensors.chain(kept).collect();
    write_tensors(&folder.join(MODEL_FILE), &tensors, WeightDtype::F32).unwrap();
    let layout = RankLayout {
        pipeline: 2,
        tensor: 2,
        expert: 1,
    };
    shard(folder, Accept::Nothing, layout, sharded, on).unwrap();
    folders
}

const KEPT: &str = "model.layers.2.eh_proj.weight";

#[test]
fn tensors_of_no_rank_come_back_too() {
    let target = tempfile::tempdir().unwrap();
    let [folder, sharded] = with_kept_tensors(target.path());
    let again = target.path().join("again");
    unshard(&sharded, Accept::Nothing, &again, on).unwrap();
    assert!(fixtures::files(&again) == fixtures::files(&folder));
}

#[test]
fn one_fault_neither_hides_others_nor_brings_them() {
    let target = tempfile::tempdir().unwrap();
    let [folder, sharded] = with_kept_tensors(target.path());
    let faults = |checkpoint: &Path| -> Vec<String> {
        let verified = verify(&sharded, Accept::Nothing, Some(checkpoint), on).unwrap();
        verified.faults.iter().map(ToString::to_string).collect()
    };
    assert_eq!(faults(&folder), Vec::<String>::new());

    // Without a header, nobody knows which tensors the checkpoint had, and none is said to be missing.
    let header = sharded.join("original/model.safetensors.header");
    let intact = fs::read(&header).unwrap();
    fs::write(&header, "nothing").unwrap();
    assert_eq!(
        faults(&folder),
        ["original/model.safetensors.header does not match its hash in layout.json"]
    );
    fs::write(&header, intact).unwrap();

    // A rank without weights does not keep the tensors of no rank, and the other files, from being compared.
    let other = target.path().join("other");
    fs::rename(&folder, &other).unwrap();
    damage_file(&other.join(MODEL_FILE), KEPT);
    let json = fs::read_to_string(other.join(CONFIG_FILE)).unwrap();
    fs::write(other.join(CONFIG_FILE), json + "\n").unwrap();
    let rank = sharded.join("rank-003");
    fs::rename(rank.join(MODEL_FILE), rank.join("gone")).unwrap();
    let found = faults(&other);
    assert_eq!(
        found[..2],
        [
            "config.json differs from the checkpoint".to_owned(),
            format!("{KEPT} differs from the checkpoint"),
        ]
    );
    assert_eq!(found.len(), 3, "{found:?}");
    let said = "rank-003: its folder is not a checkpoint: model.safetensors is missing";
    assert_eq!(found[2], said);
}

#[test]
fn nothing_is_made_of_a_damaged_folder() {
    let refused = |change: &dyn Fn(&Path), said: &str| {
        let target = tempfile::tempdir().unwrap();
        let [_, sharded] = with_kept_tensors(target.path());
        change(&sharded);
        let again = target.path().join("again");
        let error = unshard(&sharded, Accept::Nothing, &again, on).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        let names = fs::read_dir(target.path()).unwrap();
        assert_eq!(names.count(), 2, "{said}");
    };
    // Of one rank alone, so that no other has a copy which differs.
    let query = "model.layers.0.self_attn.q_proj.weight";
    refused(
        &|folder| damage(folder, 1, query),
        &format!("{query} does not match its hash in layout.json"),
    );
    refused(
        &|folder| damage_file(&folder.join("original/kept.safetensors"), KEPT),
        "kept.safetensors is damaged: it does not match its hash in layout.json",
    );
    refused(
        &|folder| fs::write(folder.join("original/model.safetensors.header"), "{}").unwrap(),
        "header is damaged: it does not match its hash in layout.json",
    );
    refused(
        &|folder| fs::remove_dir_all(folder.join("rank-002")).unwrap(),
        "rank-002",
    );
}

#[test]
fn work_that_is_ended_leaves_nothing_behind() {
    let target = tempfile::tempdir().unwrap();
    let [folder, sharded] = with_kept_tensors(target.path());
    let output = target.path().join("output");
    // At every report of a work that is left to end.
    let mut reports = 0;
    let counted = |_, _| {
        reports += 1;
        ControlFlow::Continue(())
    };
    verify(&sharded, Accept::Nothing, Some(&folder), counted).unwrap();
    assert!(reports > 50, "{reports}");
    for end in [1, 2, 20, 49] {
        let stop = || {
            let mut reports = 0;
            move |_, _| {
                reports += 1;
                match reports < end {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            }
        };
        let ended = [
            shard(&folder, Accept::Nothing, LAYOUT, &output, stop()).map(|_| ()),
            unshard(&sharded, Accept::Nothing, &output, stop()),
            verify(&sharded, Accept::Nothing, Some(&folder), stop()).map(|_| ()),
        ];
        for ended in ended {
            let stopped = matches!(ended, Err(CheckpointError::Stopped));
            assert!(stopped, "{end}: {ended:?}");
        }
        let names = fs::read_dir(target.path()).unwrap();
        assert_eq!(names.count(), 2, "{end}");
    }
}

#[test]
fn another_checkpoint_is_another_one() {
    let folder = saved(&tiny(), WeightDtype::F32, None);
    let other = saved(&tiny(), WeightDtype::Bf16, None);
    let target = tempfile::tempdir().unwrap();
    let sharded = target.path().join("sharded");
    shard(folder.path(), Accept::Nothing, LAYOUT, &sharded, on).unwrap();
    let verified = verify(&sharded, Accept::Nothing, Some(other.path()), on).unwrap();
    let faults: Vec<String> = verified.faults.iter().map(ToString::to_string).collect();
    // Its configuration names the type; no tensor has the same one.
    assert_eq!(faults[0], "config.json differs from the checkpoint");
    assert!(
        faults[1..]
            .iter()
            .all(|fault| fault.contains(" is not in the checkpoint as f32 [")),
        "{faults:?}"
    );
    assert!(faults.len() > 20, "{faults:?}");
}

#[test]
fn a_folder_is_kept_unless_it_is_the_same() {
    let folder = saved(&tiny(), WeightDtype::F32, None);
    let target = tempfile::tempdir().unwrap();
    let sharded = target.path().join("sharded");
    let write = |layout| shard(folder.path(), Accept::Nothing, layout, &sharded, on);
    assert!(matches!(write(LAYOUT), Ok(Sharding::Written(_))));
    let before = fs::read(sharded.join(LAYOUT_FILE)).unwrap();
    assert!(matches!(write(LAYOUT), Ok(Sharding::AlreadyThere(_))));
    let other = RankLayout::ONE;
    assert!(matches!(
        write(other),
        Err(CheckpointError::Occupied { .. })
    ));
    assert_eq!(fs::read(sharded.join(LAYOUT_FILE)).unwrap(), before);
    let names: Vec<_> = fs::read_dir(target.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn a_packed_checkpoint_is_refused() {
    let target = tempfile::tempdir().unwrap();
    let sharded = target.path().join("sharded");
    let folder = fixtures::folder("gpt-oss-mxfp4");
    let error = shard(&folder, Accept::Nothing, RankLayout::ONE, &sharded, on);
    assert!(matches!(error, Err(CheckpointError::PackedShard { .. })));
    assert!(!sharded.exists());
}
