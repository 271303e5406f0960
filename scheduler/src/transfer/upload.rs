//! The donor's machine: the uploads of a replica.

use std::collections::{BTreeMap, VecDeque};

use crate::{Duration, Instance, PeerId, Time};

use super::manifest::Manifest;
use super::sketch::{ChunkSketch, SketchSeed};
use super::{DeclineReason, StateId, TransferMessage};

/// Joiners served at once, at most; they share one copy of the state. Further joiners are declined.
pub const SESSIONS_MAX: usize = 4;
/// A joiner that asks for nothing this long counts as gone. Longer than a joiner waits for a donor.
pub const SESSION_SILENCE_MAX: Duration = Duration::from_secs(90);
/// A copy is offered to joiners for this long, and kept for them; a joiner that took an older copy would start far
/// behind. No other copy is made meanwhile, so a donor copies its state once in this time, however often joiners ask.
pub const STATE_AGE_MAX: Duration = Duration::from_secs(10);
/// Slowest joiner that is served, bytes a second: a session has [`SESSION_SILENCE_MAX`], and further time in proportion
/// to the state.
pub const BYTES_PER_SECOND_MIN: u64 = 16 << 10;
/// Times that a joiner gets each chunk of one copy at most, on average: a chunk may be lost once.
pub const SENDINGS_MAX: u64 = 2;
/// Times that a joiner gets projections of one copy at most: each takes a pass over the copy.
pub const SKETCHES_MAX: u32 = 2;

/// An event of a donor.
#[derive(Clone, Debug)]
pub enum Event {
    /// The peers that may ask: the replicas that the coordinator has placed on this stage, and keepers of it.
    Joiners(Vec<Instance>),
    /// A message arrived from an authenticated peer.
    Received {
        /// The sender.
        from: Instance,
        /// The message.
        message: TransferMessage,
    },
    /// The reply to [`Action::Export`].
    Exported {
        /// Number of the copy.
        state: StateId,
        /// Its manifest; `None` if no copy could be made.
        manifest: Option<Manifest>,
    },
    /// The reply to [`Action::Sketch`].
    Sketched {
        /// The joiner.
        to: Instance,
        /// Number of the copy.
        state: StateId,
        /// Seed of the projections.
        seed: SketchSeed,
        /// The projections of every chunk, in order.
        sketch: Vec<ChunkSketch>,
    },
    /// The connection to a peer is gone.
    PeerLost(Instance),
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// An action that a donor asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Copy the whole state, between two jobs, and keep the bytes until [`Action::Release`]. Reply:
    /// [`Event::Exported`]. At most one copy exists at a time.
    Export {
        /// Number of the copy.
        state: StateId,
    },
    /// Send the message.
    Send {
        /// The joiner.
        to: PeerId,
        /// The message.
        message: TransferMessage,
    },
    /// Send a [`TransferMessage::Chunk`] with these bytes of the copy.
    SendChunk {
        /// The joiner.
        to: PeerId,
        /// Number of the copy.
        state: StateId,
        /// Number of the chunk.
        chunk: u32,
        /// Offset of the chunk in the state, bytes.
        offset: u64,
        /// Length of the chunk, bytes.
        bytes: u32,
    },
    /// Compute the projections of every chunk of the copy. Reply: [`Event::Sketched`]; none after the release.
    Sketch {
        /// The joiner.
        to: Instance,
        /// Number of the copy.
        state: StateId,
        /// Seed of the projections.
        seed: SketchSeed,
    },
    /// Drop the copy.
    Release {
        /// Number of the copy.
        state: StateId,
    },
    /// A note for metrics and people.
    Counted(Note),
}

/// A note of a donor about a joiner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A joiner needs no more of the copy.
    Served(Instance),
    /// A joiner was declined: all sessions are taken, it is not placed on this stage, or there is no such copy.
    Declined(Instance),
    /// A joiner was lost, left the table, or asked for nothing for too long.
    Abandoned(Instance),
}

/// The reason for a timeout of a donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A joiner has been silent or slow for too long.
    JoinerSilent,
    /// A copy that no joiner downloads is too old.
    CopyExpires,
}

#[derive(Debug)]
enum Copy {
    None,
    Asked,
    Ready { manifest: Manifest, since: Time },
}

impl Copy {
    /// When the copy is too old for a further joiner.
    fn expires(&self) -> Option<Time> {
        if let Self::Ready { since, .. } = self { Some(*since + STATE_AGE_MAX) } else { None }
    }
}

/// A joiner that is served from the copy, or waits for it.
#[derive(Clone, Copy, Debug)]
struct Session {
    /// The joiner counts as gone then, if it asks for nothing before.
    silent_at: Time,
    /// The time for the whole state is over; `None` until the copy is ready.
    ends_at: Option<Time>,
}

impl Session {
    fn deadline(&self) -> Time {
        self.ends_at.map_or(self.silent_at, |ends_at| self.silent_at.min(ends_at))
    }
}

/// One replica as a donor.
#[derive(Debug)]
pub struct Upload {
    joiners: Vec<Instance>,
    /// The latest copy.
    state: StateId,
    copy: Copy,
    /// Time of the latest [`Action::Export`].
    exported: Option<Time>,
    /// At most [`SESSIONS_MAX`].
    sessions: BTreeMap<Instance, Session>,
    /// Chunks of the copy sent to each joiner, those of ended sessions included.
    sent: BTreeMap<Instance, u64>,
    /// Sketches of the copy for each joiner, those of ended sessions included.
    sketched: BTreeMap<Instance, u32>,
    actions: VecDeque<Action>,
}

impl Default for Upload {
    fn default() -> Self {
        Self::new()
    }
}

impl Upload {
    /// A donor that no replica may ask yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            joiners: Vec::new(),
            state: StateId(0),
            copy: Copy::None,
            exported: None,
            sessions: BTreeMap::new(),
            sent: BTreeMap::new(),
            sketched: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// Takes one event; drain [`Upload::poll_action`] before the next.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Joiners(joiners) => {
                self.end_sessions(|joiner, _| !joiners.contains(joiner));
                self.joiners = joiners;
            }
            Event::Received { from, message } => self.on_message(now, from, &message),
            Event::Exported { state, manifest } => self.on_exported(now, state, manifest),
            Event::Sketched { to, state, seed, sketch } => {
                if state == self.state && self.sessions.contains_key(&to) {
                    let message = TransferMessage::Sketch { state, seed, sketch };
                    self.actions.push_back(Action::Send { to: to.peer, message });
                }
            }
            Event::PeerLost(instance) => self.end_sessions(|joiner, _| *joiner == instance),
            Event::Timeout => self.end_sessions(|_, deadline| deadline <= now),
        }
        self.release_unused(now);
    }

    /// Takes the oldest action that is not yet done; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The latest time for the next call of [`Upload::handle`], with [`Event::Timeout`], and the reason.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let silent = self.sessions.values().map(Session::deadline).min();
        let expires = self.copy.expires().filter(|_| self.sessions.is_empty());
        silent.map(|at| (at, Reason::JoinerSilent)).or(expires.map(|at| (at, Reason::CopyExpires)))
    }

    /// Number of joiners that are served, or wait for the copy.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    // --- Messages -------------------------------------------------------------------------------------------

    fn on_message(&mut self, now: Time, from: Instance, message: &TransferMessage) {
        match *message {
            TransferMessage::Request => self.on_request(now, from),
            TransferMessage::SketchRequest { state, seed } => {
                self.on_sketch_request(now, from, state, seed);
            }
            TransferMessage::ChunkRequest { state, chunk } => {
                self.on_chunk_request(now, from, state, chunk);
            }
            TransferMessage::Done { state }
                if state == self.state && self.sessions.remove(&from).is_some() =>
            {
                self.count(Note::Served(from));
            }
            TransferMessage::Done { .. }
            | TransferMessage::Offer { .. }
            | TransferMessage::Sketch { .. }
            | TransferMessage::Chunk { .. }
            | TransferMessage::Declined(_) => {}
        }
    }

    fn on_request(&mut self, now: Time, from: Instance) {
        if !self.joiners.contains(&from) {
            return self.refuse(from, DeclineReason::NotEntitled);
        }
        if !self.sessions.contains_key(&from) && self.sessions.len() >= SESSIONS_MAX {
            return self.decline(from);
        }
        let old = self.copy.expires().is_some_and(|at| at <= now);
        if old && self.sessions.keys().any(|joiner| *joiner != from) {
            return self.decline(from);
        }
        if old {
            self.sessions.remove(&from);
            self.release();
        }
        match &self.copy {
            Copy::None if self.exported.is_some_and(|at| now < at + STATE_AGE_MAX) => self.decline(from),
            Copy::None => {
                self.open_session(now, from, None);
                self.state = StateId(self.state.0 + 1);
                (self.copy, self.exported) = (Copy::Asked, Some(now));
                self.actions.push_back(Action::Export { state: self.state });
            }
            Copy::Asked => self.open_session(now, from, None),
            Copy::Ready { manifest, .. } => {
                let manifest = manifest.clone();
                self.open_session(now, from, Some(manifest.bytes));
                self.offer(now, from, manifest);
            }
        }
    }

    /// Serves the joiner, from a state of this length if its copy is ready. A joiner that asks again gets no more time.
    fn open_session(&mut self, now: Time, joiner: Instance, bytes: Option<u64>) {
        let silent_at = now + SESSION_SILENCE_MAX;
        let session = self.sessions.entry(joiner).or_insert(Session { silent_at, ends_at: None });
        session.silent_at = silent_at;
        session.ends_at = session.ends_at.or(bytes.map(|bytes| ends_at(now, bytes)));
    }

    fn on_exported(&mut self, now: Time, state: StateId, manifest: Option<Manifest>) {
        if state != self.state || !matches!(self.copy, Copy::Asked) {
            return;
        }
        let waiting: Vec<Instance> = self.sessions.keys().copied().collect();
        let Some(manifest) = manifest else {
            self.copy = Copy::None;
            self.sessions.clear();
            return waiting.into_iter().for_each(|joiner| self.decline(joiner));
        };
        for joiner in waiting {
            self.open_session(now, joiner, Some(manifest.bytes));
            self.offer(now, joiner, manifest.clone());
        }
        self.copy = Copy::Ready { manifest, since: now };
    }

    fn on_sketch_request(&mut self, now: Time, from: Instance, state: StateId, seed: SketchSeed) {
        let is_ready = state == self.state && matches!(self.copy, Copy::Ready { .. });
        let sketches = self.sketched.get(&from).copied().unwrap_or_default();
        match self.sessions.get_mut(&from) {
            Some(session) if is_ready && sketches < SKETCHES_MAX => {
                session.silent_at = now + SESSION_SILENCE_MAX;
                self.sketched.insert(from, sketches + 1);
                self.actions.push_back(Action::Sketch { to: from, state, seed });
            }
            Some(_) | None => self.decline(from),
        }
    }

    fn on_chunk_request(&mut self, now: Time, from: Instance, state: StateId, chunk: u32) {
        let Copy::Ready { manifest, .. } = &self.copy else { return self.decline(from) };
        let bytes = manifest.chunk_len(chunk);
        let (offset, sendings_max) = (manifest.offset(chunk), u64::from(manifest.chunks()) * SENDINGS_MAX);
        let Some(session) = self.sessions.get_mut(&from).filter(|_| state == self.state && bytes > 0) else {
            return self.decline(from);
        };
        let sent = self.sent.entry(from).or_default();
        if *sent >= sendings_max {
            self.sessions.remove(&from);
            self.count(Note::Abandoned(from));
            return self.decline(from);
        }
        *sent += 1;
        session.silent_at = now + SESSION_SILENCE_MAX;
        self.actions.push_back(Action::SendChunk { to: from.peer, state, chunk, offset, bytes });
    }

    // --- Sessions -------------------------------------------------------------------------------------------

    fn end_sessions(&mut self, is_over: impl Fn(&Instance, Time) -> bool) {
        let over: Vec<Instance> = self
            .sessions
            .iter()
            .filter(|(joiner, session)| is_over(joiner, session.deadline()))
            .map(|(&joiner, _)| joiner)
            .collect();
        for joiner in over {
            self.sessions.remove(&joiner);
            self.count(Note::Abandoned(joiner));
        }
    }

    /// A copy is as large as the state: it is kept only for joiners that may still take it.
    fn release_unused(&mut self, now: Time) {
        if self.sessions.is_empty() && self.copy.expires().is_some_and(|at| at <= now) {
            self.release();
        }
    }

    fn release(&mut self) {
        self.copy = Copy::None;
        self.sent.clear();
        self.sketched.clear();
        self.actions.push_back(Action::Release { state: self.state });
    }

    // --- Replies --------------------------------------------------------------------------------------------

    fn offer(&mut self, now: Time, to: Instance, manifest: Manifest) {
        let age = self.exported.map_or(Duration::ZERO, |at| now.since(at));
        let message = TransferMessage::Offer { state: self.state, manifest, age };
        self.actions.push_back(Action::Send { to: to.peer, message });
    }

    fn decline(&mut self, joiner: Instance) {
        self.refuse(joiner, DeclineReason::Busy);
    }

    fn refuse(&mut self, joiner: Instance, reason: DeclineReason) {
        self.actions.push_back(Action::Send { to: joiner.peer, message: TransferMessage::Declined(reason) });
        self.count(Note::Declined(joiner));
    }

    fn count(&mut self, note: Note) {
        self.actions.push_back(Action::Counted(note));
    }
}

/// When a session ends that downloads this many bytes from now on.
fn ends_at(now: Time, bytes: u64) -> Time {
    now + SESSION_SILENCE_MAX + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}
