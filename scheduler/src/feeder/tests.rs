//! Stories of a feeder, told by what goes in and what comes out. The way through replicas is in `sim`.

use super::*;
use crate::fixtures::{a, b, member, restarted};
use crate::router::{RouterFactory, UniformConfig};
use crate::{Attempt, Beat, Duration, Holding, Span, WeightVersion};

const START: Incarnation = Incarnation(1);
const LOSS: Loss = Loss { sum: 3.0, tokens: 2 };
const SECOND: Duration = Duration::from_secs(1);

struct Story {
    feeder: Feeder<u8>,
    now: Time,
    version: u64,
    said: Vec<Action<u8>>,
}

impl Story {
    /// Two stages, `total` microbatches, two in flight.
    fn new(total: u64) -> Self {
        Self::of(Feeder::new(config(total, START), UniformConfig.build(1)))
    }

    fn of(feeder: Feeder<u8>) -> Self {
        Self { feeder, now: Time(0), version: 0, said: Vec::new() }
    }

    /// Both stages serve, ids are leased, the first two microbatches are on their way.
    fn under_way(total: u64) -> Self {
        let mut story = Self::new(total);
        story.publish(&[a(0), a(1)]);
        story.hear(lease(0, total));
        story.draw(0);
        story.draw(1);
        story
    }

    /// What a feeder does that goes on from the journal of this one.
    fn restart(&self) -> Self {
        let config = config(self.feeder.config().total, Incarnation(2));
        let mut story = Self::of(Feeder::resume(config, UniformConfig.build(1), self.journal()));
        story.said = std::iter::from_fn(|| story.feeder.poll_action()).collect();
        story
    }

    /// The coordinator publishes a table; stage 0 is heard.
    fn publish(&mut self, members: &[Hop]) -> Vec<Action<u8>> {
        self.version += 1;
        let members = members.iter().copied().map(member).collect();
        let mut said = self.hear(Event::Membership(Membership {
            version: self.version,
            members,
            ..Membership::default()
        }));
        said.extend(self.stage_0_beats());
        said
    }

    /// Hands over an event; what follows, announcements and journal apart.
    fn hear(&mut self, event: Event<u8>) -> Vec<Action<u8>> {
        self.feeder.handle(self.now, event);
        let all: Vec<_> = std::iter::from_fn(|| self.feeder.poll_action()).collect();
        self.said.extend(all.iter().cloned());
        let aside = |action: &Action<u8>| {
            matches!(action, Action::Journal(_) | Action::Send { message: Message::Ended { .. }, .. })
        };
        all.into_iter().filter(|action| !aside(action)).collect()
    }

    fn receive(&mut self, from: Hop, message: Message<u8>) -> Vec<Action<u8>> {
        self.hear(Event::Received { from: from.peer, incarnation: from.incarnation, message })
    }

    fn draw(&mut self, id: u64) -> Vec<Action<u8>> {
        self.hear(Event::Drawn { microbatch: MicrobatchId(id), ids: 1 })
    }

    fn finish(&mut self, id: u64) -> Vec<Action<u8>> {
        self.receive(a(0), home(id, 0, &[a(1), a(0)]))
    }

    fn lose(&mut self, hop: Hop) -> Vec<Action<u8>> {
        self.hear(Event::PeerLost { peer: hop.peer, incarnation: hop.incarnation })
    }

    /// Time passes, second by second, while stage 0 beats.
    fn wait(&mut self, time: Duration) -> Vec<Action<u8>> {
        let until = self.now + time;
        let mut said = Vec::new();
        while self.now < until {
            self.now = (self.now + SECOND).min(until);
            said.extend(self.stage_0_beats());
            said.extend(self.hear(Event::Timeout));
        }
        said
    }

    fn stage_0_beats(&mut self) -> Vec<Action<u8>> {
        let beat = Message::Beat(Beat { credit: 8, ..Beat::default() });
        let replicas = self.feeder.table().hops(StageIndex(0));
        replicas.into_iter().flat_map(|hop| self.receive(hop, beat.clone())).collect()
    }

    fn journal(&self) -> Vec<Record> {
        let record = |action: &Action<u8>| match action {
            Action::Journal(record) => Some(record.clone()),
            _ => None,
        };
        self.said.iter().filter_map(record).collect()
    }

    fn counts(&self) -> Counts {
        self.feeder.counts()
    }
}

fn config(total: u64, incarnation: Incarnation) -> Config {
    let mut config = Config::new(PeerId([0; 32]), incarnation, 2, total, Admission::Asynchronous(2));
    config.evaluation_patience = 2 * SECOND;
    config
}

// --- What they say --------------------------------------------------------------------------------------------------

fn lease(first: u64, count: u64) -> Event<u8> {
    Event::Lease(Lease { first: MicrobatchId(first), count, epoch: 0 })
}

fn home(id: u64, attempt: u32, path: &[Hop]) -> Message<u8> {
    let (microbatch, attempt) = (MicrobatchId(id), Attempt(attempt));
    Message::Backward { microbatch, attempt, loss: LOSS, path: path.to_vec(), gradient: 0 }
}

fn holds(id: u64, attempt: u32, holding: Holding) -> Message<u8> {
    Message::Holds { microbatch: MicrobatchId(id), attempt: Attempt(attempt), holding }
}

fn claim(stage: u16, ids: &[u64]) -> Message<u8> {
    Message::Claim { stage: StageIndex(stage), microbatches: ids.iter().copied().map(MicrobatchId).collect() }
}

fn answer(granted: &[u64], denied: &[u64]) -> Message<u8> {
    let ids = |ids: &[u64]| ids.iter().copied().map(MicrobatchId).collect();
    Message::Granted { granted: ids(granted), denied: ids(denied) }
}

fn refusal(id: u64, by: Hop, reason: Refusal) -> Message<u8> {
    Message::Refused { microbatch: MicrobatchId(id), by, reason }
}

fn send(to: Hop, message: Message<u8>) -> Action<u8> {
    Action::Send { to: to.peer, message }
}

fn draw(id: u64) -> Action<u8> {
    Action::Draw { microbatch: MicrobatchId(id), purpose: Purpose::Train }
}

fn outcome(id: u64, outcome: Outcome) -> Action<u8> {
    Action::Outcome { microbatch: MicrobatchId(id), outcome }
}

fn finished(id: u64) -> Action<u8> {
    outcome(id, Outcome::Finished { loss: LOSS })
}

/// Forwards among these actions: which microbatch, to whom, under which number, and who is said to hold it.
fn forwards(said: &[Action<u8>]) -> Vec<(u64, PeerId, u32, Option<Hop>)> {
    let forward = |action: &Action<u8>| match action {
        Action::Send { to, message: Message::Forward { microbatch, attempt, holder, .. } } => {
            Some((microbatch.0, *to, attempt.0, *holder))
        }
        _ => None,
    };
    said.iter().filter_map(forward).collect()
}

// --- The life of a microbatch -----------------------------------------------------------------------------------------

#[test]
fn waits_for_every_stage_then_draws_sends_and_counts() {
    let mut story = Story::new(3);
    assert_eq!(story.publish(&[a(0)]), [Action::RequestLease { count: 3 }]);
    assert_eq!(story.hear(lease(0, 3)), []);
    assert_eq!(story.publish(&[a(0), a(1)]), [draw(0), draw(1)]);
    let sent = story.draw(1);
    assert!(matches!(&sent[..], [Action::Send { message: Message::Forward { route, version, .. }, .. }]
        if *route == [story.feeder.config().hop()] && *version == WeightVersion(0)));
    assert_eq!(forwards(&sent), [(1, a(0).peer, 0, None)]);
    story.draw(0);
    assert_eq!(story.finish(0), [finished(0), draw(2)]);
    story.draw(2);
    assert_eq!(story.finish(2), [finished(2)]);
    assert_eq!(story.finish(1), [finished(1)]);
    story.receive(a(0), claim(0, &[0, 1, 2]));
    assert_eq!(story.receive(a(1), claim(1, &[0, 1])).len(), 1, "one claim more is on its way");
    assert_eq!(story.receive(a(1), claim(1, &[2])).last(), Some(&Action::Done));
    let Counts { finished, in_flight, lost, ungranted, contributions_lost, .. } = story.counts();
    assert_eq!((finished, in_flight, lost, ungranted, contributions_lost), (3, 0, 0, 0, 0));
}

#[test]
fn an_unanswered_request_for_ids_is_repeated() {
    let mut story = Story::new(5);
    assert_eq!(story.hear(Event::Timeout), [Action::RequestLease { count: 5 }]);
    assert_eq!(story.wait(LEASE_RETRY - SECOND), []);
    assert_eq!(story.wait(SECOND), [Action::RequestLease { count: 5 }]);
}

#[test]
fn a_second_outcome_is_counted_and_changes_nothing() {
    let mut story = Story::under_way(2);
    story.finish(0);
    assert_eq!(story.finish(0), []);
    assert_eq!(story.finish(77), []);
    assert_eq!(story.receive(a(1), refusal(0, a(1), Refusal::NonFinite)), []);
    assert_eq!((story.counts().late, story.counts().finished, story.counts().refused), (3, 1, 0));
}

#[test]
fn only_the_replica_it_was_sent_to_may_bring_it_home() {
    let mut story = Story::under_way(2);
    for from in [a(1), b(0), restarted(a(0))] {
        assert_eq!(story.receive(from, home(0, 0, &[a(1), from])), []);
    }
    for path in [vec![], vec![a(0)], vec![a(0), a(1)], vec![a(1), a(1), a(0)], vec![a(1), b(0)]] {
        assert_eq!(story.receive(a(0), home(0, 0, &path)), []);
    }
    assert_eq!(story.receive(a(0), home(0, 1, &[a(1), a(0)])), [], "of another sending");
    assert_eq!((story.counts().foreign, story.counts().in_flight), (9, 2));
}

#[test]
fn a_loss_that_is_no_number_is_refused() {
    let mut story = Story::under_way(2);
    let (loss, path) = (Loss { sum: f64::NAN, tokens: 1 }, vec![a(1), a(0)]);
    let message =
        Message::Backward { microbatch: MicrobatchId(0), attempt: Attempt(0), loss, path, gradient: 0 };
    let refused = Outcome::Refused { by: a(0), reason: Refusal::NonFinite };
    assert_eq!(story.receive(a(0), message), [outcome(0, refused)]);
    assert_eq!((story.counts().refused, story.counts().finished), (1, 0));
}

#[test]
fn a_refusal_counts_if_it_is_the_refusers_own() {
    let mut story = Story::under_way(2);
    for by in [a(0), restarted(a(1)), b(1)] {
        assert_eq!(story.receive(a(1), refusal(0, by, Refusal::NonFinite)), []);
    }
    assert_eq!(story.counts().foreign, 3);
    let refused = Outcome::Refused { by: a(1), reason: Refusal::NonFinite };
    assert_eq!(story.receive(a(1), refusal(0, a(1), Refusal::NonFinite)), [outcome(0, refused)]);
    assert_eq!((story.counts().refused, story.counts().in_flight), (1, 1));
}

#[test]
fn ids_are_not_burnt_while_a_stage_is_empty() {
    let mut story = Story::under_way(9);
    let refused = Outcome::Refused { by: a(0), reason: Refusal::Undeliverable };
    let said = story.receive(a(0), refusal(0, a(0), Refusal::Undeliverable));
    assert_eq!(said, [outcome(0, refused)]);
    assert_eq!(story.wait(REFUSED_PAUSE / 2), []);
    assert_eq!(story.wait(REFUSED_PAUSE / 2), [draw(2)]);
}

// --- Who may apply what -----------------------------------------------------------------------------------------------

#[test]
fn the_first_claim_of_a_stage_is_granted_and_the_same_answer_given_again() {
    let mut story = Story::under_way(4);
    story.publish(&[a(0), a(1), b(1)]);
    assert_eq!(story.receive(a(1), claim(1, &[0, 1])), [send(a(1), answer(&[0, 1], &[]))]);
    assert_eq!(story.receive(b(1), claim(1, &[0])), [send(b(1), answer(&[], &[0]))]);
    assert_eq!(story.receive(a(1), claim(1, &[0])), [send(a(1), answer(&[0], &[]))]);
    assert_eq!(story.receive(a(0), claim(0, &[0])), [send(a(0), answer(&[0], &[]))]);
    assert_eq!(story.receive(a(1), claim(1, &[2])), [send(a(1), answer(&[], &[2]))], "not injected");
    assert_eq!(story.counts().denied, 2);
    story.finish(0);
    assert_eq!(story.receive(a(1), claim(1, &[0])), [send(a(1), answer(&[0], &[]))], "after the end");
    assert_eq!(story.receive(b(1), claim(1, &[0])), [send(b(1), answer(&[], &[0]))]);
}

#[test]
fn a_grant_belongs_to_one_start_of_a_replica_for_ever() {
    let mut story = Story::under_way(2);
    story.receive(a(1), claim(1, &[0]));
    assert_eq!(story.receive(restarted(a(1)), claim(1, &[1])), [], "not in the table");
    assert_eq!(story.receive(a(1), claim(0, &[1])), [], "not its stage");
    assert_eq!(story.counts().foreign, 2);
    story.publish(&[a(0), restarted(a(1))]);
    assert_eq!(story.receive(restarted(a(1)), claim(1, &[0])), [send(a(1), answer(&[], &[0]))]);
}

#[test]
fn whoever_computed_on_the_way_home_has_the_grant_unless_another_has() {
    let mut story = Story::under_way(2);
    story.publish(&[a(0), a(1), b(1)]);
    story.receive(b(1), claim(1, &[0]));
    story.finish(0);
    story.finish(1);
    let granted = |id, to| Record::Granted { microbatch: MicrobatchId(id), to };
    let is_grant = |record: &Record| matches!(record, Record::Granted { .. });
    let grants: Vec<_> = story.journal().into_iter().filter(is_grant).collect();
    assert_eq!(grants, [granted(0, b(1)), granted(0, a(0)), granted(1, a(1)), granted(1, a(0))]);
    assert_eq!(story.counts().ungranted, 0);
}

#[test]
fn everything_is_in_the_journal_before_it_is_said() {
    let mut story = Story::under_way(2);
    story.receive(a(1), claim(1, &[0]));
    story.finish(0);
    let id = MicrobatchId(0);
    let place = |action: &Action<u8>| story.said.iter().position(|said| said == action).unwrap();
    let written = |record| place(&Action::Journal(record));
    let sent = story.said.iter().position(|said| !forwards(std::slice::from_ref(said)).is_empty());
    assert!(written(Record::Sent { microbatch: id, to: a(0) }) < sent.unwrap());
    assert!(written(Record::Granted { microbatch: id, to: a(1) }) < place(&send(a(1), answer(&[0], &[]))));
    let outcome = Outcome::Finished { loss: LOSS };
    assert!(written(Record::Ended { microbatch: id, outcome }) < place(&finished(0)));
}

#[test]
fn replicas_hear_which_ids_have_their_outcome() {
    let mut story = Story::under_way(4);
    story.finish(0);
    story.draw(2);
    story.finish(2);
    story.wait(SECOND);
    let told = |to: Hop| {
        let spans = |action: &Action<u8>| match action {
            Action::Send { to: whom, message: Message::Ended { spans, .. } } if *whom == to.peer => {
                Some(spans.clone())
            }
            _ => None,
        };
        story.said.iter().rev().find_map(spans)
    };
    let expected = vec![Span { first: 0, below: 1, beyond: vec![0b10] }];
    assert_eq!([a(0), a(1)].map(told), [Some(expected.clone()), Some(expected)]);
}

// --- What is lost on the way ------------------------------------------------------------------------------------------

#[test]
fn a_silent_replica_is_asked_and_sent_what_it_misses() {
    let mut story = Story::under_way(2);
    story.finish(1);
    let route = vec![story.feeder.config().hop()];
    let ask = Message::Ask { microbatch: MicrobatchId(0), attempt: Attempt(0), route };
    let patience = story.feeder.config().ask_after;
    assert_eq!(story.wait(patience), [send(a(0), ask.clone())]);
    for times in [2, 4, 8, 8] {
        assert_eq!(story.receive(a(0), holds(0, 0, Holding::Held)), []);
        assert_eq!(story.wait(times * patience - SECOND), []);
        assert_eq!(story.wait(SECOND), [send(a(0), ask.clone())]);
    }
    assert_eq!(story.wait(patience), [send(a(0), ask)], "that it was not answered changes nothing");
    let said = story.receive(a(0), holds(0, 0, Holding::Missing));
    assert_eq!(forwards(&said), [(0, a(0).peer, 1, None)]);
    assert_eq!((story.counts().resent, story.counts().injected), (1, 2));
    assert_eq!(story.receive(a(0), holds(0, 0, Holding::Missing)), [], "of an earlier sending");
    assert!(matches!(story.wait(patience)[..], [Action::Send { message: Message::Ask { .. }, .. }]));
}

#[test]
fn a_busy_replica_is_left_alone_until_it_beats() {
    let mut story = Story::under_way(2);
    assert_eq!(story.receive(a(0), holds(0, 0, Holding::Busy)), []);
    let said = story.receive(a(0), Message::Beat(Beat { credit: 2, ..Beat::default() }));
    assert_eq!(forwards(&said), [(0, a(0).peer, 1, None)]);
}

#[test]
fn what_a_lost_replica_had_goes_to_another_with_word_of_who_holds_it() {
    let mut story = Story::under_way(2);
    story.publish(&[a(0), b(0), a(1)]);
    let receipt = Message::Passed { microbatch: MicrobatchId(1), attempt: Attempt(0), next: a(1) };
    assert_eq!(story.receive(a(0), receipt), []);
    let said = story.lose(a(0));
    assert_eq!(forwards(&said), [(0, b(0).peer, 1, None), (1, b(0).peer, 1, Some(a(1)))]);
    let held = Message::Held { microbatch: MicrobatchId(0), holder: a(1) };
    assert_eq!(story.receive(a(1), held.clone()), [send(b(0), held)], "passed on");
    assert_eq!(story.receive(a(0), home(0, 0, &[a(1), a(0)])), [finished(0)], "the first answer wins");
}

#[test]
fn with_nobody_else_at_stage_0_everything_waits() {
    let mut story = Story::under_way(2);
    assert_eq!(story.lose(a(0)), []);
    let said = story.publish(&[restarted(a(0)), a(1)]);
    assert_eq!(forwards(&said), [(0, a(0).peer, 1, None), (1, a(0).peer, 1, None)]);
    assert_eq!((story.counts().injected, story.counts().lost), (2, 0));
}

// --- After a restart --------------------------------------------------------------------------------------------------

#[test]
fn a_restarted_feeder_asks_for_what_was_in_flight_and_injects_nothing_twice() {
    let mut before = Story::under_way(5);
    before.receive(a(1), claim(1, &[1]));
    before.finish(0);
    let mut story = before.restart();
    assert_eq!(story.said, [draw(1)]);
    assert_eq!(story.counts(), before.counts());

    let said = story.publish(&[a(0), a(1), b(1)]);
    assert_eq!(said, [draw(2)], "no second lease, no id again");
    let route = vec![story.feeder.config().hop()];
    let ask = Message::Ask { microbatch: MicrobatchId(1), attempt: Attempt(1), route };
    assert_eq!(story.draw(1), [send(a(0), ask)]);
    assert_eq!(story.receive(b(1), claim(1, &[1])), [send(b(1), answer(&[], &[1]))], "grants count on");
    let said = story.receive(a(0), home(1, 1, &[a(1), a(0)]));
    assert_eq!(said, [finished(1), draw(3)]);
    let Counts { injected, finished, in_flight, lost, .. } = story.counts();
    assert_eq!((injected, finished, in_flight, lost), (2, 2, 0, 0));
}

#[test]
fn what_was_in_flight_is_sent_anew_only_if_nobody_has_it() {
    let under_way = Story::under_way(2);
    let mut denied = under_way.restart();
    denied.publish(&[a(0), a(1)]);
    denied.draw(0);
    let said = denied.receive(a(0), holds(0, 1, Holding::Missing));
    assert_eq!(forwards(&said), [(0, a(0).peer, 2, None)]);

    let mut gone = under_way.restart();
    gone.publish(&[b(0), a(1)]);
    assert_eq!(forwards(&gone.draw(0)), [(0, b(0).peer, 1, None)]);
    assert_eq!((gone.counts().injected, gone.counts().resent), (2, 1));
}

#[test]
fn a_feeder_that_was_done_is_done_again() {
    let mut before = Story::under_way(2);
    before.finish(0);
    before.finish(1);
    let mut story = before.restart();
    assert_eq!((story.hear(Event::Timeout), story.counts().finished), (vec![Action::Done], 2));
}

// --- Evaluations and the end ------------------------------------------------------------------------------------------

/// Training is over but for id 2; an evaluation of one text is on its way.
fn measuring() -> Story {
    let mut story = Story::under_way(3);
    story.hear(Event::Evaluate { first: 5, count: 1, purpose: Purpose::Evaluate });
    story.finish(0);
    story.finish(1);
    story.hear(Event::Drawn { microbatch: MicrobatchId::evaluation(5), ids: 1 });
    story
}

fn evaluated(attempt: u32) -> Message<u8> {
    Message::Evaluated { microbatch: MicrobatchId::evaluation(5), attempt: Attempt(attempt), loss: LOSS }
}

fn measured(answered: u64) -> Measured {
    let (sum, tokens) = if answered > 0 { (3.0, 2) } else { (0.0, 0) };
    Measured { purpose: Purpose::Evaluate, sum, tokens, answered, unanswered: 1 - answered }
}

#[test]
fn an_evaluation_waits_for_training_and_training_for_the_evaluation() {
    let mut story = Story::under_way(3);
    assert_eq!(story.hear(Event::Evaluate { first: 5, count: 1, purpose: Purpose::Evaluate }), []);
    assert_eq!(story.finish(0), [finished(0)]);
    let id = MicrobatchId::evaluation(5);
    assert_eq!(story.finish(1), [finished(1), Action::Draw { microbatch: id, purpose: Purpose::Evaluate }]);
    story.hear(Event::Drawn { microbatch: id, ids: 1 });
    assert_eq!(story.receive(a(0), evaluated(0)), [], "not the last stage");
    let said = story.receive(a(1), evaluated(0));
    let outcome = Action::Outcome { microbatch: id, outcome: Outcome::Evaluated { loss: LOSS } };
    assert_eq!(said, [outcome, Action::EvaluationDone(measured(1)), draw(2)]);
}

#[test]
fn an_evaluation_without_an_answer_is_sent_again_and_given_up_at_last() {
    let mut story = measuring();
    let patience = story.feeder.config().evaluation_patience;
    for attempt in 1..EVALUATION_TRIES {
        let said = story.wait(patience);
        assert_eq!(forwards(&said), [(MicrobatchId::evaluation(5).0, a(0).peer, attempt, None)]);
    }
    let unanswered =
        Action::Outcome { microbatch: MicrobatchId::evaluation(5), outcome: Outcome::Unanswered };
    assert_eq!(story.wait(patience), [unanswered, Action::EvaluationDone(measured(0)), draw(2)]);

    let mut story = measuring();
    story.wait(patience);
    assert!(
        story.receive(a(1), evaluated(0)).contains(&Action::EvaluationDone(measured(1))),
        "any try counts"
    );
    assert_eq!(story.receive(a(1), evaluated(1)), []);
}

#[test]
fn evaluations_are_bounded_and_an_empty_one_is_over_at_once() {
    let mut story = Story::under_way(3);
    let evaluate = |count| Event::Evaluate { first: 0, count, purpose: Purpose::Evaluate };
    let said = story.hear(evaluate(0));
    assert!(matches!(said[..], [Action::EvaluationDone(Measured { answered: 0, .. })]));
    for _ in 0..EVALUATIONS_MAX {
        assert_eq!(story.hear(evaluate(1)), []);
    }
    assert_eq!(story.hear(evaluate(1)), [Action::EvaluationDeclined]);
}

#[test]
fn stopping_finishes_what_is_in_flight_and_no_more() {
    let mut story = Story::under_way(9);
    assert_eq!(story.finish(0), [finished(0), draw(2)]);
    assert_eq!(story.hear(Event::Stop), []);
    assert_eq!(story.draw(2), []);
    let evaluate = Event::Evaluate { first: 0, count: 1, purpose: Purpose::Evaluate };
    assert_eq!(story.hear(evaluate), [Action::EvaluationDeclined]);
    assert_eq!(story.finish(1), [finished(1)]);
    story.receive(a(0), claim(0, &[0, 1]));
    assert_eq!(story.wait(ANSWERS_WITHIN), [Action::Done], "nobody is waited for without end");
    assert_eq!((story.counts().injected, story.counts().contributions_lost), (2, 2));
    assert_eq!(story.wait(SECOND), []);
}

// --- Another feeder's ids -------------------------------------------------------------------------------------------

fn succession(feeder: PeerId) -> Vec<crate::Succession> {
    let lease = Lease { first: MicrobatchId(0), count: 50, epoch: 1 };
    vec![crate::Succession { lease, feeder }]
}

fn inherits(story: &mut Story, members: &[Hop], feeder: PeerId) -> Vec<Action<u8>> {
    story.version += 1;
    let members = members.iter().copied().map(member).collect();
    let successions = succession(feeder);
    story.hear(Event::Membership(Membership { version: story.version, members, successions }))
}

fn page(of: Hop, items: Vec<crate::recovery_report::Item>) -> Message<u8> {
    Message::Inventory(crate::Inventory {
        range: MicrobatchId(0),
        epoch: 1,
        from: MicrobatchId(0),
        next: None,
        stage: of.stage.unwrap(),
        ended: vec![Span { first: 0, below: 4, beyond: Vec::new() }],
        items,
    })
}

#[test]
fn a_successor_asks_everybody_and_goes_on_with_what_is_held() {
    use crate::recovery_report::{Item, Stock};
    let mut story = Story::new(8);
    let adopt = Message::Adopt { range: MicrobatchId(0), epoch: 1, from: MicrobatchId(0) };
    let asked = [a(0), a(1)].map(|hop| Action::Send { to: hop.peer, message: adopt.clone() });
    assert_eq!(inherits(&mut story, &[a(0), a(1)], PeerId([0; 32])), asked);
    let item =
        |id, granted| Item { microbatch: MicrobatchId(id), granted, stock: Stock::Held, doubted: Vec::new() };
    story.receive(a(0), page(a(0), vec![item(4, None)]));
    let claim = |id| Message::Claim { stage: StageIndex(1), microbatches: vec![MicrobatchId(id)] };
    assert_eq!(story.receive(b(1), claim(4)), [], "not decided yet");
    let said = story.receive(a(1), page(a(1), vec![item(4, Some(true)), item(5, None)]));
    let refused = |id| Action::Outcome {
        microbatch: MicrobatchId(id),
        outcome: Outcome::Refused { by: story.feeder.config().hop(), reason: Refusal::Abandoned },
    };
    let draw = Action::Draw { microbatch: MicrobatchId(4), purpose: Purpose::Train };
    assert!(said.starts_with(&[refused(5), draw]), "{said:?}");
    let Counts { inherited, abandoned, in_flight, injected, .. } = story.counts();
    assert_eq!((inherited, abandoned, in_flight, injected), (4, 1, 1, 2));

    story.publish(&[a(0), a(1), b(1)]);
    let said = story.draw(4);
    assert!(matches!(said[..], [Action::Send { message: Message::Ask { .. }, .. }]), "{said:?}");
    let denied = Message::Granted { granted: Vec::new(), denied: vec![MicrobatchId(4)] };
    assert_eq!(story.receive(b(1), claim(4)), [Action::Send { to: b(1).peer, message: denied }]);
    assert_eq!(story.counts().contributions_lost, 0, "somebody else has it");
    (0..2).for_each(|_| drop(story.receive(b(1), claim(3))));
    assert_eq!(story.counts().contributions_lost, 1, "nobody knows what the former feeder said");

    let restarted = story.restart();
    assert_eq!(restarted.counts().inherited, 4);
    assert_eq!(restarted.counts().in_flight, 1);
}

#[test]
fn a_feeder_that_was_succeeded_does_nothing_any_more() {
    let mut story = Story::under_way(8);
    let by = PeerId([0xAA; 32]);
    let said = inherits(&mut story, &[a(0), a(1)], by);
    assert_eq!(said.first(), Some(&Action::Succeeded { by }));
    assert_eq!(story.finish(0), []);
    assert_eq!(story.wait(60 * SECOND), []);
}
