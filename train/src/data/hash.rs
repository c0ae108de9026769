//! Hashes of content and what is decided by them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub(super) use firebox_console::numbers::hexadecimal;
use sha2::{Digest, Sha256};

/// A SHA-256.
pub(super) type Hash = [u8; 32];

/// The hash of some bytes.
pub(super) fn hash(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// The hash of a file, read piece by piece; `progress` is called with the bytes of each piece.
pub(super) fn hash_file(path: &Path, mut progress: impl FnMut(u64)) -> io::Result<Hash> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            read => {
                hasher.update(&buffer[..read]);
                progress(read as u64);
            }
        }
    }
}

/// A number in [0, 1), uniform over hashes: their first 53 bits.
pub(super) fn unit_interval(hash: &Hash) -> f64 {
    let first: [u8; 8] = std::array::from_fn(|index| hash[index]);
    (u64::from_be_bytes(first) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_fill_the_unit_interval() {
        let values: Vec<f64> = (0..4000u32)
            .map(|n| unit_interval(&hash(&n.to_le_bytes())))
            .collect();
        assert!(values.iter().all(|value| (0.0..1.0).contains(value)));
        let mean = values.iter().sum::<f64>() / 4000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert_eq!(unit_interval(&[0xFF; 32]), 1.0 - f64::EPSILON / 2.0);
    }
}
