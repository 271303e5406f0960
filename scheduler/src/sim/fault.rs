//! What goes wrong, and how the world takes it.

use std::collections::BTreeSet;

use super::process::{FeederNode, Liveness, coordinator_key};
use super::queue::Machine;
use super::{Delivery, IDLE, World};
use crate::{Duration, Feeder, Incarnation, PeerId, Time, stage};

/// Long enough for the coordinator to take a feeder for dead.
const CUT_OFF: Duration = Duration::from_secs(20);
/// A former feeder hears of its successor so much later.
const CUT_OFF_LONGER: Duration = Duration::from_secs(5);

/// One thing that goes wrong. Replicas are meant by index.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The process dies. Loud: its connections are reset; silent: they run into their timeout.
    Crash { replica: usize, loud: bool, back_after: Option<Duration> },
    /// An orderly end in mid-flight.
    Leave { replica: usize },
    /// The device does nothing for a while.
    Wedge { replica: usize, lasts: Duration },
    /// The process is stopped for a while.
    Suspend { replica: usize, lasts: Duration },
    /// Messages get lost without anybody noticing.
    Loss { per_mille: u64, lasts: Duration },
    /// Messages are late.
    Delay { extra: Duration, lasts: Duration },
    /// Two replicas cannot reach each other.
    BrokenLink { a: usize, b: usize, lasts: Duration },
    /// The feeder and a replica cannot reach each other.
    BrokenFeederLink { replica: usize, lasts: Duration },
    /// These replicas are cut off from everyone.
    Partition { part: BTreeSet<usize>, lasts: Duration },
    /// The feeder dies and is started again.
    FeederCrash { back_after: Duration },
    /// The feeder is gone for good, or only cut off from the coordinator, and another one takes over.
    Succession { dies: bool, after: Duration },
}

impl Fault {
    fn name(&self) -> &'static str {
        match self {
            Self::Crash { loud: true, .. } => "loud crash",
            Self::Crash { loud: false, .. } => "silent crash",
            Self::Leave { .. } => "leave",
            Self::Wedge { .. } => "wedge",
            Self::Suspend { .. } => "suspension",
            Self::Loss { .. } => "loss",
            Self::Delay { .. } => "delay",
            Self::BrokenLink { .. } => "broken link",
            Self::BrokenFeederLink { .. } => "broken feeder link",
            Self::Partition { .. } => "partition",
            Self::FeederCrash { .. } => "feeder crash",
            Self::Succession { dies: true, .. } => "succession after a death",
            Self::Succession { dies: false, .. } => "succession while the former feeder lives",
        }
    }
}

impl World {
    pub(super) fn strike(&mut self, fault: Fault) {
        if self.misses(&fault) {
            return;
        }
        self.judge.path(fault.name());
        match fault {
            Fault::Crash { replica, loud, back_after } => self.crash(replica, loud, back_after),
            Fault::Leave { replica } => self.at_replica(replica, stage::Event::Drain),
            Fault::Wedge { replica, lasts } => self.replicas[replica].executor.wedge(self.now + lasts),
            Fault::Suspend { replica, lasts } => self.suspend(replica, lasts),
            Fault::Loss { per_mille, lasts } => self.network.lose(per_mille, self.now + lasts),
            Fault::Delay { extra, lasts } => self.network.slow_down(extra, self.now + lasts),
            Fault::BrokenLink { a, b, lasts } => {
                let (a, b) = (self.replicas[a].peer, self.replicas[b].peer);
                self.break_link(a, b, self.now + lasts);
            }
            Fault::BrokenFeederLink { replica, lasts } => {
                let peer = self.replicas[replica].peer;
                self.break_link(peer, self.latest().peer, self.now + lasts);
            }
            Fault::Partition { part, lasts } => self.partition(&part, self.now + lasts),
            Fault::FeederCrash { back_after } => {
                self.kill_feeder();
                self.send_in(back_after, Delivery::StartFeeder(self.feeders.len() - 1));
            }
            Fault::Succession { dies, after } => self.succeed(dies, after),
        }
    }

    /// Whether nobody is there whom it could hit.
    fn misses(&self, fault: &Fault) -> bool {
        let liveness = |replica: &usize| self.replicas[*replica].liveness;
        match fault {
            Fault::Crash { replica, .. } => liveness(replica) == Liveness::Dead,
            Fault::Leave { replica } | Fault::Wedge { replica, .. } | Fault::Suspend { replica, .. } => {
                liveness(replica) != Liveness::Awake
            }
            Fault::BrokenLink { a, b, .. } => a == b,
            Fault::FeederCrash { .. } => self.latest().machine.is_none(),
            Fault::Succession { .. } => {
                let FeederNode { admitted, machine, .. } = self.latest();
                !admitted || machine.as_ref().is_none_or(Feeder::is_done)
            }
            Fault::Loss { .. }
            | Fault::Delay { .. }
            | Fault::BrokenFeederLink { .. }
            | Fault::Partition { .. } => false,
        }
    }

    fn kill_feeder(&mut self) {
        let index = self.feeders.len() - 1;
        self.feeders[index].machine = None;
        let FeederNode { peer, incarnation, .. } = self.feeders[index];
        self.break_connections(peer, incarnation, IDLE);
    }

    fn succeed(&mut self, dies: bool, after: Duration) {
        if dies {
            self.kill_feeder();
        } else {
            let until = self.now + after.max(CUT_OFF) + CUT_OFF_LONGER;
            self.network.break_link(self.latest().peer, coordinator_key(), until);
        }
        self.feeders.push(FeederNode::new(self.feeders.len()));
        self.send_in(after, Delivery::StartFeeder(self.feeders.len() - 1));
    }

    fn crash(&mut self, index: usize, loud: bool, back_after: Option<Duration>) {
        self.judge_death(index);
        let replica = &mut self.replicas[index];
        replica.liveness = Liveness::Dead;
        let (peer, incarnation) = (replica.peer, replica.incarnation);
        self.break_connections(peer, incarnation, if loud { Duration::ZERO } else { IDLE });
        if let Some(after) = back_after {
            self.send_in(after, Delivery::Join(index));
        }
    }

    fn suspend(&mut self, index: usize, lasts: Duration) {
        let replica = &mut self.replicas[index];
        replica.liveness = Liveness::Suspended;
        let (peer, incarnation) = (replica.peer, replica.incarnation);
        if lasts > IDLE {
            self.break_connections(peer, incarnation, IDLE);
        }
        self.send_in(lasts, Delivery::Resume(index, incarnation));
    }

    /// Goes on with what has arrived meanwhile.
    pub(super) fn resume(&mut self, index: usize, incarnation: Incarnation) {
        let replica = &mut self.replicas[index];
        if replica.incarnation == incarnation && replica.liveness == Liveness::Suspended {
            replica.liveness = Liveness::Awake;
            for delivery in std::mem::take(&mut replica.backlog) {
                self.soon(delivery);
            }
            self.set_alarm(Machine::Replica(index));
            self.set_alarm(Machine::Rounds(index));
        }
    }

    fn break_link(&mut self, a: PeerId, b: PeerId, until: Time) {
        self.network.break_link(a, b, until);
        self.notice_cut(a, b);
        self.notice_cut(b, a);
    }

    /// Connections across the border of a part run into their timeout.
    fn partition(&mut self, part: &BTreeSet<usize>, until: Time) {
        let inside: BTreeSet<PeerId> = part.iter().map(|&index| self.replicas[index].peer).collect();
        self.network.split(inside.clone(), until);
        let mut everyone: Vec<PeerId> = self.replicas.iter().map(|replica| replica.peer).collect();
        everyone.extend(self.feeders.iter().map(|feeder| feeder.peer));
        for &a in everyone.iter().filter(|peer| inside.contains(peer)) {
            for &b in everyone.iter().filter(|peer| !inside.contains(peer)) {
                self.notice_cut(a, b);
                self.notice_cut(b, a);
            }
        }
        debug_assert!(!inside.contains(&coordinator_key()));
    }

    /// `whom` loses its connection to `peer`.
    fn notice_cut(&mut self, whom: PeerId, peer: PeerId) {
        let lost = match (self.replica_of(peer), self.feeder_of(peer)) {
            (Some(index), _) => self.replicas[index].incarnation,
            (None, Some(index)) => self.feeders[index].incarnation,
            (None, None) => return,
        };
        if let Some(index) = self.feeder_of(whom) {
            let event = crate::feeder::Event::PeerLost { peer, incarnation: lost };
            let known = self.feeders[index].incarnation;
            self.send_in(IDLE, Delivery::Feeder(index, known, event));
        } else if let Some(index) = self.replica_of(whom) {
            let event = stage::Event::PeerLost { peer, incarnation: lost };
            let known = self.replicas[index].incarnation;
            self.send_in(IDLE, Delivery::Replica(index, known, event));
        }
    }
}
