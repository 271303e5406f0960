//! Before a replica serves: it takes over the state of a replica of its stage, from one donor after the other until the
//! state is complete. While a donor serves, the joiner waits for its state. Without a donor it begins with the state that
//! its process has kept since it was expelled. A joiner with no such state begins with the initial weights of the run,
//! unless the table says that a replica may come back that has better ones, or that a keeper has the state of the stage,
//! which the joiner then takes over.

use std::fmt::Debug;

use crate::mutation::Mutation;
use crate::transfer::{Download, DownloadAction, DownloadEvent, DownloadReason, TransferMessage};
use crate::{Envelope, Instance, Message, PeerTable, TableUpdate, Time};

use super::config::{Begin, Config};
use super::event::{Action, InitialState, Note};

/// A replica that does not serve yet.
#[derive(Debug)]
pub(super) struct Joining<P> {
    pub(super) table: PeerTable,
    /// The donors that the download knows.
    donors: Vec<Instance>,
    download: Option<Download<P>>,
    /// The state that the executor is taking over.
    importing: Option<InitialState>,
}

impl<P: Clone + Default + Debug> Joining<P> {
    pub(super) fn new(config: &Config<P>) -> Self {
        let trusts_chunks = config.stage.breaks(Mutation::TrustChunks);
        let download = match config.begin {
            Begin::FromDonor(limits) | Begin::Kept(limits) => {
                Some(Download::new(limits, config.secret).trusting_chunks(trusts_chunks))
            }
            Begin::Given => None,
        };
        let table = PeerTable::new(config.stage.hop());
        Self { table, donors: Vec::new(), download, importing: None }
    }

    pub(super) fn poll_timeout(&self) -> Option<(Time, DownloadReason)> {
        self.download.as_ref()?.poll_timeout()
    }

    pub(super) fn on_membership(&mut self, now: Time, config: &Config<P>, update: TableUpdate) {
        if !self.table.update(update) {
            return;
        }
        let donors = donors(&self.table, config);
        if donors != self.donors {
            self.donors.clone_from(&donors);
            self.tell(now, DownloadEvent::Donors(donors));
        }
    }

    /// A replica that does not serve ignores microbatches and averaging rounds.
    pub(super) fn on_message(
        &mut self,
        now: Time,
        config: &Config<P>,
        from: Instance,
        envelope: Envelope<P>,
    ) {
        let Envelope { message, payload, .. } = envelope;
        match message {
            Message::Transfer(TransferMessage::Chunk { state, chunk }) => {
                // Digests cost time: a peer must not make a joiner compute them for chunks that nothing asked for.
                let Some(download) = self.download.as_ref() else { return };
                if download.expects(from, state, chunk) {
                    let (bytes, hash) = (config.digest)(&payload);
                    let sketch = download.sketch_seed().map(|seed| (config.sketch)(&payload, chunk, seed));
                    self.tell(now, DownloadEvent::Chunk { from, state, chunk, bytes, hash, sketch, payload });
                }
            }
            Message::Transfer(message) => self.tell(now, DownloadEvent::Received { from, message }),
            _ => {}
        }
    }

    pub(super) fn tell(&mut self, now: Time, event: DownloadEvent<P>) {
        if let Some(download) = &mut self.download {
            download.handle(now, event);
        }
    }

    pub(super) fn poll_action(&mut self) -> Option<Action<P>> {
        Some(match self.download.as_mut()?.poll_action()? {
            DownloadAction::Send { to, message } => {
                Action::Send { to, envelope: Message::Transfer(message).into() }
            }
            DownloadAction::Begin { bytes } => Action::Begin { bytes },
            DownloadAction::Store { offset, payload } => Action::Store { offset, payload },
            DownloadAction::Import { donor, version } => {
                let is_restored = self.table.is_keeper(donor);
                self.importing = Some(match is_restored {
                    true => InitialState::Restored { keeper: donor, version },
                    false => InitialState::Downloaded { donor, version },
                });
                Action::Import { donor, version, is_restored }
            }
            DownloadAction::Counted(note) => Action::Counted(Note::Download(note)),
        })
    }

    /// The state to begin with, as soon as it is known; `None` before the first table, and while a donor or an awaited
    /// replica may send it.
    pub(super) fn outcome(&self, config: &Config<P>) -> Option<InitialState> {
        let (table, stage) = (&self.table, config.stage.stage);
        if table.version() == 0 {
            return None;
        }
        let Some(download) = &self.download else { return Some(InitialState::Given) };
        if download.is_complete() {
            return self.importing;
        }
        if table.serves(stage) || download.is_importing() {
            return None;
        }
        if config.begin.has_state() {
            return Some(InitialState::Kept);
        }
        if table.is_restorable(stage) {
            return None;
        }
        (!table.is_awaited(stage)).then(|| InitialState::Initial { was_trained: table.is_trained(stage) })
    }
}

/// The replicas that serve the stage, or the keepers from which it is to be restored; rotated by the joiner's key, so that
/// many joiners do not all ask the same donor. A state of its own is newer than that of a keeper.
fn donors<P>(table: &PeerTable, config: &Config<P>) -> Vec<Instance> {
    let stage = config.stage.stage;
    let mut donors: Vec<_> = table.serving(stage).map(|member| member.instance).collect();
    if table.is_restorable(stage) && !config.begin.has_state() {
        donors = table.keepers_of(stage).collect();
    }
    let first = usize::from(config.stage.me.peer.0[0]) % donors.len().max(1);
    donors.rotate_left(first);
    donors
}
