//! The joiner's side of a download.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;

use crate::averaging::Participant;
use crate::{Duration, PeerId, Time, WeightVersion};

use super::manifest::{ChunkHash, Limits, Manifest, ManifestError};
use super::{StateId, TransferMessage};

/// Chunks asked for and not there yet: enough to fill a link while the next request travels.
pub const CHUNKS_IN_FLIGHT_MAX: usize = 8;
/// A donor that sends nothing for this long is asked again, or left. A chunk over the slowest link worth having takes
/// less.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Times a silent donor is asked again for what is missing: frames get lost when a connection breaks.
pub const RETRIES_MAX: u32 = 1;
/// When every donor has been tried in vain, how long to wait before the next turn: a donor's table may not list the
/// joiner yet.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What happens to a download.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// Replicas of the stage that serve, the preferred first. Those before are forgotten, but for the blamed.
    Donors(Vec<Participant>),
    /// A message arrived from an authenticated peer; chunks come as [`Event::Chunk`].
    Received {
        /// Who sent it.
        from: Participant,
        /// What it says.
        message: TransferMessage<P>,
    },
    /// A chunk arrived from an authenticated peer.
    Chunk {
        /// Who sent it.
        from: Participant,
        /// Of which copy.
        state: StateId,
        /// Which.
        chunk: u32,
        /// Its length, bytes.
        bytes: u64,
        /// Digest of its bytes, computed here.
        hash: ChunkHash,
        /// The bytes.
        payload: P,
    },
    /// The connection to a peer is gone, or a message to it could not be delivered.
    PeerLost(Participant),
    /// The time `poll_timeout` named has come.
    Timeout,
}

/// What a download wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Send this.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: TransferMessage<P>,
    },
    /// Make room for a state of this length, which is within the limits; what was stored before is void.
    Begin {
        /// Length of the state, bytes.
        bytes: u64,
    },
    /// Put verified bytes at their place.
    Store {
        /// Where, bytes from the beginning.
        offset: u64,
        /// The bytes.
        payload: P,
    },
    /// The state is there. Said once; the last action.
    Complete {
        /// Whose it is.
        donor: Participant,
        /// Updates in it.
        version: WeightVersion,
    },
    /// A note for people.
    Counted(Note),
}

/// What went wrong on the way; the download goes on with the next donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A chunk is not what the donor's own manifest says. It is never asked again.
    Wrong(Participant),
    /// A manifest is none of a state of this run. Its donor is never asked again.
    Unusable(Participant, ManifestError),
    /// A donor said nothing for too long.
    Silent(Participant),
    /// A donor is gone.
    Lost(Participant),
    /// A donor will not give.
    Declined(Participant),
    /// Nobody is left to ask; another turn begins after a while.
    NoDonor,
}

/// Why a download wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The donor is silent.
    DonorSilent,
    /// Every donor was tried; ask again.
    AskAgain,
}

#[derive(Debug)]
enum Phase {
    /// Nobody to ask before the time given, if any.
    Waiting(Option<Time>),
    Asking {
        donor: Participant,
    },
    Fetching(Fetch),
    Complete,
}

/// A state on its way.
#[derive(Debug)]
struct Fetch {
    donor: Participant,
    state: StateId,
    manifest: Manifest,
    /// The first chunk not asked for.
    next: u32,
    /// Asked for and not there; at most [`CHUNKS_IN_FLIGHT_MAX`].
    in_flight: BTreeSet<u32>,
}

/// One joiner's download of the state of its stage.
#[derive(Debug)]
pub struct Download<P> {
    limits: Limits,
    donors: Vec<Participant>,
    /// Donors asked in this turn.
    tried: BTreeSet<Participant>,
    /// Donors that sent something wrong. Bounded: only one of `donors` is ever added, and starts of peers that left
    /// the list are dropped.
    blamed: BTreeSet<Participant>,
    phase: Phase,
    /// When the donor is taken for silent.
    deadline: Time,
    retries: u32,
    actions: VecDeque<Action<P>>,
}

impl<P: Debug> Download<P> {
    /// A download that knows nobody to ask.
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
            actions: VecDeque::new(),
        }
    }

    /// Tells what happened. Drain [`Download::poll_action`] afterwards.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        match event {
            Event::Donors(donors) => self.on_donors(now, donors),
            Event::Received { from, message } => self.on_message(now, from, message),
            Event::Chunk { from, state, chunk, bytes, hash, payload } => {
                self.on_chunk(now, from, state, chunk, (bytes, hash), payload);
            }
            Event::PeerLost(peer) if self.donor() == Some(peer) => self.leave(now, Note::Lost(peer)),
            Event::PeerLost(_) => {}
            Event::Timeout => self.on_timeout(now),
        }
    }

    /// The next thing to do; `None` when all is done.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// When to call [`Download::handle`] with [`Event::Timeout`], and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        match &self.phase {
            Phase::Waiting(until) => until.map(|until| (until, Reason::AskAgain)),
            Phase::Asking { .. } | Phase::Fetching(_) => Some((self.deadline, Reason::DonorSilent)),
            Phase::Complete => None,
        }
    }

    /// Whether the state is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.phase, Phase::Complete)
    }

    // --- What arrives ---------------------------------------------------------------------------------------

    fn on_donors(&mut self, now: Time, donors: Vec<Participant>) {
        self.donors = donors;
        self.tried.retain(|donor| self.donors.contains(donor));
        self.blamed.retain(|donor| self.donors.contains(donor));
        match self.donor() {
            Some(donor) if !self.donors.contains(&donor) => self.leave(now, Note::Lost(donor)),
            None if matches!(self.phase, Phase::Waiting(_)) => self.ask_next(now),
            Some(_) | None => {}
        }
    }

    fn on_message(&mut self, now: Time, from: Participant, message: TransferMessage<P>) {
        if self.donor() != Some(from) {
            return;
        }
        match message {
            TransferMessage::Offer { state, manifest } => self.on_offer(now, from, state, manifest),
            TransferMessage::Declined => self.leave(now, Note::Declined(from)),
            TransferMessage::Ask
            | TransferMessage::Want { .. }
            | TransferMessage::Chunk { .. }
            | TransferMessage::Done { .. } => {}
        }
    }

    fn on_offer(&mut self, now: Time, donor: Participant, state: StateId, manifest: Manifest) {
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
        self.want_more();
    }

    fn on_chunk(
        &mut self,
        now: Time,
        from: Participant,
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
        if expected != Some(&hash) || bytes != u64::from(fetch.manifest.chunk_len(chunk)) {
            self.blamed.insert(from);
            return self.leave(now, Note::Wrong(from));
        }
        fetch.in_flight.remove(&chunk);
        let offset = fetch.manifest.offset(chunk);
        self.actions.push_back(Action::Store { offset, payload });
        self.hear(now);
        self.want_more();
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
            Phase::Waiting(_) | Phase::Asking { .. } | Phase::Fetching(_) | Phase::Complete => {}
        }
    }

    // --- What follows ---------------------------------------------------------------------------------------

    /// Away from this donor, on to the next.
    fn leave(&mut self, now: Time, note: Note) {
        self.actions.push_back(Action::Counted(note));
        if let Phase::Fetching(fetch) = &self.phase {
            let (to, state) = (fetch.donor.peer, fetch.state);
            self.actions.push_back(Action::Send { to, message: TransferMessage::Done { state } });
        }
        self.ask_next(now);
    }

    fn ask_next(&mut self, now: Time) {
        let untried = |donor: &&Participant| !self.tried.contains(donor) && !self.blamed.contains(donor);
        let Some(&donor) = self.donors.iter().find(untried) else {
            self.actions.push_back(Action::Counted(Note::NoDonor));
            let again = self.donors.iter().any(|donor| !self.blamed.contains(donor));
            self.phase = Phase::Waiting(again.then(|| now + ASK_AGAIN_AFTER));
            return;
        };
        self.tried.insert(donor);
        self.phase = Phase::Asking { donor };
        self.hear(now);
        self.send(donor, TransferMessage::Ask);
    }

    /// What is missing may have been lost on the way.
    fn ask_again(&mut self, now: Time) {
        self.deadline = now + SILENCE_MAX;
        self.retries += 1;
        match &self.phase {
            Phase::Asking { donor } => self.send(*donor, TransferMessage::Ask),
            Phase::Fetching(fetch) => {
                let (to, state) = (fetch.donor.peer, fetch.state);
                let wants = fetch.in_flight.iter().map(|&chunk| TransferMessage::Want { state, chunk });
                self.actions.extend(wants.map(|message| Action::Send { to, message }));
            }
            Phase::Waiting(_) | Phase::Complete => {}
        }
    }

    fn want_more(&mut self) {
        let Phase::Fetching(fetch) = &mut self.phase else { return };
        while fetch.in_flight.len() < CHUNKS_IN_FLIGHT_MAX && fetch.next < fetch.manifest.chunks() {
            let (to, state, chunk) = (fetch.donor.peer, fetch.state, fetch.next);
            fetch.in_flight.insert(chunk);
            fetch.next += 1;
            self.actions.push_back(Action::Send { to, message: TransferMessage::Want { state, chunk } });
        }
    }

    fn notice_completion(&mut self) {
        let Phase::Fetching(fetch) = &self.phase else { return };
        if fetch.in_flight.is_empty() {
            let (donor, state, version) = (fetch.donor, fetch.state, fetch.manifest.version);
            self.send(donor, TransferMessage::Done { state });
            self.actions.push_back(Action::Complete { donor, version });
            self.phase = Phase::Complete;
        }
    }

    // --- Hands ----------------------------------------------------------------------------------------------

    fn donor(&self) -> Option<Participant> {
        match &self.phase {
            Phase::Asking { donor } | Phase::Fetching(Fetch { donor, .. }) => Some(*donor),
            Phase::Waiting(_) | Phase::Complete => None,
        }
    }

    /// The donor lives.
    fn hear(&mut self, now: Time) {
        self.deadline = now + SILENCE_MAX;
        self.retries = 0;
    }

    fn send(&mut self, to: Participant, message: TransferMessage<P>) {
        self.actions.push_back(Action::Send { to: to.peer, message });
    }
}
