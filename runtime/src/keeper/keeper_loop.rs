//! The loop around a keeper: it waits for an event, passes it to the machine, and performs the machine's actions. All
//! rules are in the machine.

use std::pin::Pin;
use std::time::Instant;

use bytes::Bytes;
use swarmline_scheduler::feeder::Divergence;
use swarmline_scheduler::keeper::{Action, End, Event};
use swarmline_scheduler::transfer::TransferMessage;
use swarmline_scheduler::{Directive, Envelope, Keeper, Message, PeerId};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::given::{GivenStates, Ours};
use super::notes::Notes;
use super::target::{Done, Target, kept};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::error::Error;
use crate::net::control::{ControlError, HEARTBEAT_INTERVAL, HeartbeatReply, MemberStats};
use crate::net::held_out::HeldOut;
use crate::net::quic::NetEvent;
use crate::net::table_log::TableReader;
use crate::outcome::Outcome;
use crate::process::{Clock, Contact, Heartbeats, Network, Notices, lost_instance};
use crate::report::{self, Incident, Reporter};
use crate::stage::StateInbox;

/// Handles of the loop: network, coordinator, files.
#[derive(Debug)]
pub(super) struct Handles {
    pub(super) network: Network,
    pub(super) arrivals: mpsc::Receiver<NetEvent>,
    pub(super) table: TableReader,
    pub(super) heartbeats: Heartbeats,
    pub(super) contact: Contact,
    pub(super) target: Target,
    /// The newest checkpoint of this launch, or the one that it goes on from.
    pub(super) newest: Option<Checkpoint>,
    pub(super) ours: Ours,
    /// The launch that this keeper has joined.
    pub(super) launch: u64,
}

/// The state of the loop.
#[derive(Debug)]
pub(super) struct KeeperLoop {
    machine: Keeper<Bytes>,
    handles: Handles,
    clock: Clock,
    inbox: StateInbox,
    /// The state that is being written, whole. It stays until the target has it.
    whole: Bytes,
    /// The newest loss on held-out text.
    heldout: Option<HeldOut>,
    notes: Notes,
    notices: Notices,
    given: GivenStates,
    /// The latest fault of the target.
    fault: Option<CheckpointError>,
    end: Option<End>,
    failure: Option<Error>,
}

impl KeeperLoop {
    pub(super) fn new(machine: Keeper<Bytes>, handles: Handles) -> Self {
        Self {
            machine,
            given: GivenStates::new(handles.ours.clone()),
            handles,
            clock: Clock::start(),
            inbox: StateInbox::default(),
            whole: Bytes::new(),
            heldout: None,
            notes: Notes::new(),
            notices: Notices::default(),
            fault: None,
            end: None,
            failure: None,
        }
    }

    /// Keeps checkpoints until the machine ends.
    pub(super) async fn run(
        mut self,
        reporter: &Reporter,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Outcome, Error> {
        let mut tick = tokio::time::interval(HEARTBEAT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.follow_table(reporter);
        let mut stopping = false;
        let ended = loop {
            if let Some(error) = self.failure.take() {
                break Err(error);
            }
            if let Some(end) = self.end.take() {
                break self.outcome(end);
            }
            let deadline = self.machine.poll_timeout();
            tokio::select! {
                done = self.handles.target.next() => self.on_written(done, reporter),
                (event, fault) = self.given.next() => self.on_given(event, fault, reporter),
                Some(event) = self.handles.arrivals.recv() => self.on_network(event, reporter),
                Ok(()) = self.handles.table.changed() => self.follow_table(reporter),
                () = self.clock.sleep_until(deadline) => self.handle(Event::Timeout, reporter),
                _ = tick.tick() => self.notices.tell(Instant::now(), reporter),
                reply = self.handles.heartbeats.reply() => self.on_reply(reply, reporter),
                () = self.handles.contact.patience_ends(reporter) => {
                    break Err(self.handles.contact.given_up("the checkpoints that it has kept stay"));
                }
                () = stop.as_mut(), if !stopping => {
                    stopping = true;
                    self.handle(Event::Stop, reporter);
                }
            }
        };
        self.handles.network.close().await;
        ended
    }

    fn outcome(&mut self, end: End) -> Result<Outcome, Error> {
        match end {
            End::Finished => Ok(Outcome::Finished),
            End::Stopped => Ok(Outcome::Stopped),
            End::Untaken(stage) => {
                let newest = self.handles.newest.as_ref().map(Checkpoint::location);
                Err(Error::FinalStates { stage: stage.0, newest })
            }
            End::Unwritten => Err(self.fault.take().map_or(Error::ExecutorGone, Error::Checkpoint)),
        }
    }

    // --- Events ---------------------------------------------------------------------------------------------

    fn on_network(&mut self, event: NetEvent, reporter: &Reporter) {
        self.notices.on_event(Instant::now(), &event, self.machine.table());
        match event {
            NetEvent::Received { from, envelope } => {
                self.handle(Event::Received { from, envelope }, reporter);
            }
            other => {
                if let Some(lost) = lost_instance(&other, self.machine.table()) {
                    self.handle(Event::PeerLost(lost), reporter);
                }
            }
        }
    }

    fn follow_table(&mut self, reporter: &Reporter) {
        for update in self.handles.table.read() {
            self.handles.network.trust_members(&update);
            self.handle(Event::Membership(update), reporter);
        }
        // Its checkpoints would belong to no launch.
        if self.machine.table().launch() != self.handles.launch {
            self.failure = Some(Error::OtherLaunch);
        }
    }

    fn on_reply(&mut self, reply: Result<HeartbeatReply, ControlError>, reporter: &Reporter) {
        match reply {
            Ok(HeartbeatReply { directive: Directive::Diverged { at }, .. }) => {
                if let Some(newest) = &self.handles.newest {
                    tell(reporter, Incident::DivergedAfter { path: newest.location() });
                }
                self.failure = Some(Error::Diverged { at, sign: Divergence::Reported });
            }
            Ok(HeartbeatReply { directive: Directive::Leave(_), .. }) => self.handle(Event::Stop, reporter),
            Ok(HeartbeatReply { directive, blocks, heldout }) => {
                let finished = directive == Directive::Finished;
                if finished {
                    self.notices.run_finished();
                }
                self.heldout = heldout.or(self.heldout);
                self.handle(Event::Progress { blocks, finished }, reporter);
            }
            Err(error) => self.failure = Some(error.into()),
        }
    }

    fn on_written(&mut self, done: Done, reporter: &Reporter) {
        let written = done.written();
        match done {
            Done::Stage => self.whole = Bytes::new(),
            Done::Unfit(error) => tracing::warn!(%error, "the state of a donor does not fit"),
            Done::Complete(checkpoint, pruned) => {
                reporter.tell(&report::Event::Kept(kept(&checkpoint)));
                self.handles.newest = Some(*checkpoint);
                if let Some(fault) = pruned {
                    tell(reporter, Incident::NotPruned { fault: fault.to_string() });
                }
            }
            Done::Failed(fault) => {
                tell(reporter, Incident::NotKept { fault: fault.to_string() });
                self.fault = Some(fault);
            }
        }
        self.handle(Event::Written(written), reporter);
    }

    fn on_given(&mut self, event: Event<Bytes>, fault: Option<CheckpointError>, reporter: &Reporter) {
        if let Some(fault) = fault {
            tell(reporter, Incident::CheckpointUnusable { fault: fault.to_string() });
        }
        self.handle(event, reporter);
    }

    /// Passes an event to the machine and performs its actions. The next heartbeat says what the keeper gives.
    fn handle(&mut self, event: Event<Bytes>, reporter: &Reporter) {
        self.machine.handle(self.clock.now(), event);
        while let Some(action) = self.machine.poll_action() {
            self.act(action, reporter);
        }
        let kept = Some(self.machine.kept());
        if self.handles.heartbeats.stats().kept != kept {
            self.handles.heartbeats.set_stats(MemberStats { kept, ..MemberStats::default() });
        }
    }

    // --- Actions --------------------------------------------------------------------------------------------

    fn act(&mut self, action: Action<Bytes>, reporter: &Reporter) {
        match action {
            Action::Open(watermark) => self.handles.target.open(watermark),
            Action::Send { to, envelope } => self.send(to, envelope),
            Action::Begin { bytes } => {
                if let Err(error) = self.inbox.begin(bytes) {
                    self.failure = Some(error.into());
                }
            }
            Action::Store { offset, payload } => self.inbox.store(offset, &payload),
            Action::Write { stage, version } => {
                let taken = std::mem::take(&mut self.inbox).into_bytes();
                if !taken.is_empty() {
                    self.whole = taken;
                }
                self.handles.target.write(stage, version, self.whole.clone());
            }
            Action::Complete => self.handles.target.complete(self.heldout),
            Action::GiveUp => self.handles.target.drop_open(),
            Action::Export(given) => self.given.read(given, self.handles.newest.as_ref()),
            Action::SendChunk { to, given, chunk, offset, bytes } => {
                if let Some(payload) = self.given.chunk(given, offset, bytes) {
                    let message = TransferMessage::Chunk { state: given.state, chunk };
                    self.send(to, Envelope::with_payload(Message::Transfer(message), payload));
                }
            }
            Action::Sketch { to, given, seed } => self.given.sketch(to, given, seed),
            Action::Release(given) => self.given.release(given),
            Action::Counted(note) => self.notes.take(note, reporter),
            Action::End(end) => self.end = Some(end),
        }
    }

    /// The download repeats what gets no answer, so a message that a full queue does not take is as if lost on its way.
    fn send(&self, to: PeerId, envelope: Envelope<Bytes>) {
        if let Some(message) = self.handles.network.send(self.machine.table(), to, envelope) {
            tracing::debug!(?to, ?message, "a full queue does not take a message");
        }
    }
}

fn tell(reporter: &Reporter, incident: Incident) {
    reporter.tell(&report::Event::Incident(incident));
}
