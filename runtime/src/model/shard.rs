//! A range of layers on a device: forward, backward, evaluate.

mod weights;

use std::ops::Range;

use swarmline_kernels::Backend;
use swarmline_scheduler::{Loss, MicrobatchId, StageIndex, WeightVersion};

use crate::config::Run;
use crate::model::head::{self, Purpose};
use crate::model::layout::{Head, Layout};
use crate::model::pass::{Pass, Scratch};
use crate::model::sizes::Sizes;
use crate::model::stash::{Activations, Kept, Stash, Stashes};
use crate::model::{ParameterLog, Params, embed, layers};
use crate::packing::{CodeError, Codec, Direction, Tokens};
use crate::subspace::Subspace;

/// Errors of a shard.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// An incoming code is malformed, or an outgoing code is not finite.
    #[error(transparent)]
    Code(CodeError),
    /// The loss is a NaN or an infinity.
    #[error("the loss is not finite")]
    NonFiniteLoss,
    /// The microbatch of a gradient has no stash.
    #[error("{0} is not held here")]
    NotHeld(MicrobatchId),
    /// All stash slots are taken; the caller waits for a slot or refuses the microbatch.
    #[error("all {slots} stash slots are taken")]
    Full {
        /// Slots of the shard.
        slots: usize,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] swarmline_kernels::Error),
}

impl From<CodeError> for ShardError {
    fn from(error: CodeError) -> Self {
        match error {
            CodeError::Device(error) => Self::Device(error),
            error @ (CodeError::NonFinite { .. } | CodeError::Length { .. }) => Self::Code(error),
        }
    }
}

/// Input of the last stage in an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The code from the stage before.
    Connected,
    /// Zeros in place of the code: the control that shows whether the upstream matters. Without an upstream, or behind
    /// a cut that nothing crosses, there is no change.
    Cut,
}

/// Result of [`Shard::loss_and_backward`].
#[derive(Clone, Debug, PartialEq)]
pub struct LossAndGradient {
    /// Summed over the tokens of the microbatch.
    pub loss: Loss,
    /// The packed gradient of the incoming code; empty without a code.
    pub gradient: Vec<u8>,
}

/// Result of [`Shard::backward`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backward {
    /// Weight version of the forward pass.
    pub version: WeightVersion,
    /// The packed gradient of the incoming code; empty without a code.
    pub gradient: Vec<u8>,
}

/// The weights of a range of layers, and the device and buffers to compute with them.
///
/// All buffers are allocated when the shard is made. Gradients accumulate in [`Params`]; the caller decides
/// when they are used and zeroed. If a call that adds gradients fails, they hold part of a sum and must be zeroed.
#[derive(Debug)]
pub struct Shard<B: Backend> {
    backend: B,
    params: Params<B>,
    space: Option<Subspace<B>>,
    layout: Layout,
    sizes: Sizes,
    input: Codec,
    output: Codec,
    scratch: Scratch<B>,
    /// Activations of passes that start and end within one call.
    workspace: Activations<B>,
    stashes: Stashes<B>,
    log: ParameterLog,
}

impl<B: Backend> Shard<B> {
    /// The shard of `layers` with initial weights and room for `slots` microbatches between forward and
    /// backward. With the head, forward and backward are one call and no slot is allocated.
    ///
    /// # Errors
    /// If the device has no memory for it.
    ///
    /// # Panics
    /// If `layers` is empty or not within the run's layers.
    pub fn new(mut backend: B, run: &Run, layers: Range<usize>, slots: usize) -> Result<Self, ShardError> {
        assert!(
            layers.start < layers.end && layers.end <= run.model.num_hidden_layers,
            "{layers:?} are layers of the run"
        );
        let layout = Layout::new(run, layers.clone());
        let sizes = Sizes::new(run);
        let slots = if layout.head.is_some() { 0 } else { slots };
        let space = layout.needs_subspace().then(|| Subspace::new(&mut backend, run)).transpose()?;
        let mut log = ParameterLog::default();
        Ok(Self {
            params: Params::new(&mut backend, run, &layout.specs, &mut log)?,
            scratch: Scratch::new(&mut backend, &layout, &sizes)?,
            workspace: Activations::new(&mut backend, &layout, &sizes)?,
            stashes: Stashes::new(
                &mut backend,
                run.pipeline.activation_checkpointing,
                &layout,
                &sizes,
                slots,
            )?,
            input: Codec::in_front_of(run, layers.start),
            output: Codec::in_front_of(run, layers.end),
            backend,
            space,
            layout,
            sizes,
            log,
        })
    }

    /// The shard of a stage of the run.
    ///
    /// # Errors
    /// If the device has no memory for it.
    ///
    /// # Panics
    /// If the run has no such stage.
    pub fn for_stage(backend: B, run: &Run, stage: StageIndex, slots: usize) -> Result<Self, ShardError> {
        Self::new(backend, run, run.layers_of(stage), slots)
    }

    // ---- training -------------------------------------------------------------------------------------------

    /// Forward pass of a microbatch; returns the packed code for the next shard and keeps a stash, stamped
    /// with `version`. A second forward of the same microbatch replaces the first. `code` is empty if the
    /// shard has the embedding.
    ///
    /// # Errors
    /// [`ShardError::Code`] if `code` is wrong or the outcome not finite, [`ShardError::Full`] without a free
    /// slot. No slot is taken then.
    ///
    /// # Panics
    /// If the shard has the head.
    pub fn forward(
        &mut self,
        microbatch: MicrobatchId,
        version: WeightVersion,
        tokens: &Tokens,
        code: &[u8],
    ) -> Result<Vec<u8>, ShardError> {
        assert!(!self.has_head(), "a shard with the head takes loss_and_backward");
        let ids = self.ids(tokens.inputs())?;
        self.receive(microbatch, &ids, code)?;
        let slots = self.stashes.slots();
        let mut kept = self.stashes.take(microbatch).ok_or(ShardError::Full { slots })?;
        let outcome = self.forward_into(microbatch, &ids, code, &mut kept);
        match outcome {
            Ok(_) => self.stashes.hold(microbatch, Stash { version, ids, kept }),
            Err(_) => self.stashes.give_back(kept),
        }
        outcome
    }

    /// Backward pass of a microbatch that holds a stash: adds to the parameters' gradients, frees the slot,
    /// returns the packed gradient for the shard before.
    ///
    /// # Errors
    /// [`ShardError::NotHeld`] without a stash; [`ShardError::Code`] if `gradient` is wrong (the stash stays)
    /// or the outcome not finite (the stash is gone).
    pub fn backward(&mut self, microbatch: MicrobatchId, gradient: &[u8]) -> Result<Backward, ShardError> {
        if self.stashes.version_of(microbatch).is_none() {
            return Err(ShardError::NotHeld(microbatch));
        }
        self.receive_gradient(microbatch, gradient)?;
        let Some(stash) = self.stashes.remove(microbatch) else {
            return Err(ShardError::NotHeld(microbatch));
        };
        let outcome = match &stash.kept {
            Kept::Activations(kept) => self.backward_from(microbatch, &stash.ids, kept),
            Kept::Input(code) => self.recompute_and_backward(microbatch, &stash.ids, code),
        };
        self.stashes.give_back(stash.kept);
        Ok(Backward { version: stash.version, gradient: outcome? })
    }

    /// Backward pass of a microbatch that holds no slot: computes the forward pass again from the retained
    /// input, then as [`Shard::backward`].
    ///
    /// # Errors
    /// [`ShardError::Code`] if `code` or `gradient` is wrong or the outcome not finite.
    pub fn backward_from_input(
        &mut self,
        microbatch: MicrobatchId,
        tokens: &Tokens,
        code: &[u8],
        gradient: &[u8],
    ) -> Result<Vec<u8>, ShardError> {
        let ids = self.ids(tokens.inputs())?;
        self.receive_gradient(microbatch, gradient)?;
        self.recompute_and_backward(microbatch, &ids, code)
    }

    /// Forward and backward pass of the shard with the head, in one pass: adds to the parameters' gradients
    /// and returns the summed loss and the packed gradient for the shard before.
    ///
    /// # Errors
    /// [`ShardError::Code`] if `code` is wrong or the gradient not finite, [`ShardError::NonFiniteLoss`].
    ///
    /// # Panics
    /// If the shard does not have the head.
    pub fn loss_and_backward(
        &mut self,
        microbatch: MicrobatchId,
        tokens: &Tokens,
        code: &[u8],
    ) -> Result<LossAndGradient, ShardError> {
        let ids = self.ids(tokens.inputs())?;
        self.receive(microbatch, &ids, code)?;
        let (loss, head) = self.loss(&ids, tokens, Purpose::Train)?;
        let (mut pass, workspace, _) = self.split();
        head::backward(&mut pass, head)?;
        layers::backward(&mut pass, &ids, workspace)?;
        Ok(LossAndGradient { loss, gradient: self.send_gradient(microbatch)? })
    }

    /// Frees the slot of a microbatch whose gradient will not come; returns whether there was a slot.
    pub fn release(&mut self, microbatch: MicrobatchId) -> bool {
        let stash = self.stashes.remove(microbatch);
        let held = stash.is_some();
        stash.into_iter().for_each(|stash| self.stashes.give_back(stash.kept));
        held
    }

    /// Weight version of the stash of a microbatch; `None` without one.
    #[must_use]
    pub fn stash_version(&self, microbatch: MicrobatchId) -> Option<WeightVersion> {
        self.stashes.version_of(microbatch)
    }

    /// Slots that hold no microbatch.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        self.stashes.free()
    }

    // ---- evaluation -----------------------------------------------------------------------------------------

    /// Forward pass without a stash; returns the packed code for the next shard.
    ///
    /// # Errors
    /// [`ShardError::Code`] if `code` is wrong or the outcome not finite.
    ///
    /// # Panics
    /// If the shard has the head.
    pub fn evaluate(
        &mut self,
        microbatch: MicrobatchId,
        tokens: &Tokens,
        code: &[u8],
    ) -> Result<Vec<u8>, ShardError> {
        assert!(!self.has_head(), "a shard with the head takes evaluate_loss");
        let ids = self.ids(tokens.inputs())?;
        self.receive(microbatch, &ids, code)?;
        self.forward_in_workspace(&ids)?;
        self.send(microbatch)
    }

    /// Loss of the shard with the head, without a gradient.
    ///
    /// # Errors
    /// [`ShardError::Code`] if `code` is wrong, also where it is [`Upstream::Cut`];
    /// [`ShardError::NonFiniteLoss`].
    ///
    /// # Panics
    /// If the shard does not have the head.
    pub fn evaluate_loss(
        &mut self,
        microbatch: MicrobatchId,
        tokens: &Tokens,
        code: &[u8],
        upstream: Upstream,
    ) -> Result<Loss, ShardError> {
        let ids = self.ids(tokens.inputs())?;
        self.receive(microbatch, &ids, code)?;
        if upstream == Upstream::Cut {
            self.cut_upstream()?;
        }
        Ok(self.loss(&ids, tokens, Purpose::Evaluate)?.0)
    }

    /// Logits of the shard with the head behind the token at `position` of the first sequence, `[V]`.
    ///
    /// # Errors
    /// [`ShardError::Code`] if `code` is wrong; [`ShardError::NonFiniteLoss`] if a logit is not finite.
    ///
    /// # Panics
    /// If the shard does not have the head, or a sequence has no such position.
    pub fn predict(
        &mut self,
        microbatch: MicrobatchId,
        tokens: &Tokens,
        code: &[u8],
        position: usize,
    ) -> Result<Vec<f32>, ShardError> {
        assert!(position < self.sizes.model.max_position_embeddings, "{position} is in a sequence");
        let ids = self.ids(tokens.inputs())?;
        self.receive(microbatch, &ids, code)?;
        self.forward_in_workspace(&ids)?;
        let (mut pass, _, head) = self.split();
        let Some(head) = head else { panic!("only a shard with the head has logits") };
        let logits = head::logits(&mut pass, head, position)?;
        if logits.iter().all(|logit| logit.is_finite()) { Ok(logits) } else { Err(ShardError::NonFiniteLoss) }
    }

    // ---- shape ----------------------------------------------------------------------------------------------

    /// Whether the shard starts with the embedding.
    #[must_use]
    pub fn has_embedding(&self) -> bool {
        self.layout.embed.is_some()
    }

    /// Whether the shard ends with the head.
    #[must_use]
    pub fn has_head(&self) -> bool {
        self.layout.head.is_some()
    }

    /// Shape and format of the code that comes in.
    #[must_use]
    pub fn input_codec(&self) -> &Codec {
        &self.input
    }

    /// Shape and format of the code that goes out.
    #[must_use]
    pub fn output_codec(&self) -> &Codec {
        &self.output
    }

    /// Digest of the column space's basis, for the handshake; `None` if the shard does not use the basis.
    #[must_use]
    pub fn basis_digest(&self) -> Option<blake3::Hash> {
        self.space.as_ref().map(Subspace::basis_digest)
    }

    // ---- steps of a call ------------------------------------------------------------------------------------

    fn ids(&mut self, ids: &[u32]) -> Result<B::Ids, ShardError> {
        Ok(self.backend.ids(ids, self.sizes.model.vocab_size)?)
    }

    /// `scratch.stream =` the code, in its dense form if the first layer needs it, or the embedding.
    fn receive(&mut self, microbatch: MicrobatchId, ids: &B::Ids, code: &[u8]) -> Result<(), ShardError> {
        let Scratch { stream, anchor, .. } = &mut self.scratch;
        if let Some(space) = self.space.as_ref().filter(|_| self.layout.lifts_code) {
            space.anchor(&mut self.backend, anchor, ids)?;
            return Ok(self.input.decode_lifted(
                &mut self.backend,
                space,
                stream,
                anchor,
                code,
                microbatch,
            )?);
        }
        self.input.decode(&mut self.backend, stream, code, microbatch, Direction::Forward)?;
        Ok(embed::forward(&mut self.split().0, ids)?)
    }

    /// `scratch.stream =` the output of [`Shard::receive`] for a code of zeros; an embedding stays.
    fn cut_upstream(&mut self) -> Result<(), ShardError> {
        let (stream, rows) = (&mut self.scratch.stream, self.sizes.rows);
        if self.layout.lifts_code {
            self.backend.copy(stream, &self.scratch.anchor, rows * self.sizes.model.hidden_size)?;
        } else if self.layout.embed.is_none() {
            self.backend.fill(stream, 0.0, rows * self.input.width())?;
        }
        Ok(())
    }

    /// `scratch.gradient =` the gradient of the outgoing code.
    fn receive_gradient(&mut self, microbatch: MicrobatchId, gradient: &[u8]) -> Result<(), ShardError> {
        let stream = &mut self.scratch.gradient;
        Ok(self.output.decode(&mut self.backend, stream, gradient, microbatch, Direction::Backward)?)
    }

    fn send(&mut self, microbatch: MicrobatchId) -> Result<Vec<u8>, ShardError> {
        let stream = &self.scratch.stream;
        Ok(self.output.encode(&mut self.backend, stream, microbatch, Direction::Forward)?)
    }

    fn send_gradient(&mut self, microbatch: MicrobatchId) -> Result<Vec<u8>, ShardError> {
        let gradient = &self.scratch.gradient;
        if let Some(space) = self.space.as_ref().filter(|_| self.layout.lifts_code) {
            return Ok(self.input.encode_projected(&mut self.backend, space, gradient, microbatch)?);
        }
        Ok(self.input.encode(&mut self.backend, gradient, microbatch, Direction::Backward)?)
    }

    fn forward_into(
        &mut self,
        microbatch: MicrobatchId,
        ids: &B::Ids,
        code: &[u8],
        kept: &mut Kept<B>,
    ) -> Result<Vec<u8>, ShardError> {
        match kept {
            Kept::Activations(kept) => layers::forward(&mut self.split().0, ids, kept)?,
            Kept::Input(input) => {
                input.clear();
                input.extend_from_slice(code);
                self.forward_in_workspace(ids)?;
            }
        }
        self.send(microbatch)
    }

    fn forward_in_workspace(&mut self, ids: &B::Ids) -> Result<(), ShardError> {
        let (mut pass, workspace, _) = self.split();
        Ok(layers::forward(&mut pass, ids, workspace)?)
    }

    fn backward_from(
        &mut self,
        microbatch: MicrobatchId,
        ids: &B::Ids,
        kept: &Activations<B>,
    ) -> Result<Vec<u8>, ShardError> {
        // Where nothing crosses the cut behind this shard, its gradient is zero.
        if self.output.width() > 0 {
            layers::backward(&mut self.split().0, ids, kept)?;
        }
        self.send_gradient(microbatch)
    }

    fn recompute_and_backward(
        &mut self,
        microbatch: MicrobatchId,
        ids: &B::Ids,
        code: &[u8],
    ) -> Result<Vec<u8>, ShardError> {
        self.receive(microbatch, ids, code)?;
        if self.output.width() > 0 {
            let (mut pass, workspace, _) = self.split();
            layers::forward(&mut pass, ids, workspace)?;
            layers::backward(&mut pass, ids, workspace)?;
        }
        self.send_gradient(microbatch)
    }

    fn loss(&mut self, ids: &B::Ids, tokens: &Tokens, purpose: Purpose) -> Result<(Loss, Head), ShardError> {
        let targets = self.ids(tokens.targets())?;
        let (mut pass, workspace, head) = self.split();
        let Some(head) = head else { panic!("only a shard with the head has a loss") };
        layers::forward(&mut pass, ids, workspace)?;
        let sum = head::forward(&mut pass, head, &targets, purpose)?;
        if !sum.is_finite() {
            return Err(ShardError::NonFiniteLoss);
        }
        let tokens = u32::try_from(self.sizes.rows).unwrap_or(u32::MAX);
        Ok((Loss { sum, tokens }, head))
    }

    fn split(&mut self) -> (Pass<'_, B>, &mut Activations<B>, Option<Head>) {
        let pass = Pass {
            backend: &mut self.backend,
            params: &mut self.params,
            scratch: &mut self.scratch,
            space: self.space.as_ref(),
            layout: &self.layout,
            sizes: &self.sizes,
        };
        (pass, &mut self.workspace, self.layout.head)
    }
}
