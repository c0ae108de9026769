#!/usr/bin/env bash
# Burn 0.22.1: a device with autodiff equals the same device without.
#
# `Device::autodiff` gives another device: tensors that are made on it are tracked, `is_autodiff` tells the two apart, and Debug
# prints them differently. `==` does not tell them apart. So a table of tensors that is kept per device, and found again
# by comparing devices, hands tensors with autodiff to a model without; what that model then computes depends on
# whether a training step or a validation came first.
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
burn-core = { version = "=0.22.1", default-features = false, features = ["std", "flex", "autodiff", "rayon", "simd"] }
TOML
cat > "$folder/src/main.rs" <<'RUST'
use burn_core::tensor::{Device, Tensor};

fn main() {
    let plain = Device::flex();
    let autodiff = plain.clone().autodiff();
    println!("autodiff {} {}", plain.is_autodiff(), autodiff.is_autodiff());
    println!("equal {}", plain == autodiff);
    println!("printed alike {}", format!("{plain:?}") == format!("{autodiff:?}"));
    let of_tensors = [&plain, &autodiff].map(|device| Tensor::<1>::ones([2], device).device());
    println!("of tensors {} {}", of_tensors[0].is_autodiff(), of_tensors[1].is_autodiff());
}
RUST
found=$(cd "$folder" && CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$folder/target}" cargo run --quiet --release)
printf '%s\n' "$found"
expected='autodiff false true
equal true
printed alike false
of tensors false true'
if [ "$found" != "$expected" ]; then
    echo "changed: burn-core 0.22.1 printed" "$expected" "when this was written" >&2
    exit 1
fi
