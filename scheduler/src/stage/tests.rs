//! Stories of single microbatches at one replica, told by what goes in and what comes out.

use super::*;
use crate::Attempt;
use crate::averaging::Round;
use crate::fixtures::{a, b, feeder, member, restarted};
use crate::router::{RouterFactory, UniformConfig};
use crate::{Duration, Span, StageIndex, WeightVersion};

type Payload = &'static str;

const ID: MicrobatchId = MicrobatchId(7);
const FIRST: Attempt = Attempt(0);
const SECOND: Attempt = Attempt(1);
const LOSS: Loss = Loss { sum: 3.5, tokens: 2 };
const NOW: Time = Time(1_000);
const ASK_AFTER: Duration = Duration::from_secs(3);

/// The feeder and `a` of every stage below `stages`.
fn line(stages: u16) -> Vec<Hop> {
    std::iter::once(feeder()).chain((0..stages).map(a)).collect()
}

/// One replica and everything it said.
struct Story {
    stage: Stage<Payload>,
    now: Time,
    version: u64,
    said: Vec<Action<Payload>>,
}

impl Story {
    /// `a(stage)`, with one replica of every other stage.
    fn new(stage: u16, stages: u16) -> Self {
        Self::with(stage, stages, |_| {})
    }

    fn with(stage: u16, stages: u16, adjust: impl FnOnce(&mut Config)) -> Self {
        let me = a(stage);
        let mut config = Config::new(me.peer, me.incarnation, StageIndex(stage), stages);
        adjust(&mut config);
        let stage = Stage::new(config, UniformConfig.build(1));
        let mut story = Self { stage, now: NOW, version: 0, said: Vec::new() };
        story.publish(&line(stages));
        story
    }

    /// The coordinator publishes a table; everyone in it is heard.
    fn publish(&mut self, members: &[Hop]) -> Vec<Action<Payload>> {
        self.version += 1;
        let members = members.iter().copied().map(member).collect();
        let mut said = self.hear(Event::Membership(Membership {
            version: self.version,
            members,
            ..Membership::default()
        }));
        said.extend(self.everyone_beats());
        said
    }

    /// Hands over an event; what follows, notes and heartbeats apart.
    fn hear(&mut self, event: Event<Payload>) -> Vec<Action<Payload>> {
        self.stage.handle(self.now, event);
        let all: Vec<_> = std::iter::from_fn(|| self.stage.poll_action()).collect();
        self.said.extend(all.iter().cloned());
        let aside = |action: &Action<Payload>| {
            matches!(action, Action::Counted(_) | Action::Send { message: Message::Beat(_), .. })
        };
        all.into_iter().filter(|action| !aside(action)).collect()
    }

    fn receive(&mut self, from: Hop, message: Message<Payload>) -> Vec<Action<Payload>> {
        self.hear(Event::Received { from: from.peer, incarnation: from.incarnation, message })
    }

    fn complete(&mut self, done: Done<Payload>) -> Vec<Action<Payload>> {
        self.complete_of(ID, done)
    }

    fn complete_of(&mut self, microbatch: MicrobatchId, done: Done<Payload>) -> Vec<Action<Payload>> {
        self.hear(Event::Completed(Completion { microbatch, done }))
    }

    fn lose(&mut self, hop: Hop) -> Vec<Action<Payload>> {
        self.hear(Event::PeerLost { peer: hop.peer, incarnation: hop.incarnation })
    }

    /// Time passes, second by second, while the neighbours beat.
    fn wait(&mut self, time: Duration) -> Vec<Action<Payload>> {
        let until = self.now + time;
        let mut said = Vec::new();
        while self.now < until {
            self.now = (self.now + Duration::from_secs(1)).min(until);
            said.extend(self.everyone_beats());
            said.extend(self.hear(Event::Timeout));
        }
        said
    }

    fn everyone_beats(&mut self) -> Vec<Action<Payload>> {
        let me = self.stage.config().hop();
        let next = self.stage.table().hops(self.stage.config().next_stage());
        let neighbours = next.into_iter().chain(self.stage.table().senders_to(me.stage.unwrap()));
        let beat = Message::Beat(Beat { credit: 8, ..Beat::default() });
        neighbours.collect::<Vec<_>>().into_iter().flat_map(|hop| self.receive(hop, beat.clone())).collect()
    }

    fn counts(&self) -> Counts {
        self.stage.counts()
    }
}

// --- What they say --------------------------------------------------------------------------------------------------

fn forward() -> Forward {
    Forward { id: ID, attempt: FIRST, purpose: Purpose::Train, holder: None, version: 4, code: "in" }
}

/// A forward whose fields matter one at a time.
#[derive(Clone, Copy)]
struct Forward {
    id: MicrobatchId,
    attempt: Attempt,
    purpose: Purpose,
    holder: Option<Hop>,
    version: u64,
    code: Payload,
}

impl Forward {
    /// A second sending of a training microbatch is one whose first was lost.
    fn by(self, route: &[Hop]) -> Message<Payload> {
        self.sent(route, self.attempt > FIRST && self.purpose == Purpose::Train)
    }

    fn sent(self, route: &[Hop], anew: bool) -> Message<Payload> {
        let Self { id: microbatch, attempt, purpose, holder, version, code } = self;
        let (version, route) = (WeightVersion(version), route.to_vec());
        Message::Forward { microbatch, attempt, purpose, anew, route, holder, version, ids: "ids", code }
    }

    /// What a replica makes of it.
    fn computed() -> Self {
        Self { version: 9, code: "out", ..forward() }
    }
}

fn backward(attempt: Attempt, path: &[Hop], gradient: Payload) -> Message<Payload> {
    Message::Backward { microbatch: ID, attempt, loss: LOSS, path: path.to_vec(), gradient }
}

fn holds(attempt: Attempt, holding: Holding) -> Message<Payload> {
    Message::Holds { microbatch: ID, attempt, holding }
}

fn passed_to(next: Hop) -> Message<Payload> {
    Message::Passed { microbatch: ID, attempt: FIRST, next }
}

fn ask(attempt: Attempt, route: &[Hop]) -> Message<Payload> {
    Message::Ask { microbatch: ID, attempt, route: route.to_vec() }
}

fn held(holder: Hop) -> Message<Payload> {
    Message::Held { microbatch: ID, holder }
}

fn claim(stage: u16) -> Action<Payload> {
    send(feeder(), Message::Claim { stage: StageIndex(stage), microbatches: vec![ID] })
}

fn granted(ids: &[MicrobatchId]) -> Message<Payload> {
    Message::Granted { granted: ids.to_vec(), denied: Vec::new() }
}

fn denied(ids: &[MicrobatchId]) -> Message<Payload> {
    Message::Granted { granted: Vec::new(), denied: ids.to_vec() }
}

/// Everything below 100 has its outcome.
fn ended() -> Message<Payload> {
    Message::Ended {
        spans: vec![Span { first: 0, below: 100, beyond: Vec::new() }],
        round: Round(0),
        over: false,
    }
}

fn refused(by: Hop, reason: Refusal) -> Action<Payload> {
    send(feeder(), Message::Refused { microbatch: ID, by, reason })
}

fn send(to: Hop, message: Message<Payload>) -> Action<Payload> {
    Action::Send { to: to.peer, message }
}

fn compute(id: MicrobatchId) -> Action<Payload> {
    Action::Execute(Job::Forward { microbatch: id, ids: "ids", code: "in" })
}

fn compute_back(granted: bool) -> Action<Payload> {
    Action::Execute(Job::Backward { microbatch: ID, gradient: "gradient", granted })
}

fn apply() -> Action<Payload> {
    Action::Execute(Job::Apply { microbatch: ID })
}

fn drop_gradients() -> Action<Payload> {
    Action::Execute(Job::Drop { microbatch: ID })
}

fn forget() -> Action<Payload> {
    Action::Execute(Job::Forget { microbatch: ID })
}

fn forwarded() -> Done<Payload> {
    Done::Forwarded { version: WeightVersion(9), code: "out" }
}

fn backwarded() -> Done<Payload> {
    Done::Backwarded { gradient: "upward" }
}

// --- Beginnings of stories: the middle replica of three ----------------------------------------------------------------

/// The microbatch is on its way to `a(2)`.
fn passed() -> Story {
    let mut story = Story::new(1, 3);
    story.receive(a(0), forward().by(&[feeder(), a(0)]));
    story.complete(forwarded());
    story
}

/// The gradient is back and in the executor.
fn computing_back() -> Story {
    let mut story = passed();
    story.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    story
}

/// The gradient is on its way up, the grant is awaited.
fn answered() -> Story {
    let mut story = computing_back();
    story.complete(backwarded());
    story
}

/// The gradient is on its way up and applied here.
fn applied() -> Story {
    let mut story = answered();
    story.receive(feeder(), granted(&[ID]));
    story.complete(Done::Applied);
    story
}

// --- The life of a microbatch -----------------------------------------------------------------------------------------

#[test]
fn a_middle_replica_passes_on_returns_to_where_it_came_from_and_applies() {
    let mut story = Story::new(1, 3);
    assert_eq!(story.receive(a(0), forward().by(&[feeder(), a(0)])), [compute(ID)]);
    let onward = Forward::computed().by(&[feeder(), a(0), a(1)]);
    assert_eq!(story.complete(forwarded()), [send(a(0), passed_to(a(2))), send(a(2), onward)]);
    assert_eq!(story.stage.slots_used(), 1);

    let said = story.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    assert_eq!(said, [compute_back(false), claim(1)]);
    assert_eq!(
        story.complete(backwarded()),
        [send(a(0), backward(FIRST, &[a(2), a(1)], "upward"))],
        "upstream does not wait for the grant"
    );
    assert_eq!(story.stage.slots_used(), 0);
    assert_eq!(story.receive(feeder(), granted(&[ID])), [apply()]);
    assert_eq!(story.complete(Done::Applied), []);
    assert_eq!((story.counts().applied, story.stage.held()), (1, 1));
}

#[test]
fn the_last_stage_answers_in_one_visit() {
    let mut story = Story::new(2, 3);
    let said = story.receive(a(1), forward().by(&[feeder(), a(0), a(1)]));
    let job = Job::LossAndBackward { microbatch: ID, ids: "ids", code: "in", granted: false };
    assert_eq!(said, [Action::Execute(job), claim(2)]);
    let said = story.complete(Done::LossAndBackward { loss: LOSS, gradient: "upward" });
    assert_eq!(said, [send(a(1), backward(FIRST, &[a(2)], "upward"))]);
}

#[test]
fn stage_0_tells_the_feeder_with_an_empty_gradient() {
    let mut story = Story::new(0, 1);
    story.receive(feeder(), forward().by(&[feeder()]));
    let said = story.complete(Done::LossAndBackward { loss: LOSS, gradient: "not the feeder's business" });
    assert_eq!(said, [send(feeder(), backward(FIRST, &[a(0)], ""))]);
}

#[test]
fn an_evaluation_goes_forward_only_and_the_last_stage_tells_the_feeder() {
    let evaluation = Forward { purpose: Purpose::EvaluateCut, attempt: Attempt(8), ..forward() };
    let job = |cut| Action::Execute(Job::Evaluate { microbatch: ID, ids: "ids", code: "in", cut });
    let mut story = Story::new(0, 2);
    assert_eq!(story.receive(feeder(), evaluation.by(&[feeder()])), [job(false)]);
    let code = Evaluation::Code { version: WeightVersion(9), code: "out" };
    let onward = Forward { version: 9, code: "out", ..evaluation }.by(&[feeder(), a(0)]);
    assert_eq!(story.complete(Done::Evaluated(code)), [send(a(1), onward)]);
    assert_eq!((story.stage.held(), story.stage.slots_used()), (0, 0));

    let mut last = Story::new(1, 2);
    assert_eq!(last.receive(a(0), evaluation.by(&[feeder(), a(0)])), [job(true)]);
    let evaluated = Message::Evaluated { microbatch: ID, attempt: Attempt(8), loss: LOSS };
    assert_eq!(last.complete(Done::Evaluated(Evaluation::Loss(LOSS))), [send(feeder(), evaluated)]);
    assert_eq!((last.stage.held(), last.counts().evaluated), (0, 1));
}

#[test]
fn the_executor_has_two_jobs_and_the_rest_waits_in_order() {
    let mut story = Story::new(0, 2);
    let mut given = Vec::new();
    for id in (0..4).map(MicrobatchId) {
        given.extend(story.receive(feeder(), Forward { id, ..forward() }.by(&[feeder()])));
    }
    assert_eq!(given, [compute(MicrobatchId(0)), compute(MicrobatchId(1))]);
    assert_eq!(given.len(), EXECUTOR_DEPTH);
    story.now = story.now + Duration::from_millis(3);
    let progress = story.stage.progress(story.now);
    assert_eq!((progress.queued, progress.oldest), (2, Duration::from_millis(3)));
    let said = story.complete_of(MicrobatchId(0), forwarded());
    assert!(said.contains(&compute(MicrobatchId(2))));
}

#[test]
fn what_was_sent_anew_is_computed_before_what_was_not() {
    let mut story = Story::new(1, 3);
    for (id, attempt) in [(1, FIRST), (2, FIRST), (3, FIRST), (4, SECOND)] {
        let arrival = Forward { id: MicrobatchId(id), attempt, ..forward() };
        story.receive(a(0), arrival.by(&[feeder(), a(0)]));
    }
    let said = story.complete_of(MicrobatchId(1), forwarded());
    assert!(said.contains(&compute(MicrobatchId(4))), "{said:?}");
    assert_eq!((story.stage.slots_used(), story.counts().restored), (3, 1));
}

// --- Who may apply it -------------------------------------------------------------------------------------------------

#[test]
fn a_grant_that_comes_before_the_job_goes_with_it() {
    let mut story = passed();
    let others = [MicrobatchId(8), MicrobatchId(9)];
    for id in others {
        story.receive(a(0), Forward { id, ..forward() }.by(&[feeder(), a(0)]));
    }
    assert_eq!(story.receive(a(2), backward(FIRST, &[a(2)], "gradient")), [claim(1)]);
    assert_eq!(story.receive(feeder(), granted(&[ID])), []);
    assert!(story.complete_of(others[0], forwarded()).contains(&compute_back(true)));
    assert_eq!(story.complete(backwarded()), [send(a(0), backward(FIRST, &[a(2), a(1)], "upward"))]);
    assert_eq!(story.counts().applied, 1);
}

#[test]
fn whoever_is_denied_is_a_relay() {
    let up = || send(a(0), backward(FIRST, &[a(2), a(1)], "upward"));
    let mut late = answered();
    assert_eq!(late.receive(feeder(), denied(&[ID])), [drop_gradients()]);

    let mut meanwhile = computing_back();
    assert_eq!(meanwhile.receive(feeder(), denied(&[ID])), []);
    assert_eq!(meanwhile.complete(backwarded()), [up(), drop_gradients()]);
    for story in [late, meanwhile] {
        assert_eq!((story.counts().relayed, story.counts().applied), (1, 0));
    }
}

#[test]
fn gradients_that_wait_for_their_grant_hold_back_others_but_no_forwards() {
    let mut story = passed();
    let other = MicrobatchId(8);
    story.receive(a(0), Forward { id: other, ..forward() }.by(&[feeder(), a(0)]));
    story.complete_of(other, forwarded());
    story.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    let gradient = Message::Backward {
        microbatch: other,
        attempt: FIRST,
        loss: LOSS,
        path: vec![a(2)],
        gradient: "gradient",
    };
    let said = story.receive(a(2), gradient);
    assert!(matches!(&said[..], [Action::Send { message: Message::Claim { .. }, .. }]), "{said:?}");
    let more = Forward { id: MicrobatchId(9), ..forward() };
    assert_eq!(story.receive(a(0), more.by(&[feeder(), a(0)])), [compute(MicrobatchId(9))]);
    story.complete(backwarded());
    let next = Job::Backward { microbatch: other, gradient: "gradient", granted: false };
    assert_eq!(story.receive(feeder(), denied(&[ID])), [drop_gradients(), Action::Execute(next)]);
}

#[test]
fn a_claim_is_repeated_until_it_is_answered_and_only_the_feeder_answers() {
    let mut story = answered();
    for stranger in [a(0), a(2), b(2)] {
        assert_eq!(story.receive(stranger, granted(&[ID])), []);
    }
    assert_eq!(story.wait(ASK_AFTER), [claim(1)]);
    assert_eq!(story.receive(feeder(), granted(&[ID])), [apply()]);
    assert_eq!(story.receive(feeder(), granted(&[ID])), []);
    assert_eq!(story.receive(feeder(), denied(&[ID])), []);
    story.complete(Done::Applied);
    assert_eq!(story.wait(ASK_AFTER), []);
}

#[test]
fn what_was_applied_here_is_never_claimed_again() {
    let mut story = applied();
    story.receive(feeder(), ended());
    assert_eq!(story.stage.held(), 0);
    story.stage.outcomes = Outcomes::default();
    story.receive(a(0), Forward { attempt: SECOND, ..forward() }.by(&[feeder(), a(0)]));
    story.complete(forwarded());
    let said = story.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    assert_eq!(said, [compute_back(false)]);
    assert!(story.complete(backwarded()).contains(&drop_gradients()));
    assert_eq!((story.counts().applied, story.counts().relayed), (1, 1));
}

// --- Retention --------------------------------------------------------------------------------------------------------

#[test]
fn the_gradient_is_kept_for_whoever_asks_until_the_outcome_is_announced() {
    let mut story = applied();
    story.publish(&[line(3), vec![b(0)]].concat());
    let again = |attempt| [send(b(0), backward(attempt, &[a(2), a(1)], "upward"))];
    assert_eq!(story.receive(b(0), ask(SECOND, &[feeder(), b(0)])), again(SECOND));
    assert_eq!(story.receive(b(0), Forward { ..forward() }.by(&[feeder(), b(0)])), again(FIRST));
    assert_eq!(story.receive(feeder(), ended()), []);
    assert_eq!(story.stage.held(), 0);
    assert_eq!(story.receive(b(0), ask(Attempt(2), &[feeder(), b(0)])), []);
    assert_eq!(story.receive(b(0), Forward { attempt: Attempt(3), ..forward() }.by(&[feeder(), b(0)])), []);
    assert_eq!((story.stage.held(), story.counts().late), (0, 1));
}

#[test]
fn the_end_frees_whatever_is_held() {
    let mut story = passed();
    assert_eq!(story.receive(feeder(), ended()), [forget()]);
    assert_eq!(story.stage.held(), 0);

    let mut story = Story::new(1, 3);
    story.receive(a(0), forward().by(&[feeder(), a(0)]));
    assert_eq!(story.receive(feeder(), ended()), []);
    assert_eq!((story.stage.held(), story.complete(forwarded())), (1, vec![forget()]));
    assert_eq!((story.stage.held(), story.counts().refused), (0, 0));

    let mut story = Story::new(1, 3);
    for id in [100, 101, 7].map(MicrobatchId) {
        story.receive(a(0), Forward { id, ..forward() }.by(&[feeder(), a(0)]));
    }
    assert_eq!(story.receive(feeder(), ended()), []);
    assert_eq!((story.stage.held(), story.stage.progress(NOW).queued), (2, 0));
}

#[test]
fn what_is_granted_is_applied_although_it_has_ended() {
    let mut story = answered();
    assert_eq!(story.receive(feeder(), ended()), []);
    assert_eq!(story.stage.held(), 1);
    assert_eq!(story.receive(feeder(), granted(&[ID])), [apply()]);
    story.complete(Done::Applied);
    assert_eq!((story.stage.held(), story.counts().applied), (0, 1));
}

#[test]
fn only_a_feeder_announces_outcomes() {
    let mut story = passed();
    for stranger in [a(0), a(2), b(0), restarted(feeder())] {
        assert_eq!(story.receive(stranger, ended()), []);
    }
    assert_eq!(story.stage.held(), 1);
}

// --- No room ----------------------------------------------------------------------------------------------------------

#[test]
fn a_full_replica_is_busy_but_takes_what_is_sent_anew_and_evaluations() {
    let mut story = Story::with(0, 2, |config| config.slots = 1);
    let from = [feeder()];
    story.receive(feeder(), Forward { id: MicrobatchId(1), ..forward() }.by(&from));
    assert_eq!(story.receive(feeder(), forward().by(&from)), [send(feeder(), holds(FIRST, Holding::Busy))]);
    assert_eq!((story.stage.held(), story.counts().busy), (1, 1));
    let anew = Forward { attempt: SECOND, ..forward() };
    assert_eq!(story.receive(feeder(), anew.by(&from)), [compute(ID)]);
    let id = MicrobatchId::evaluation(0);
    story.receive(feeder(), Forward { id, purpose: Purpose::Evaluate, ..forward() }.by(&from));
    assert_eq!((story.stage.held(), story.stage.slots_used(), story.counts().refused), (3, 1, 0));
}

#[test]
fn what_is_sent_anew_is_bounded_too() {
    let mut story = Story::with(0, 2, |config| config.slots = 1);
    for id in (0..9).map(MicrobatchId) {
        story.receive(feeder(), Forward { id, attempt: SECOND, ..forward() }.by(&[feeder()]));
    }
    assert_eq!((story.stage.held(), story.counts().busy), (RESTORED_SLOTS, 9 - RESTORED_SLOTS as u64));
}

#[test]
fn a_busy_neighbour_is_left_alone_until_it_beats() {
    let mut story = passed();
    assert_eq!(story.receive(a(2), holds(FIRST, Holding::Busy)), []);
    let again = Forward { attempt: SECOND, ..Forward::computed() }.sent(&[feeder(), a(0), a(1)], false);
    let said = story.receive(a(2), Message::Beat(Beat { credit: 1, ..Beat::default() }));
    assert_eq!(said, [send(a(0), passed_to(a(2))), send(a(2), again)]);
    assert_eq!(story.counts().lost, 0);
}

#[test]
fn nobody_gets_more_than_its_credit() {
    let mut story = Story::new(0, 2);
    story.receive(a(1), Message::Beat(Beat { credit: 1, ..Beat::default() }));
    let sent = |said: &[Action<Payload>]| {
        said.iter()
            .filter(|said| matches!(said, Action::Send { message: Message::Forward { .. }, .. }))
            .count()
    };
    for id in [MicrobatchId(8), ID] {
        story.receive(feeder(), Forward { id, ..forward() }.by(&[feeder()]));
    }
    assert_eq!(sent(&story.complete(forwarded())), 1);
    assert_eq!(sent(&story.complete_of(MicrobatchId(8), forwarded())), 0);
    let said = story.receive(a(1), backward(FIRST, &[a(1)], "gradient"));
    assert_eq!(sent(&said), 1);
}

/// Levels by sender as the latest heartbeats said.
fn levels(story: &Story) -> BTreeMap<PeerId, u32> {
    let beat = |action: &Action<Payload>| match action {
        Action::Send { to, message: Message::Beat(beat) } => Some((*to, beat.credit)),
        _ => None,
    };
    story.said.iter().filter_map(beat).collect()
}

#[test]
fn credits_follow_use_and_none_is_dealt_while_draining() {
    let mut story = Story::with(1, 3, |config| config.slots = 12);
    story.publish(&[line(3), vec![b(0)]].concat());
    for id in (0..8).map(MicrobatchId) {
        story.receive(a(0), Forward { id, ..forward() }.by(&[feeder(), a(0)]));
    }
    story.wait(Duration::from_secs(1));
    let dealt = levels(&story);
    let (often, seldom) = (dealt[&a(0).peer], dealt[&b(0).peer]);
    assert!(often > seldom && seldom >= 1 && often + seldom <= 12, "{dealt:?}");
    assert_eq!(dealt[&a(2).peer], 0, "nothing comes from downstream");
    story.hear(Event::Drain);
    story.wait(Duration::from_secs(1));
    assert_eq!(levels(&story)[&a(0).peer], 0);
}

#[test]
fn where_senders_outnumber_slots_they_take_turns() {
    let mut story = Story::with(1, 3, |config| config.slots = 1);
    story.publish(&[line(3), vec![b(0)]].concat());
    let mut turns = BTreeMap::new();
    for _ in 0..4 {
        story.wait(Duration::from_secs(1));
        let dealt = levels(&story);
        for sender in [a(0), b(0)] {
            *turns.entry(sender).or_insert(0) += dealt[&sender.peer];
        }
    }
    assert_eq!(turns, BTreeMap::from([(a(0), 2), (b(0), 2)]));
}

// --- Somebody is lost -------------------------------------------------------------------------------------------------

#[test]
fn what_a_lost_replica_had_goes_to_another_under_a_new_number() {
    let mut story = passed();
    story.publish(&[line(3), vec![b(2)]].concat());
    let again = Forward { attempt: SECOND, ..Forward::computed() }.by(&[feeder(), a(0), a(1)]);
    assert_eq!(story.lose(a(2)), [send(a(0), passed_to(b(2))), send(b(2), again)]);
    assert_eq!((story.counts().lost, story.counts().rerouted), (1, 1));
    assert_eq!(story.lose(a(2)), [], "once");
    let said = story.receive(b(2), backward(SECOND, &[b(2)], "gradient"));
    assert_eq!(said, [compute_back(false), claim(1)]);
}

#[test]
fn a_restart_is_somebody_else() {
    let mut story = passed();
    story.lose(restarted(a(2)));
    assert_eq!(story.counts().lost, 0);
    let again = Forward { attempt: SECOND, ..Forward::computed() }.by(&[feeder(), a(0), a(1)]);
    let said = story.publish(&[feeder(), a(0), a(1), restarted(a(2))]);
    assert_eq!(said, [send(a(0), passed_to(restarted(a(2)))), send(a(2), again)]);
    assert_eq!(story.receive(a(2), backward(FIRST, &[a(2)], "of the dead")), []);
    assert_eq!(story.counts().foreign, 1);
}

#[test]
fn the_first_gradient_wins_whoever_sends_it() {
    let mut story = passed();
    story.publish(&[line(3), vec![b(2)]].concat());
    story.lose(a(2));
    let said = story.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    assert_eq!(said, [compute_back(false), claim(1)]);
    assert_eq!(story.receive(b(2), backward(SECOND, &[b(2)], "second")), []);
    assert_eq!((story.counts().duplicate, story.counts().foreign), (1, 0));
}

#[test]
fn a_holder_without_upstream_tells_the_nearest_hop_that_lives() {
    let waiting = || {
        let mut story = Story::new(2, 4);
        story.receive(a(1), forward().by(&[feeder(), a(0), a(1)]));
        story
    };
    assert_eq!(waiting().lose(a(1)), [send(a(0), held(a(2)))]);
    let mut story = waiting();
    assert_eq!(story.publish(&[feeder(), b(0), b(1), a(2), a(3)]), [send(feeder(), held(a(2)))]);
}

#[test]
fn a_receipt_tells_the_successor_of_a_lost_replica_whom_to_ask() {
    let mut story = Story::new(0, 3);
    story.receive(feeder(), forward().by(&[feeder()]));
    story.complete(forwarded());
    assert_eq!(story.receive(a(1), passed_to(a(2))), []);
    story.publish(&[line(3), vec![b(1)]].concat());
    let anew = Forward { attempt: SECOND, holder: Some(a(2)), ..Forward::computed() };
    let said = story.lose(a(1));
    assert_eq!(said, [send(feeder(), passed_to(b(1))), send(b(1), anew.by(&[feeder(), a(0)]))]);

    let mut successor = Story::new(1, 3);
    let anew = Forward { code: "in", ..anew };
    assert_eq!(successor.receive(a(0), anew.by(&[feeder(), a(0)])), [compute(ID)]);
    let receipt = Message::Passed { microbatch: ID, attempt: SECOND, next: a(2) };
    let question = ask(FIRST, &[feeder(), a(0), a(1)]);
    assert_eq!(successor.complete(forwarded()), [send(a(0), receipt), send(a(2), question)]);
    assert_eq!((successor.counts().found, successor.counts().restored), (1, 1));
}

/// A replica that has asked `a(2)` whether it holds the microbatch.
fn asked() -> Story {
    let mut story = Story::new(1, 3);
    let anew = Forward { attempt: SECOND, holder: Some(a(2)), ..forward() };
    story.receive(a(0), anew.by(&[feeder(), a(0)]));
    story.complete(forwarded());
    story
}

#[test]
fn a_holder_that_was_asked_is_waited_for_and_nothing_is_sent_anew() {
    let mut story = asked();
    assert_eq!(story.receive(a(2), holds(FIRST, Holding::Held)), []);
    let said = story.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    assert_eq!(said, [compute_back(false), claim(1)]);
}

#[test]
fn only_a_denial_or_a_loss_of_the_holder_permits_sending_anew() {
    let anew = |to| {
        let attempt = SECOND;
        send(to, Forward { attempt, ..Forward::computed() }.by(&[feeder(), a(0), a(1)]))
    };
    let mut denied = asked();
    let said = denied.receive(a(2), holds(FIRST, Holding::Missing));
    assert!(said.contains(&anew(a(2))), "{said:?}");

    let mut lost = asked();
    lost.publish(&[line(3), vec![b(2)]].concat());
    let said = lost.lose(a(2));
    assert!(said.contains(&anew(b(2))), "{said:?}");

    let mut other = asked();
    other.publish(&[line(3), vec![b(2)]].concat());
    assert_eq!(other.receive(b(2), holds(FIRST, Holding::Missing)), []);
    assert_eq!(other.counts().duplicate, 1);
}

#[test]
fn held_is_passed_on_to_who_has_it_anew() {
    let mut story = Story::new(0, 3);
    story.receive(feeder(), forward().by(&[feeder()]));
    story.complete(forwarded());
    assert_eq!(story.receive(a(2), held(a(2))), [send(a(1), held(a(2)))]);
    for nonsense in [a(0), feeder(), restarted(a(2))] {
        assert_eq!(story.receive(a(2), held(nonsense)), []);
    }
    assert_eq!(story.receive(b(2), held(a(2))), []);
    assert_eq!(story.counts().unknown, 4);
}

#[test]
fn held_that_comes_in_time_spares_sending_anew() {
    let mut story = Story::new(1, 3);
    let anew = Forward { attempt: SECOND, ..forward() };
    story.receive(a(0), anew.by(&[feeder(), a(0)]));
    assert_eq!(story.receive(a(2), held(a(2))), []);
    let said = story.complete(forwarded());
    assert!(said.contains(&send(a(2), ask(FIRST, &[feeder(), a(0), a(1)]))), "{said:?}");
}

#[test]
fn who_asks_is_the_upstream_from_then_on() {
    let mut story = passed();
    story.publish(&[line(3), vec![b(0)]].concat());
    let said = story.receive(b(0), ask(Attempt(5), &[feeder(), b(0)]));
    let receipt = Message::Passed { microbatch: ID, attempt: Attempt(5), next: a(2) };
    assert_eq!(said, [send(b(0), holds(Attempt(5), Holding::Held)), send(b(0), receipt)]);
    story.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    let said = story.complete(backwarded());
    assert_eq!(said, [send(b(0), backward(Attempt(5), &[a(2), a(1)], "upward"))]);
}

#[test]
fn what_is_not_here_is_missing() {
    let mut story = Story::new(1, 3);
    let said = story.receive(a(0), ask(FIRST, &[feeder(), a(0)]));
    assert_eq!(said, [send(a(0), holds(FIRST, Holding::Missing))]);
    assert_eq!(story.receive(b(0), ask(FIRST, &[feeder(), b(0)])), []);
    assert_eq!(story.counts().foreign, 1);
}

#[test]
fn whoever_is_silent_about_a_microbatch_is_asked_again_and_again() {
    let mut story = passed();
    let question = send(a(2), ask(FIRST, &[feeder(), a(0), a(1)]));
    for _ in 0..9 {
        assert_eq!(story.wait(ASK_AFTER), std::slice::from_ref(&question));
    }
    assert_eq!(story.stage.poll_timeout().map(|(_, reason)| reason), Some(Reason::BeatDue));
}

#[test]
fn whoever_holds_a_microbatch_is_asked_less_and_less_often_until_it_is_sent_anew() {
    let mut story = passed();
    let question = |attempt| send(a(2), ask(attempt, &[feeder(), a(0), a(1)]));
    assert_eq!(story.wait(ASK_AFTER), [question(FIRST)]);
    for times in [2, 4, 8, 8] {
        assert_eq!(story.receive(a(2), holds(FIRST, Holding::Held)), []);
        assert_eq!(story.wait(ASK_AFTER * times - Duration::from_secs(1)), []);
        assert_eq!(story.wait(Duration::from_secs(1)), [question(FIRST)]);
    }
    story.receive(a(2), holds(FIRST, Holding::Missing));
    assert_eq!(story.wait(ASK_AFTER), [question(SECOND)]);
}

// --- Those who do not belong ------------------------------------------------------------------------------------------

#[test]
fn repetitions_change_nothing() {
    let mut story = passed();
    let said = story.receive(a(0), forward().by(&[feeder(), a(0)]));
    assert_eq!(said, [send(a(0), holds(FIRST, Holding::Held)), send(a(0), passed_to(a(2)))]);
    story.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    assert_eq!(story.receive(a(2), backward(FIRST, &[a(2)], "gradient")), []);
    assert_eq!((story.counts().duplicate, story.stage.held()), (2, 1));
}

#[test]
fn strangers_are_ignored() {
    let mut story = passed();
    for (from, path) in [(b(2), b(2)), (a(0), a(0)), (restarted(a(2)), restarted(a(2)))] {
        assert_eq!(story.receive(from, backward(FIRST, &[path], "forged")), []);
    }
    assert_eq!(story.receive(a(2), backward(SECOND, &[a(2)], "of another sending")), []);
    assert_eq!(story.counts().foreign, 4);
    assert_eq!(story.receive(a(2), Message::Claim { stage: StageIndex(2), microbatches: vec![ID] }), []);
    assert_eq!((story.counts().foreign, story.stage.held()), (5, 1));
}

#[test]
fn a_gradient_of_something_unknown_is_counted() {
    let mut story = Story::new(1, 3);
    assert_eq!(story.receive(a(2), backward(FIRST, &[a(2)], "gradient")), []);
    assert_eq!(story.counts().unknown, 1);
    story.receive(feeder(), ended());
    assert_eq!(story.receive(a(2), backward(FIRST, &[a(2)], "gradient")), []);
    assert_eq!((story.counts().unknown, story.counts().late), (1, 1));
}

#[test]
fn a_route_that_leads_elsewhere_is_refused() {
    let routes: [&[Hop]; 6] =
        [&[], &[feeder()], &[a(0), a(0)], &[feeder(), a(0), a(0)], &[feeder(), a(1)], &[feeder(), b(0)]];
    for route in routes {
        let mut story = Story::new(1, 3);
        let said = story.receive(a(0), forward().by(route));
        let tells = route.first() == Some(&feeder());
        assert_eq!(said.len(), usize::from(tells), "{route:?}");
        for said in said {
            let Action::Send { to, message: Message::Refused { by, reason, .. } } = said else { panic!() };
            assert_eq!((to, by), (feeder().peer, a(1)));
            assert!(matches!(reason, Refusal::Malformed(_)));
        }
        assert_eq!((story.stage.held(), story.counts().malformed), (0, 1));
    }
}

#[test]
fn a_path_that_leads_elsewhere_is_ignored() {
    let paths: [&[Hop]; 5] = [&[], &[a(2), a(2)], &[a(2), a(1)], &[a(1)], &[b(2)]];
    for path in paths {
        let mut story = passed();
        assert_eq!(story.receive(a(2), backward(FIRST, path, "gradient")), [], "{path:?}");
        assert_eq!(story.counts().foreign, 1);
    }
}

#[test]
fn an_adoption_by_a_wrong_route_changes_nothing() {
    let mut story = passed();
    story.publish(&[line(3), vec![b(0)]].concat());
    for route in [vec![], vec![feeder()], vec![feeder(), a(0)]] {
        assert_eq!(story.receive(b(0), ask(SECOND, &route)), [], "{route:?}");
    }
    assert_eq!(story.counts().malformed, 3);
    story.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    let said = story.complete(backwarded());
    assert_eq!(said, [send(a(0), backward(FIRST, &[a(2), a(1)], "upward"))]);
}

#[test]
fn a_forward_that_is_faster_than_the_table_waits_for_it() {
    let mut story = Story::new(1, 3);
    assert_eq!(story.receive(b(0), forward().by(&[feeder(), b(0)])), []);
    assert_eq!(story.stage.poll_timeout(), Some((NOW + EARLY_PATIENCE, Reason::EarlyExpires)));
    assert_eq!(story.publish(&[line(3), vec![b(0)]].concat()), [compute(ID)]);

    let mut story = Story::new(1, 3);
    for id in (0..=EARLY_MAX as u64).map(MicrobatchId) {
        story.receive(b(0), Forward { id, ..forward() }.by(&[feeder(), b(0)]));
    }
    assert_eq!(story.counts().foreign, 1);
    story.wait(EARLY_PATIENCE);
    assert_eq!((story.counts().foreign, story.stage.held()), (EARLY_MAX as u64 + 1, 0));
}

// --- What goes wrong here ---------------------------------------------------------------------------------------------

#[test]
fn a_refusal_is_told_again_until_its_end_is_announced() {
    let mut story = Story::new(1, 3);
    story.receive(a(0), forward().by(&[feeder(), a(0)]));
    let told = || vec![refused(a(1), Refusal::NonFinite)];
    assert_eq!(story.complete(Done::Refused(Refusal::NonFinite)), told());
    assert_eq!((story.stage.slots_used(), story.stage.held()), (0, 1));
    assert_eq!(story.wait(ASK_AFTER), told());
    assert_eq!(
        story.receive(a(0), forward().by(&[feeder(), a(0)])),
        [told(), vec![send(a(0), holds(FIRST, Holding::Held))]].concat()
    );
    assert_eq!(story.receive(feeder(), ended()), []);
    assert_eq!((story.stage.held(), story.counts().refused, story.wait(ASK_AFTER)), (0, 1, vec![]));
}

#[test]
fn an_activation_nobody_takes_for_long_is_undeliverable() {
    let emptied = || {
        let mut story = Story::new(1, 3);
        story.publish(&line(2));
        story.receive(a(0), forward().by(&[feeder(), a(0)]));
        assert_eq!(story.complete(forwarded()), []);
        story
    };
    let patience = emptied().stage.config().route_patience;
    let mut story = emptied();
    assert_eq!(story.wait(patience - Duration::from_secs(1)), []);
    let said = story.publish(&line(3));
    assert!(matches!(said[1], Action::Send { message: Message::Forward { .. }, .. }));

    let mut story = emptied();
    assert_eq!(story.wait(patience), [forget(), refused(a(1), Refusal::Undeliverable)]);
}

#[test]
fn an_executor_that_answers_something_else_costs_one_microbatch() {
    let mut story = Story::new(1, 3);
    assert_eq!(story.complete(forwarded()), []);
    story.receive(a(0), forward().by(&[feeder(), a(0)]));
    let said = story.complete(backwarded());
    assert!(matches!(
        &said[..],
        [Action::Send { message: Message::Refused { reason: Refusal::Device(_), .. }, .. }]
    ));
    assert_eq!((story.counts().unexpected, story.counts().refused), (2, 1));
}

// --- The end ----------------------------------------------------------------------------------------------------------

#[test]
fn draining_finishes_what_is_held_and_takes_no_more() {
    let mut story = applied();
    assert_eq!(story.hear(Event::Drain), []);
    let more = Forward { id: MicrobatchId(8), ..forward() }.by(&[feeder(), a(0)]);
    let busy = Message::Holds { microbatch: MicrobatchId(8), attempt: FIRST, holding: Holding::Busy };
    assert_eq!(story.receive(a(0), more), [send(a(0), busy)]);
    assert_eq!(story.receive(feeder(), ended()), [Action::Drained]);
    assert_eq!(story.hear(Event::Drain), []);
}

#[test]
fn the_end_of_the_run_applies_nothing_that_was_not_granted() {
    assert_eq!(passed().hear(Event::Finished), [forget(), Action::Drained]);
    assert_eq!(answered().hear(Event::Finished), [drop_gradients(), Action::Drained]);
    let mut story = answered();
    story.receive(feeder(), granted(&[ID]));
    assert_eq!(story.hear(Event::Finished), []);
    assert_eq!(story.complete(Done::Applied), [Action::Drained]);
}

#[test]
fn after_a_suspension_nothing_is_said_before_the_coordinator_confirms() {
    let mut story = Story::new(1, 3);
    story.receive(a(0), forward().by(&[feeder(), a(0)]));
    story.now = story.now + Duration::from_secs(60);
    assert_eq!(story.complete(forwarded()), [Action::Confirm]);
    assert_eq!(story.hear(Event::Timeout), []);
    let beats_before = story.said.len();
    let said = story.hear(Event::Confirmed);
    let onward = Forward::computed().by(&[feeder(), a(0), a(1)]);
    assert_eq!(said, [send(a(0), passed_to(a(2))), send(a(2), onward)]);
    assert!(story.said.len() > beats_before + said.len(), "heartbeats were withheld too");
}

// --- Another feeder takes over --------------------------------------------------------------------------------------

fn heir() -> Hop {
    Hop { stage: None, peer: PeerId([0xAA; 32]), incarnation: Incarnation(4) }
}

/// `a(1)` of three stages holds `ID` and has claimed it; then the feeder is gone and there is a successor.
fn inherited() -> (Story, Vec<Action<Payload>>) {
    let mut story = Story::new(1, 3);
    story.receive(a(0), forward().by(&line(1)));
    story.complete(Done::Forwarded { version: WeightVersion(9), code: "out" });
    story.receive(a(2), backward(FIRST, &[a(2)], "back"));
    let lease = crate::Lease { first: MicrobatchId(0), count: 50, epoch: 1 };
    let mut members: Vec<_> = [heir(), a(0), a(1), a(2)].map(member).to_vec();
    members.sort_by_key(|member| member.peer);
    let successions = vec![crate::Succession { lease, feeder: heir().peer }];
    story.version += 1;
    let table = Membership { version: story.version, members, successions };
    let said = story.hear(Event::Membership(table));
    (story, said)
}

fn adopt() -> Message<Payload> {
    Message::Adopt { range: MicrobatchId(0), epoch: 1, from: MicrobatchId(0) }
}

fn inventory(said: Vec<Action<Payload>>) -> Option<crate::Inventory> {
    said.into_iter().find_map(|action| match action {
        Action::Send { to, message: Message::Inventory(inventory) } => {
            assert_eq!(to, heir().peer);
            Some(inventory)
        }
        _ => None,
    })
}

#[test]
fn a_successor_is_asked_for_the_grant_and_the_former_feeder_is_not_believed() {
    let (mut story, said) = inherited();
    let claim = Message::Claim { stage: StageIndex(1), microbatches: vec![ID] };
    assert_eq!(said, [send(heir(), claim)]);
    story.receive(feeder(), granted(&[ID]));
    let item = |story: &mut Story| inventory(story.receive(heir(), adopt())).unwrap().items.remove(0);
    assert_eq!(item(&mut story).granted, None);
    story.receive(heir(), granted(&[ID]));
    assert_eq!(item(&mut story).granted, Some(true));
}

#[test]
fn an_inventory_tells_what_is_held_and_what_is_in_doubt() {
    use crate::recovery_report::{Item, Stock};
    let (mut story, _) = inherited();
    let item = |doubted| Item { microbatch: ID, granted: None, stock: Stock::Held, doubted };
    let told = inventory(story.receive(heir(), adopt())).unwrap();
    assert_eq!(
        (told.stage, told.next, told.ended, told.items),
        (StageIndex(1), None, vec![], vec![item(vec![])])
    );
    let mut members: Vec<_> = [heir(), a(0), a(1)].map(member).to_vec();
    members.sort_by_key(|member| member.peer);
    let successions = story.stage.table().successions().to_vec();
    story.version += 1;
    story.hear(Event::Membership(Membership { version: story.version, members, successions }));
    let told = inventory(story.receive(heir(), adopt())).unwrap();
    assert_eq!(told.items, [item(vec![StageIndex(2)])]);
}

#[test]
fn only_the_successor_in_the_table_hears_what_is_known() {
    let (mut story, _) = inherited();
    let later = Message::Adopt { range: MicrobatchId(0), epoch: 2, from: MicrobatchId(0) };
    assert_eq!(inventory(story.receive(heir(), later)), None);
    assert_eq!(inventory(story.receive(a(0), adopt())), None);
    assert_eq!(inventory(story.receive(feeder(), adopt())), None);
}
