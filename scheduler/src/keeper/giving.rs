//! The keeper as a donor: it gives the states of its newest checkpoint to replicas of stages that have lost their last
//! replica. While a replica serves a stage, its state is newer.

use std::collections::{BTreeMap, VecDeque};

use super::event::{Action, Given};
use crate::transfer::{DeclineReason, Manifest, StateId, TransferMessage, Upload, UploadAction, UploadEvent};
use crate::{Instance, Message, PeerTable, StageIndex, Time};

/// The uploads of a keeper.
#[derive(Debug)]
pub(super) struct Giving {
    /// Microbatches of the checkpoint whose states are given; `None` without one.
    kept: Option<u64>,
    uploads: BTreeMap<StageIndex, Upload>,
}

impl Giving {
    /// A keeper of these stages, with a checkpoint of so many microbatches, or none.
    pub(super) fn new(stages: impl Iterator<Item = StageIndex>, kept: Option<u64>) -> Self {
        Self { kept, uploads: stages.map(|stage| (stage, Upload::new())).collect() }
    }

    /// Microbatches of the checkpoint that is given; `None` without one.
    pub(super) fn kept(&self) -> Option<u64> {
        self.kept
    }

    /// A newer checkpoint is complete.
    pub(super) fn set_kept(&mut self, microbatches: u64) {
        self.kept = Some(microbatches);
    }

    /// A state of the checkpoint cannot be read: it is given no more.
    pub(super) fn fail(&mut self) {
        self.kept = None;
    }

    /// Follows the table: the replicas that are placed on a stage without a replica may ask.
    pub(super) fn on_table<P: Default>(
        &mut self,
        now: Time,
        table: &PeerTable,
        actions: &mut VecDeque<Action<P>>,
    ) {
        let stages: Vec<_> = self.uploads.keys().copied().filter(|stage| table.touches(*stage)).collect();
        for stage in stages {
            let joiners = if table.serves(stage) { Vec::new() } else { table.placed_on(stage).collect() };
            self.at_stage(now, stage, UploadEvent::Joiners(joiners), actions);
        }
    }

    /// Takes a message of a joiner, if it is one; else gives it back.
    pub(super) fn on_message<P: Default>(
        &mut self,
        now: Time,
        table: &PeerTable,
        (from, message): (Instance, TransferMessage),
        actions: &mut VecDeque<Action<P>>,
    ) -> Option<TransferMessage> {
        let stage = table.get(from).and_then(|member| member.state.stage());
        match (&message, stage) {
            (
                TransferMessage::Request
                | TransferMessage::SketchRequest { .. }
                | TransferMessage::ChunkRequest { .. }
                | TransferMessage::Done { .. },
                Some(stage),
            ) if self.kept.is_some() => {
                self.at_stage(now, stage, UploadEvent::Received { from, message }, actions);
            }
            (TransferMessage::Request, _) => {
                let declined = Message::Transfer(TransferMessage::Declined(DeclineReason::Busy));
                actions.push_back(Action::Send { to: from.peer, envelope: declined.into() });
            }
            _ => return Some(message),
        }
        None
    }

    /// The process has read a state of the checkpoint, or could not.
    pub(super) fn on_exported<P: Default>(
        &mut self,
        now: Time,
        (stage, state): (StageIndex, StateId),
        manifest: Option<Manifest>,
        actions: &mut VecDeque<Action<P>>,
    ) {
        if manifest.is_none() {
            self.fail();
        }
        self.at_stage(now, stage, UploadEvent::Exported { state, manifest }, actions);
    }

    pub(super) fn at_stage<P: Default>(
        &mut self,
        now: Time,
        stage: StageIndex,
        event: UploadEvent,
        actions: &mut VecDeque<Action<P>>,
    ) {
        let Some(upload) = self.uploads.get_mut(&stage) else { return };
        upload.handle(now, event);
        while let Some(action) = upload.poll_action() {
            let given = |state| Given { stage, state };
            actions.push_back(match action {
                UploadAction::Export { state } => Action::Export(given(state)),
                UploadAction::Send { to, message } => {
                    Action::Send { to, envelope: Message::Transfer(message).into() }
                }
                UploadAction::SendChunk { to, state, chunk, offset, bytes } => {
                    Action::SendChunk { to, given: given(state), chunk, offset, bytes }
                }
                UploadAction::Sketch { to, state, seed } => Action::Sketch { to, given: given(state), seed },
                UploadAction::Release { state } => Action::Release(given(state)),
                UploadAction::Counted(_) => continue,
            });
        }
    }

    /// Passes an event to the uploads of all stages.
    pub(super) fn at_all<P: Default>(
        &mut self,
        now: Time,
        event: &UploadEvent,
        actions: &mut VecDeque<Action<P>>,
    ) {
        let stages: Vec<_> = self.uploads.keys().copied().collect();
        for stage in stages {
            self.at_stage(now, stage, event.clone(), actions);
        }
    }

    /// The latest time for the next timeout.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.uploads.values().filter_map(Upload::poll_timeout).map(|(at, _)| at).min()
    }
}
