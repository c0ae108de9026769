#!/usr/bin/env bash
# Burn 0.22.1, flex backend: an f16 product of one row is less exact than the same row among others.
#
# Each row of x holds 4,096 ones, and w is a column of ones, so that every output is 4096, which f16 holds exactly. With two rows the outputs
# are 4096; with a single row the output is 2048: that path adds up in f16, in which 2048 + 1 rounds to 2048. bf16 and f32 give
# 4096 for one row as well. So a decoder that feeds one token at a time computes something else than the prefill that fed
# several, if its weights are f16.
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
use burn_core::tensor::{DType, Device, Tensor};

fn main() {
    let device = Device::flex();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for rows in [2, 1] {
            let x = Tensor::<2>::ones([rows, 4096], &device).cast(dtype);
            let w = Tensor::<2>::ones([4096, 64], &device).cast(dtype);
            let y: Vec<f32> = x.matmul(w).narrow(1, 0, 1).cast(DType::F32).into_data().iter().collect();
            println!("{dtype:?} {rows} {y:?}");
        }
    }
}
RUST
found=$(cd "$folder" && CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$folder/target}" cargo run --quiet --release)
printf '%s\n' "$found"
expected='F32 2 [4096.0, 4096.0]
F32 1 [4096.0]
BF16 2 [4096.0, 4096.0]
BF16 1 [4096.0]
F16 2 [4096.0, 4096.0]
F16 1 [2048.0]'
if [ "$found" != "$expected" ]; then
    echo "changed: burn-core 0.22.1 printed" "$expected" "when this was written" >&2
    exit 1
fi
