//! The health of neighbours, as this peer sees it.
//!
//! There are three kinds of evidence: the connection (lost: dead at once), the rhythm of heartbeats (phi accrual:
//! suspect, then dead) and the progress that they report (tasks wait and the counter stands still: stalled). This
//! module collects the evidence and judges on request; the caller acts on the verdict.
//!
//! A verdict is about a link as much as about a peer: a peer that is heard again is healthy again. The membership table
//! decides whether its contributions still count.

mod expiries;
mod link;
mod phi_accrual;
mod progress_monitor;
mod quarantine;
mod suspension;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::{Duration, Heartbeat, Instance, Time};

pub use link::LINK_DOWN_AFTER;
pub(crate) use link::Link;
pub use phi_accrual::{FIRST_BEAT, HEARTBEAT, SIGMA_MIN};
pub use progress_monitor::STALLED_MIN;
pub use quarantine::{QUARANTINE_MAX, QUARANTINE_MIN, Quarantine};
pub use suspension::{SUSPENDED_AFTER, Suspension, TICK};

use expiries::Expiries;
use phi_accrual::PhiAccrual;
use progress_monitor::ProgressMonitor;

/// The verdict on a neighbour, from good to bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// There is no evidence against the peer.
    #[default]
    Healthy,
    /// The peer is silent for longer than its rhythm explains: it gets no new microbatches.
    Suspect,
    /// The peer sends heartbeats and has waiting tasks, but makes no progress.
    Stalled,
    /// The connection is gone, or the silence is too long for any doubt.
    Dead,
}

/// Watches neighbours and judges them.
///
/// Only a watched instance is judged: [`watch`](Self::watch) the neighbours and [`forget`](Self::forget) instances that
/// leave the table; watched instances bound the memory. While the own link is down (at least two instances are watched,
/// and no peer has been heard for [`LINK_DOWN_AFTER`]) every verdict stays as it was when a peer was last heard, and
/// that time counts as silence of no peer.
#[derive(Clone, Debug, Default)]
pub struct Health {
    watched: BTreeMap<Instance, Watched>,
    link: Link,
    /// On the link's clock. A verdict costs nothing until evidence arrives or its time comes.
    expiries: Expiries,
    /// The own link was down when the verdicts were last looked at, or has been since.
    was_down: bool,
}

#[derive(Clone, Debug)]
struct Watched {
    rhythm: PhiAccrual,
    progress: ProgressMonitor,
    /// Time of the last message, on the link's clock.
    heard: Time,
    /// The connection was lost, and no message came since.
    gone: bool,
    /// The verdict that [`Health::changes`] reported last.
    told: Verdict,
}

impl Health {
    /// A monitor that watches no instance.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to watch an instance; nothing changes if it is watched already. Its first heartbeat may take
    /// [`FIRST_BEAT`] before its silence counts.
    pub fn watch(&mut self, now: Time, instance: Instance) {
        if self.watched.is_empty() {
            self.link.sign(now, 0);
        }
        let heard = self.clock(now);
        self.watched.entry(instance).or_insert_with(|| Watched::new(heard));
        self.judge_later(instance, heard);
    }

    /// Stops watching an instance.
    pub fn forget(&mut self, instance: Instance) {
        self.watched.remove(&instance);
        self.expiries.forget(instance);
    }

    /// A heartbeat arrived from an instance.
    pub fn heard(&mut self, now: Time, instance: Instance, heartbeat: Heartbeat) {
        self.reached(now);
        let at = self.clock(now);
        if let Some(watched) = self.watched.get_mut(&instance) {
            watched.sign(at);
            watched.rhythm.beat(at);
            watched.progress.beat(at, heartbeat);
            self.judge_later(instance, at);
        }
    }

    /// A message arrived from an instance. It ends the silence, but does not count for the rhythm.
    pub fn message(&mut self, now: Time, instance: Instance) {
        self.reached(now);
        let at = self.clock(now);
        if let Some(watched) = self.watched.get_mut(&instance) {
            watched.sign(at);
            self.judge_later(instance, at);
        }
    }

    /// A message arrived from a peer that is not watched, such as the coordinator: the own link works. Without such
    /// evidence the death of every watched peer looks like a failure of the own link.
    pub fn reached(&mut self, now: Time) {
        self.was_down |= self.link.is_down(now, self.watched.len());
        self.link.sign(now, self.watched.len());
    }

    /// The connection to a peer is gone. While the own link is down this is no evidence against the peer and is
    /// ignored: its silence counts once the link works.
    pub fn lost(&mut self, now: Time, instance: Instance) {
        if self.link.is_down(now, self.watched.len()) {
            return;
        }
        let at = self.clock(now);
        if let Some(watched) = self.watched.get_mut(&instance) {
            watched.gone = true;
            self.judge_later(instance, at);
        }
    }

    /// Notes when the verdict on an instance changes if no more evidence arrives, and whether it has changed.
    fn judge_later(&mut self, instance: Instance, at: Time) {
        let Some(watched) = self.watched.get(&instance) else { return };
        if watched.verdict(at) != watched.told {
            self.expiries.judge(instance);
        }
        self.expiries.set(instance, watched.next_change(at));
    }

    /// The current verdict on an instance; healthy if it is not watched.
    #[must_use]
    pub fn verdict(&self, now: Time, instance: Instance) -> Verdict {
        let watched = self.watched.get(&instance);
        watched.map_or(Verdict::Healthy, |watched| watched.verdict(self.clock(now)))
    }

    /// The verdicts that have changed since the last call, by peer id; a newly watched peer counts as healthy before.
    pub fn changes(&mut self, now: Time) -> Vec<(Instance, Verdict)> {
        let (at, is_down) = (self.clock(now), self.link.is_down(now, self.watched.len()));
        if std::mem::replace(&mut self.was_down, is_down) != is_down {
            // The clock has gone back to the last message.
            self.watched.keys().for_each(|&instance| self.expiries.judge(instance));
        }
        let mut changes = Vec::new();
        for instance in self.expiries.take_due(at) {
            let Some(watched) = self.watched.get_mut(&instance) else { continue };
            let verdict = watched.verdict(at);
            if std::mem::replace(&mut watched.told, verdict) != verdict {
                changes.push((instance, verdict));
            }
            self.judge_later(instance, at);
        }
        changes
    }

    /// The next time at which a verdict may change if no peer is heard; `None` if none can.
    #[must_use]
    pub fn next_change(&self, now: Time) -> Option<Time> {
        let down = self.link.goes_down(self.watched.len());
        if down.is_some_and(|down| down <= now) {
            return None;
        }
        let change = self.expiries.next().map(|change| self.link.told_by_caller(change));
        change.into_iter().chain(down).min()
    }

    /// The service time that a peer reported last; `None` if unknown.
    #[must_use]
    pub fn service(&self, instance: Instance) -> Option<Duration> {
        self.watched.get(&instance)?.progress.service()
    }

    /// The time at which silence is measured.
    pub(crate) fn clock(&self, now: Time) -> Time {
        self.link.clock(now, self.watched.len())
    }
}

impl Watched {
    fn new(heard: Time) -> Self {
        Self {
            rhythm: PhiAccrual::default(),
            progress: ProgressMonitor::default(),
            heard,
            gone: false,
            told: Verdict::Healthy,
        }
    }

    /// Notes a message. A new connection may have another rhythm than the lost connection.
    fn sign(&mut self, at: Time) {
        if std::mem::take(&mut self.gone) {
            self.rhythm = PhiAccrual::default();
        }
        self.heard = at;
    }

    fn verdict(&self, at: Time) -> Verdict {
        let silence = at.since(self.heard);
        let limits = self.rhythm.limits();
        if self.gone || silence >= limits.dead {
            Verdict::Dead
        } else if self.progress.is_stalled() {
            Verdict::Stalled
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
