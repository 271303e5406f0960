//! The passes of readers at one replica. The executor has one at a time, between its other jobs, so readers slow training
//! down by a bounded share.

use std::collections::VecDeque;

use super::{Decline, Pass, PredictionJob, PredictionMessage};
use crate::{Instance, PeerTable, StageIndex};

/// Passes that wait at a replica, at most.
pub const PREDICTIONS_MAX: usize = 16;
/// Passes of one reader that wait at a replica, at most. A reader waits for each pass before the next.
pub const PREDICTIONS_OF_READER_MAX: usize = 2;

/// A decision about passes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ServingAction<P> {
    /// Compute this. Exactly one [`Predictions::on_computed`] follows.
    Execute(PredictionJob<P>),
    /// Send this to a reader.
    Send {
        /// The reader.
        to: Instance,
        /// The message.
        message: PredictionMessage,
        /// Its payload.
        payload: P,
    },
}

/// The passes that a replica was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Predictions<P> {
    waiting: VecDeque<(Instance, PredictionJob<P>)>,
    running: Option<(Instance, Pass)>,
    actions: VecDeque<ServingAction<P>>,
}

impl<P: Default> Predictions<P> {
    /// No pass.
    pub(crate) fn new() -> Self {
        Self { waiting: VecDeque::new(), running: None, actions: VecDeque::new() }
    }

    /// A message has arrived at the replica of `stage`.
    pub(crate) fn on_message(
        &mut self,
        stage: StageIndex,
        table: &PeerTable,
        from: Instance,
        (message, ids, activation): (PredictionMessage, P, P),
    ) {
        let PredictionMessage::Request(pass) = message else { return };
        if pass.stage != stage || !table.reads(from) {
            return self.decline(from, pass, Decline::NotAReader);
        }
        let own = self.waiting.iter().filter(|(reader, _)| *reader == from).count();
        if self.waiting.len() >= PREDICTIONS_MAX || own >= PREDICTIONS_OF_READER_MAX {
            return self.decline(from, pass, Decline::Busy);
        }
        self.waiting.push_back((from, PredictionJob { pass, ids, activation }));
        self.begin_next();
    }

    /// The executor has computed the pass, or cannot.
    pub(crate) fn on_computed(&mut self, computed: Result<P, String>) {
        if let Some((reader, pass)) = self.running.take() {
            match computed {
                Ok(payload) => self.send(reader, PredictionMessage::Reply(pass), payload),
                Err(fault) => self.decline(reader, pass, Decline::Failed(fault)),
            }
        }
        self.begin_next();
    }

    /// The passes of readers that are no members any more are dropped.
    pub(crate) fn retain_members(&mut self, table: &PeerTable) {
        self.waiting.retain(|(reader, _)| table.reads(*reader));
    }

    /// Takes the oldest action that is not yet done.
    pub(crate) fn poll_action(&mut self) -> Option<ServingAction<P>> {
        self.actions.pop_front()
    }

    fn begin_next(&mut self) {
        if self.running.is_none()
            && let Some((reader, job)) = self.waiting.pop_front()
        {
            self.running = Some((reader, job.pass));
            self.actions.push_back(ServingAction::Execute(job));
        }
    }

    fn decline(&mut self, to: Instance, pass: Pass, reason: Decline) {
        self.send(to, PredictionMessage::Declined { pass, reason }, P::default());
    }

    fn send(&mut self, to: Instance, message: PredictionMessage, payload: P) {
        self.actions.push_back(ServingAction::Send { to, message, payload });
    }
}
