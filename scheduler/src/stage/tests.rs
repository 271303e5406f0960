//! Stories of single microbatches at one replica, told by what goes in and what comes out.

use std::net::SocketAddr;

use super::*;
use crate::router::{RouterFactory, UniformConfig};
use crate::{Duration, Member, StageIndex, Standing};

type Payload = &'static str;

const ID: MicrobatchId = MicrobatchId(7);
const FIRST: Attempt = Attempt(0);
const LOSS: Loss = Loss { sum: 3.5, tokens: 2 };
const NOW: Time = Time(1_000);

fn key(stage: Option<u16>) -> PeerId {
    PeerId([stage.map_or(0, |stage| u8::try_from(stage + 1).unwrap()); 32])
}

fn hop(stage: Option<u16>) -> Hop {
    Hop { stage: stage.map(StageIndex), peer: key(stage), incarnation: Incarnation(1) }
}

/// A feeder and one replica of each stage but those in `missing`.
fn membership(version: u64, stages: u16, missing: &[Option<u16>]) -> Membership {
    let all = std::iter::once(None).chain((0..stages).map(Some)).filter(|stage| !missing.contains(stage));
    let member = |stage: Option<u16>| Member {
        peer: key(stage),
        incarnation: Incarnation(1),
        standing: stage.map_or(Standing::Feeding, |stage| Standing::Serving(StageIndex(stage))),
        address: SocketAddr::from(([127, 0, 0, 1], 4_000)),
    };
    Membership { version, members: all.map(member).collect() }
}

/// One replica and everything it said.
struct Story {
    stage: Stage<Payload>,
    now: Time,
    said: Vec<Action<Payload>>,
}

impl Story {
    fn new(stage: u16, stages: u16) -> Self {
        Self::with(stage, stages, |_| {})
    }

    fn with(stage: u16, stages: u16, adjust: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(key(Some(stage)), Incarnation(1), StageIndex(stage), stages);
        adjust(&mut config);
        let mut story =
            Self { stage: Stage::new(config, UniformConfig.build(1)), now: NOW, said: Vec::new() };
        story.hear(Event::Membership(membership(1, stages, &[])));
        story
    }

    /// Hands over an event; what follows, notes apart.
    fn hear(&mut self, event: Event<Payload>) -> Vec<Action<Payload>> {
        self.stage.handle(self.now, event);
        let mut said = Vec::new();
        while let Some(action) = self.stage.poll_action() {
            self.said.push(action.clone());
            if !matches!(action, Action::Counted(_)) {
                said.push(action);
            }
        }
        said
    }

    fn receive(&mut self, from: Option<u16>, message: Message<Payload>) -> Vec<Action<Payload>> {
        self.hear(Event::Received { from: key(from), incarnation: Incarnation(1), message })
    }

    fn complete(&mut self, done: Done<Payload>) -> Vec<Action<Payload>> {
        self.hear(Event::Completed(Completion { microbatch: ID, done }))
    }

    fn wait(&mut self, time: Duration) -> Vec<Action<Payload>> {
        self.now = self.now + time;
        self.hear(Event::Timeout)
    }

    fn counts(&self) -> Counts {
        self.stage.counts()
    }
}

fn forward_of(id: MicrobatchId, purpose: Purpose, before: &[Option<u16>]) -> Message<Payload> {
    Message::Forward {
        microbatch: id,
        attempt: FIRST,
        purpose,
        route: before.iter().map(|&stage| hop(stage)).collect(),
        version: WeightVersion(4),
        ids: "ids",
        code: "in",
    }
}

fn forward(purpose: Purpose, before: &[Option<u16>]) -> Message<Payload> {
    forward_of(ID, purpose, before)
}

fn backward(gradient: Payload) -> Message<Payload> {
    Message::Backward { microbatch: ID, attempt: FIRST, loss: LOSS, gradient }
}

fn refused(by: Hop, reason: Refusal) -> Message<Payload> {
    Message::Refused { microbatch: ID, attempt: FIRST, by, reason }
}

fn forwarded() -> Done<Payload> {
    Done::Forwarded { version: WeightVersion(9), code: "out" }
}

fn send(stage: Option<u16>, message: Message<Payload>) -> Action<Payload> {
    Action::Send { to: key(stage), message }
}

fn forget() -> Action<Payload> {
    Action::Execute(Job::Forget { microbatch: ID })
}

/// A middle replica that has sent the microbatch on and waits for the gradient.
fn passed() -> Story {
    let mut story = Story::new(1, 3);
    story.receive(Some(0), forward(Purpose::Train, &[None, Some(0)]));
    story.complete(forwarded());
    story
}

#[test]
fn a_middle_replica_passes_on_and_returns_to_where_it_came_from() {
    let mut story = Story::new(1, 3);
    let said = story.receive(Some(0), forward(Purpose::Train, &[None, Some(0)]));
    assert_eq!(said, [Action::Execute(Job::Forward { microbatch: ID, ids: "ids", code: "in" })]);
    let onward = Message::Forward {
        microbatch: ID,
        attempt: FIRST,
        purpose: Purpose::Train,
        route: vec![hop(None), hop(Some(0)), hop(Some(1))],
        version: WeightVersion(9),
        ids: "ids",
        code: "out",
    };
    assert_eq!(story.complete(forwarded()), [send(Some(2), onward)]);
    assert_eq!(story.stage.slots_used(), 1);
    let said = story.receive(Some(2), backward("gradient"));
    assert_eq!(said, [Action::Execute(Job::Backward { microbatch: ID, gradient: "gradient" })]);
    let said = story.complete(Done::Backwarded { gradient: "upward" });
    assert_eq!(said, [send(Some(0), backward("upward"))]);
    assert_eq!((story.stage.held(), story.counts().done), (0, 1));
}

#[test]
fn the_last_stage_answers_in_one_visit() {
    let mut story = Story::new(2, 3);
    let said = story.receive(Some(1), forward(Purpose::Train, &[None, Some(0), Some(1)]));
    assert_eq!(said, [Action::Execute(Job::LossAndBackward { microbatch: ID, ids: "ids", code: "in" })]);
    let said = story.complete(Done::LossAndBackward { loss: LOSS, gradient: "upward" });
    assert_eq!(said, [send(Some(1), backward("upward"))]);
}

#[test]
fn stage_0_tells_the_feeder_with_an_empty_gradient() {
    let mut story = Story::new(0, 1);
    story.receive(None, forward(Purpose::Train, &[None]));
    let said = story.complete(Done::LossAndBackward { loss: LOSS, gradient: "not the feeder's business" });
    assert_eq!(said, [send(None, backward(""))]);
}

#[test]
fn an_evaluation_goes_forward_only_and_its_loss_returns() {
    let mut story = Story::new(0, 2);
    let said = story.receive(None, forward(Purpose::EvaluateCut, &[None]));
    let job = Job::Evaluate { microbatch: ID, ids: "ids", code: "in", cut: false };
    assert_eq!(said, [Action::Execute(job)]);
    story.complete(Done::Evaluated(Evaluation::Code { version: WeightVersion(1), code: "out" }));
    assert_eq!((story.stage.held(), story.stage.slots_used()), (1, 0));
    let evaluated = Message::Evaluated { microbatch: ID, attempt: FIRST, loss: LOSS };
    assert_eq!(story.receive(Some(1), evaluated.clone()), [send(None, evaluated.clone())]);

    let mut last = Story::new(1, 2);
    let said = last.receive(Some(0), forward(Purpose::EvaluateCut, &[None, Some(0)]));
    assert!(matches!(said[..], [Action::Execute(Job::Evaluate { cut: true, .. })]));
    assert_eq!(last.complete(Done::Evaluated(Evaluation::Loss(LOSS))), [send(Some(0), evaluated)]);
}

#[test]
fn the_executor_has_two_jobs_and_the_rest_waits_in_order() {
    let mut story = Story::new(0, 2);
    let mut given = Vec::new();
    for id in 0..4 {
        given.extend(story.receive(None, forward_of(MicrobatchId(id), Purpose::Train, &[None])));
    }
    assert_eq!(given.len(), EXECUTOR_DEPTH);
    story.now = story.now + Duration::from_millis(3);
    let progress = story.stage.progress(story.now);
    assert_eq!((progress.queued, progress.oldest), (2, Duration::from_millis(3)));
    let said = story.hear(Event::Completed(Completion { microbatch: MicrobatchId(0), done: forwarded() }));
    assert!(said.contains(&Action::Execute(Job::Forward {
        microbatch: MicrobatchId(2),
        ids: "ids",
        code: "in"
    })));
}

#[test]
fn a_refusing_executor_tells_upstream_before_it_was_sent_on() {
    let mut story = Story::new(1, 3);
    story.receive(Some(0), forward(Purpose::Train, &[None, Some(0)]));
    let said = story.complete(Done::Refused(Refusal::NonFinite));
    assert_eq!(said, [send(Some(0), refused(hop(Some(1)), Refusal::NonFinite))]);
    assert_eq!((story.stage.held(), story.counts().refused), (0, 1));
}

#[test]
fn a_refusal_is_relayed_away_from_where_it_came() {
    let by = hop(Some(0));
    let mut story = passed();
    let said = story.receive(Some(0), refused(by, Refusal::NonFinite));
    assert_eq!(said, [forget(), send(Some(2), refused(by, Refusal::NonFinite))]);

    let by = hop(Some(2));
    let mut story = passed();
    let said = story.receive(Some(2), refused(by, Refusal::Busy));
    assert_eq!(said, [forget(), send(Some(0), refused(by, Refusal::Busy))]);
    assert_eq!((story.stage.held(), story.counts().refused), (0, 1));
    assert_eq!(story.receive(Some(2), refused(by, Refusal::Busy)), []);
    assert_eq!((story.counts().refused, story.counts().late), (1, 1));
}

#[test]
fn what_the_executor_has_when_it_is_refused_is_forgotten_when_it_answers() {
    let mut story = Story::new(1, 3);
    story.receive(Some(0), forward(Purpose::Train, &[None, Some(0)]));
    assert_eq!(story.receive(Some(0), refused(hop(Some(0)), Refusal::Busy)), []);
    assert_eq!(story.stage.slots_used(), 1);
    assert_eq!(story.complete(forwarded()), [forget()]);
    assert_eq!((story.stage.slots_used(), story.counts().refused), (0, 1));
}

#[test]
fn a_queued_microbatch_that_is_refused_never_reaches_the_executor() {
    let mut story = Story::new(0, 2);
    for id in [100, 101, 7] {
        story.receive(None, forward_of(MicrobatchId(id), Purpose::Train, &[None]));
    }
    assert_eq!(story.receive(None, refused(hop(None), Refusal::Undeliverable)), []);
    assert_eq!((story.stage.held(), story.stage.progress(NOW).queued), (2, 0));
}

#[test]
fn a_gradient_for_an_unknown_microbatch_is_disowned() {
    let mut story = Story::new(1, 3);
    let said = story.receive(Some(2), backward("gradient"));
    assert_eq!(said, [send(Some(2), refused(hop(Some(1)), Refusal::Unknown))]);
    assert_eq!(story.counts().unknown, 1);
}

#[test]
fn repetitions_are_ignored_while_held_and_after_the_end() {
    let mut story = passed();
    assert_eq!(story.receive(Some(0), forward(Purpose::Train, &[None, Some(0)])), []);
    story.receive(Some(2), backward("gradient"));
    assert_eq!(story.receive(Some(2), backward("gradient")), []);
    assert_eq!(story.counts().duplicate, 2);
    story.complete(Done::Backwarded { gradient: "upward" });
    assert_eq!(story.receive(Some(0), forward(Purpose::Train, &[None, Some(0)])), []);
    assert_eq!(story.receive(Some(2), backward("gradient")), []);
    assert_eq!((story.counts().duplicate, story.counts().late, story.counts().done), (3, 1, 1));
}

#[test]
fn strangers_are_ignored() {
    let mut story = passed();
    assert_eq!(story.receive(Some(1), backward("forged")), []);
    assert_eq!(story.receive(Some(0), backward("from the wrong side")), []);
    let restarted = Incarnation(2);
    story.hear(Event::Received {
        from: key(Some(2)),
        incarnation: restarted,
        message: backward("restarted"),
    });
    story.receive(Some(1), refused(hop(Some(2)), Refusal::Busy));
    assert_eq!((story.counts().foreign, story.counts().refused), (4, 0));
    let wrong_side = forward_of(MicrobatchId(8), Purpose::Train, &[None, Some(0)]);
    assert_eq!(story.receive(Some(2), wrong_side), []);
    story.wait(EARLY_PATIENCE);
    assert_eq!((story.counts().foreign, story.stage.held()), (5, 1));
}

#[test]
fn a_route_that_leads_elsewhere_is_malformed() {
    for route in [&[][..], &[None], &[Some(0), Some(0)], &[None, Some(0), Some(0)], &[None, Some(1)]] {
        let mut story = Story::new(1, 3);
        let said = story.receive(Some(0), forward(Purpose::Train, route));
        assert!(
            matches!(
                said[..],
                [Action::Send { message: Message::Refused { reason: Refusal::Malformed(_), .. }, .. }]
            ),
            "{route:?}"
        );
        assert_eq!((story.stage.held(), story.counts().malformed), (0, 1));
    }
}

#[test]
fn a_full_replica_is_busy() {
    let mut story = Story::with(0, 2, |config| config.slots = 1);
    story.receive(None, forward_of(MicrobatchId(1), Purpose::Train, &[None]));
    let said = story.receive(None, forward(Purpose::Train, &[None]));
    assert_eq!(said, [send(None, refused(hop(Some(0)), Refusal::Busy))]);
    let evaluation = forward_of(MicrobatchId::evaluation(0), Purpose::Evaluate, &[None]);
    assert!(matches!(story.receive(None, evaluation)[..], [Action::Execute(_)]));
    assert_eq!((story.stage.slots_used(), story.counts().busy, story.counts().refused), (1, 1, 0));
}

#[test]
fn an_activation_waits_a_moment_for_somebody_to_serve_the_next_stage() {
    let mut story = Story::new(0, 2);
    story.hear(Event::Membership(membership(2, 2, &[Some(1)])));
    story.receive(None, forward(Purpose::Train, &[None]));
    assert_eq!(story.complete(forwarded()), []);
    assert_eq!(story.stage.poll_timeout().unwrap(), (NOW + Duration::from_secs(1), Reason::RouteExpires));
    let said = story.hear(Event::Membership(membership(3, 2, &[])));
    assert!(matches!(said[..], [Action::Send { message: Message::Forward { .. }, .. }]));

    let mut story = Story::new(0, 2);
    story.hear(Event::Membership(membership(2, 2, &[Some(1)])));
    story.receive(None, forward(Purpose::Train, &[None]));
    story.complete(forwarded());
    let said = story.wait(Duration::from_secs(1));
    assert_eq!(said, [forget(), send(None, refused(hop(Some(0)), Refusal::Undeliverable))]);
}

#[test]
fn a_forward_that_is_faster_than_the_table_waits_for_it() {
    let mut story = Story::new(0, 2);
    story.hear(Event::Membership(membership(2, 2, &[None])));
    assert_eq!(story.receive(None, forward(Purpose::Train, &[None])), []);
    assert_eq!(story.stage.poll_timeout().unwrap(), (NOW + EARLY_PATIENCE, Reason::EarlyExpires));
    assert!(matches!(story.hear(Event::Membership(membership(3, 2, &[])))[..], [Action::Execute(_)]));
}

#[test]
fn early_forwards_are_bounded() {
    let mut story = Story::new(0, 2);
    story.hear(Event::Membership(membership(2, 2, &[None])));
    for id in 0..=EARLY_MAX as u64 {
        story.receive(None, forward_of(MicrobatchId(id), Purpose::Train, &[None]));
    }
    assert_eq!(story.counts().foreign, 1);
    story.wait(EARLY_PATIENCE);
    assert_eq!((story.counts().foreign, story.stage.held()), (EARLY_MAX as u64 + 1, 0));
}

#[test]
fn a_lost_neighbour_leaves_the_other_side_with_an_outcome() {
    let lost = |stage| Event::PeerLost { peer: key(Some(stage)), incarnation: Incarnation(1) };
    let undeliverable = || refused(hop(Some(1)), Refusal::Undeliverable);
    assert_eq!(passed().hear(lost(2)), [forget(), send(Some(0), undeliverable())]);
    assert_eq!(passed().hear(lost(0)), [forget(), send(Some(2), undeliverable())]);
    let mut story = passed();
    let earlier_start = Event::PeerLost { peer: key(Some(2)), incarnation: Incarnation(0) };
    assert_eq!(story.hear(earlier_start), []);
    let said = story.hear(Event::Membership(membership(2, 3, &[Some(2)])));
    assert_eq!(said, [forget(), send(Some(0), undeliverable())]);
}

#[test]
fn nothing_is_held_for_ever() {
    let mut story = passed();
    let (at, reason) = story.stage.poll_timeout().unwrap();
    assert_eq!((at, reason), (NOW + Duration::from_secs(120), Reason::HoldExpires));
    let undeliverable = || refused(hop(Some(1)), Refusal::Undeliverable);
    let said = story.wait(at.since(NOW));
    assert_eq!(said, [forget(), send(Some(0), undeliverable()), send(Some(2), undeliverable())]);
    assert_eq!(story.stage.poll_timeout(), None);
}

#[test]
fn draining_finishes_what_is_held_and_takes_no_more() {
    let mut story = passed();
    assert_eq!(story.hear(Event::Drain), []);
    let more = forward_of(MicrobatchId(8), Purpose::Train, &[None, Some(0)]);
    assert!(matches!(story.receive(Some(0), more)[..], [Action::Send { .. }]));
    story.receive(Some(2), backward("gradient"));
    let said = story.complete(Done::Backwarded { gradient: "upward" });
    assert_eq!(said, [send(Some(0), backward("upward")), Action::Drained]);
    assert_eq!(story.hear(Event::Drain), []);
}

#[test]
fn an_executor_that_answers_something_else_costs_one_microbatch() {
    let mut story = Story::new(1, 3);
    assert_eq!(story.complete(forwarded()), []);
    story.receive(Some(0), forward(Purpose::Train, &[None, Some(0)]));
    let said = story.complete(Done::Backwarded { gradient: "?" });
    assert!(matches!(
        said[..],
        [Action::Send { message: Message::Refused { reason: Refusal::Device(_), .. }, .. }]
    ));
    assert_eq!((story.counts().unexpected, story.counts().refused, story.stage.held()), (2, 1, 0));
}

#[test]
fn every_microbatch_held_is_counted_once() {
    let mut story = passed();
    story.receive(Some(2), backward("gradient"));
    story.receive(Some(0), refused(hop(Some(0)), Refusal::NonFinite));
    assert_eq!(story.complete(Done::Backwarded { gradient: "late" }), []);
    let ends =
        |action: &&Action<Payload>| matches!(action, Action::Counted(Note::Done(_) | Note::Refused(..)));
    assert_eq!(story.said.iter().filter(ends).count(), 1);
    assert_eq!(story.stage.held(), 0);
}
