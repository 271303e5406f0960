//! Selects the network events that become incidents, and their time.

use std::collections::{BTreeSet, HashMap};
use std::mem::{Discriminant, discriminant};
use std::time::{Duration, Instant};

use swarmline_scheduler::{Instance, PeerId, PeerTable};

use crate::net::control::HEARTBEAT_INTERVAL;
use crate::net::frame::{FrameError, Part};
use crate::net::quic::{LinkError, NetEvent};
use crate::report::{Event, Incident, RateLimit, Reporter};

/// Delay of lines about a vanished peer. The peer may be the first to learn that the run is over; every member learns
/// it within a heartbeat, and then drops the line.
const HOLD: Duration = HEARTBEAT_INTERVAL.saturating_mul(2);
/// Pause between two lines about one kind of malformed frames of one peer.
const MALFORMED_INTERVAL: Duration = Duration::from_secs(10);

/// The fault of a frame; `None` if the peer only reported that the frame is malformed.
type Kind = Option<(Discriminant<FrameError>, Option<Part>)>;

/// The incidents to report. A loss is reported once for each start of a peer, and not at all when the run is over: then
/// every member leaves.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    run_finished: bool,
    /// Instances whose loss was noticed. This set and the next two collections hold members only.
    lost: BTreeSet<Instance>,
    unreachable: BTreeSet<Instance>,
    malformed: HashMap<(PeerId, Kind), RateLimit>,
    /// Incidents to report, each not before its time.
    waiting: Vec<(Instant, Incident)>,
}

impl Notices {
    /// Takes an event of the network.
    pub(crate) fn on_event(&mut self, now: Instant, event: &NetEvent, table: &PeerTable) {
        match event {
            NetEvent::Malformed { from, error } => {
                let kind = Some((discriminant(error), error.part()));
                if let Some(times) = self.count_malformed(now, (*from, kind), table) {
                    let (peer, fault) = (format!("{from:?}"), error.to_string());
                    self.waiting.push((now, Incident::MalformedFrame { peer, fault, times }));
                }
            }
            NetEvent::Unreachable { peer, reason: LinkError::FrameRefused { code, .. }, .. } => {
                if let Some(times) = self.count_malformed(now, (*peer, None), table) {
                    let (peer, code) = (format!("{peer:?}"), *code);
                    self.waiting.push((now, Incident::FrameRefused { peer, code, times }));
                }
            }
            NetEvent::Unreachable { peer, reason, undelivered } => {
                self.unreachable.retain(|&instance| table.get(instance).is_some());
                if table.instance(*peer).is_some_and(|instance| self.unreachable.insert(instance)) {
                    let (peer, reason) = (format!("{peer:?}"), reason.to_string());
                    self.hold(now, Incident::Unreachable { peer, reason, undelivered: undelivered.len() });
                }
            }
            NetEvent::Connected(_)
            | NetEvent::Received { .. }
            | NetEvent::Arriving(_)
            | NetEvent::Disconnected { .. } => {}
        }
    }

    /// Takes the loss of a neighbour that is dead or stalled and holds `affected` microbatches.
    pub(crate) fn on_lost(&mut self, now: Instant, neighbour: Instance, affected: usize, table: &PeerTable) {
        self.lost.retain(|&instance| table.get(instance).is_some());
        if affected > 0 && self.lost.insert(neighbour) {
            let peer = format!("{:?}", neighbour.peer);
            self.hold(now, Incident::NeighbourLost { peer, affected });
        }
    }

    /// The run is over, so vanished peers have finished: drops the lines about them.
    pub(crate) fn run_finished(&mut self) {
        self.run_finished = true;
        self.waiting.clear();
    }

    /// Reports the incidents that are due.
    pub(crate) fn tell(&mut self, now: Instant, reporter: &Reporter) {
        for (_, incident) in self.waiting.extract_if(.., |(at, _)| *at <= now) {
            reporter.tell(&Event::Incident(incident));
        }
    }

    fn hold(&mut self, now: Instant, incident: Incident) {
        if !self.run_finished {
            self.waiting.push((now + HOLD, incident));
        }
    }

    fn count_malformed(&mut self, now: Instant, kind: (PeerId, Kind), table: &PeerTable) -> Option<u64> {
        self.malformed.retain(|&(known, _), _| known == kind.0 || table.instance(known).is_some());
        let limit = self.malformed.entry(kind).or_insert_with(|| RateLimit::new(MALFORMED_INTERVAL));
        limit.happened_at(now)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::mpsc;

    use swarmline_scheduler::{Incarnation, Member, MemberState, Membership, StageIndex};

    use super::*;

    const PEER: PeerId = PeerId([1; 32]);
    const SECOND: Duration = Duration::from_secs(1);

    /// Notices with a table of one member, and the reported lines.
    struct Harness {
        notices: Notices,
        table: PeerTable,
        now: Instant,
    }

    impl Harness {
        fn new() -> Self {
            let (notices, table) = (Notices::default(), PeerTable::default());
            let mut harness = Self { notices, table, now: Instant::now() };
            harness.publish(1);
            harness
        }

        fn publish(&mut self, incarnation: u64) {
            let address = SocketAddr::from(([127, 0, 0, 1], 4_000));
            let state = MemberState::Serving(StageIndex(0));
            let members = vec![Member { instance: start(incarnation), state, address }];
            self.table.update(Membership { version: incarnation, members, ..Membership::default() });
        }

        fn wait(&mut self, time: Duration) -> Vec<String> {
            self.now += time;
            let (hear, heard) = mpsc::channel();
            let reporter = Reporter::to(move |event| {
                let Event::Incident(incident) = event else { return };
                let _ = hear.send(incident.to_string());
            });
            self.notices.tell(self.now, &reporter);
            heard.try_iter().collect()
        }

        fn unreachable(&mut self, reason: LinkError) {
            let event = NetEvent::Unreachable { peer: PEER, reason, undelivered: Vec::new() };
            self.notices.on_event(self.now, &event, &self.table);
        }

        fn lost(&mut self, incarnation: u64, affected: usize) {
            self.notices.on_lost(self.now, start(incarnation), affected, &self.table);
        }

        fn malformed(&mut self) -> Vec<String> {
            let event = NetEvent::Malformed { from: PEER, error: FrameError::Magic { found: 7 } };
            self.notices.on_event(self.now, &event, &self.table);
            self.wait(Duration::ZERO)
        }
    }

    fn start(incarnation: u64) -> Instance {
        Instance::new(PEER, Incarnation(incarnation))
    }

    fn gone() -> LinkError {
        LinkError::Lost { peer: PEER, cause: "reset".to_owned() }
    }

    #[test]
    fn a_loss_is_told_once_for_each_start_after_a_while() {
        let mut harness = Harness::new();
        harness.unreachable(gone());
        harness.lost(1, 3);
        assert_eq!(harness.wait(HOLD - SECOND), Vec::<String>::new());
        let told = harness.wait(SECOND);
        assert!(told[0].starts_with("lost peer") && told[1].contains("recover: 3") && told.len() == 2);
        harness.unreachable(gone());
        harness.lost(1, 1);
        assert_eq!(harness.wait(HOLD), Vec::<String>::new());
        harness.publish(2);
        harness.unreachable(gone());
        harness.lost(2, 0);
        assert_eq!(harness.wait(HOLD).len(), 1, "it held no microbatch");
        harness.lost(2, 1);
        assert_eq!(harness.wait(HOLD).len(), 1);
    }

    #[test]
    fn a_peer_that_vanishes_at_the_end_of_the_run_has_finished() {
        let mut harness = Harness::new();
        harness.unreachable(gone());
        harness.wait(HOLD - SECOND);
        harness.notices.run_finished();
        harness.lost(1, 3);
        assert_eq!(harness.wait(HOLD * 9), Vec::<String>::new());
    }

    #[test]
    fn malformed_frames_are_told_at_once_and_then_once_in_a_while() {
        let mut harness = Harness::new();
        assert_eq!(harness.malformed().len(), 1);
        (0..30).for_each(|_| assert_eq!(harness.malformed().len(), 0));
        harness.unreachable(LinkError::FrameRefused { peer: PEER, code: 2 });
        assert_eq!(harness.wait(MALFORMED_INTERVAL - SECOND).len(), 1, "another kind");
        assert_eq!(harness.malformed().len(), 0);
        harness.wait(SECOND);
        assert!(harness.malformed()[0].ends_with("; 31 more since the last such line"));
        harness.wait(MALFORMED_INTERVAL);
        assert!(harness.malformed()[0].ends_with("dropped"));
    }
}
