//! The machine of a reader: it takes one pass at a time through the stages.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;

use super::{Decline, Pass, PredictionMessage};
use crate::{Duration, Envelope, Instance, Message, PeerId, PeerTable, Rng, StageIndex, TableUpdate, Time};

/// A stage is given up that has not replied for so long, whichever of its replicas were asked.
pub const STAGE_WITHIN: Duration = Duration::from_secs(60);
/// A replica is waited for at least so long before another one is asked.
const REPLY_WITHIN_MIN: Duration = Duration::from_secs(4);
/// A replica is waited for so many times as long as the longest reply took so far.
const REPLY_WITHIN_TIMES: u32 = 4;
/// Pause before a replica is asked again that is busy, or where there is none.
const PAUSE: Duration = Duration::from_millis(200);
/// A stage without a replica is waited for so long: its replica may have died, and another takes its place.
const UNSERVED_WITHIN: Duration = Duration::from_secs(10);

/// Settings of a reader.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Number of stages of the run.
    pub stages: u16,
    /// Seed of the choice among the replicas of a stage.
    pub seed: u64,
}

/// An event of a reader.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// There is a newer membership table.
    Membership(TableUpdate),
    /// A message has arrived.
    Received {
        /// The sender.
        from: Instance,
        /// The message.
        envelope: Envelope<P>,
    },
    /// The connection to a member is lost, or cannot be opened.
    PeerLost(Instance),
    /// Predict the token behind the one at `position`. A pass that is under way is dropped.
    Predict {
        /// The token ids, packed.
        ids: P,
        /// The place of the token, from 0, in the first sequence.
        position: u32,
    },
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// A decision of a reader.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Send this to a member.
    Send {
        /// The receiver.
        to: PeerId,
        /// The message, with its payloads.
        envelope: Envelope<P>,
    },
    /// The logits behind the token that was asked for.
    Predicted(P),
    /// The pass was given up.
    Failed(Failure),
    /// Say that another replica is asked in place of this one.
    Replaced {
        /// The replica.
        replica: PeerId,
        /// Its stage.
        stage: StageIndex,
    },
}

/// The reason why a pass was given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A stage has no replica.
    #[error("no replica serves stage {}, and none came within {} s; try again when one has joined", .stage.0, UNSERVED_WITHIN.as_secs())]
    Unserved {
        /// The stage.
        stage: StageIndex,
    },
    /// No replica of a stage replies.
    #[error(
        "no replica of stage {} has replied within {} s; are they reachable from here (--listen)?", .stage.0, STAGE_WITHIN.as_secs()
    )]
    Unanswered {
        /// The stage.
        stage: StageIndex,
    },
    /// Every replica of a stage that was asked cannot compute the pass.
    #[error("stage {} cannot compute it: {fault}", .stage.0)]
    Refused {
        /// The stage.
        stage: StageIndex,
        /// What the last replica has said.
        fault: String,
    },
}

/// The machine of a reader.
#[derive(Debug)]
pub struct Reader<P> {
    config: Config,
    table: PeerTable,
    rng: Rng,
    passes: u64,
    current: Option<Current<P>>,
    /// The longest time that a reply took.
    slowest: Duration,
    actions: VecDeque<Action<P>>,
}

/// The pass under way, at one stage.
#[derive(Debug)]
struct Current<P> {
    pass: Pass,
    ids: P,
    activation: P,
    began: Time,
    /// The replicas that were lost, silent or unable.
    failed: BTreeSet<Instance>,
    wait: Wait,
    fault: Option<String>,
    /// Since then no replica serves the stage.
    unserved_since: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// A replica was asked at the first time, and is given up at the second.
    Reply(Instance, Time, Time),
    /// Replicas are looked for again at this time.
    Pause(Time),
}

impl<P: Clone + Default + Debug> Reader<P> {
    /// A reader that knows no member yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            rng: Rng::new(config.seed),
            config,
            table: PeerTable::default(),
            passes: 0,
            current: None,
            slowest: Duration::ZERO,
            actions: VecDeque::new(),
        }
    }

    /// Takes one event; drain [`Reader::poll_action`] before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        match event {
            Event::Membership(update) => self.on_membership(now, update),
            Event::Received { from, envelope } => self.on_message(now, from, envelope),
            Event::PeerLost(instance) => self.on_lost(now, instance),
            Event::Predict { ids, position } => self.predict(now, ids, position),
            Event::Timeout => self.on_timeout(now),
        }
    }

    /// Takes the oldest action that is not yet done.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// The latest time for the next call of `handle`, with [`Event::Timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.current.as_ref().map(|current| match current.wait {
            Wait::Reply(_, _, until) => until.min(current.began + STAGE_WITHIN),
            Wait::Pause(until) => until,
        })
    }

    /// The members in the newest table.
    #[must_use]
    pub fn table(&self) -> &PeerTable {
        &self.table
    }

    fn predict(&mut self, now: Time, ids: P, position: u32) {
        let pass = Pass { number: self.passes, stage: StageIndex(0), position };
        self.passes += 1;
        self.enter(now, pass, ids, P::default());
    }

    /// The pass is at a stage from now on.
    fn enter(&mut self, now: Time, pass: Pass, ids: P, activation: P) {
        self.current = Some(Current {
            pass,
            ids,
            activation,
            began: now,
            failed: BTreeSet::new(),
            wait: Wait::Pause(now),
            fault: None,
            unserved_since: None,
        });
        self.ask(now);
    }

    /// Asks a replica of the stage that has not failed, or ends the pass where there is none.
    fn ask(&mut self, now: Time) {
        let Some(current) = &mut self.current else { return };
        let stage = current.pass.stage;
        let serving: Vec<_> = self.table.serving(stage).map(|member| member.instance).collect();
        let left: Vec<_> =
            serving.iter().copied().filter(|instance| !current.failed.contains(instance)).collect();
        let waited = now.since(current.began);
        current.unserved_since = current.unserved_since.or(Some(now)).filter(|_| serving.is_empty());
        let unserved = current.unserved_since.is_some_and(|since| since + UNSERVED_WITHIN <= now);
        let end = match current.fault.take() {
            Some(fault) if left.is_empty() => Some(Failure::Refused { stage, fault }),
            _ if waited >= STAGE_WITHIN => Some(Failure::Unanswered { stage }),
            _ if unserved => Some(Failure::Unserved { stage }),
            fault => {
                current.fault = fault;
                None
            }
        };
        if let Some(end) = end {
            self.current = None;
            return self.actions.push_back(Action::Failed(end));
        }
        if left.is_empty() {
            // One that was lost or silent may be heard again.
            current.failed.clear();
            current.wait = Wait::Pause(now + PAUSE);
            return;
        }
        let to = left[self.rng.below(left.len() as u64) as usize];
        let within = REPLY_WITHIN_MIN.max(self.slowest * REPLY_WITHIN_TIMES);
        current.wait = Wait::Reply(to, now, now + within);
        let message = Message::Prediction(PredictionMessage::Request(current.pass));
        let envelope = Envelope { message, ids: current.ids.clone(), payload: current.activation.clone() };
        self.actions.push_back(Action::Send { to: to.peer, envelope });
    }

    fn on_message(&mut self, now: Time, from: Instance, envelope: Envelope<P>) {
        let Message::Prediction(message) = envelope.message else { return };
        match message {
            PredictionMessage::Reply(pass) => self.on_reply(now, from, pass, envelope.payload),
            PredictionMessage::Declined { pass, reason } if self.asked(from, pass) => {
                self.on_declined(now, from, reason);
            }
            PredictionMessage::Declined { .. } | PredictionMessage::Request(_) => {}
        }
    }

    /// Whether this replica is asked for this pass now.
    fn asked(&self, from: Instance, pass: Pass) -> bool {
        self.current.as_ref().is_some_and(|current| current.pass == pass && current.waits_for(from))
    }

    /// A reply that comes late is as good.
    fn on_reply(&mut self, now: Time, from: Instance, pass: Pass, payload: P) {
        let was_asked = |current: &mut Current<P>| {
            current.pass == pass && (current.waits_for(from) || current.failed.contains(&from))
        };
        let Some(current) = self.current.take_if(was_asked) else { return };
        let asked = match current.wait {
            Wait::Reply(to, at, _) if to == from => at,
            _ => current.began,
        };
        self.slowest = self.slowest.max(now.since(asked));
        let next = StageIndex(pass.stage.0.saturating_add(1));
        if next.0 >= self.config.stages {
            return self.actions.push_back(Action::Predicted(payload));
        }
        self.enter(now, Pass { stage: next, ..pass }, current.ids, payload);
    }

    fn on_declined(&mut self, now: Time, from: Instance, reason: Decline) {
        let Some(current) = &mut self.current else { return };
        match reason {
            // The table of the replica may be older.
            Decline::Busy | Decline::NotAReader => current.wait = Wait::Pause(now + PAUSE),
            Decline::Failed(fault) => {
                current.fault = Some(fault);
                self.fail(now, from);
            }
        }
    }

    /// Another replica is asked in place of one that was asked.
    fn fail(&mut self, now: Time, replica: Instance) {
        let Some(current) = &mut self.current else { return };
        current.failed.insert(replica);
        let stage = current.pass.stage;
        self.actions.push_back(Action::Replaced { replica: replica.peer, stage });
        self.ask(now);
    }

    fn on_lost(&mut self, now: Time, instance: Instance) {
        if self.current.as_ref().is_some_and(|current| current.waits_for(instance)) {
            self.fail(now, instance);
        }
    }

    fn on_membership(&mut self, now: Time, update: TableUpdate) {
        if !self.table.update(update) {
            return;
        }
        let asked = self.current.as_ref().and_then(|current| match current.wait {
            Wait::Reply(to, ..) => Some((to, current.pass.stage)),
            Wait::Pause(_) => None,
        });
        match asked {
            Some((to, stage)) if !self.table.serving(stage).any(|member| member.instance == to) => {
                self.fail(now, to);
            }
            Some(_) => {}
            // A replica may have come that the pass waits for.
            None => self.ask(now),
        }
    }

    fn on_timeout(&mut self, now: Time) {
        match self.current.as_ref().map(|current| current.wait) {
            Some(Wait::Reply(to, _, until)) if until <= now => self.fail(now, to),
            Some(Wait::Pause(until)) if until <= now => self.ask(now),
            Some(Wait::Reply(..)) if self.poll_timeout().is_some_and(|at| at <= now) => {
                if let Some(current) = self.current.take() {
                    let stage = current.pass.stage;
                    self.actions.push_back(Action::Failed(Failure::Unanswered { stage }));
                }
            }
            Some(_) | None => {}
        }
    }
}

impl<P> Current<P> {
    fn waits_for(&self, replica: Instance) -> bool {
        matches!(self.wait, Wait::Reply(to, ..) if to == replica)
    }
}
