//! A replica's averaging rounds at work: what the scheduler asks for goes to the executor, to other threads and to the
//! network.

mod reductions;

use bytes::Bytes;
use swarmline_scheduler::averaging::{
    Action, Attendance, Config, Counts, Event, Note, Participant, Round, SetIndex, Word,
};
use swarmline_scheduler::{Averaging, Message, PeerId, PeerTable, StageIndex, Time};

use super::executor::Executor;
use crate::averaging::Job;
use crate::error::Error;
use crate::report::{self, Repeated, Reporter};
use reductions::{Reduction, Reductions};

/// A message, and to whom.
pub(super) type Post = (PeerId, Message<Bytes>);

/// The rounds of one replica.
#[derive(Debug)]
pub(super) struct Rounds {
    machine: Averaging<Bytes>,
    reductions: Reductions,
    attendance: Attendance,
    /// Sets that have been round since they were last asked for.
    went_round: Vec<(Round, SetIndex)>,
    refusals: Repeated,
}

impl Rounds {
    pub(super) fn new(config: Config) -> Self {
        Self {
            machine: Averaging::new(config),
            reductions: Reductions::default(),
            attendance: Attendance::default(),
            went_round: Vec::new(),
            refusals: Repeated::default(),
        }
    }

    /// A feeder called a round. If that one is over here, or left to the others, both the machine and the feeder hear
    /// so.
    pub(super) fn hear_call(
        &mut self,
        now: Time,
        feeder: PeerId,
        round: Round,
        over: bool,
    ) -> Option<(Event<Bytes>, Post)> {
        let word = self.attendance.hear_call(now, feeder, round, over)?;
        Some((Event::Past(word.ended), post(word)))
    }

    /// Begins the round called, if it is time.
    pub(super) fn due(&mut self, held: usize) -> Option<Event<Bytes>> {
        self.attendance.take_due(held).map(Event::Round)
    }

    /// Takes one event and does what follows; gives what is to be sent.
    pub(super) fn handle(
        &mut self,
        now: Time,
        event: Event<Bytes>,
        executor: &Executor,
        reporter: &Reporter,
    ) -> Result<Vec<Post>, Error> {
        let called = if let Event::Round(round) = event { Some(round) } else { None };
        self.machine.handle(now, event);
        let mut posts = Vec::new();
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Snapshot { round, set, parts } => {
                    executor.average(Job::Snapshot { round, set, parts })?;
                }
                Action::Apply { round, part, mean } => executor.average(Job::Apply { round, part, mean })?,
                Action::Reduce { round, part, attempt, own, inputs } => {
                    self.reductions.add(Reduction { round, part, attempt, own, inputs });
                }
                Action::Send { to, message } => posts.push((to, Message::Averaging(message))),
                Action::Finished { round, set, complete } => {
                    executor.average(Job::Finish { round, complete })?;
                    self.went_round.extend(complete.then_some((round, set)));
                    posts.extend(self.attendance.end(now, round).map(post));
                }
                Action::Counted(note) => self.tell(&note, reporter),
            }
        }
        // A round that does not begin has nobody to average with.
        if let Some(round) = called.filter(|_| self.machine.round().is_none()) {
            posts.extend(self.attendance.end(now, round).map(post));
        }
        Ok(posts)
    }

    /// The next answer to give to [`Rounds::handle`].
    pub(super) async fn reduced(&mut self) -> Event<Bytes> {
        self.reductions.next().await
    }

    /// When to call [`Rounds::handle`] with [`Event::Timeout`].
    pub(super) fn deadline(&self) -> Option<Time> {
        self.machine.poll_timeout().map(|(at, _)| at)
    }

    /// Totals so far.
    pub(super) fn counts(&self) -> Counts {
        *self.machine.counts()
    }

    /// Sets that have been round since the last call.
    pub(super) fn take_went_round(&mut self) -> Vec<(Round, SetIndex)> {
        std::mem::take(&mut self.went_round)
    }

    /// The round at hand here.
    pub(super) fn under_way(&self) -> Option<Round> {
        self.machine.round()
    }

    /// A person hears of members whose numbers cannot be used.
    fn tell(&mut self, note: &Note, reporter: &Reporter) {
        match note {
            Note::Refused(member, fault) => {
                if let Some(times) = self.refusals.happened() {
                    let message = format!(
                        "what peer {:?} gave to an average cannot be used ({fault:?}) and is left out; {times} since \
                         the last such line",
                        member.peer
                    );
                    reporter.tell(&report::Event::Incident { message });
                }
            }
            other => tracing::debug!(?other, "averaging"),
        }
    }
}

fn post(word: Word) -> Post {
    (word.feeder, Message::Averaged { round: word.ended })
}

/// How many replicas of `stage` there are to average with; none where no feeder calls rounds.
pub(super) fn others(table: &PeerTable, stage: StageIndex) -> usize {
    let called = table.feeders().next().is_some();
    if called { members(table, stage).len().saturating_sub(1) } else { 0 }
}

/// The replicas that average with each other: those that serve `stage`.
pub(super) fn members(table: &PeerTable, stage: StageIndex) -> Vec<Participant> {
    let participant =
        |hop: swarmline_scheduler::Hop| Participant { peer: hop.peer, incarnation: hop.incarnation };
    table.hops(stage).into_iter().map(participant).collect()
}
