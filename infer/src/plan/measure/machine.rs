//! What this machine reaches, in the kernels that a step uses.

use std::fs;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};
use firebox_comm::{Comm, CommError, Options, threads};
use firebox_kernels::dtype::{WeightDtype, WeightFormat};
use firebox_kernels::{Int8, Precision, Weight, latency_bound, linear};
use firebox_model::config::{
    AttentionBias, ExpertActivation, ExpertsConfig, LayerConfig, ModelConfig, MoeConfig,
    Multipliers, QkNorm, RouterConfig,
};
use firebox_model::language_model::LanguageModel;
use firebox_model::network::Local;
use firebox_model::parallel::MOST_RANKS;
use firebox_runtime::{device, memory};

use super::steps::time;
use crate::InferError;
use crate::plan::{Hardware, Link, Price, Shared};

/// Width of the square matrices of weights, and their number: together they exceed caches.
const WIDTH: usize = 2048;
const MATRICES: usize = 8;

/// Rows of activations for which arithmetic counts alone, and for which it takes about as long as reading.
const MANY_ROWS: usize = 512;
const FEW_ROWS: usize = 8;

/// How often a figure is measured; the best time counts.
const REPEATS: usize = 6;

/// Messages whose mean time counts.
const MESSAGES: usize = 200;

/// Values of a short message and of a long one.
const SHORT: usize = 16;
const LONG: usize = 1 << 18;

/// Layers of the model that computes next to nothing.
const LAYERS: usize = 8;

/// How long ranks wait for each other.
const DEADLINE: Duration = Duration::from_secs(300);

/// What some cores reach.
#[derive(Debug, Clone, Copy)]
struct Speed {
    /// Bytes/s of weights that meet one row.
    bandwidth: f64,
    /// FLOP/s of products with many rows.
    flops: f64,
    /// How far these hide each other.
    overlap: f64,
}

/// Measures the cores, with weights of this type, and messages between ranks that are threads.
///
/// # Errors
///
/// When the device cannot be used, or the system gives no threads.
pub(super) fn measure(dtype: WeightFormat, cores: usize) -> Result<Hardware, InferError> {
    let device = device::select(device::default_name())?;
    let one = speed(dtype, 1, &device)?;
    let all = match cores {
        1 => one,
        _ => speed(dtype, cores, &device)?,
    };
    let installed = memory::installed().map_or(1e9, |bytes| bytes as f64);
    Ok(Hardware {
        name: format!("a core of {cores} ({})", processor()),
        memory_bytes: rounded(installed / cores as f64),
        memory_bandwidth: rounded(one.bandwidth),
        peak_flops: rounded(one.flops),
        // Ranks are threads, as many as one likes.
        node: MOST_RANKS,
        flops_efficiency: 1.0,
        bandwidth_efficiency: 1.0,
        overlap: rounded(all.overlap),
        layer_latency: rounded(layer_latency(&device)),
        shared: Some(Shared {
            cores,
            memory_bandwidth: rounded(all.bandwidth),
            peak_flops: rounded(all.flops),
        }),
        link: link()?,
        // Gigabit Ethernet, and a price: assumptions.
        network: Link {
            bandwidth: 125e6,
            latency: 1e-4,
        },
        price: Price {
            dollars_per_hour: 0.01,
        },
    })
}

/// Three digits, which is what such a measurement is worth.
fn rounded(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap_or(value)
}

/// The least of some times, in seconds.
fn best(mut seconds: impl FnMut() -> f64) -> f64 {
    (0..REPEATS)
        .map(|_| seconds())
        .fold(f64::INFINITY, f64::min)
}

fn elapsed(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

/// What a rank with so many threads reaches.
fn speed(dtype: WeightFormat, cores: usize, device: &Device) -> Result<Speed, InferError> {
    let options = Options {
        threads: cores,
        deadline: DEADLINE,
    };
    let device = device.clone();
    let speeds = threads::run(1, &options, move |_| {
        let random = |rows| {
            let distribution = Distribution::Uniform(-1.0, 1.0);
            Tensor::<2>::random([rows, WIDTH], distribution, &device)
        };
        // As a checkpoint is read.
        let held = match device.supports_dtype(dtype.plain().tensor_type()) {
            false if dtype != WeightFormat::Int8 => WeightDtype::F32.into(),
            _ => dtype,
        };
        let weight = || -> Weight<2> {
            let values = random(WIDTH);
            match held {
                WeightFormat::Plain(dtype) => values.cast(dtype.tensor_type()).into(),
                WeightFormat::Int8 => {
                    let values: Vec<f32> = values.into_data().iter().collect();
                    let quantized = Int8::quantize(&values, [WIDTH, WIDTH], &device);
                    quantized.expect("weights of at most 1").into()
                }
            }
        };
        let weights: Vec<Weight<2>> = (0..MATRICES).map(|_| weight()).collect();
        let product = |rows: &Tensor<2>, weight: &Weight<2>| {
            device::finish(linear(rows.clone(), weight.clone(), Precision::F32));
        };
        // Of all weights, which no cache holds.
        let streamed = |count| {
            let rows = random(count);
            let all = || weights.iter().for_each(|weight| product(&rows, weight));
            best(|| latency_bound(count, &device, || elapsed(all)))
        };
        let (one, few) = (streamed(1), streamed(FEW_ROWS));
        let rows = random(MANY_ROWS);
        let many = best(|| elapsed(|| product(&rows, &weights[0])));
        let values = (WIDTH * WIDTH) as f64;
        let flops = 2.0 * MANY_ROWS as f64 * values / many;
        let computed = 2.0 * (MATRICES * FEW_ROWS) as f64 * values / flops;
        Ok::<_, InferError>(Speed {
            bandwidth: MATRICES as f64 * held.bytes() * values / one,
            flops,
            overlap: ((one + computed - few) / one.min(computed)).clamp(0.0, 1.0),
        })
    })?;
    Ok(speeds[0])
}

/// Seconds of a layer of a model whose products are next to nothing.
fn layer_latency(device: &Device) -> f64 {
    let config = ModelConfig {
        vocab_size: 16,
        d_model: 16,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        rotary_dim: 8,
        context_length: 64,
        rope_theta: 10_000.0,
        rope_scaling: None,
        norm_epsilon: 1e-5,
        tied_embeddings: false,
        initializer_range: 0.02,
        multipliers: Multipliers::NONE,
        latent: None,
        qk_norm: QkNorm::None,
        attention_bias: AttentionBias::None,
        sinks: false,
        vision: None,
        layers: vec![LayerConfig::MOE; LAYERS],
        moe: Some(MoeConfig {
            experts: ExpertsConfig {
                count: 8,
                top_k: 2,
                d_ff: 16,
                activation: ExpertActivation::Swiglu,
                biases: false,
                shared_d_ff: 0,
                shared_gate: false,
            },
            router: RouterConfig::DEFAULT,
        }),
    };
    let model = LanguageModel::random(&config, 0, device);
    time(&mut Local::new(&model), 1, 8, 48).between / LAYERS as f64
}

/// Messages between two ranks, of one thread each: of an all-reduce, which a step has two of in every layer.
fn link() -> Result<Link, InferError> {
    let options = Options {
        threads: 1,
        deadline: DEADLINE,
    };
    let seconds = threads::run(2, &options, |comm| {
        let (short, long) = (all_reduce(&*comm, SHORT)?, all_reduce(&*comm, LONG)?);
        Ok::<_, InferError>([short, long])
    })?;
    let [short, long] = seconds[0];
    // Two messages of half of the values each: `2 α + bytes / β`.
    let bytes = (LONG * size_of::<f32>()) as f64;
    Ok(Link {
        latency: rounded(short / 2.0),
        bandwidth: rounded(bytes / (long - short).max(1e-9)),
    })
}

/// Mean seconds of an all-reduce of so many values, the best of some means.
fn all_reduce(comm: &dyn Comm, values: usize) -> Result<f64, CommError> {
    let mut values = vec![1.0f32; values];
    let mut least = f64::INFINITY;
    for _ in 0..REPEATS {
        comm.barrier()?;
        let started = Instant::now();
        for _ in 0..MESSAGES {
            comm.all_reduce_sum(&mut values)?;
        }
        least = least.min(started.elapsed().as_secs_f64() / MESSAGES as f64);
    }
    Ok(least)
}

/// What the processor calls itself, where the system says so.
fn processor() -> String {
    let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = told.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    named.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}
