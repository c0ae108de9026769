//! The pictures of a safetensors file.

use firebox_model::config::CHANNELS;
use firebox_model::vision::{Picture, PictureBatch};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::integers;

/// The pictures that rows of tokens see; `None` if the file has none.
///
/// # Errors
///
/// What is wrong with a tensor.
pub(super) fn read(
    file: &SafeTensors<'_>,
    [batch, sequence]: [usize; 2],
) -> Result<Option<PictureBatch>, String> {
    let Ok(pixels) = file.tensor("pixel_values") else {
        return Ok(None);
    };
    let &[rows, slots, tiles, channels, height, width] = pixels.shape() else {
        let shape = pixels.shape();
        return Err(format!(
            "pixel_values has shape {shape:?}; expected [batch, slots, max_tiles, 3, tile_size, tile_size]"
        ));
    };
    if channels != CHANNELS || height != width {
        return Err(format!(
            "pixel_values has tiles of {channels} x {height} x {width}; expected squares of {CHANNELS} colours"
        ));
    }
    if rows != batch {
        return Err(format!(
            "pixel_values has {rows} rows, but input_ids has {batch}"
        ));
    }
    let all = floats(&pixels).ok_or_else(|| {
        let dtype = pixels.dtype();
        format!("pixel_values has type {dtype:?}; expected F32")
    })?;
    if all.iter().any(|value| !value.is_finite()) {
        return Err("pixel_values has values that are not finite".to_owned());
    }
    let arrangements = numbers(file, "aspect_ratio_ids", &[batch, slots])?;
    let used = flags(file, "aspect_ratio_mask", &[batch, slots, tiles])?;
    let visible = flags(
        file,
        "cross_attention_mask",
        &[batch, sequence, slots, tiles],
    )?;
    if arrangements.iter().all(|&arrangement| arrangement == 0) {
        return Err("aspect_ratio_ids names no picture; leave pixel_values out".to_owned());
    }
    let size = tiles * channels * height * width;
    let pictures = arrangements
        .iter()
        .enumerate()
        .map(|(place, &arrangement)| {
            let arrangement = usize::try_from(arrangement)
                .map_err(|_| format!("aspect_ratio_ids contains {arrangement}"))?;
            Ok((arrangement > 0).then(|| Picture {
                arrangement,
                used: used[place * tiles..][..tiles].to_vec(),
                pixels: all[place * size..][..size].to_vec(),
            }))
        });
    let pictures: Result<Vec<Option<Picture>>, String> = pictures.collect();
    Ok(Some(PictureBatch {
        slots,
        pictures: pictures?,
        visible,
    }))
}

fn floats(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let words = view.data().chunks_exact(4);
    let float = |word: &[u8]| f32::from_le_bytes(word.try_into().expect("a whole word"));
    (view.dtype() == Dtype::F32).then(|| words.map(float).collect())
}

fn numbers(file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<i64>, String> {
    let view = file
        .tensor(name)
        .map_err(|_| format!("tensor {name} is missing, and there are pixel_values"))?;
    if view.shape() != shape {
        let found = view.shape();
        return Err(format!("{name} has shape {found:?}; expected {shape:?}"));
    }
    let dtype = view.dtype();
    integers(&view)
        .ok_or_else(|| format!("{name} has type {dtype:?}; expected integers, such as I64"))
}

fn flags(file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<bool>, String> {
    let read = numbers(file, name, shape)?;
    match read.iter().find(|flag| ![0, 1].contains(*flag)) {
        Some(other) => Err(format!("{name} contains {other}; expected 0 or 1")),
        None => Ok(read.into_iter().map(|flag| flag == 1).collect()),
    }
}
