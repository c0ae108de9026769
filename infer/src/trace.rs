//! Writes the intermediate values of a forward pass, for comparison with another implementation.

mod pictures;

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use firebox_checkpoint::{NamedTensor, checkpoint_place, named_gradients, write_tensors};
use firebox_kernels::dtype::WeightDtype;
use firebox_model::language_model::{LanguageModel, Trace};
use firebox_model::loss::{Objective, cross_entropy_sum, load_balancing};
use firebox_model::moe::balance::TokensPerExpert;
use firebox_model::network::{Local, Network, PaddedRows};
use firebox_model::parallel::Driver;
use firebox_runtime::device;

use crate::InferError;
use crate::engine::open_model;
use crate::ranks::{Part, RankOptions};
pub use crate::trace_input::TraceInput;

/// The losses of a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Losses {
    /// Mean cross-entropy in nats, over the positions where neither the token nor its successor is padding.
    pub cross_entropy: f64,
    /// Cross-entropy plus the auxiliary losses of the checkpoint's configuration.
    pub total: f64,
    /// Number of tensors written.
    pub tensors: usize,
}

/// Runs the tokens in the file `input` through a checkpoint on a device (see [`Engine::open`](crate::engine::Engine::open)),
/// and writes the results to the file `output`, which appears only when it is complete:
///
/// | tensor | shape | |
/// |---|---|---|
/// | `input_ids`, `attention_mask` | `[batch, sequence]` | as read; all ones if the input has no mask |
/// | `hidden.0` … `hidden.L` | `[batch, sequence, d_model]` | the embeddings, then the residual stream after each block; the last one after the final norm. Without pictures, the layers that attend to pictures have none |
/// | `router_logits.N` | `[batch · sequence, experts]` | before the softmax or sigmoid, one tensor per MoE layer |
/// | `logits` | `[batch, sequence, vocab_size]` | |
/// | `loss.cross_entropy` | `[1]` | mean over the positions where neither the token nor its successor is padding, nor the successor an image token |
/// | `loss.load_balancing` | `[1]` | over valid tokens; Hugging Face's pooled loss unless the checkpoint names another |
/// | `loss.total` | `[1]` | cross-entropy plus auxiliary losses, with the coefficients of the checkpoint |
/// | `pixel_values` and what else [`TraceInput`] reads of pictures | | as read |
/// | `vision.embedded` | `[batch, slots, tiles, positions, width]` | patches, class and positions, after the norm before the tower's first encoder |
/// | `vision.layer.N`, `vision.global.N` | `[batch, slots, tiles, filled, width]` | after each layer of the first and the second encoder; positions are filled up to a multiple of 8 |
/// | `vision.encoded` | `[batch, slots, tiles, filled, width]` | what the second encoder is given |
/// | `vision.output` | `[batch, slots, tiles, positions, output width]` | the tower's output |
/// | `projected` | `[batch, slots · tiles · positions, d_model]` | what cross-attention takes keys and values from; zeros, as the tensors of the tower have them, for an empty slot |
/// | `grad.NAME` | as the parameter | of the total loss, with `gradients`; named as in transformers 5, experts fused |
///
/// # Errors
///
/// When the checkpoint, the device or the input cannot be used, or the output cannot be written.
pub fn trace(
    checkpoint: &Path,
    accept: &[String],
    device: &str,
    input: &Path,
    output: &Path,
    gradients: bool,
) -> Result<Losses, InferError> {
    refuse_what_is_read(checkpoint, input, output)?;
    let plain = device::select(device)?;
    let selected = if gradients { plain.autodiff() } else { plain };
    let (_, opened) = open_model(checkpoint, accept, &selected, WeightDtype::F32)?;
    let model = match gradients {
        true => opened.model.train(),
        false => opened.model,
    };
    let network = &mut Local::new(&model);
    let gradients = gradients.then_some(&model);
    write(network, &model.device(), input, output, gradients)
}

/// The same of a checkpoint that many ranks hold together, without gradients.
///
/// # Errors
///
/// As [`trace`], and when the ranks cannot hold the model so or one of them fails.
pub fn trace_on_ranks(
    options: RankOptions,
    input: &Path,
    output: &Path,
) -> Result<Losses, InferError> {
    refuse_what_is_read(&options.checkpoint, input, output)?;
    let (input, output) = (input.to_owned(), output.to_owned());
    options.run(move |Part { model, ranks }| {
        let network = &mut Driver::new(&model, &ranks);
        write(network, &model.device(), &input, &output, None)
    })
}

/// Writes the values of a network, and the gradients of a model if it is given.
fn write(
    network: &mut impl Network,
    device: &Device,
    input: &Path,
    output: &Path,
    gradients: Option<&LanguageModel>,
) -> Result<Losses, InferError> {
    let tokens = TraceInput::read(input)?;
    tokens.check(input, network.config())?;
    let computed = Computed::new(network, device, &tokens);
    let image_token = network.config().image_token();
    let pairs = tokens.pairs(image_token);
    if pairs == 0 {
        return Err(InferError::TraceInput {
            file: input.to_owned(),
            reason: "no two adjacent positions are both tokens, so there is no loss".to_owned(),
        });
    }

    let shape = [tokens.batch, tokens.sequence];
    let mut tensors = vec![
        NamedTensor::int(
            "input_ids",
            shape,
            tokens.ids.iter().map(|&id| i64::from(id)).collect(),
        ),
        NamedTensor::int(
            "attention_mask",
            shape,
            tokens.valid.iter().map(|&valid| i64::from(valid)).collect(),
        ),
    ];
    let Trace {
        hidden,
        output: computed_output,
        vision,
    } = computed.trace;
    if let (Some(pictures), Some(vision)) = (&tokens.pictures, vision) {
        tensors.extend(pictures::given(pictures, shape));
        tensors.extend(pictures::computed(pictures, tokens.batch, vision));
    }
    for (number, hidden) in hidden.into_iter().enumerate() {
        tensors.push(named(format!("hidden.{number}"), hidden));
    }
    for routing in computed_output.routing {
        let name = format!("router_logits.{}", routing.layer);
        tensors.push(named(name, routing.logits));
    }
    tensors.push(named("logits", computed_output.logits));
    tensors.push(named("loss.cross_entropy", computed.cross_entropy.clone()));
    if let Some(load_balancing) = computed.load_balancing {
        tensors.push(named("loss.load_balancing", load_balancing));
    }
    tensors.push(named("loss.total", computed.total.clone()));
    let scalar = |tensor: &Tensor<1>| f64::from(tensor.to_data().iter::<f32>().sum::<f32>());
    let (cross_entropy, total) = (scalar(&computed.cross_entropy), scalar(&computed.total));
    if let Some(model) = gradients {
        let found = computed.total.backward();
        let named = named_gradients(model, &found);
        tensors.extend(named.into_iter().map(|tensor| NamedTensor {
            name: format!("grad.{}", tensor.name),
            ..tensor
        }));
    }
    write_tensors(output, &tensors, WeightDtype::F32)?;
    Ok(Losses {
        cross_entropy,
        total,
        tensors: tensors.len(),
    })
}

/// The results of the forward pass, still on the device.
struct Computed {
    trace: Trace,
    cross_entropy: Tensor<1>,
    load_balancing: Option<Tensor<1>>,
    total: Tensor<1>,
}

impl Computed {
    fn new(network: &mut impl Network, device: &Device, tokens: &TraceInput) -> Self {
        let flags = |flags: Vec<bool>| {
            let values: Vec<f32> = flags
                .into_iter()
                .map(|flag| f32::from(u8::from(flag)))
                .collect();
            let length = values.len();
            Tensor::<1>::from_data(TensorData::new(values, [length]), device)
        };
        let ids = |ids: Vec<u32>, shape: [usize; 2]| {
            let ids: Vec<i32> = ids.into_iter().map(|id| id as i32).collect();
            Tensor::<2, Int>::from_data(TensorData::new(ids, shape), device)
        };
        let shape = [tokens.batch, tokens.sequence];
        let trace = network.trace(PaddedRows {
            ids: &tokens.ids,
            valid: &tokens.valid,
            length: tokens.sequence,
            pictures: tokens.pictures.as_ref(),
        });

        let image_token = network.config().image_token();
        let (targets, loss_mask) = tokens.targets(image_token);
        let routing = &trace.output.routing;
        let valid = flags(tokens.valid.clone());
        let count = tokens.valid.iter().filter(|valid| **valid).count() as u64;
        let mut tokens_per_expert = TokensPerExpert::default();
        tokens_per_expert.add(routing, Some(&valid), count);
        let config = network.config();
        let load_balancing = config.moe.as_ref().and_then(|moe| {
            let kind = moe.router.balance;
            load_balancing(kind, routing, Some(&valid), &tokens_per_expert)
        });
        let logits = trace.output.logits.clone().flatten(0, 1);
        let targets = ids(targets, shape).flatten(0, 1);
        let objective = Objective::new(
            config,
            cross_entropy_sum(logits, targets, Some(&flags(loss_mask))),
            tokens.pairs(image_token) as u64,
            routing,
            Some(&valid),
            &tokens_per_expert,
        );
        Self {
            trace,
            total: objective.total(),
            cross_entropy: objective.cross_entropy,
            load_balancing,
        }
    }
}

fn named<const D: usize>(name: impl Into<String>, tensor: Tensor<D>) -> NamedTensor<'static> {
    let tensor = tensor.detach();
    NamedTensor::float(name, tensor.dims(), move || {
        tensor.to_data().iter::<f32>().collect()
    })
}

/// Refuses an output that is the input, or a file of the checkpoint.
fn refuse_what_is_read(checkpoint: &Path, input: &Path, output: &Path) -> Result<(), InferError> {
    let same = |a: &Path, b: &Path| {
        a.canonicalize()
            .ok()
            .is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b))
    };
    let refusal = |reason| {
        Err(InferError::TraceOutput {
            file: output.to_owned(),
            reason,
        })
    };
    if same(output, input) {
        return refusal("is the input");
    }
    let folder = output.parent().filter(|folder| *folder != Path::new(""));
    let opened = checkpoint_place(checkpoint).unwrap_or_else(|_| checkpoint.to_owned());
    let is_file = same(output, &opened) || same(folder.unwrap_or(Path::new(".")), &opened);
    if output.exists() && is_file {
        return refusal("is a file of the checkpoint");
    }
    Ok(())
}
