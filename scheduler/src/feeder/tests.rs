//! Stories of a feeder, told by what goes in and what comes out. The way through replicas is in `sim`.

use std::net::SocketAddr;

use super::*;
use crate::router::{RouterFactory, UniformConfig};
use crate::{Duration, Member, Standing};

const REPLICA: PeerId = PeerId([1; 32]);
const START: Incarnation = Incarnation(1);
const LOSS: Loss = Loss { sum: 3.0, tokens: 2 };

fn membership(version: u64, serving: u16) -> Membership {
    let member = |stage: u16| Member {
        peer: PeerId([u8::try_from(stage + 1).unwrap(); 32]),
        incarnation: START,
        standing: Standing::Serving(StageIndex(stage)),
        address: SocketAddr::from(([127, 0, 0, 1], 4_000)),
    };
    Membership { version, members: (0..serving).map(member).collect() }
}

struct Story {
    feeder: Feeder<u8>,
    now: Time,
}

impl Story {
    /// Two stages, `total` microbatches, two in flight.
    fn new(total: u64) -> Self {
        let config = Config::new(PeerId([9; 32]), START, 2, total, Admission::Asynchronous(2));
        Self { feeder: Feeder::new(config, UniformConfig.build(1)), now: Time(0) }
    }

    /// Both stages serve, ids are leased, the first two microbatches are on their way.
    fn under_way(total: u64) -> Self {
        let mut story = Self::new(total);
        story.hear(Event::Membership(membership(1, 2)));
        story.hear(Event::Lease(Lease { first: MicrobatchId(0), count: total, epoch: 0 }));
        story.draw(0);
        story.draw(1);
        story
    }

    fn hear(&mut self, event: Event<u8>) -> Vec<Action<u8>> {
        self.feeder.handle(self.now, event);
        std::iter::from_fn(|| self.feeder.poll_action()).collect()
    }

    fn draw(&mut self, id: u64) -> Vec<Action<u8>> {
        self.hear(Event::Drawn { microbatch: MicrobatchId(id), ids: 1 })
    }

    fn receive(&mut self, message: Message<u8>) -> Vec<Action<u8>> {
        self.hear(Event::Received { from: REPLICA, incarnation: START, message })
    }

    fn finish(&mut self, id: u64) -> Vec<Action<u8>> {
        self.receive(backward(id))
    }

    fn wait(&mut self, time: Duration) -> Vec<Action<u8>> {
        self.now = self.now + time;
        self.hear(Event::Timeout)
    }
}

fn backward(id: u64) -> Message<u8> {
    Message::Backward { microbatch: MicrobatchId(id), attempt: Attempt(0), loss: LOSS, gradient: 0 }
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

fn undeliverable(by: Hop) -> Outcome {
    Outcome::Refused { by, reason: Refusal::Undeliverable }
}

#[test]
fn waits_for_every_stage_then_draws_sends_and_counts() {
    let mut story = Story::new(3);
    assert_eq!(story.hear(Event::Membership(membership(1, 1))), [Action::RequestLease { count: 3 }]);
    assert_eq!(story.hear(Event::Lease(Lease { first: MicrobatchId(0), count: 3, epoch: 0 })), []);
    assert_eq!(story.hear(Event::Membership(membership(2, 2))), [draw(0), draw(1)]);
    let sent = story.draw(1);
    assert!(matches!(&sent[..], [Action::Send { to: REPLICA, message: Message::Forward { route, .. } }]
        if *route == [story.feeder.config().hop()]));
    story.draw(0);
    assert_eq!(story.finish(0), [finished(0), draw(2)]);
    story.draw(2);
    assert_eq!(story.finish(2), [finished(2)]);
    assert_eq!(story.finish(1), [finished(1), Action::Done]);
    assert_eq!((story.feeder.counts().finished, story.feeder.counts().in_flight), (3, 0));
}

#[test]
fn a_second_outcome_is_counted_and_changes_nothing() {
    let mut story = Story::under_way(2);
    story.finish(0);
    assert_eq!(story.finish(0), []);
    assert_eq!(story.finish(77), []);
    let counts = story.feeder.counts();
    assert_eq!((counts.duplicates, counts.foreign, counts.finished), (1, 1, 1));
}

#[test]
fn only_the_replica_it_was_sent_to_may_answer() {
    let mut story = Story::under_way(2);
    for (from, incarnation) in [(PeerId([2; 32]), START), (REPLICA, Incarnation(2)), (PeerId([7; 32]), START)]
    {
        assert_eq!(story.hear(Event::Received { from, incarnation, message: backward(0) }), []);
    }
    let evaluated = Message::Evaluated { microbatch: MicrobatchId(0), attempt: Attempt(0), loss: LOSS };
    assert_eq!(story.receive(evaluated), []);
    assert_eq!(story.feeder.counts().foreign, 4);
}

#[test]
fn without_an_outcome_by_the_deadline_it_is_lost_and_the_replica_is_told() {
    let mut story = Story::under_way(2);
    story.finish(1);
    assert_eq!(
        story.feeder.poll_timeout().unwrap(),
        (Time(0) + Duration::from_secs(60), Reason::DeadlineExpires)
    );
    let said = story.wait(Duration::from_secs(60));
    assert!(matches!(&said[..], [Action::Send { message: Message::Refused { .. }, .. }, lost, Action::Done]
        if *lost == outcome(0, Outcome::Lost)));
    assert_eq!(story.finish(0), []);
    assert_eq!((story.feeder.counts().lost, story.feeder.counts().late), (1, 1));
}

#[test]
fn the_only_replica_is_tried_again_after_a_pause() {
    let mut story = Story::under_way(4);
    let own = story.feeder.config().hop();
    let said = story.hear(Event::PeerLost { peer: REPLICA, incarnation: START });
    assert_eq!(said, [outcome(0, undeliverable(own)), outcome(1, undeliverable(own))]);
    assert_eq!(story.feeder.poll_timeout().unwrap(), (Time(0) + REFUSED_PAUSE, Reason::PauseEnds));
    assert_eq!(story.wait(REFUSED_PAUSE), [draw(2), draw(3)]);
}

#[test]
fn ids_are_not_burnt_while_a_stage_is_empty() {
    let mut story = Story::under_way(9);
    let by = Hop { stage: Some(StageIndex(0)), peer: REPLICA, incarnation: START };
    let reason = Refusal::Undeliverable;
    let refusal = Message::Refused { microbatch: MicrobatchId(0), attempt: Attempt(0), by, reason };
    assert_eq!(story.receive(refusal), [outcome(0, undeliverable(by))]);
    assert_eq!(story.feeder.poll_timeout().unwrap().1, Reason::PauseEnds);
    assert_eq!(story.wait(REFUSED_PAUSE), [draw(2)]);
}

#[test]
fn a_loss_that_is_no_number_is_refused() {
    let mut story = Story::under_way(2);
    let loss = Loss { sum: f64::NAN, tokens: 1 };
    let message = Message::Backward { microbatch: MicrobatchId(0), attempt: Attempt(0), loss, gradient: 0 };
    story.receive(message);
    assert_eq!((story.feeder.counts().refused, story.feeder.counts().finished), (1, 0));
}

#[test]
fn an_unanswered_request_for_ids_is_repeated() {
    let mut story = Story::new(5);
    assert_eq!(story.wait(Duration::ZERO), [Action::RequestLease { count: 5 }]);
    assert_eq!(story.feeder.poll_timeout().unwrap(), (Time(0) + LEASE_RETRY, Reason::LeaseRetry));
    assert_eq!(story.wait(LEASE_RETRY), [Action::RequestLease { count: 5 }]);
}

#[test]
fn an_evaluation_waits_for_training_and_training_for_the_evaluation() {
    let mut story = Story::under_way(3);
    let evaluate = Event::Evaluate { first: 5, count: 1, purpose: Purpose::Evaluate };
    assert_eq!(story.hear(evaluate), []);
    assert_eq!(story.finish(0), [finished(0)]);
    let id = MicrobatchId::evaluation(5);
    assert_eq!(story.finish(1), [finished(1), Action::Draw { microbatch: id, purpose: Purpose::Evaluate }]);
    story.hear(Event::Drawn { microbatch: id, ids: 1 });
    let said = story.receive(Message::Evaluated { microbatch: id, attempt: Attempt(0), loss: LOSS });
    let measured = Measured { purpose: Purpose::Evaluate, sum: 3.0, tokens: 2, answered: 1, unanswered: 0 };
    let outcome = Action::Outcome { microbatch: id, outcome: Outcome::Evaluated { loss: LOSS } };
    assert_eq!(said, [outcome, Action::EvaluationDone(measured), draw(2)]);
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
    assert_eq!(story.finish(1), [finished(1), Action::Done]);
    assert_eq!(story.feeder.counts().injected, 2);
    assert_eq!(story.feeder.poll_timeout(), None);
}
