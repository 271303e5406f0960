//! The joiner's machine: a download.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;

use crate::{Duration, Instance, PeerId, Time, WeightVersion};

use super::manifest::{ChunkHash, Limits, Manifest, ManifestError};
use super::{StateId, TransferMessage};

/// Chunks requested and not received, at most: enough to fill a link while the next request travels.
pub const CHUNKS_IN_FLIGHT_MAX: usize = 8;
/// A donor that sends nothing for this long is asked again, or left. A chunk over the slowest useful link takes less.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Times a silent donor is asked again for the missing chunks: frames get lost when a connection breaks.
pub const RETRIES_MAX: u32 = 1;
/// Wait after every donor was tried in vain, before they are asked again: a donor's table may not list the joiner yet.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// An event of a download.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// Replicas that serve the stage, the preferred first. They replace the former list.
    Donors(Vec<Instance>),
    /// A message arrived from an authenticated peer; chunks come as [`Event::Chunk`].
    Received {
        /// The donor.
        from: Instance,
        /// The message.
        message: TransferMessage,
    },
    /// A chunk arrived from an authenticated peer.
    Chunk {
        /// The donor.
        from: Instance,
        /// Number of the copy.
        state: StateId,
        /// Number of the chunk.
        chunk: u32,
        /// Its length, bytes.
        bytes: u64,
        /// Digest of its bytes, computed here.
        hash: ChunkHash,
        /// The bytes.
        payload: P,
    },
    /// The reply to [`Action::Import`]: whether the state fits the stage. If not, nothing has changed.
    Imported(bool),
    /// The connection to a peer is gone, or a message to it could not be delivered.
    PeerLost(Instance),
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// An action that a download asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Send the message.
    Send {
        /// The donor.
        to: PeerId,
        /// The message.
        message: TransferMessage,
    },
    /// Make room for a state of this length, which is within the limits, and drop all bytes stored before.
    Begin {
        /// Length of the state, bytes.
        bytes: u64,
    },
    /// Store verified bytes of the state.
    Store {
        /// Offset in the state, bytes.
        offset: u64,
        /// The bytes.
        payload: P,
    },
    /// Take over the state, which is complete. Reply: [`Event::Imported`].
    Import {
        /// The replica that the state comes from.
        donor: Instance,
        /// Optimizer steps of its weights.
        version: WeightVersion,
    },
    /// A note for people.
    Counted(Note),
}

/// A failure of a donor; the download goes on with the next donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A chunk differs from the donor's own manifest. The donor is never asked again.
    Wrong(Instance),
    /// A manifest describes no state of this run. The donor is never asked again.
    Unusable(Instance, ManifestError),
    /// A state arrived that does not fit the stage. The donor is never asked again.
    Unfit(Instance),
    /// A donor sent nothing for too long.
    Silent(Instance),
    /// A donor was lost, or left the list.
    Lost(Instance),
    /// A donor declined.
    Declined(Instance),
    /// No donor is left to ask; they are asked again after [`ASK_AGAIN_AFTER`].
    NoDonor,
}

/// The reason for a timeout of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The donor has been silent for too long.
    DonorSilent,
    /// Every donor was tried; they are asked again.
    AskAgain,
}

#[derive(Debug)]
enum Phase {
    /// No donor to ask: until the time given, or until the list changes.
    Waiting(Option<Time>),
    Asking {
        donor: Instance,
    },
    Fetching(Fetch),
    /// The state is complete, and the executor takes it over.
    Importing(Instance),
    Complete,
}

/// A state on its way.
#[derive(Debug)]
struct Fetch {
    donor: Instance,
    state: StateId,
    manifest: Manifest,
    /// The first chunk not requested.
    next: u32,
    /// Chunks requested and not received; at most [`CHUNKS_IN_FLIGHT_MAX`].
    in_flight: BTreeSet<u32>,
}

/// One joiner's download of the state of its stage.
#[derive(Debug)]
pub struct Download<P> {
    limits: Limits,
    donors: Vec<Instance>,
    /// Donors asked since the last wait.
    tried: BTreeSet<Instance>,
    /// Donors that sent a wrong chunk, manifest or state. Bounded: only members of `donors` are added, and instances
    /// that left the list are dropped.
    blamed: BTreeSet<Instance>,
    phase: Phase,
    /// The time at which the donor counts as silent.
    deadline: Time,
    retries: u32,
    /// Breaks a rule for a test: every chunk is stored without a check of its digest.
    trusts_chunks: bool,
    actions: VecDeque<Action<P>>,
}

impl<P: Debug> Download<P> {
    /// A download that knows no donor.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            donors: Vec::new(),
            tried: BTreeSet::new(),
            blamed: BTreeSet::new(),
            phase: Phase::Waiting(None),
            deadline: Time(0),
            retries: 0,
            trusts_chunks: false,
            actions: VecDeque::new(),
        }
    }

    /// Sets whether digests of chunks go unchecked, for tests.
    pub(crate) fn trusting_chunks(self, trusts_chunks: bool) -> Self {
        Self { trusts_chunks, ..self }
    }

    /// Takes one event; drain [`Download::poll_action`] before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        match event {
            Event::Donors(donors) => self.on_donors(now, donors),
            Event::Received { from, message } => self.on_message(now, from, message),
            Event::Chunk { from, state, chunk, bytes, hash, payload } => {
                self.on_chunk(now, from, state, chunk, (bytes, hash), payload);
            }
            Event::Imported(fits) => self.on_imported(now, fits),
            Event::PeerLost(instance) if self.donor() == Some(instance) => {
                self.leave(now, Note::Lost(instance));
            }
            Event::PeerLost(_) => {}
            Event::Timeout => self.on_timeout(now),
        }
    }

    /// Takes the oldest action that is not yet done; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// Whether a state is being taken over.
    #[must_use]
    pub fn is_importing(&self) -> bool {
        matches!(self.phase, Phase::Importing(_))
    }

    /// The latest time for the next call of [`Download::handle`], with [`Event::Timeout`], and the reason.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        match &self.phase {
            Phase::Waiting(until) => until.map(|until| (until, Reason::AskAgain)),
            Phase::Asking { .. } | Phase::Fetching(_) => Some((self.deadline, Reason::DonorSilent)),
            Phase::Importing(_) | Phase::Complete => None,
        }
    }

    /// Whether the state is taken over.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.phase, Phase::Complete)
    }

    // --- Events ---------------------------------------------------------------------------------------------

    fn on_donors(&mut self, now: Time, donors: Vec<Instance>) {
        self.donors = donors;
        self.tried.retain(|donor| self.donors.contains(donor));
        self.blamed.retain(|donor| self.donors.contains(donor));
        match self.donor() {
            Some(donor) if !self.donors.contains(&donor) => self.leave(now, Note::Lost(donor)),
            None if matches!(self.phase, Phase::Waiting(_)) => self.ask_next(now),
            Some(_) | None => {}
        }
    }

    fn on_message(&mut self, now: Time, from: Instance, message: TransferMessage) {
        if self.donor() != Some(from) {
            return;
        }
        match message {
            TransferMessage::Offer { state, manifest } => self.on_offer(now, from, state, manifest),
            TransferMessage::Declined => self.leave(now, Note::Declined(from)),
            TransferMessage::Request
            | TransferMessage::ChunkRequest { .. }
            | TransferMessage::Chunk { .. }
            | TransferMessage::Done { .. } => {}
        }
    }

    fn on_offer(&mut self, now: Time, donor: Instance, state: StateId, manifest: Manifest) {
        if !matches!(self.phase, Phase::Asking { .. }) {
            return;
        }
        if let Err(error) = manifest.check(&self.limits) {
            self.blamed.insert(donor);
            return self.leave(now, Note::Unusable(donor, error));
        }
        self.actions.push_back(Action::Begin { bytes: manifest.bytes });
        self.phase = Phase::Fetching(Fetch { donor, state, manifest, next: 0, in_flight: BTreeSet::new() });
        self.hear(now);
        self.request_more();
    }

    fn on_chunk(
        &mut self,
        now: Time,
        from: Instance,
        state: StateId,
        chunk: u32,
        (bytes, hash): (u64, ChunkHash),
        payload: P,
    ) {
        let Phase::Fetching(fetch) = &mut self.phase else { return };
        if fetch.donor != from || fetch.state != state || !fetch.in_flight.contains(&chunk) {
            return;
        }
        let expected = fetch.manifest.hashes.get(chunk as usize);
        let right = expected == Some(&hash) || self.trusts_chunks;
        if !right || bytes != u64::from(fetch.manifest.chunk_len(chunk)) {
            self.blamed.insert(from);
            return self.leave(now, Note::Wrong(from));
        }
        fetch.in_flight.remove(&chunk);
        let offset = fetch.manifest.offset(chunk);
        self.actions.push_back(Action::Store { offset, payload });
        self.hear(now);
        self.request_more();
        self.notice_completion();
    }

    fn on_timeout(&mut self, now: Time) {
        match &self.phase {
            Phase::Waiting(Some(until)) if *until <= now => {
                self.tried.clear();
                self.ask_next(now);
            }
            Phase::Asking { donor } | Phase::Fetching(Fetch { donor, .. }) if self.deadline <= now => {
                let donor = *donor;
                if self.retries < RETRIES_MAX {
                    self.ask_again(now);
                } else {
                    self.leave(now, Note::Silent(donor));
                }
            }
            Phase::Waiting(_)
            | Phase::Asking { .. }
            | Phase::Fetching(_)
            | Phase::Importing(_)
            | Phase::Complete => {}
        }
    }

    /// A state that does not fit has passed every digest, so the donor serves a state of another kind.
    fn on_imported(&mut self, now: Time, fits: bool) {
        let Phase::Importing(donor) = self.phase else { return };
        if fits {
            self.phase = Phase::Complete;
        } else {
            self.blamed.insert(donor);
            self.leave(now, Note::Unfit(donor));
        }
    }

    // --- Requests -------------------------------------------------------------------------------------------

    /// Leaves the donor and asks the next.
    fn leave(&mut self, now: Time, note: Note) {
        self.actions.push_back(Action::Counted(note));
        if let Phase::Fetching(fetch) = &self.phase {
            let (to, state) = (fetch.donor.peer, fetch.state);
            self.actions.push_back(Action::Send { to, message: TransferMessage::Done { state } });
        }
        self.ask_next(now);
    }

    fn ask_next(&mut self, now: Time) {
        let untried = |donor: &&Instance| !self.tried.contains(donor) && !self.blamed.contains(donor);
        let Some(&donor) = self.donors.iter().find(untried) else {
            self.actions.push_back(Action::Counted(Note::NoDonor));
            let again = self.donors.iter().any(|donor| !self.blamed.contains(donor));
            self.phase = Phase::Waiting(again.then(|| now + ASK_AGAIN_AFTER));
            return;
        };
        self.tried.insert(donor);
        self.phase = Phase::Asking { donor };
        self.hear(now);
        self.send(donor, TransferMessage::Request);
    }

    /// Repeats the open requests: they or their replies may have been lost.
    fn ask_again(&mut self, now: Time) {
        self.deadline = now + SILENCE_MAX;
        self.retries += 1;
        match &self.phase {
            Phase::Asking { donor } => self.send(*donor, TransferMessage::Request),
            Phase::Fetching(fetch) => {
                let (to, state) = (fetch.donor.peer, fetch.state);
                let missing = fetch.in_flight.iter();
                let requests = missing.map(|&chunk| TransferMessage::ChunkRequest { state, chunk });
                self.actions.extend(requests.map(|message| Action::Send { to, message }));
            }
            Phase::Waiting(_) | Phase::Importing(_) | Phase::Complete => {}
        }
    }

    fn request_more(&mut self) {
        let Phase::Fetching(fetch) = &mut self.phase else { return };
        while fetch.in_flight.len() < CHUNKS_IN_FLIGHT_MAX && fetch.next < fetch.manifest.chunks() {
            let (to, state, chunk) = (fetch.donor.peer, fetch.state, fetch.next);
            fetch.in_flight.insert(chunk);
            fetch.next += 1;
            let message = TransferMessage::ChunkRequest { state, chunk };
            self.actions.push_back(Action::Send { to, message });
        }
    }

    fn notice_completion(&mut self) {
        let Phase::Fetching(fetch) = &self.phase else { return };
        if fetch.in_flight.is_empty() {
            let (donor, state, version) = (fetch.donor, fetch.state, fetch.manifest.version);
            self.send(donor, TransferMessage::Done { state });
            self.actions.push_back(Action::Import { donor, version });
            self.phase = Phase::Importing(donor);
        }
    }

    // --- Donor ----------------------------------------------------------------------------------------------

    fn donor(&self) -> Option<Instance> {
        match &self.phase {
            Phase::Asking { donor } | Phase::Fetching(Fetch { donor, .. }) => Some(*donor),
            Phase::Waiting(_) | Phase::Importing(_) | Phase::Complete => None,
        }
    }

    /// Notes that the donor answered.
    fn hear(&mut self, now: Time) {
        self.deadline = now + SILENCE_MAX;
        self.retries = 0;
    }

    fn send(&mut self, to: Instance, message: TransferMessage) {
        self.actions.push_back(Action::Send { to: to.peer, message });
    }
}
