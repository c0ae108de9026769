//! A rank's communicators.

use std::sync::Arc;

use firebox_comm::{Comm, CommError, Traffic};

use super::group::{bytes, decoded, encoded, floats, unwound};
use super::{Coordinates, RankLayout, TensorGroup};
use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One rank of a layout and the communicators that it needs.
///
/// What goes where can be told apart by the traffic of each: sums within a layer among the tensor ranks, the residual stream
/// from a stage to the next along the pipeline, steps and their results among all ranks.
#[derive(Debug, Clone)]
pub struct Ranks {
    layout: RankLayout,
    at: Coordinates,
    /// All ranks.
    world: Arc<dyn Comm>,
    tensor: TensorGroup,
    /// The ranks that have the same number among the tensor ranks of their stages, by stage.
    pipeline: Arc<dyn Comm>,
}

impl Ranks {
    /// Creates the communicators of a rank; collective over all ranks.
    ///
    /// # Errors
    ///
    /// When a rank has failed.
    ///
    /// # Panics
    ///
    /// When there are not as many ranks as in the layout.
    pub fn new(world: Arc<dyn Comm>, layout: RankLayout) -> Result<Self, CommError> {
        assert_eq!(world.size(), layout.ranks(), "ranks of {layout}");
        let at = layout.coordinates(world.rank());
        Ok(Self {
            layout,
            at,
            tensor: TensorGroup::new(world.split(at.stage)?),
            pipeline: world.split(at.tensor)?,
            world,
        })
    }

    /// The layout.
    pub fn layout(&self) -> RankLayout {
        self.layout
    }

    /// Where this rank stands.
    pub fn at(&self) -> Coordinates {
        self.at
    }

    /// All ranks.
    pub fn world(&self) -> &Arc<dyn Comm> {
        &self.world
    }

    /// The tensor ranks of this rank's stage.
    pub fn tensor(&self) -> &TensorGroup {
        &self.tensor
    }

    /// What this rank has sent among the tensor ranks of its stage, and along the pipeline.
    pub fn traffic(&self) -> [Traffic; 2] {
        [self.tensor.comm().traffic(), self.pipeline.traffic()]
    }

    /// Whether this is rank 0, which runs the command and issues the steps.
    pub fn is_first(&self) -> bool {
        self.world.rank() == 0
    }

    /// Whether its stage is the first one.
    pub(super) fn is_first_stage(&self) -> bool {
        self.at.stage == 0
    }

    /// Whether its stage is the last one.
    pub(super) fn is_last_stage(&self) -> bool {
        self.at.stage + 1 == self.layout.pipeline
    }

    /// Hands the residual stream to the next stage.
    ///
    /// # Shapes
    ///
    /// - `stream`: `[tokens, d_model]`
    pub(super) fn send_stream(&self, stream: Tensor<2>) {
        let values: Vec<f32> = stream.into_data().try_into_vec().expect("values in f32");
        unwound(self.pipeline.send(self.at.stage + 1, &bytes(&values)));
    }

    /// The residual stream of the stage before, `[tokens, d_model]`.
    pub(super) fn receive_stream(&self, d_model: usize, device: &Device) -> Tensor<2> {
        let values = floats(&unwound(self.pipeline.recv(self.at.stage - 1)));
        let tokens = values.len() / d_model;
        Tensor::from_data(TensorData::new(values, [tokens, d_model]), device)
    }

    /// Gives a step, which the first rank has or another rank has sent, to the ranks that get it from this one: on the first
    /// stage from the first rank, on each other stage from the rank of the same number on the stage before.
    pub(super) fn pass_on(&self, step: &[u8]) {
        let send = |to| unwound(self.world.send(to, step));
        if self.is_first() {
            (1..self.layout.tensor).for_each(send);
        }
        if !self.is_last_stage() {
            send(self.layout.rank(self.at.stage + 1, self.at.tensor));
        }
    }

    /// The next step, on any rank but the first, however long that takes.
    pub(super) fn next_step(&self) -> Vec<u8> {
        let from = match self.at.stage {
            0 => 0,
            stage => self.layout.rank(stage - 1, self.at.tensor),
        };
        unwound(self.world.wait(from))
    }

    /// Sends a reply to rank 0.
    pub(super) fn reply(&self, reply: &impl Serialize) {
        unwound(self.world.send(0, &encoded(reply)));
    }

    /// What the first of the tensor ranks of a stage has told.
    pub(super) fn reply_of<T: DeserializeOwned>(&self, stage: usize) -> T {
        decoded(&unwound(self.world.recv(self.layout.rank(stage, 0))))
    }
}
