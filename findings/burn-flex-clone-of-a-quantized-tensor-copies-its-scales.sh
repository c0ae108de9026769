#!/usr/bin/env bash
# Burn 0.22.1, flex: the clone of a tensor in 8 bits copies all of its scales.
#
# A clone of a float tensor shares its buffer, and takes no memory whatever its size; modules clone their weights at each
# forward pass by `Param::val`. The clone of a quantized tensor shares its numbers, but its scales are a vector beside them,
# which is copied: with a scale for each 32 weights, a ninth of all its bytes. A model whose tokens use few of its weights,
# such as two experts of many, copies the scales of all experts for each token, so that weights in 8 bits can take longer
# than weights in bf16.
#
# Needs cargo (Rust 1.95 or newer) and the crates registry. Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat > "$folder/Cargo.toml" <<'TOML'
[package]
name = "finding"
version = "0.1.0"
edition = "2024"
[dependencies]
burn-core = { version = "=0.22.1", default-features = false, features = ["std", "flex", "rayon", "simd"] }
TOML
cat > "$folder/src/main.rs" <<'RUST'
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn_core::tensor::quantization::{QuantScheme, QuantStore, QuantValue, ScaleDtype};
use burn_core::tensor::{Device, Tensor};

/// Counts the bytes that are asked for.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn of_clone(tensor: &Tensor<2>) -> usize {
    let before = BYTES.load(Ordering::Relaxed);
    let copy = tensor.clone();
    let taken = BYTES.load(Ordering::Relaxed) - before;
    drop(copy);
    // What describes a tensor takes a few hundred bytes.
    taken / 1024
}

fn main() {
    let weights = Tensor::<2>::ones([1024, 4096], &Device::flex());
    let scheme = QuantScheme::default()
        .with_value(QuantValue::Q8S)
        .with_store(QuantStore::Native)
        .per_block([32], ScaleDtype::F32);
    let quantized = weights.clone().quantize_dynamic(&scheme);
    println!("clone of 16 MiB in f32: {} KiB", of_clone(&weights));
    println!("clone of 4 MiB in 8 bits: {} KiB", of_clone(&quantized));
}
RUST
found=$(cd "$folder" && CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$folder/target}" cargo run --quiet --release)
printf '%s\n' "$found"
expected='clone of 16 MiB in f32: 0 KiB
clone of 4 MiB in 8 bits: 512 KiB'
if [ "$found" != "$expected" ]; then
    echo "changed: burn-core 0.22.1 printed" "$expected" "when this was written" >&2
    exit 1
fi
