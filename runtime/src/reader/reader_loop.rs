//! The loop around a reader: it waits for an event, passes it to the machine, and performs the machine's actions. All
//! rules are in the machine.

use bytes::Bytes;
use swarmline_scheduler::feeder::Divergence;
use swarmline_scheduler::prediction::{Action, Event};
use swarmline_scheduler::{Directive, PeerId, Reader};
use tokio::sync::mpsc;

use crate::error::Error;
use crate::net::control::ControlError;
use crate::net::quic::NetEvent;
use crate::net::table_log::TableReader;
use crate::process::{Clock, Contact, Heartbeats, Network, lost_instance};
use crate::report::{self, Incident, Reporter};

/// Handles of the loop: network and coordinator.
#[derive(Debug)]
pub(super) struct Handles {
    pub(super) network: Network,
    pub(super) arrivals: mpsc::Receiver<NetEvent>,
    pub(super) table: TableReader,
    pub(super) heartbeats: Heartbeats,
    pub(super) contact: Contact,
}

/// The state of the loop.
#[derive(Debug)]
pub(super) struct ReaderLoop {
    machine: Reader<Bytes>,
    handles: Handles,
    clock: Clock,
}

impl ReaderLoop {
    pub(super) fn new(machine: Reader<Bytes>, handles: Handles) -> Self {
        let mut work = Self { machine, handles, clock: Clock::start() };
        work.follow_table();
        work
    }

    /// The logits behind the token at `position` of these packed ids.
    pub(super) async fn predict(
        &mut self,
        ids: Bytes,
        position: usize,
        reporter: &Reporter,
    ) -> Result<Vec<f32>, Error> {
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        self.tell(Event::Predict { ids, position });
        loop {
            if let Some(logits) = self.act(reporter)? {
                return Ok(logits);
            }
            let deadline = self.machine.poll_timeout();
            tokio::select! {
                Some(event) = self.handles.arrivals.recv() => self.on_network(event),
                Ok(()) = self.handles.table.changed() => self.follow_table(),
                () = self.clock.sleep_until(deadline) => self.tell(Event::Timeout),
                directive = self.handles.heartbeats.directive() => heed(directive)?,
                () = self.handles.contact.patience_ends(reporter) => {
                    return Err(self.handles.contact.given_up("the text is not complete"));
                }
            }
        }
    }

    pub(super) async fn close(&self) {
        self.handles.network.close().await;
    }

    fn tell(&mut self, event: Event<Bytes>) {
        self.machine.handle(self.clock.now(), event);
    }

    fn follow_table(&mut self) {
        for update in self.handles.table.read() {
            self.handles.network.trust_members(&update);
            self.tell(Event::Membership(update));
        }
    }

    fn on_network(&mut self, event: NetEvent) {
        match event {
            NetEvent::Received { from, envelope } => self.tell(Event::Received { from, envelope }),
            other => {
                if let Some(lost) = lost_instance(&other, self.machine.table()) {
                    self.tell(Event::PeerLost(lost));
                }
            }
        }
    }

    /// Performs the machine's actions; the logits if the pass is through.
    fn act(&mut self, reporter: &Reporter) -> Result<Option<Vec<f32>>, Error> {
        while let Some(action) = self.machine.poll_action() {
            match action {
                // The machine repeats what gets no reply.
                Action::Send { to, envelope } => {
                    let _ = self.handles.network.send(self.machine.table(), to, envelope);
                }
                Action::Predicted(logits) => return Ok(Some(numbers(&logits))),
                Action::Failed(failure) => return Err(failure.into()),
                Action::Replaced { replica, stage } => tell_replaced(replica, stage.0, reporter),
            }
        }
        Ok(None)
    }
}

fn tell_replaced(replica: PeerId, stage: u16, reporter: &Reporter) {
    let incident = Incident::ReplicaReplaced { peer: format!("{replica:?}"), stage };
    reporter.tell(&report::Event::Incident(incident));
}

/// A run that is over predicts nothing: its replicas leave.
fn heed(directive: Result<Directive, ControlError>) -> Result<(), Error> {
    match directive? {
        Directive::Finished => Err(Error::RunFinished),
        Directive::Diverged { at } => Err(Error::Diverged { at, sign: Divergence::Reported }),
        Directive::Leave(reason) => Err(Error::Dismissed(reason)),
        Directive::Continue | Directive::Serve(_) => Ok(()),
    }
}

/// Logits as they cross the network.
fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect()
}
