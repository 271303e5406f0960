//! Who of the neighbours lives, as this peer sees it.
//!
//! Three witnesses: the connection (lost: dead at once), the rhythm of heartbeats (phi accrual: suspect, then dead)
//! and the progress they report (work waits and nothing moves: wedged). They are heard here and judged when asked;
//! what follows from a verdict is the business of whoever asks.
//!
//! A verdict is an opinion about a link as much as about a peer: whoever is heard again is healthy again. Whether its
//! contributions still count is for the membership to say.

mod link;
mod phi_accrual;
mod progress_monitor;
mod quarantine;
mod suspension;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::{Beat, Duration, Incarnation, PeerId, Time};

pub use link::LINK_DOWN_AFTER;
pub use phi_accrual::{FIRST_BEAT, HEARTBEAT, SIGMA_MIN};
pub use progress_monitor::WEDGED_MIN;
pub use quarantine::{QUARANTINE_MAX, QUARANTINE_MIN, Quarantine};
pub use suspension::{SUSPENDED_AFTER, Suspension, TICK};

use link::Link;
use phi_accrual::Rhythm;
use progress_monitor::Labour;

/// What is thought of a neighbour, from good to bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Nothing speaks against it.
    #[default]
    Healthy,
    /// Silent for longer than its rhythm explains: give it nothing new.
    Suspect,
    /// It speaks, has work waiting, and does none.
    Wedged,
    /// Its connection is gone, or it is silent beyond doubt.
    Dead,
}

/// Watches neighbours and judges them.
///
/// Whoever is not watched is not judged: [`watch`](Self::watch) the members of interest and
/// [`forget`](Self::forget) those who leave the table; what is watched bounds the memory. While the own link is down
/// (at least two watched, and nobody at all heard for [`LINK_DOWN_AFTER`]) every verdict stays what it was when
/// somebody was last heard, and that time counts as nobody's silence.
#[derive(Clone, Debug, Default)]
pub struct Health {
    watched: BTreeMap<(PeerId, Incarnation), Watched>,
    link: Link,
    /// No verdict changes before, unless something is heard that resets this.
    quiet_until: Time,
}

#[derive(Clone, Debug)]
struct Watched {
    rhythm: Rhythm,
    labour: Labour,
    /// The last sign of life, on the link's clock.
    heard: Time,
    /// The connection was lost and nothing was heard since.
    gone: bool,
    /// What [`Health::changes`] said last.
    told: Verdict,
}

impl Health {
    /// Watches nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to watch a start of a peer; nothing changes if it is watched already. It has [`FIRST_BEAT`] for its
    /// first heartbeat before its silence counts.
    pub fn watch(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) {
        self.quiet_until = Time::default();
        if self.watched.is_empty() {
            self.link.sign(now, 0);
        }
        let heard = self.clock(now);
        self.watched.entry((peer, incarnation)).or_insert_with(|| Watched::new(heard));
    }

    /// Stops watching.
    pub fn forget(&mut self, peer: PeerId, incarnation: Incarnation) {
        self.quiet_until = Time::default();
        self.watched.remove(&(peer, incarnation));
    }

    /// A heartbeat arrived.
    pub fn heard(&mut self, now: Time, peer: PeerId, incarnation: Incarnation, beat: Beat) {
        self.quiet_until = Time::default();
        self.link.sign(now, self.watched.len());
        let at = self.clock(now);
        if let Some(watched) = self.watched.get_mut(&(peer, incarnation)) {
            watched.sign(at);
            watched.rhythm.beat(at);
            watched.labour.beat(at, beat);
        }
    }

    /// Another message arrived: a sign of life that says nothing about the rhythm.
    pub fn message(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) {
        self.reached(now);
        let at = self.clock(now);
        if let Some(watched) = self.watched.get_mut(&(peer, incarnation)) {
            if watched.told != Verdict::Healthy {
                self.quiet_until = Time::default();
            }
            watched.sign(at);
        }
    }

    /// Something arrived from somebody who is not watched, such as the coordinator: the own link works. Without
    /// such witnesses the death of all who are watched is not told from that of the own link.
    pub fn reached(&mut self, now: Time) {
        if self.link.is_down(now, self.watched.len()) {
            self.quiet_until = Time::default();
        }
        self.link.sign(now, self.watched.len());
    }

    /// The connection to a peer is gone. While the own link is down this says nothing about the peer and is ignored:
    /// its silence counts once the link works.
    pub fn lost(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) {
        if self.link.is_down(now, self.watched.len()) {
            return;
        }
        if let Some(watched) = self.watched.get_mut(&(peer, incarnation)) {
            self.quiet_until = Time::default();
            watched.gone = true;
        }
    }

    /// What is thought of a peer now; healthy if it is not watched.
    #[must_use]
    pub fn verdict(&self, now: Time, peer: PeerId, incarnation: Incarnation) -> Verdict {
        let watched = self.watched.get(&(peer, incarnation));
        watched.map_or(Verdict::Healthy, |watched| watched.verdict(self.clock(now)))
    }

    /// Verdicts that are not what this said last, by peer id; a newly watched peer is taken to have been healthy.
    pub fn changes(&mut self, now: Time) -> Vec<(PeerId, Incarnation, Verdict)> {
        if now < self.quiet_until {
            return Vec::new();
        }
        let at = self.clock(now);
        let mut changes = Vec::new();
        for (&(peer, incarnation), watched) in &mut self.watched {
            let verdict = watched.verdict(at);
            if std::mem::replace(&mut watched.told, verdict) != verdict {
                changes.push((peer, incarnation, verdict));
            }
        }
        self.quiet_until = self.next_change(now).unwrap_or(Time(u64::MAX));
        changes
    }

    /// When a verdict may change next if nothing is heard; until then none does.
    #[must_use]
    pub fn next_change(&self, now: Time) -> Option<Time> {
        let down = self.link.goes_down(self.watched.len());
        if down.is_some_and(|down| down <= now) {
            return None;
        }
        let at = self.clock(now);
        let change = self.watched.values().filter_map(|watched| watched.next_change(at)).min();
        let change = change.map(|change| self.link.told_by_caller(change));
        change.into_iter().chain(down).min()
    }

    /// The service time a peer reported last.
    #[must_use]
    pub fn service(&self, peer: PeerId, incarnation: Incarnation) -> Option<Duration> {
        self.watched.get(&(peer, incarnation))?.labour.service()
    }

    /// The time at which silence is measured.
    fn clock(&self, now: Time) -> Time {
        self.link.clock(now, self.watched.len())
    }
}

impl Watched {
    fn new(heard: Time) -> Self {
        Self {
            rhythm: Rhythm::default(),
            labour: Labour::default(),
            heard,
            gone: false,
            told: Verdict::Healthy,
        }
    }

    /// A new connection may have another rhythm than the lost one.
    fn sign(&mut self, at: Time) {
        if std::mem::take(&mut self.gone) {
            self.rhythm = Rhythm::default();
        }
        self.heard = at;
    }

    fn verdict(&self, at: Time) -> Verdict {
        let silence = at.since(self.heard);
        let limits = self.rhythm.limits();
        if self.gone || silence >= limits.dead {
            Verdict::Dead
        } else if self.labour.is_wedged() {
            Verdict::Wedged
        } else if silence >= limits.suspect {
            Verdict::Suspect
        } else {
            Verdict::Healthy
        }
    }

    fn next_change(&self, at: Time) -> Option<Time> {
        let limits = self.rhythm.limits();
        let ends = [limits.suspect, limits.dead].map(|limit| self.heard + limit);
        ends.into_iter().find(|&end| end > at && !self.gone)
    }
}
