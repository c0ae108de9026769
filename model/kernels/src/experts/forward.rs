//! Forward over slices.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::activation::activate;
use super::rows::{Block, add_to_rows, block_rows, blocks, combine, even_parts, gather, pieces};
use super::spec::Activation;
use crate::dispatch::HostPlan;
use crate::host::gemv::{Activations, Int8Matrix, Layout, WeightMatrix, Weights};
use crate::host::product::Factor;
use crate::host::spin_pool::for_each_init;
use crate::host::uninit::{uninit, vec_uninit_with, vecs_uninit_with};
use crate::precision::Precision;

/// With fewer tasks than this, the hidden width is cut too, so that a few tokens occupy several cores.
const TASKS: usize = 16;

/// The least hidden width of a task: with a single token, narrower ones took up to 40 % more processor time.
const WIDTH: usize = 512;

/// A matrix for each expert.
pub trait Stack: Copy + Send + Sync {
    /// One of them.
    type Matrix: WeightMatrix;

    /// That of an expert, from `d_in` values to `d_out`.
    fn matrix(self, expert: usize, shape: [usize; 2]) -> Self::Matrix;
}

/// `[experts, d_in, d_out]`
impl<'a, T: Factor> Stack for &'a [T] {
    type Matrix = Weights<'a, T>;

    fn matrix(self, expert: usize, [d_in, d_out]: [usize; 2]) -> Weights<'a, T> {
        let size = d_in * d_out;
        Weights::new(&self[expert * size..][..size], d_in, d_out, Layout::Inputs)
    }
}

/// Matrices in 8 bits.
#[derive(Debug, Clone, Copy)]
pub struct Int8Stack<'a> {
    /// `[experts, d_in, d_out]`
    pub codes: &'a [i8],
    /// `[experts, ⌈d_in ÷ block⌉, d_out]`
    pub scales: &'a [f16],
}

impl<'a> Stack for Int8Stack<'a> {
    type Matrix = Int8Matrix<'a>;

    fn matrix(self, expert: usize, [d_in, d_out]: [usize; 2]) -> Int8Matrix<'a> {
        let (size, scales) = (d_in * d_out, d_in.div_ceil(Int8Matrix::BLOCK) * d_out);
        let codes = &self.codes[expert * size..][..size];
        Int8Matrix::new(
            codes,
            &self.scales[expert * scales..][..scales],
            d_in,
            d_out,
        )
    }
}

/// What the experts are given; their matrices are stacked in `S`.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a, S = &'a [f32]> {
    /// `[tokens, d_model]`
    pub x: &'a [f32],
    /// Router weights, `[tokens, top_k]`.
    pub weights: &'a [f32],
    /// `[experts, d_model, d_ff]`
    pub gate: S,
    /// `[experts, d_model, d_ff]`
    pub up: S,
    /// `[experts, d_ff, d_model]`
    pub down: S,
    /// Of the products with these.
    pub biases: Option<Biases<'a>>,
    /// Between the products.
    pub activation: Activation,
    /// Which row goes where.
    pub plan: &'a HostPlan,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of an expert's hidden activations.
    pub d_ff: usize,
    /// Of the products.
    pub precision: Precision,
}

/// The experts' biases.
#[derive(Debug, Clone, Copy)]
pub struct Biases<'a> {
    /// `[experts, d_ff]`
    pub gate: &'a [f32],
    /// `[experts, d_ff]`
    pub up: &'a [f32],
    /// `[experts, d_model]`
    pub down: &'a [f32],
}

/// What the backward pass needs of the forward pass and would take two of three products to compute again:
/// the rows' products with the gate and up matrices, with their biases, each `[rows, d_ff]`.
#[derive(Debug, Clone)]
pub struct Saved {
    /// `x W_gate + b_gate`, before the activation.
    pub gate: Vec<f32>,
    /// `x W_up + b_up`
    pub up: Vec<f32>,
}

/// Memory of one task, used again by the next.
#[derive(Default)]
struct Scratch {
    rows: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    hidden: Vec<f32>,
    panel: Vec<f32>,
}

impl<'a> Inputs<'a> {
    /// One expert's matrix of a stack, `[d_model, d_ff]` or `[d_ff, d_model]`.
    pub fn matrix(&self, stack: &'a [f32], expert: usize) -> &'a [f32] {
        let size = self.d_model * self.d_ff;
        &stack[expert * size..][..size]
    }
}

impl<'a, S: Stack> Inputs<'a, S> {
    fn rows(&self) -> usize {
        self.plan.token_of_row.len()
    }

    /// The outputs of one block of rows, of which `columns` of the hidden width do their part.
    fn block_output(
        &self,
        block: &Block,
        columns: Range<usize>,
        [scratch_rows, panel]: [&mut Vec<f32>; 2],
        [gate, up, hidden, outputs]: [&mut [MaybeUninit<f32>]; 4],
    ) {
        let (d_model, d_ff, precision) = (self.d_model, self.d_ff, self.precision);
        let count = block.rows.len();
        let tokens = &self.plan.token_of_row[block.rows.clone()];
        let rows = gather(
            self.x,
            tokens,
            d_model,
            uninit(scratch_rows, count * d_model),
        );
        let rows = Activations::new(rows, count, d_model, precision);
        let into = |stack: S| {
            let matrix = stack.matrix(block.expert, [d_model, d_ff]);
            matrix.outputs(columns.clone())
        };
        let gate = into(self.gate).product(&rows, panel, gate);
        let up = into(self.up).product(&rows, panel, up);
        if let Some(biases) = &self.biases {
            let of = |bias: &'a [f32]| &bias[block.expert * d_ff..][columns.clone()];
            add_to_rows(gate, of(biases.gate));
            add_to_rows(up, of(biases.up));
        }
        let hidden = activate(self.activation, gate, up, hidden);
        let hidden = Activations::new(hidden, count, columns.len(), precision);
        let is_first = columns.start == 0;
        let down = self.down.matrix(block.expert, [d_ff, d_model]);
        let down = down.inputs(columns);
        let outputs = down.product(&hidden, panel, outputs);
        // Once a row, of whose outputs each slice of the hidden width has a part.
        if let Some(biases) = self.biases.filter(|_| is_first) {
            add_to_rows(outputs, &biases.down[block.expert * d_model..][..d_model]);
        }
    }
}

/// Each token's weighted sum of its experts' outputs, `[tokens, d_model]`.
pub fn forward<S: Stack>(inputs: &Inputs<'_, S>) -> Vec<f32> {
    let (rows, d_model) = (inputs.rows(), inputs.d_model);
    let blocks = blocks(inputs.plan, block_rows(inputs.precision));
    let slices = TASKS.div_ceil(blocks.len().max(1));
    let columns: Vec<_> = hidden_columns(inputs.d_ff, slices, S::Matrix::INPUT_ALIGNMENT).collect();
    let tasks: Vec<_> = columns
        .iter()
        .flat_map(|columns| blocks.iter().map(move |block| (block, columns.clone())))
        .collect();

    let length = columns.len() * rows * d_model;
    let fill = |outputs: &mut [MaybeUninit<f32>]| {
        let of_task = tasks.iter().map(|(block, _)| block.rows.len() * d_model);
        let of_task = pieces(outputs, of_task);
        for_each_init(
            tasks.iter().zip(of_task).collect(),
            rayon::current_num_threads(),
            Scratch::default,
            |scratch, ((block, columns), outputs)| {
                let size = block.rows.len() * columns.len();
                let [gate, up, hidden] = [&mut scratch.gate, &mut scratch.up, &mut scratch.hidden]
                    .map(|v| uninit(v, size));
                let places = [gate, up, hidden, outputs];
                let buffers = [&mut scratch.rows, &mut scratch.panel];
                inputs.block_output(block, columns.clone(), buffers, places);
            },
        );
    };
    // SAFETY: the tasks' pieces fill the outputs, and each is written.
    #[allow(unsafe_code)]
    let outputs = unsafe { vec_uninit_with(length, fill) };
    let factors = Some(inputs.weights);
    combine(inputs.plan, &outputs, columns.len(), factors, d_model)
}

/// The hidden width in so many parts or fewer, which begin at multiples of `unit`.
fn hidden_columns(
    d_ff: usize,
    slices: usize,
    unit: usize,
) -> impl Iterator<Item = Range<usize>> + Clone {
    let largest = d_ff.div_ceil(slices).max(WIDTH).div_ceil(unit);
    even_parts(d_ff.div_ceil(unit), largest)
        .map(move |units| units.start * unit..(units.end * unit).min(d_ff))
}

/// [`forward`], and what [`backward`](super::backward::backward) needs of it.
pub fn forward_saving(inputs: &Inputs<'_, &[f32]>) -> (Vec<f32>, Saved) {
    let (rows, d_model, d_ff) = (inputs.rows(), inputs.d_model, inputs.d_ff);
    let blocks = blocks(inputs.plan, block_rows(inputs.precision));
    let lengths = |width| blocks.iter().map(move |block| block.rows.len() * width);
    let fill = |[gate, up, outputs]: [&mut [MaybeUninit<f32>]; 3]| {
        blocks
            .par_iter()
            .zip(pieces(gate, lengths(d_ff)))
            .zip(pieces(up, lengths(d_ff)))
            .zip(pieces(outputs, lengths(d_model)))
            .with_max_len(1)
            .for_each_init(
                Scratch::default,
                |scratch, (((block, gate), up), outputs)| {
                    let hidden = uninit(&mut scratch.hidden, block.rows.len() * d_ff);
                    let places = [gate, up, hidden, outputs];
                    let buffers = [&mut scratch.rows, &mut scratch.panel];
                    inputs.block_output(block, 0..d_ff, buffers, places);
                },
            );
    };
    let lengths = [rows * d_ff, rows * d_ff, rows * d_model];
    // SAFETY: the blocks' pieces fill the three, and each is written.
    #[allow(unsafe_code)]
    let [gate, up, outputs] = unsafe { vecs_uninit_with(lengths, fill) };
    let output = combine(inputs.plan, &outputs, 1, Some(inputs.weights), d_model);
    (output, Saved { gate, up })
}
