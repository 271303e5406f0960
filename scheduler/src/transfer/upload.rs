//! The donor's machine: the uploads of a replica.
//!
//! A donor has two copies of its state at most. The *fresh* one is made when a joiner asks, and shared by all that ask
//! soon after. The *agreed* one is for keepers, which name the same clock of the run to every stage: the donor makes it
//! before it computes the first gradients at that clock, so that the states of all stages have learned from the same
//! microbatches, as nearly as a run allows that stands still for no copy: from none after the clock, and from all before it
//! but those that still were on their way.

mod event;
mod shared_copy;

use crate::{Duration, Instance, Time};

use super::{DeclineReason, StateId, TransferMessage};

pub use event::{Action, Event, Note, Reason};

use shared_copy::SharedCopy;

/// Peers served from one copy at once, at most. Further peers are declined.
pub const SESSIONS_MAX: usize = 4;
/// A peer that asks for nothing this long counts as gone. Longer than a joiner waits for a donor.
pub const SESSION_SILENCE_MAX: Duration = Duration::from_secs(90);
/// The clock that a keeper has named is awaited for this long; the run may stand still.
pub const AWAITED_MAX: Duration = Duration::from_secs(60);
/// The fresh copy is offered to joiners for this long, and kept for them; a joiner that took an older copy would start far
/// behind. No other is made meanwhile, so a donor copies its state once in this time, however often joiners ask.
pub const STATE_AGE_MAX: Duration = Duration::from_secs(10);
/// Slowest joiner that is served, bytes a second: a session has [`SESSION_SILENCE_MAX`], and further time in proportion
/// to the state.
pub const BYTES_PER_SECOND_MIN: u64 = 16 << 10;
/// Times that a joiner gets each chunk of one copy at most, on average: a chunk may be lost once.
pub const SENDINGS_MAX: u64 = 2;
/// Times that a joiner gets projections of one copy at most: each takes a pass over the copy.
pub const SKETCHES_MAX: u32 = 2;

/// One replica as a donor.
#[derive(Debug, Default)]
pub struct Upload {
    joiners: Vec<Instance>,
    /// Number of the latest copy.
    latest: StateId,
    fresh: SharedCopy,
    agreed: SharedCopy,
    /// The clock of the run that the agreed copy is made at; `None` while no keeper has named one.
    agreed_at: Option<u64>,
    /// The latest clock at which gradients were computed.
    clock: Option<u64>,
}

impl Upload {
    /// A donor that no replica may ask yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one event; drain [`Upload::poll_action`] before the next.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Joiners(joiners) => {
                self.end_sessions(|joiner, _| !joiners.contains(joiner));
                self.joiners = joiners;
            }
            Event::Received { from, message } => self.on_message(now, from, &message),
            Event::Begins { clock } => self.on_begins(now, clock),
            Event::Exported { state, manifest } => {
                if let Some(copy) = self.copy_mut(state) {
                    copy.on_exported(now, manifest);
                }
            }
            Event::Sketched { to, state, seed, sketch } => {
                if let Some(copy) = self.copy_mut(state) {
                    copy.on_sketched(to, TransferMessage::Sketch { state, seed, sketch });
                }
            }
            Event::PeerLost(instance) => self.end_sessions(|joiner, _| *joiner == instance),
            Event::Timeout => self.end_sessions(|_, deadline| deadline <= now),
        }
        self.release_unused(now);
    }

    /// Takes an action that is not yet done; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.fresh.actions.pop_front().or_else(|| self.agreed.actions.pop_front())
    }

    /// The latest time for the next call of [`Upload::handle`], with [`Event::Timeout`], and the reason.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let silent = [self.fresh.deadline(), self.agreed.deadline()].into_iter().flatten().min();
        let expires = self.expires().filter(|_| self.fresh.sessions() == 0);
        let reasons = [(silent, Reason::JoinerSilent), (expires, Reason::CopyExpires)];
        reasons.into_iter().filter_map(|(at, reason)| Some((at?, reason))).min_by_key(|(at, _)| *at)
    }

    /// Number of peers that are served, or wait for a copy that is being made.
    #[must_use]
    pub fn sessions(&self) -> usize {
        let agreed = if self.agreed.is_missing() { 0 } else { self.agreed.sessions() };
        self.fresh.sessions() + agreed
    }

    /// Whether a keeper waits for a clock of the run.
    #[must_use]
    pub fn awaits_clock(&self) -> bool {
        self.agreed_at.is_some() && self.agreed.is_missing()
    }

    // --- Messages -------------------------------------------------------------------------------------------

    fn on_message(&mut self, now: Time, from: Instance, message: &TransferMessage) {
        match *message {
            TransferMessage::Request => self.on_request(now, from),
            TransferMessage::CopyAt { clock } => self.on_copy_at(now, from, clock),
            TransferMessage::SketchRequest { state, seed } => match self.copy_mut(state) {
                Some(copy) => copy.on_sketch_request(now, from, seed),
                None => self.fresh.decline(from),
            },
            TransferMessage::ChunkRequest { state, chunk } => match self.copy_mut(state) {
                Some(copy) => copy.on_chunk_request(now, from, chunk),
                None => self.fresh.decline(from),
            },
            TransferMessage::Done { state } => {
                if let Some(copy) = self.copy_mut(state) {
                    copy.on_done(from);
                }
            }
            TransferMessage::Offer { .. }
            | TransferMessage::Sketch { .. }
            | TransferMessage::Chunk { .. }
            | TransferMessage::CopyDeclined { .. }
            | TransferMessage::Declined(_) => {}
        }
    }

    fn on_request(&mut self, now: Time, from: Instance) {
        if !self.joiners.contains(&from) {
            self.fresh.refuse(from, DeclineReason::NotEntitled);
        } else if self.agreed.serves(from) {
            self.give_agreed(now, from);
        } else {
            self.give_fresh(now, from);
        }
    }

    // --- The fresh copy -------------------------------------------------------------------------------------

    fn give_fresh(&mut self, now: Time, from: Instance) {
        if !self.fresh.serves(from) && self.fresh.sessions() >= SESSIONS_MAX {
            return self.fresh.decline(from);
        }
        let is_old = self.expires().is_some_and(|at| at <= now);
        if is_old && self.fresh.serves_others(from) {
            return self.fresh.decline(from);
        }
        if is_old {
            self.fresh.forget(from);
            self.fresh.release();
        }
        if self.fresh.is_missing() {
            if self.fresh.exported().is_some_and(|at| now < at + STATE_AGE_MAX) {
                return self.fresh.decline(from);
            }
            let state = self.next_number();
            self.fresh.export(now, state, None);
        }
        self.fresh.serve(now, from);
    }

    /// When the fresh copy is too old for a further joiner.
    fn expires(&self) -> Option<Time> {
        self.fresh.reaches_age(STATE_AGE_MAX)
    }

    // --- The agreed copy ------------------------------------------------------------------------------------

    /// A keeper names a clock of the run, or says again that it will ask for the copy.
    fn on_copy_at(&mut self, now: Time, from: Instance, clock: u64) {
        let is_known = self.agreed_at == Some(clock);
        // A keeper that names another clock needs no copy at the one before.
        if !is_known {
            self.agreed.forget(from);
            self.release_unused(now);
        }
        let is_ahead = self.clock.is_none_or(|begun| begun < clock);
        let is_paced = self.agreed.exported().is_none_or(|at| at + STATE_AGE_MAX <= now);
        let is_free = self.agreed_at.is_none() && is_ahead && is_paced;
        let is_entitled = self.joiners.contains(&from) && self.agreed.sessions() < SESSIONS_MAX;
        if !(is_entitled && (is_known || is_free)) {
            return self.agreed.send(from, TransferMessage::CopyDeclined { clock, is_late: !is_ahead });
        }
        self.agreed_at = Some(clock);
        self.agreed.keep_for(now, from);
    }

    fn on_begins(&mut self, now: Time, clock: u64) {
        self.clock = self.clock.max(Some(clock));
        if self.awaits_clock() && self.agreed_at.is_some_and(|at| at <= clock) {
            self.make_agreed(now);
        }
    }

    /// The keeper knows that the run has reached the clock. A donor that has begun no job since copies its state now.
    fn give_agreed(&mut self, now: Time, from: Instance) {
        if self.agreed.is_missing() {
            self.make_agreed(now);
        }
        self.agreed.serve(now, from);
    }

    fn make_agreed(&mut self, now: Time) {
        let state = self.next_number();
        self.agreed.export(now, state, self.agreed_at);
    }

    // --- Both -----------------------------------------------------------------------------------------------

    fn next_number(&mut self) -> StateId {
        self.latest.0 += 1;
        self.latest
    }

    fn copy_mut(&mut self, state: StateId) -> Option<&mut SharedCopy> {
        [&mut self.fresh, &mut self.agreed].into_iter().find(|copy| copy.is_numbered(state))
    }

    fn end_sessions(&mut self, is_over: impl Fn(&Instance, Time) -> bool) {
        self.fresh.end_sessions(&is_over);
        self.agreed.end_sessions(&is_over);
    }

    /// A copy is as large as the state: it is kept only for peers that may still take it.
    fn release_unused(&mut self, now: Time) {
        if self.fresh.sessions() == 0 && self.expires().is_some_and(|at| at <= now) {
            self.fresh.release();
        }
        if self.agreed.sessions() == 0 && self.agreed.is_ready() {
            self.agreed.release();
        }
        if self.agreed.sessions() == 0 && self.agreed.is_missing() {
            self.agreed_at = None;
        }
    }
}
