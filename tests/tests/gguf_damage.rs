//! Whatever bytes a GGUF file has, it is read or ends in a sentence, with memory in proportion to the file.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use firebox_checkpoint::{
    Accept, BlockType, CheckpointError, GgufOptions, GgufValue, Notes, TensorStore, read_config,
    save_gguf,
};
use firebox_console::terminal::sentence;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::language_model::LanguageModel;
use firebox_model::testing::{moe, tiny};
use firebox_runtime::device;
use proptest::prelude::*;
use tempfile::TempDir;

/// Counts the bytes that each thread holds, and the most of them.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends may have given up its counters.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call is passed on as it is.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes that a thread holds at most while it does something, beyond those that it held before.
fn most_held<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = HELD.get();
    MOST.set(before);
    let result = work();
    (result, MOST.get() - before)
}

/// A file with every kind of metadata.
fn file(kind: BlockType) -> Vec<u8> {
    let mut config = tiny();
    (config.d_model, config.head_dim, config.rotary_dim) = (32, 8, 8);
    moe(&mut config).experts.d_ff = 32;
    let model = LanguageModel::random(&config, 7, &device::select("flex").expect("flex"));
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let texts = (0..37).map(|id| format!("token {id}")).collect();
    let named = |key: &str, value| (key.to_owned(), value);
    let options = GgufOptions {
        kind,
        notes: Notes::default(),
        metadata: vec![
            named("tokenizer.ggml.model", GgufValue::text("gpt2")),
            named("tokenizer.ggml.tokens", GgufValue::Texts(texts)),
            named("tokenizer.ggml.token_type", GgufValue::integers(&[1; 37])),
            named("tokenizer.ggml.eos_token_id", GgufValue::size(3)),
            named("general.alignment", GgufValue::size(32)),
            named("a.flag", GgufValue::flag(true)),
            named("flags", GgufValue::flags([true, false].into_iter())),
        ],
    };
    save_gguf(&model, &path, &options, |_, _| ()).unwrap();
    fs::read(path).unwrap()
}

/// Opens a file and reads all of it, but for what no model needs.
fn read_all(path: &Path) -> Result<(), CheckpointError> {
    read_config(path, Accept::Nothing)?;
    let store = TensorStore::open(path)?;
    let names: Vec<String> = store.tensors().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        store.read(&name)?;
    }
    Ok(())
}

/// Reads these bytes. What goes wrong is a sentence, and memory is in proportion to the file: of its largest tensor there are
/// bytes and values, of texts no more than three words each.
fn check(bytes: &[u8]) -> Result<(), String> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let (read, held) = most_held(|| read_all(&path));
    let most = 8 * bytes.len() + (1 << 20);
    assert!(
        held as usize <= most,
        "{held} bytes for a file of {}",
        bytes.len()
    );
    let error = match read {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    let text = sentence(&error);
    assert!(!text.contains('\n') && text.len() < 3000, "{text}");
    Err(text)
}

/// Where numbers of eight bytes lie that count something: tensors, keys, texts, values of an array, and sizes of a tensor.
fn counts(bytes: &[u8]) -> Vec<usize> {
    let after = |name: &[u8]| {
        let place = bytes.windows(name.len()).position(|part| part == name);
        place.expect("a name") + name.len()
    };
    let tokens = after(b"tokenizer.ggml.tokens");
    let kinds = after(b"tokenizer.ggml.token_type");
    let tensor = after(b"blk.1.ffn_up_exps.weight");
    vec![
        8,
        16,
        // The first key's length, and the length of its value.
        24,
        after(b"general.architecture") + 4,
        // Behind the types of the array and its elements; and the first text.
        tokens + 8,
        tokens + 16,
        kinds + 8,
        // Of a tensor: its name's length, its three sizes, and its offset.
        tensor - b"blk.1.ffn_up_exps.weight".len() - 8,
        tensor + 4,
        tensor + 12,
        tensor + 20,
        tensor + 32,
    ]
}

#[test]
fn the_file_is_read_whole() {
    for kind in BlockType::ALL {
        check(&file(kind)).unwrap();
    }
}

#[test]
fn a_truncated_file_is_refused() {
    let bytes = file(BlockType::Q8);
    // The last tensor is padded to a multiple of 32.
    let lengths = (0..4096).chain((4096..bytes.len() - 32).step_by(41));
    for length in lengths {
        let text = check(&bytes[..length]).unwrap_err();
        let said = ["is damaged", "cannot read", "is not a checkpoint"];
        assert!(
            said.iter().any(|words| text.contains(words)),
            "{length}: {text}"
        );
    }
}

#[test]
fn absurd_counts_are_refused_before_memory_is_taken() {
    let bytes = file(BlockType::Plain(WeightDtype::F32));
    for place in counts(&bytes) {
        for count in [
            u64::MAX,
            u64::MAX / 2,
            1 << 40,
            1 << 32,
            (bytes.len() as u64) * 2,
        ] {
            let mut bytes = bytes.clone();
            bytes[place..place + 8].copy_from_slice(&count.to_le_bytes());
            let text = check(&bytes).unwrap_err();
            assert!(text.contains("is damaged"), "{count} at {place}: {text}");
        }
    }
}

#[test]
fn versions_and_kinds_of_files_are_told_apart() {
    let bytes = file(BlockType::Plain(WeightDtype::F32));
    for (version, words) in [
        (1u32, "version 1; Firebox reads 2 and 3"),
        (4, "version 4; Firebox reads 2 and 3"),
        (3u32.swap_bytes(), "the largest byte first"),
    ] {
        let mut changed = bytes.clone();
        changed[4..8].copy_from_slice(&version.to_le_bytes());
        let text = check(&changed).unwrap_err();
        assert!(text.contains(words), "{text}");
    }
    let mut second = bytes.clone();
    second[4..8].copy_from_slice(&2u32.to_le_bytes());
    check(&second).unwrap();
    let text = check(b"PK\x03\x04 an archive, whatever its name says").unwrap_err();
    assert!(text.contains("it does not begin with GGUF"), "{text}");
}

#[test]
fn tensors_do_not_overlap() {
    let bytes = file(BlockType::Plain(WeightDtype::F32));
    let [first, second] = ["blk.0.attn_q.weight", "blk.0.attn_k.weight"].map(|name| {
        let place = bytes
            .windows(name.len())
            .position(|part| part == name.as_bytes());
        // Behind the name: the number of dimensions, two of them, and the type.
        place.unwrap() + name.len() + 4 + 16 + 4
    });
    let mut changed = bytes.clone();
    changed.copy_within(first..first + 8, second);
    let text = check(&changed).unwrap_err();
    assert!(
        text.contains("blk.0.attn_q.weight") && text.contains("overlap"),
        "{text}"
    );
    let mut changed = bytes;
    changed[second] += 4;
    let text = check(&changed).unwrap_err();
    assert!(text.contains("no multiple of 32"), "{text}");
}

#[test]
fn a_value_that_is_no_value_of_its_key_is_refused_by_name() {
    let bytes = file(BlockType::Plain(WeightDtype::F32));
    // Behind a key's name and type.
    let value = |key: &str| {
        let place = bytes
            .windows(key.len())
            .position(|part| part == key.as_bytes());
        place.expect("a key") + key.len() + 4
    };
    let epsilon = "attention.layer_norm_rms_epsilon";
    for number in [f32::NAN, f32::INFINITY] {
        let (mut changed, place) = (bytes.clone(), value(epsilon));
        changed[place..place + 4].copy_from_slice(&number.to_le_bytes());
        let text = check(&changed).unwrap_err();
        assert!(
            text.contains(epsilon) && text.contains("a finite number"),
            "{text}"
        );
    }
    let (mut changed, end) = (bytes.clone(), "tokenizer.ggml.eos_token_id");
    let place = value(end) - 4;
    // The type of a number in f32, of as many bytes as the id.
    changed[place..place + 4].copy_from_slice(&6u32.to_le_bytes());
    let text = check(&changed).unwrap_err();
    assert!(
        text.contains(end) && text.contains("the id of a token"),
        "{text}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn changed_bytes_are_read_or_end_in_a_sentence(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_head in any::<bool>(),
        kind in prop::sample::select(BlockType::ALL.to_vec()),
    ) {
        thread_local! {
            static FILES: Vec<(BlockType, Vec<u8>)> = BlockType::ALL.map(|kind| (kind, file(kind))).to_vec();
        }
        let mut bytes = FILES.with(|files| {
            files.iter().find(|(known, _)| *known == kind).expect("a file").1.clone()
        });
        let length = if in_head { bytes.len().min(6000) } else { bytes.len() };
        for (place, value) in changes {
            let place = place.index(length);
            bytes[place] = value;
        }
        let _ = check(&bytes);
    }
}
