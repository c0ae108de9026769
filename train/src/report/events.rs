//! Runs as files of TensorBoard.
//!
//! A file is a sequence of TFRecords: the length as u64, its checksum, the content, its checksum, all little-endian; a checksum is
//! CRC-32C, rotated by 15 bits and offset by a constant. The content is a protocol buffer of the type `Event`, of which a few
//! fields are written (tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto).

use std::path::Path;
use std::time::UNIX_EPOCH;

use firebox_console::durable::{self, FileError};

use super::ranks::Times;
use super::{Recorded, Report};
use crate::run_folder;

impl Report {
    /// Writes a folder a run into `folder`, which `tensorboard --logdir` shows. What an earlier report wrote there is replaced.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn write_events(&self, folder: &Path) -> Result<(), FileError> {
        for run in &self.runs {
            let folder = folder.join(run.name.replace(['/', '\\'], "-"));
            std::fs::create_dir_all(&folder).map_err(FileError::of("create", &folder))?;
            durable::write(&folder.join("events.out.tfevents.firebox"), run.events())?;
        }
        Ok(())
    }
}

impl Recorded {
    /// The content of a run's file.
    fn events(&self) -> Vec<u8> {
        let start = self.begun();
        let mut events = record(&[double(1, start), text(3, "brain.Event:2")].concat());
        let mut add = |step: u64, seconds: f64, values: &[(String, f64)]| {
            let values = values.iter().flat_map(|(tag, value)| {
                message(1, &[text(1, tag), single(2, *value as f32)].concat())
            });
            let summary: Vec<u8> = values.collect();
            let event = [
                double(1, start + seconds),
                integer(2, step),
                message(5, &summary),
            ];
            events.extend(record(&event.concat()));
        };
        for record in &self.training {
            let mut values = vec![
                ("training/loss".to_owned(), record.loss),
                ("training/total loss".to_owned(), record.total_loss),
                ("training/learning rate".to_owned(), record.learning_rate),
                ("training/gradient norm".to_owned(), record.gradient_norm),
                ("training/tokens".to_owned(), record.tokens as f64),
                (
                    "training/tokens per second".to_owned(),
                    record.tokens_per_second,
                ),
                (
                    "training/FLOPs per second".to_owned(),
                    record.flops_per_second,
                ),
            ];
            for layer in &record.layers {
                let of_layer = [
                    ("busiest over mean", layer.max_over_mean),
                    ("dead", layer.dead_experts as f64),
                    ("entropy", layer.entropy),
                    ("balance loss", layer.balance),
                    ("z-loss", layer.z),
                ];
                let tag = |what| format!("experts, layer {}/{what}", layer.layer);
                values.extend(of_layer.map(|(what, value)| (tag(what), value)));
            }
            let ranks = Times::of(&record.ranks).into_iter().zip(&record.ranks);
            for (rank, (times, sent)) in ranks.enumerate() {
                let of_rank = [
                    ("seconds of computing", times.computing),
                    ("seconds of messages meanwhile", times.messages),
                    ("seconds of waiting for the slowest", times.waiting),
                    ("seconds of gradients and weights", times.exchanging),
                    ("bytes of gradients and weights", sent.bytes as f64),
                ];
                let tag = |what| format!("rank {rank}/{what}");
                values.extend(of_rank.map(|(what, value)| (tag(what), value)));
            }
            add(record.step, record.seconds, &values);
        }
        for record in &self.validations {
            let whole = &record.validation.whole;
            let mut values = vec![
                ("held out/nats per token".to_owned(), whole.nats_per_token),
                ("held out/bits per byte".to_owned(), whole.bits_per_byte),
            ];
            let sources = record.validation.sources.iter();
            values.extend(sources.map(|source| {
                let tag = format!("held out by source/{}, bits per byte", source.name);
                (tag, source.bits_per_byte)
            }));
            add(record.step, record.seconds, &values);
        }
        events
    }

    /// When training began, in seconds since 1970, as far as the last line tells; without interruptions.
    fn begun(&self) -> f64 {
        let modified = std::fs::metadata(run_folder::metrics(&self.folder))
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let seconds = self.last().map_or(0.0, |last| last.seconds);
        modified.map_or(0.0, |time| time.as_secs_f64()) - seconds
    }
}

/// A TFRecord.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let checksums = [&length[..], content].map(|bytes| checksum(bytes).to_le_bytes());
    [&length[..], &checksums[0], content, &checksums[1]].concat()
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xA282_EAD8)
}

// Fields of a protocol buffer: their number and kind, and the value.

fn double(field: u8, value: f64) -> Vec<u8> {
    [&[field << 3 | 1][..], &value.to_le_bytes()].concat()
}

fn single(field: u8, value: f32) -> Vec<u8> {
    [&[field << 3 | 5][..], &value.to_le_bytes()].concat()
}

fn integer(field: u8, value: u64) -> Vec<u8> {
    [vec![field << 3], varint(value)].concat()
}

fn message(field: u8, content: &[u8]) -> Vec<u8> {
    [
        &[field << 3 | 2][..],
        &varint(content.len() as u64),
        content,
    ]
    .concat()
}

fn text(field: u8, value: &str) -> Vec<u8> {
    message(field, value.as_bytes())
}

/// Seven bits a byte, the lowest ones first; the highest bit says that more follow.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_those_of_tensorflow() {
        // As TensorBoard's own `RecordWriter` writes it (tensorboard 2.21).
        let expected =
            "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c";
        let event = [double(1, 1.5), text(3, "brain.Event:2")].concat();
        let found = record(&event);
        let found: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, expected);
        assert_eq!(varint(300), [0xAC, 0x02]);
    }
}
