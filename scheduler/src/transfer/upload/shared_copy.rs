//! A copy of the state, and the peers that take it.

use std::collections::{BTreeMap, VecDeque};

use super::super::{DeclineReason, Manifest, SketchSeed, StateId, TransferMessage};
use super::event::{Action, Note};
use super::{AWAITED_MAX, BYTES_PER_SECOND_MIN, SENDINGS_MAX, SESSION_SILENCE_MAX, SKETCHES_MAX};
use crate::{Duration, Instance, Time};

#[derive(Debug, Default)]
enum Phase {
    #[default]
    None,
    Asked,
    Ready {
        manifest: Manifest,
        since: Time,
    },
}

/// A peer that is served from the copy, or waits for it.
#[derive(Clone, Copy, Debug)]
struct Session {
    /// The peer counts as gone then, if it asks for nothing before.
    silent_at: Time,
    /// The time for the wait or for the whole state is over; `None` while the copy is made.
    ends_at: Option<Time>,
    /// It is offered the copy as soon as it is ready.
    has_asked: bool,
}

impl Session {
    fn deadline(&self) -> Time {
        self.ends_at.map_or(self.silent_at, |ends_at| self.silent_at.min(ends_at))
    }
}

/// One copy at a time, and its sessions.
#[derive(Debug, Default)]
pub(super) struct SharedCopy {
    /// The latest copy.
    state: StateId,
    phase: Phase,
    /// The clock that a keeper had named for it.
    clock: Option<u64>,
    /// Time of the latest [`Action::Export`].
    exported: Option<Time>,
    /// At most [`SESSIONS_MAX`](super::SESSIONS_MAX).
    sessions: BTreeMap<Instance, Session>,
    /// Chunks of the copy sent to each peer, those of ended sessions included.
    sent: BTreeMap<Instance, u64>,
    /// Sketches of the copy for each peer, those of ended sessions included.
    sketched: BTreeMap<Instance, u32>,
    pub(super) actions: VecDeque<Action>,
}

impl SharedCopy {
    // --- Lookups --------------------------------------------------------------------------------------------

    pub(super) fn is_numbered(&self, state: StateId) -> bool {
        state == self.state && !matches!(self.phase, Phase::None)
    }

    /// No copy is there, nor asked for.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self.phase, Phase::None)
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. })
    }

    /// When the copy is this old; `None` before it is ready.
    pub(super) fn reaches_age(&self, age: Duration) -> Option<Time> {
        if let Phase::Ready { since, .. } = self.phase { Some(since + age) } else { None }
    }

    pub(super) fn exported(&self) -> Option<Time> {
        self.exported
    }

    pub(super) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn serves(&self, peer: Instance) -> bool {
        self.sessions.contains_key(&peer)
    }

    pub(super) fn serves_others(&self, peer: Instance) -> bool {
        self.sessions.keys().any(|taker| *taker != peer)
    }

    /// The first time at which a session ends by itself.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.sessions.values().map(Session::deadline).min()
    }

    // --- The copy -------------------------------------------------------------------------------------------

    pub(super) fn export(&mut self, now: Time, state: StateId, clock: Option<u64>) {
        (self.state, self.phase, self.clock) = (state, Phase::Asked, clock);
        self.exported = Some(now);
        self.sessions.values_mut().for_each(|session| session.ends_at = None);
        self.actions.push_back(Action::Export { state });
    }

    pub(super) fn on_exported(&mut self, now: Time, manifest: Option<Manifest>) {
        if !matches!(self.phase, Phase::Asked) {
            return;
        }
        let waiting: Vec<(Instance, bool)> =
            self.sessions.iter().map(|(&peer, session)| (peer, session.has_asked)).collect();
        let Some(manifest) = manifest else {
            self.phase = Phase::None;
            self.sessions.clear();
            return waiting.into_iter().for_each(|(peer, _)| self.decline(peer));
        };
        self.phase = Phase::Ready { manifest, since: now };
        for (peer, has_asked) in waiting {
            if has_asked { self.serve(now, peer) } else { self.keep_for(now, peer) }
        }
    }

    pub(super) fn release(&mut self) {
        self.phase = Phase::None;
        self.sent.clear();
        self.sketched.clear();
        self.actions.push_back(Action::Release { state: self.state });
    }

    // --- Sessions -------------------------------------------------------------------------------------------

    /// Serves the peer, as soon as the copy is ready.
    pub(super) fn serve(&mut self, now: Time, peer: Instance) {
        self.keep_for(now, peer);
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.has_asked = true;
        }
        if let Phase::Ready { manifest, .. } = &self.phase {
            let age = self.exported.map_or(Duration::ZERO, |at| now.since(at));
            let (state, manifest, clock) = (self.state, manifest.clone(), self.clock);
            let message = TransferMessage::Offer { state, manifest, age, clock };
            self.send(peer, message);
        }
    }

    /// Has the peer among those for which the copy is kept. A peer that says so again gets no more time for the whole.
    pub(super) fn keep_for(&mut self, now: Time, peer: Instance) {
        let silent_at = now + SESSION_SILENCE_MAX;
        let ends_at = match &self.phase {
            Phase::None => Some(now + AWAITED_MAX),
            Phase::Asked => None,
            Phase::Ready { manifest, .. } => Some(ends_at(now, manifest.bytes)),
        };
        let session = self.sessions.entry(peer).or_insert(Session { silent_at, ends_at, has_asked: false });
        session.silent_at = silent_at;
        session.ends_at = session.ends_at.or(ends_at);
    }

    pub(super) fn forget(&mut self, peer: Instance) {
        self.sessions.remove(&peer);
    }

    pub(super) fn on_done(&mut self, peer: Instance) {
        if self.sessions.remove(&peer).is_some() {
            self.count(Note::Served(peer));
        }
    }

    pub(super) fn end_sessions(&mut self, is_over: impl Fn(&Instance, Time) -> bool) {
        let over: Vec<Instance> = self
            .sessions
            .iter()
            .filter(|(peer, session)| is_over(peer, session.deadline()))
            .map(|(&peer, _)| peer)
            .collect();
        for peer in over {
            self.sessions.remove(&peer);
            self.count(Note::Abandoned(peer));
        }
    }

    // --- Parts of the copy ----------------------------------------------------------------------------------

    pub(super) fn on_sketch_request(&mut self, now: Time, from: Instance, seed: SketchSeed) {
        let is_ready = matches!(self.phase, Phase::Ready { .. });
        let sketches = self.sketched.get(&from).copied().unwrap_or_default();
        match self.sessions.get_mut(&from) {
            Some(session) if is_ready && sketches < SKETCHES_MAX => {
                session.silent_at = now + SESSION_SILENCE_MAX;
                self.sketched.insert(from, sketches + 1);
                self.actions.push_back(Action::Sketch { to: from, state: self.state, seed });
            }
            Some(_) | None => self.decline(from),
        }
    }

    pub(super) fn on_chunk_request(&mut self, now: Time, from: Instance, chunk: u32) {
        let Phase::Ready { manifest, .. } = &self.phase else { return self.decline(from) };
        let (state, bytes) = (self.state, manifest.chunk_len(chunk));
        let (offset, sendings_max) = (manifest.offset(chunk), u64::from(manifest.chunks()) * SENDINGS_MAX);
        let Some(session) = self.sessions.get_mut(&from).filter(|_| bytes > 0) else {
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

    pub(super) fn on_sketched(&mut self, to: Instance, message: TransferMessage) {
        if self.sessions.contains_key(&to) {
            self.send(to, message);
        }
    }

    // --- Replies --------------------------------------------------------------------------------------------

    pub(super) fn decline(&mut self, peer: Instance) {
        self.refuse(peer, DeclineReason::Busy);
    }

    pub(super) fn refuse(&mut self, peer: Instance, reason: DeclineReason) {
        self.send(peer, TransferMessage::Declined(reason));
        self.count(Note::Declined(peer));
    }

    pub(super) fn send(&mut self, peer: Instance, message: TransferMessage) {
        self.actions.push_back(Action::Send { to: peer.peer, message });
    }

    fn count(&mut self, note: Note) {
        self.actions.push_back(Action::Counted(note));
    }
}

/// When a session ends that downloads this many bytes from now on.
fn ends_at(now: Time, bytes: u64) -> Time {
    now + SESSION_SILENCE_MAX + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
}
