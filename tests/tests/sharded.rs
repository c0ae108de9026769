//! Parts of checkpoints: what a rank reads of a whole one and of its own folder, and the checkpoint that ranks make again.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use firebox_checkpoint::sharded::{
    LAYOUT_FILE, ShardedCheckpoint, Sharding, shard, unshard, verify,
};
use firebox_checkpoint::{
    Accept, CheckpointError, CheckpointParameters, INDEX_FILE, MODEL_FILE, SaveOptions, TensorFile,
    read_config, save,
};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::{Holding, RankLayout, Shard};
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
        _ => asked::<3, S>(source, parameter),
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
    for (case, folder) in fixtures::cases() {
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
    for (case, folder) in fixtures::cases() {
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
    // Rows of more bytes than are read along.
    (config.vocab_size, config.d_model, config.context_length) = (4096, 2048, 64);
    (config.heads, config.kv_heads, config.head_dim) = (8, 8, 8);
    config.moe.as_mut().unwrap().experts.d_ff = 64;
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
            // Files have `[d_out, d_in]`: what divides d_in of narrow rows is read with what is between, at most a page a run.
            let narrow = ["attention.output", "experts.down"];
            let most = match narrow.iter().any(|name| parameter.path.contains(name)) {
                true => 4 * parameter.elements() as u64,
                false => wanted,
            };
            assert!(
                bytes >= wanted && bytes <= most,
                "{}: {bytes} of {most}",
                parameter.path
            );
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

/// Changes a byte of a tensor.
fn damage(folder: &Path, rank: usize, tensor: &str) {
    let path = folder.join(format!("rank-{rank:03}")).join(MODEL_FILE);
    let stored = {
        let file = TensorFile::open(&path).unwrap();
        let shape = file.tensors()[tensor].shape.clone();
        let slice = firebox_model::parallel::Slice::whole(shape);
        file.read_stored(tensor, &slice).unwrap()
    };
    let mut bytes = fs::read(&path).unwrap();
    let place = bytes
        .windows(stored.len())
        .position(|window| window == stored);
    bytes[place.unwrap()] ^= 1;
    fs::write(&path, bytes).unwrap();
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
