//! The donor's side of downloads.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;

use crate::averaging::Participant;
use crate::{Duration, PeerId, Time};

use super::manifest::Manifest;
use super::{StateId, TransferMessage};

/// Joiners served at once; more are declined and ask another donor, or again. They share one copy of the state.
pub const SESSIONS_MAX: usize = 4;
/// A joiner that asks for nothing this long is gone. Longer than a joiner waits for a donor.
pub const SESSION_SILENCE_MAX: Duration = Duration::from_secs(90);
/// A copy older than this is not offered to a further joiner, if nobody is at it: it would start far behind.
pub const STATE_AGE_MAX: Duration = Duration::from_secs(30);

/// What happens to a donor.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// Who may ask: the replicas the coordinator put on this stage.
    Joiners(Vec<Participant>),
    /// A message arrived from an authenticated peer.
    Received {
        /// Who sent it.
        from: Participant,
        /// What it says.
        message: TransferMessage<P>,
    },
    /// The answer to [`Action::Export`]: what is in the copy; `None` if there is none.
    Exported {
        /// Which copy.
        state: StateId,
        /// What is in it.
        manifest: Option<Manifest>,
    },
    /// The connection to a peer is gone.
    PeerLost(Participant),
    /// The time `poll_timeout` named has come.
    Timeout,
}

/// What a donor wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Copy the whole state, between two jobs, and keep the bytes until [`Action::Release`]. Answer:
    /// [`Event::Exported`]. At most one copy exists at a time.
    Export {
        /// What the copy is called.
        state: StateId,
    },
    /// Send this.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: TransferMessage<P>,
    },
    /// Send [`TransferMessage::Chunk`] with these bytes of the copy, which has them.
    SendChunk {
        /// To whom.
        to: PeerId,
        /// Of which copy.
        state: StateId,
        /// Which chunk.
        chunk: u32,
        /// Where it begins, bytes.
        offset: u64,
        /// Its length, bytes.
        bytes: u32,
    },
    /// Drop the copy.
    Release {
        /// Which.
        state: StateId,
    },
    /// A note for the metrics.
    Counted(Note),
}

/// What a donor counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A joiner has all it wanted.
    Served(Participant),
    /// A joiner was declined: no room, or no replica of this stage.
    Declined(Participant),
    /// A joiner went away, or asked for nothing for too long.
    Abandoned(Participant),
}

/// Why a donor wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A joiner is silent.
    JoinerSilent,
}

#[derive(Debug)]
enum Copy {
    None,
    Asked,
    Ready { manifest: Manifest, since: Time },
}

/// One replica as a donor.
#[derive(Debug)]
pub struct Upload<P> {
    joiners: Vec<Participant>,
    /// The latest copy.
    state: StateId,
    copy: Copy,
    /// Who is served from the copy, or waits for it, and when that one counts as gone. At most [`SESSIONS_MAX`].
    sessions: BTreeMap<Participant, Time>,
    actions: VecDeque<Action<P>>,
}

impl<P: Debug> Default for Upload<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Debug> Upload<P> {
    /// A donor whom nobody may ask.
    #[must_use]
    pub fn new() -> Self {
        Self {
            joiners: Vec::new(),
            state: StateId(0),
            copy: Copy::None,
            sessions: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// Tells what happened. Drain [`Upload::poll_action`] afterwards.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        match event {
            Event::Joiners(joiners) => {
                self.end_sessions(|joiner, _| !joiners.contains(joiner));
                self.joiners = joiners;
            }
            Event::Received { from, message } => self.on_message(now, from, &message),
            Event::Exported { state, manifest } => self.on_exported(now, state, manifest),
            Event::PeerLost(peer) => self.end_sessions(|joiner, _| *joiner == peer),
            Event::Timeout => self.end_sessions(|_, until| until <= now),
        }
        self.release_unused();
    }

    /// The next thing to do; `None` when all is done.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// When to call [`Upload::handle`] with [`Event::Timeout`], and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        self.sessions.values().min().map(|&until| (until, Reason::JoinerSilent))
    }

    /// Joiners that are being served.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    // --- What arrives ---------------------------------------------------------------------------------------

    fn on_message(&mut self, now: Time, from: Participant, message: &TransferMessage<P>) {
        match *message {
            TransferMessage::Ask => self.on_ask(now, from),
            TransferMessage::Want { state, chunk } => self.on_want(now, from, state, chunk),
            TransferMessage::Done { state }
                if state == self.state && self.sessions.remove(&from).is_some() =>
            {
                self.count(Note::Served(from));
            }
            TransferMessage::Done { .. }
            | TransferMessage::Offer { .. }
            | TransferMessage::Chunk { .. }
            | TransferMessage::Declined => {}
        }
    }

    fn on_ask(&mut self, now: Time, from: Participant) {
        let known = self.sessions.contains_key(&from);
        if !self.joiners.contains(&from) || (!known && self.sessions.len() >= SESSIONS_MAX) {
            return self.decline(from);
        }
        let alone = self.sessions.keys().all(|joiner| *joiner == from);
        let old = matches!(self.copy, Copy::Ready { since, .. } if since + STATE_AGE_MAX <= now);
        if alone && old {
            self.release();
        }
        self.sessions.insert(from, now + SESSION_SILENCE_MAX);
        match &self.copy {
            Copy::None => {
                self.state = StateId(self.state.0 + 1);
                self.copy = Copy::Asked;
                self.actions.push_back(Action::Export { state: self.state });
            }
            Copy::Asked => {}
            Copy::Ready { manifest, .. } => {
                let manifest = manifest.clone();
                self.offer(from, manifest);
            }
        }
    }

    fn on_exported(&mut self, now: Time, state: StateId, manifest: Option<Manifest>) {
        if state != self.state || !matches!(self.copy, Copy::Asked) {
            return;
        }
        let waiting: Vec<Participant> = self.sessions.keys().copied().collect();
        let Some(manifest) = manifest else {
            self.copy = Copy::None;
            self.sessions.clear();
            return waiting.into_iter().for_each(|joiner| self.decline(joiner));
        };
        waiting.into_iter().for_each(|joiner| self.offer(joiner, manifest.clone()));
        self.copy = Copy::Ready { manifest, since: now };
    }

    fn on_want(&mut self, now: Time, from: Participant, state: StateId, chunk: u32) {
        let Copy::Ready { manifest, .. } = &self.copy else { return self.decline(from) };
        let bytes = manifest.chunk_len(chunk);
        let offset = manifest.offset(chunk);
        let Some(until) = self.sessions.get_mut(&from).filter(|_| state == self.state && bytes > 0) else {
            return self.decline(from);
        };
        *until = now + SESSION_SILENCE_MAX;
        self.actions.push_back(Action::SendChunk { to: from.peer, state, chunk, offset, bytes });
    }

    // --- What follows ---------------------------------------------------------------------------------------

    fn end_sessions(&mut self, is_over: impl Fn(&Participant, Time) -> bool) {
        let over: Vec<Participant> = self
            .sessions
            .iter()
            .filter(|(joiner, until)| is_over(joiner, **until))
            .map(|(&joiner, _)| joiner)
            .collect();
        for joiner in over {
            self.sessions.remove(&joiner);
            self.count(Note::Abandoned(joiner));
        }
    }

    /// A copy is as large as the state: it is kept for those who download, and for nobody else.
    fn release_unused(&mut self) {
        if self.sessions.is_empty() && matches!(self.copy, Copy::Ready { .. }) {
            self.release();
        }
    }

    fn release(&mut self) {
        self.copy = Copy::None;
        self.actions.push_back(Action::Release { state: self.state });
    }

    // --- Hands ----------------------------------------------------------------------------------------------

    fn offer(&mut self, to: Participant, manifest: Manifest) {
        let message = TransferMessage::Offer { state: self.state, manifest };
        self.actions.push_back(Action::Send { to: to.peer, message });
    }

    fn decline(&mut self, joiner: Participant) {
        self.actions.push_back(Action::Send { to: joiner.peer, message: TransferMessage::Declined });
        self.count(Note::Declined(joiner));
    }

    fn count(&mut self, note: Note) {
        self.actions.push_back(Action::Counted(note));
    }
}
