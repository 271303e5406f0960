//! A joining replica's download: what the others of its stage have learned, before it serves.

use std::collections::BTreeSet;
use std::time::Instant;

use bytes::Bytes;
use swarmline_scheduler::averaging::Participant;
use swarmline_scheduler::transfer::{
    Download, DownloadAction as Action, DownloadEvent as Event, DownloadNote as Note, TransferMessage,
};
use swarmline_scheduler::{Membership, Message, PeerId, PeerTable, StageIndex, WeightVersion};
use tokio::sync::{mpsc, watch};

use super::average::members;
use super::executor::Executor;
use super::transit::{StateInbox, arrived_chunk, download_limits};
use crate::clock::Clock;
use crate::config::Run;
use crate::error::Error;
use crate::incidents::Incidents;
use crate::member::{Heart, lost_peer, member};
use crate::net::control::Directive;
use crate::net::quic::{DataPlane, NetEvent};
use crate::net::trust::Trust;
use crate::report::{self, Repeated, Reporter};

/// What a newcomer works with.
pub(super) struct Wiring<'a> {
    pub(super) executor: &'a Executor,
    pub(super) plane: &'a DataPlane,
    pub(super) arrivals: &'a mut mpsc::Receiver<NetEvent>,
    pub(super) trust: &'a Trust,
    pub(super) table: &'a mut watch::Receiver<Membership>,
    pub(super) heart: &'a mut Heart,
    pub(super) reporter: &'a Reporter,
    pub(super) clock: Clock,
}

/// What a newcomer begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// The state of another replica.
    Taken,
    /// The run's initial weights: nobody serves the stage.
    Initial,
    /// Nothing: the run is over, or the coordinator wants it to leave.
    None,
}

/// A whole state that arrived.
struct Arrived {
    donor: Participant,
    version: WeightVersion,
    state: Bytes,
}

/// A replica that does not serve yet.
pub(super) struct Newcomer<'a> {
    wiring: Wiring<'a>,
    run: &'a Run,
    me: PeerId,
    stage: StageIndex,
    table: PeerTable,
    machine: Download<Bytes>,
    inbox: StateInbox,
    /// Donors whose state was all there and none of this stage.
    useless: BTreeSet<Participant>,
    incidents: Incidents,
    complaints: Repeated,
    arrived: Option<Arrived>,
}

impl<'a> Newcomer<'a> {
    pub(super) fn new(run: &'a Run, me: PeerId, stage: StageIndex, wiring: Wiring<'a>) -> Self {
        let machine = Download::new(download_limits(run, stage));
        Self {
            wiring,
            run,
            me,
            stage,
            table: PeerTable::new(me),
            machine,
            inbox: StateInbox::default(),
            useless: BTreeSet::new(),
            incidents: Incidents::default(),
            complaints: Repeated::default(),
            arrived: None,
        }
    }

    /// Takes over the state of a replica that serves the stage, from one after the other until it is there. While one
    /// serves, this one begins with nothing else; when none is left, it begins with what it has.
    pub(super) async fn take_state(mut self) -> Result<Beginning, Error> {
        let begun = self.wiring.clock.now();
        self.adopt()?;
        loop {
            if let Some(arrived) = self.arrived.take() {
                if self.import(&arrived).await? {
                    self.tell_taken(&arrived, self.wiring.clock.now().since(begun).as_secs_f64());
                    return Ok(Beginning::Taken);
                }
                self.begin_anew(arrived.donor)?;
            }
            if self.donors_alive().is_empty() {
                self.tell_initial();
                return Ok(Beginning::Initial);
            }
            if self.step().await? == Step::Leave {
                return Ok(Beginning::None);
            }
        }
    }

    async fn step(&mut self) -> Result<Step, Error> {
        self.incidents.tell(Instant::now(), self.wiring.reporter);
        let deadline = self.machine.poll_timeout().map(|(at, _)| at);
        tokio::select! {
            Some(event) = self.wiring.arrivals.recv() => self.hear(event)?,
            Ok(()) = self.wiring.table.changed() => self.adopt()?,
            () = self.wiring.clock.sleep_until(deadline) => self.handle(Event::Timeout)?,
            directive = self.wiring.heart.directive() => match directive? {
                Directive::Continue | Directive::Serve(_) => {}
                Directive::Finished | Directive::Leave(_) => return Ok(Step::Leave),
            },
        }
        Ok(Step::GoOn)
    }

    fn hear(&mut self, event: NetEvent) -> Result<(), Error> {
        self.incidents.heard(Instant::now(), &event, &self.table);
        match event {
            NetEvent::Message { from: peer, incarnation, message: Message::Transfer(message) } => {
                let from = Participant { peer, incarnation };
                self.handle(match message {
                    TransferMessage::Chunk { state, chunk, payload } => {
                        arrived_chunk(from, state, chunk, payload)
                    }
                    message => Event::Received { from, message },
                })
            }
            // Who does not serve has nothing to do with microbatches and averages.
            NetEvent::Message { .. } => Ok(()),
            other => match lost_peer(&other, &self.table) {
                Some((peer, incarnation)) => self.handle(Event::PeerLost(Participant { peer, incarnation })),
                None => Ok(()),
            },
        }
    }

    fn adopt(&mut self) -> Result<(), Error> {
        let table = self.wiring.table.borrow_and_update().clone();
        self.wiring.trust.set_keys(table.members.iter().map(|member| member.peer));
        self.table.update(table);
        self.handle(Event::Donors(self.donors()))
    }

    fn donors_alive(&self) -> Vec<Participant> {
        members(&self.table, self.stage)
    }

    /// Another first one for each newcomer, so that many do not ask the same donor.
    fn donors(&self) -> Vec<Participant> {
        let mut donors = self.donors_alive();
        donors.retain(|donor| !self.useless.contains(donor));
        let first = usize::from(self.me.0[0]) % donors.len().max(1);
        donors.rotate_left(first);
        donors
    }

    fn handle(&mut self, event: Event<Bytes>) -> Result<(), Error> {
        let mut events = Vec::from([event]);
        while let Some(event) = events.pop() {
            self.machine.handle(self.wiring.clock.now(), event);
            while let Some(action) = self.machine.poll_action() {
                match action {
                    Action::Send { to, message } => events.extend(self.send(to, message)),
                    Action::Begin { bytes } => self.inbox.begin(bytes)?,
                    Action::Store { offset, payload } => self.inbox.store(offset, &payload),
                    Action::Complete { donor, version } => {
                        let state = std::mem::take(&mut self.inbox).into_bytes();
                        self.arrived = Some(Arrived { donor, version, state });
                    }
                    Action::Counted(note) => self.tell(&note),
                }
            }
        }
        Ok(())
    }

    fn send(&self, to: PeerId, message: TransferMessage<Bytes>) -> Option<Event<Bytes>> {
        let address = self.table.address(to)?;
        let error = self.wiring.plane.send(to, address, Message::Transfer(message)).err()?;
        tracing::warn!(%error, "not sent");
        let (peer, incarnation) = member(&self.table, to)?;
        Some(Event::PeerLost(Participant { peer, incarnation }))
    }

    /// Gives the state to the executor; `false` if it is none of this stage.
    async fn import(&mut self, arrived: &Arrived) -> Result<bool, Error> {
        match self.wiring.executor.import_state(arrived.state.clone()).await {
            Ok(()) => Ok(true),
            Err(Error::State(error)) => {
                let message = format!(
                    "the state of peer {:?} cannot be used ({error}); another one is asked",
                    arrived.donor.peer
                );
                self.wiring.reporter.tell(&report::Event::Incident { message });
                Ok(false)
            }
            Err(other) => Err(other),
        }
    }

    fn begin_anew(&mut self, without: Participant) -> Result<(), Error> {
        self.useless.insert(without);
        self.machine = Download::new(download_limits(self.run, self.stage));
        self.handle(Event::Donors(self.donors()))
    }

    fn tell_taken(&self, arrived: &Arrived, seconds: f64) {
        self.wiring.reporter.tell(&report::Event::StateTaken {
            stage: self.stage.0,
            peer: format!("{:?}", arrived.donor.peer),
            bytes: arrived.state.len() as u64,
            seconds,
            version: arrived.version.0,
        });
    }

    /// The first replicas of a run begin like this too; with a feeder at work and every other stage served, it may be
    /// the end of what the stage had learned.
    fn tell_initial(&self) {
        let stages = self.run.last_stage().0 + 1;
        let mut others = (0..stages).map(StageIndex).filter(|&stage| stage != self.stage);
        let served = others.all(|stage| self.table.serving(stage).next().is_some());
        if served && self.table.feeders().next().is_some() {
            let message = format!(
                "nobody serves stage {0}, so it begins with the run's initial weights; if it was trained before, what \
                 it had learned is lost",
                self.stage.0
            );
            self.wiring.reporter.tell(&report::Event::Incident { message });
        }
    }

    fn tell(&mut self, note: &Note) {
        let (donor, what) = match note {
            Note::Wrong(donor) => (donor, "sent a chunk that is not what it announced".to_owned()),
            Note::Unusable(donor, error) => (donor, format!("announced no state of this run ({error})")),
            Note::Silent(donor) => (donor, "is silent".to_owned()),
            Note::Lost(donor) => (donor, "is gone or cannot be reached".to_owned()),
            Note::Declined(donor) => (donor, "serves others first".to_owned()),
            Note::NoDonor => return tracing::info!("no donor is left to ask; asking again"),
        };
        if self.complaints.happened().is_some() {
            let message = format!(
                "peer {:?}, asked for the state of stage {}, {what}; another one is asked, or the same again",
                donor.peer, self.stage.0
            );
            self.wiring.reporter.tell(&report::Event::Incident { message });
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    GoOn,
    Leave,
}
