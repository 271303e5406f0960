//! Which events of the network a person should hear of, and when.

use std::collections::{BTreeSet, HashMap};
use std::mem::{Discriminant, discriminant};
use std::time::{Duration, Instant};

use swarmline_scheduler::{Incarnation, PeerId, PeerTable};

use crate::member::member;
use crate::net::control::HEARTBEAT_EVERY;
use crate::net::frame::{FrameError, Part};
use crate::net::quic::{LinkError, NetEvent};
use crate::report::{Event, Repeated, Reporter};

/// A peer that vanishes may be the first to hear that the run is over. Everybody hears it within a heartbeat; what is
/// told of the vanished waits for so long.
const HOLD: Duration = HEARTBEAT_EVERY.saturating_mul(2);
/// Pause between two lines about one kind of malformed frames of one peer.
const MALFORMED_EVERY: Duration = Duration::from_secs(10);

/// One start of a peer.
type Start = (PeerId, Incarnation);

/// What is wrong with a frame; nothing if the peer only said that it is malformed.
type Kind = Option<(Discriminant<FrameError>, Option<Part>)>;

/// The lines that are to be told. Each loss is told once for each start of a peer, and none when the run is over: then
/// everybody goes.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    run_over: bool,
    /// Whose loss was noticed. Only members are in here, as in the two that follow.
    lost: BTreeSet<Start>,
    unreachable: BTreeSet<Start>,
    malformed: HashMap<(PeerId, Kind), Repeated>,
    /// What is to be told, and not before when.
    lines: Vec<(Instant, String)>,
}

impl Incidents {
    /// Something happened on the network.
    pub(crate) fn heard(&mut self, now: Instant, event: &NetEvent, table: &PeerTable) {
        match event {
            NetEvent::Malformed { from, error } => {
                let line = format!(
                    "peer {from:?} sent something that is no frame of this run ({error}); it was thrown away"
                );
                let kind = Some((discriminant(error), error.part()));
                self.malformed(now, (*from, kind), line, table);
            }
            NetEvent::Unreachable { peer, reason: reason @ LinkError::FrameRefused { .. }, .. } => {
                self.malformed(now, (*peer, None), reason.to_string(), table);
            }
            NetEvent::Unreachable { peer, reason, undelivered } => {
                let count = undelivered.len();
                self.unreachable.retain(|&start| is_member(start, table));
                if member(table, *peer).is_some_and(|start| self.unreachable.insert(start)) {
                    self.hold(now, format!("{reason}; {count} messages were not delivered"));
                }
            }
            NetEvent::Connected { .. } | NetEvent::Message { .. } | NetEvent::Disconnected { .. } => {}
        }
    }

    /// A neighbour is dead or stuck, with so many microbatches.
    pub(crate) fn lost(&mut self, now: Instant, start: Start, with_it: usize, table: &PeerTable) {
        self.lost.retain(|&start| is_member(start, table));
        if with_it > 0 && self.lost.insert(start) {
            let peer = start.0;
            self.hold(
                now,
                format!("neighbour {peer:?} is dead or stuck; {with_it} microbatches that lie with it find another way"),
            );
        }
    }

    /// The run is over. Whoever has vanished has finished.
    pub(crate) fn run_over(&mut self) {
        self.run_over = true;
        self.lines.clear();
    }

    /// Tells what is due.
    pub(crate) fn tell(&mut self, now: Instant, reporter: &Reporter) {
        for (_, message) in self.lines.extract_if(.., |(at, _)| *at <= now) {
            reporter.tell(&Event::Incident { message });
        }
    }

    fn hold(&mut self, now: Instant, line: String) {
        if !self.run_over {
            self.lines.push((now + HOLD, line));
        }
    }

    fn malformed(&mut self, now: Instant, what: (PeerId, Kind), line: String, table: &PeerTable) {
        self.malformed.retain(|&(known, _), _| known == what.0 || member(table, known).is_some());
        let repeated = self.malformed.entry(what).or_insert_with(|| Repeated::every(MALFORMED_EVERY));
        match repeated.happened_at(now) {
            None => {}
            Some(1) => self.lines.push((now, line)),
            Some(times) => {
                let line = format!("{line}; {} more since the last such line", times - 1);
                self.lines.push((now, line));
            }
        }
    }
}

fn is_member(start: Start, table: &PeerTable) -> bool {
    table.get(start.0, start.1).is_some()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::mpsc;

    use swarmline_scheduler::{Member, Membership, StageIndex, Standing};

    use super::*;

    const PEER: PeerId = PeerId([1; 32]);
    const SECOND: Duration = Duration::from_secs(1);

    /// What a person hears of a table of one member.
    struct Story {
        incidents: Incidents,
        table: PeerTable,
        now: Instant,
    }

    impl Story {
        fn new() -> Self {
            let mut story = Self {
                incidents: Incidents::default(),
                table: PeerTable::new(PeerId([0; 32])),
                now: Instant::now(),
            };
            story.publish(1);
            story
        }

        fn publish(&mut self, incarnation: u64) {
            let address = SocketAddr::from(([127, 0, 0, 1], 4_000));
            let (incarnation, standing) = (Incarnation(incarnation), Standing::Serving(StageIndex(0)));
            let members = vec![Member { peer: PEER, incarnation, standing, address }];
            self.table.update(Membership { version: incarnation.0, members, ..Membership::default() });
        }

        fn wait(&mut self, time: Duration) -> Vec<String> {
            self.now += time;
            let (hear, heard) = mpsc::channel();
            let reporter = Reporter::to(move |event| {
                let Event::Incident { message } = event else { return };
                let _ = hear.send(message.clone());
            });
            self.incidents.tell(self.now, &reporter);
            heard.try_iter().collect()
        }

        fn unreachable(&mut self, reason: LinkError) {
            let event = NetEvent::Unreachable { peer: PEER, reason, undelivered: Vec::new() };
            self.incidents.heard(self.now, &event, &self.table);
        }

        fn lost(&mut self, incarnation: u64, with_it: usize) {
            self.incidents.lost(self.now, (PEER, Incarnation(incarnation)), with_it, &self.table);
        }

        fn malformed(&mut self) -> Vec<String> {
            let event = NetEvent::Malformed { from: PEER, error: FrameError::Magic { found: 7 } };
            self.incidents.heard(self.now, &event, &self.table);
            self.wait(Duration::ZERO)
        }
    }

    fn gone() -> LinkError {
        LinkError::Lost { peer: PEER, cause: "reset".to_owned() }
    }

    #[test]
    fn a_loss_is_told_once_for_each_start_after_a_while() {
        let mut story = Story::new();
        story.unreachable(gone());
        story.lost(1, 3);
        assert_eq!(story.wait(HOLD - SECOND), Vec::<String>::new());
        let told = story.wait(SECOND);
        assert!(told[0].starts_with("lost peer") && told[1].contains("; 3 microbatches") && told.len() == 2);
        story.unreachable(gone());
        story.lost(1, 1);
        assert_eq!(story.wait(HOLD), Vec::<String>::new());
        story.publish(2);
        story.unreachable(gone());
        story.lost(2, 0);
        assert_eq!(story.wait(HOLD).len(), 1, "nothing lay with it");
        story.lost(2, 1);
        assert_eq!(story.wait(HOLD).len(), 1);
    }

    #[test]
    fn who_vanishes_at_the_end_of_the_run_has_finished() {
        let mut story = Story::new();
        story.unreachable(gone());
        story.wait(HOLD - SECOND);
        story.incidents.run_over();
        story.lost(1, 3);
        assert_eq!(story.wait(HOLD * 9), Vec::<String>::new());
    }

    #[test]
    fn malformed_frames_are_told_at_once_and_then_once_in_a_while() {
        let mut story = Story::new();
        assert_eq!(story.malformed().len(), 1);
        (0..30).for_each(|_| assert_eq!(story.malformed().len(), 0));
        story.unreachable(LinkError::FrameRefused { peer: PEER, code: 2 });
        assert_eq!(story.wait(MALFORMED_EVERY - SECOND).len(), 1, "another kind");
        assert_eq!(story.malformed().len(), 0);
        story.wait(SECOND);
        assert!(story.malformed()[0].ends_with("; 31 more since the last such line"));
        story.wait(MALFORMED_EVERY);
        assert!(story.malformed()[0].ends_with("thrown away"));
    }
}
