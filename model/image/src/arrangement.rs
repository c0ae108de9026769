//! How many tiles a picture takes, in which rows and columns, and the size that it is given there.

/// Rows and columns of tiles.
pub(crate) type Grid = [usize; 2];

/// All grids of at most `max_tiles` tiles, in the order of their numbers: by rows, then by columns.
pub(crate) fn grids(max_tiles: usize) -> Vec<Grid> {
    let rows = 1..=max_tiles;
    rows.flat_map(|rows| (1..=max_tiles / rows).map(move |columns| [rows, columns]))
        .collect()
}

/// The grid for a picture of these sides, as its place among [`grids`]: the one in which the picture, as large as it
/// fits, has to grow least; if it fits into none, the one in which it shrinks least. Among equals the one with the
/// fewest tiles, then the first.
pub(crate) fn choose(grids: &[Grid], tile: usize, height: usize, width: usize) -> usize {
    let scale = |grid: &Grid| {
        let of = |tiles: usize, side: usize| (tiles * tile) as f64 / side as f64;
        of(grid[0], height).min(of(grid[1], width))
    };
    let scales: Vec<f64> = grids.iter().map(scale).collect();
    let growing = scales.iter().copied().filter(|&scale| scale >= 1.0);
    let best = growing
        .min_by(f64::total_cmp)
        .or_else(|| scales.iter().copied().max_by(f64::total_cmp))
        .expect("there is a grid");
    let equals = (0..grids.len()).filter(|&place| scales[place] == best);
    equals
        .min_by_key(|&place| grids[place][0] * grids[place][1])
        .expect("the best is among them")
}

/// Height and width of a picture in a grid. It is as large as fits, but only grows until one side is a tile.
pub(crate) fn fit(grid: Grid, tile: usize, height: usize, width: usize) -> (usize, usize) {
    let target = |tiles: usize, side: usize| side.clamp(tile, tiles * tile);
    let (target_height, target_width) = (target(grid[0], height), target(grid[1], width));
    let by_height = target_height as f64 / height as f64;
    let by_width = target_width as f64 / width as f64;
    let other = |side: usize, scale: f64, most: usize| {
        ((side as f64 * scale).floor() as usize).clamp(1, most)
    };
    match by_width < by_height {
        true => (other(height, by_width, target_height), target_width),
        false => (target_height, other(width, by_height, target_width)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_numbered_by_rows() {
        let eight = [
            [1, 1],
            [1, 2],
            [1, 3],
            [1, 4],
            [2, 1],
            [2, 2],
            [3, 1],
            [4, 1],
        ];
        assert_eq!(grids(4), eight);
        assert_eq!(grids(1), [[1, 1]]);
    }

    /// Sizes that Hugging Face's processor of Mllama gives for tiles of 28, at most 4.
    #[test]
    fn sizes_are_those_of_mllama() {
        for (height, width, id, grid, size) in [
            (10, 10, 1, [1, 1], (28, 28)),
            (28, 29, 2, [1, 2], (28, 29)),
            (29, 28, 5, [2, 1], (29, 28)),
            (20, 57, 3, [1, 3], (20, 57)),
            (30, 100, 4, [1, 4], (28, 93)),
            (40, 60, 6, [2, 2], (37, 56)),
            (56, 57, 6, [2, 2], (55, 56)),
            (7, 200, 4, [1, 4], (3, 112)),
            (1, 500, 4, [1, 4], (1, 112)),
            (200, 200, 6, [2, 2], (56, 56)),
        ] {
            let grids = grids(4);
            let place = choose(&grids, 28, height, width);
            assert_eq!((place + 1, grids[place]), (id, grid), "{height} × {width}");
            assert_eq!(fit(grid, 28, height, width), size, "{height} × {width}");
        }
    }
}
