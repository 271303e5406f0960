//! A replica as a donor: its state goes to those who join its stage, chunk by chunk, while it goes on training.

use bytes::Bytes;
use swarmline_scheduler::averaging::Participant;
use swarmline_scheduler::transfer::{
    StateId, TransferMessage, Upload, UploadAction as Action, UploadEvent as Event,
};
use swarmline_scheduler::{Message, PeerTable, StageIndex, Standing, Time};
use tokio::task::JoinHandle;

use super::average::Post;
use super::executor::{Executor, Exported};
use super::transit::StateCopy;
use crate::error::Error;

/// The donor's machine, and the copy it gives from.
#[derive(Debug, Default)]
pub(super) struct Donor {
    machine: Upload<Bytes>,
    copy: Option<(StateId, StateCopy)>,
    /// The copy being made. One at a time.
    making: Option<(StateId, JoinHandle<Option<StateCopy>>)>,
}

impl Donor {
    /// Takes one event and does what follows; gives what is to be sent.
    pub(super) fn handle(&mut self, now: Time, event: Event<Bytes>, executor: &Executor) -> Vec<Post> {
        self.machine.handle(now, event);
        let mut posts = Vec::new();
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Export { state } => {
                    self.making = Some((state, tokio::spawn(copy(executor.export_state()))));
                }
                Action::Send { to, message } => posts.push((to, Message::Transfer(message))),
                Action::SendChunk { to, state, chunk, offset, bytes } => {
                    let kept = self.copy.as_ref().filter(|(kept, _)| *kept == state);
                    posts.extend(kept.map(|(_, copy)| {
                        let payload = copy.chunk(offset, bytes);
                        (to, Message::Transfer(TransferMessage::Chunk { state, chunk, payload }))
                    }));
                }
                Action::Release { state } => {
                    self.copy.take_if(|(kept, _)| *kept == state);
                }
                Action::Counted(note) => tracing::info!(?note, "a replica that joins"),
            }
        }
        posts
    }

    /// The next answer to give to [`Donor::handle`]. Nothing is lost if the wait is broken off.
    pub(super) async fn exported(&mut self) -> Event<Bytes> {
        let Some((state, making)) = &mut self.making else { return std::future::pending().await };
        let copy = making.await.ok().flatten();
        let state = *state;
        self.making = None;
        let manifest = copy.as_ref().map(|copy| copy.manifest().clone());
        self.copy = copy.map(|copy| (state, copy));
        Event::Exported { state, manifest }
    }

    /// When to call [`Donor::handle`] with [`Event::Timeout`].
    pub(super) fn deadline(&self) -> Option<Time> {
        self.machine.poll_timeout().map(|(at, _)| at)
    }

    /// Replicas that take the state now.
    pub(super) fn sessions(&self) -> usize {
        self.machine.sessions()
    }
}

/// A copy with the digests of its chunks; `None` if there is none.
async fn copy(exported: impl Future<Output = Result<Exported, Error>>) -> Option<StateCopy> {
    let exported = exported.await.inspect_err(|error| {
        tracing::warn!(%error, "no copy of the state for a replica that joins");
    });
    let Exported { version, bytes } = exported.ok()?;
    tokio::task::spawn_blocking(move || StateCopy::new(version, bytes)).await.ok()?
}

/// Who may ask: the replicas the coordinator put on `stage`.
pub(super) fn joiners(table: &PeerTable, stage: StageIndex) -> Vec<Participant> {
    let placed = |standing| standing == Standing::Loading(stage) || standing == Standing::Serving(stage);
    let members = table.members().filter(|member| placed(member.standing));
    members.map(|member| Participant { peer: member.peer, incarnation: member.incarnation }).collect()
}
