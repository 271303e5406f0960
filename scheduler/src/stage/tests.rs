//! Tests of single microbatches at one replica, by its events and actions.

use super::*;
use crate::fixtures::{a, b, feeder, leases, member, restarted};
use crate::recovery_report::{Item, Possession, RecoveryReport};
use crate::router::{RouterFactory, UniformConfig};
use crate::{
    AckRange, Block, Duration, Heartbeat, Incarnation, Lease, LeasedRange, Membership, PeerId, RouteKey,
    RouteProof, StageIndex, WeightVersion,
};

type Payload = &'static str;

const ID: MicrobatchId = MicrobatchId(7);
const FIRST: Attempt = Attempt(0);
const SECOND: Attempt = Attempt(1);
const LOSS: Loss = Loss { sum: 3.5, tokens: 2 };
const NOW: Time = Time(1_000);
const STATUS_AFTER: Duration = Duration::from_secs(3);

/// The feeder and `a` of every stage below `stages`.
fn line(stages: u16) -> Vec<Hop> {
    std::iter::once(feeder()).chain((0..stages).map(a)).collect()
}

/// One replica and all its actions.
struct Harness {
    stage: Stage<Payload>,
    now: Time,
    version: u64,
    said: Vec<Action<Payload>>,
}

impl Harness {
    /// `a(stage)`, with one replica of every other stage.
    fn new(stage: u16, stages: u16) -> Self {
        Self::with(stage, stages, |_| {})
    }

    fn with(stage: u16, stages: u16, adjust: impl FnOnce(&mut Config)) -> Self {
        let me = a(stage);
        let mut config = Config::new(me.instance, StageIndex(stage), stages);
        adjust(&mut config);
        let stage = Stage::new(config, UniformConfig.build(1));
        let mut harness = Self { stage, now: NOW, version: 0, said: Vec::new() };
        harness.publish(&line(stages));
        harness
    }

    /// The coordinator publishes a table; every neighbour in it sends a heartbeat.
    fn publish(&mut self, members: &[Hop]) -> Vec<Action<Payload>> {
        self.publish_leased(members, leases())
    }

    fn publish_leased(&mut self, members: &[Hop], leases: Vec<LeasedRange>) -> Vec<Action<Payload>> {
        self.version += 1;
        let members = members.iter().copied().map(member).collect();
        let table = Membership { version: self.version, members, leases, ..Membership::default() };
        let mut said = self.hear(Event::Membership(table.into()));
        said.extend(self.neighbours_beat());
        said
    }

    /// Handles an event. Returns its actions without notes, heartbeats and claims.
    fn hear(&mut self, event: Event<Payload>) -> Vec<Action<Payload>> {
        self.stage.handle(self.now, event);
        let all: Vec<_> = std::iter::from_fn(|| self.stage.poll_action()).map(without_keys).collect();
        self.said.extend(all.iter().cloned());
        let aside = |action: &Action<Payload>| {
            matches!(action, Action::Counted(_))
                || matches!(message_of(action), Some(Message::Heartbeat(_) | Message::Claim { .. }))
        };
        all.into_iter().filter(|action| !aside(action)).collect()
    }

    fn receive(&mut self, from: Hop, envelope: impl Into<Envelope<Payload>>) -> Vec<Action<Payload>> {
        self.hear(Event::Received { from: from.instance, envelope: envelope.into() })
    }

    fn complete(&mut self, outcome: JobOutcome<Payload>) -> Vec<Action<Payload>> {
        self.complete_of(ID, outcome)
    }

    fn complete_of(
        &mut self,
        microbatch: MicrobatchId,
        outcome: JobOutcome<Payload>,
    ) -> Vec<Action<Payload>> {
        self.hear(Event::Completed(JobReply { microbatch, outcome }))
    }

    fn lose(&mut self, hop: Hop) -> Vec<Action<Payload>> {
        self.hear(Event::PeerLost(hop.instance))
    }

    /// Time passes, second by second, while the neighbours beat.
    fn wait(&mut self, time: Duration) -> Vec<Action<Payload>> {
        let until = self.now + time;
        let mut said = Vec::new();
        while self.now < until {
            self.now = (self.now + Duration::from_secs(1)).min(until);
            said.extend(self.neighbours_beat());
            said.extend(self.hear(Event::Timeout));
        }
        said
    }

    fn neighbours_beat(&mut self) -> Vec<Action<Payload>> {
        let table = self.stage.table();
        let neighbours: Vec<Hop> = table.downstream().union(table.upstream()).copied().collect();
        let beat = Message::Heartbeat(Heartbeat { credit: 8, ..Heartbeat::default() });
        neighbours.into_iter().flat_map(|hop| self.receive(hop, beat.clone())).collect()
    }

    /// Number of claims of `ID` so far.
    fn claims(&self) -> usize {
        let claims = |action: &&Action<Payload>| matches!(message_of(action), Some(Message::Claim { claimed, .. }) if claimed.iter().any(|one| one.microbatch == ID));
        self.said.iter().filter(claims).count()
    }

    fn counts(&self) -> Counts {
        self.stage.counts()
    }
}

/// The same action as if all keys were zeros.
fn without_keys(mut action: Action<Payload>) -> Action<Payload> {
    if let Action::Send { envelope, .. } = &mut action {
        match &mut envelope.message {
            Message::Forward { key, .. } | Message::StatusRequest { key, .. } => *key = RouteKey::default(),
            Message::Claim { claimed, .. } => {
                claimed.iter_mut().for_each(|proof| proof.key = RouteKey::default());
            }
            Message::Refused { proof, .. } | Message::Evaluated { proof, .. } => {
                proof.key = RouteKey::default();
            }
            _ => {}
        }
    }
    action
}

/// The proof of `a(stage)` on the route through all `a` before it, without its key.
fn proof(microbatch: MicrobatchId, stage: u16) -> RouteProof {
    RouteProof { microbatch, route: line(stage), key: RouteKey::default() }
}

/// The message of a `Send` action.
fn message_of(action: &Action<Payload>) -> Option<&Message> {
    if let Action::Send { envelope, .. } = action { Some(&envelope.message) } else { None }
}

// --- Messages and jobs ----------------------------------------------------------------------------------------------

fn forward() -> Forward {
    Forward { id: ID, attempt: FIRST, purpose: Purpose::Train, holder: None, version: 4, activation: "in" }
}

/// A forward whose fields matter one at a time.
#[derive(Clone, Copy)]
struct Forward {
    id: MicrobatchId,
    attempt: Attempt,
    purpose: Purpose,
    holder: Option<Hop>,
    version: u64,
    activation: Payload,
}

impl Forward {
    /// The second attempt of a training microbatch is a retry: the first was lost.
    fn by(self, route: &[Hop]) -> Envelope<Payload> {
        self.sent(route, self.attempt > FIRST && self.purpose == Purpose::Train)
    }

    fn sent(self, route: &[Hop], is_retry: bool) -> Envelope<Payload> {
        let Self { id: microbatch, attempt, purpose, holder: downstream_holder, version, activation } = self;
        let (version, route, key) = (WeightVersion(version), route.to_vec(), RouteKey::default());
        let message = Message::Forward {
            microbatch,
            attempt,
            purpose,
            is_retry,
            route,
            key,
            downstream_holder,
            version,
        };
        Envelope { message, ids: "ids", payload: activation }
    }

    /// The forward that a replica computes from [`forward`].
    fn computed() -> Self {
        Self { version: 9, activation: "out", ..forward() }
    }
}

fn backward(attempt: Attempt, path: &[Hop], gradient: Payload) -> Envelope<Payload> {
    backward_of(ID, attempt, path, gradient)
}

fn backward_of(id: MicrobatchId, attempt: Attempt, path: &[Hop], gradient: Payload) -> Envelope<Payload> {
    let message = Message::Backward { microbatch: id, attempt, loss: LOSS, path: path.to_vec() };
    Envelope::with_payload(message, gradient)
}

fn status(attempt: Attempt, status: Status) -> Message {
    Message::StatusReply { microbatch: ID, attempt, status }
}

fn forwarded_to(next: Hop) -> Message {
    Message::Forwarded { microbatch: ID, attempt: FIRST, next }
}

fn status_request(attempt: Attempt, route: &[Hop]) -> Message {
    Message::StatusRequest { microbatch: ID, attempt, route: route.to_vec(), key: RouteKey::default() }
}

fn orphan(holder: Hop) -> Message {
    Message::OrphanNotice { microbatch: ID, holder }
}

fn claim(stage: u16) -> Action<Payload> {
    send(feeder(), claim_of(stage, vec![ID], Vec::new()))
}

fn claim_of(stage: u16, ids: Vec<MicrobatchId>, forfeited: Vec<MicrobatchId>) -> Message {
    let claimed = ids.into_iter().map(|id| proof(id, stage)).collect();
    Message::Claim { stage: StageIndex(stage), claimed, forfeited }
}

fn granted(ids: &[MicrobatchId]) -> Message {
    Message::ClaimReply { granted: ids.to_vec(), denied: Vec::new(), forged: Vec::new() }
}

fn denied(ids: &[MicrobatchId]) -> Message {
    Message::ClaimReply { granted: Vec::new(), denied: ids.to_vec(), forged: Vec::new() }
}

/// Every id below 100 has its outcome.
fn ended() -> Message {
    ended_below(100)
}

fn refused(by: Hop, reason: Refusal) -> Action<Payload> {
    send(feeder(), Message::Refused { proof: proof(ID, by.stage.unwrap().0), by, reason })
}

fn send(to: Hop, envelope: impl Into<Envelope<Payload>>) -> Action<Payload> {
    Action::Send { to: to.peer(), envelope: envelope.into() }
}

fn compute(id: MicrobatchId) -> Action<Payload> {
    Action::Execute(Job::Forward { microbatch: id, ids: "ids", activation: "in" })
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

fn forwarded() -> JobOutcome<Payload> {
    JobOutcome::Forwarded { version: WeightVersion(9), activation: "out" }
}

fn backwarded() -> JobOutcome<Payload> {
    JobOutcome::Backwarded { gradient: "upward" }
}

// --- Initial states: the middle replica of three -----------------------------------------------------------------------

/// The microbatch is on its way to `a(2)`.
fn handed_on() -> Harness {
    let mut harness = Harness::new(1, 3);
    harness.receive(a(0), forward().by(&[feeder(), a(0)]));
    harness.complete(forwarded());
    harness
}

/// The executor computes the gradients of the microbatch.
fn computing_back() -> Harness {
    let mut harness = handed_on();
    harness.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    harness
}

/// The gradient is on its way up, the grant is awaited.
fn returned() -> Harness {
    let mut harness = computing_back();
    harness.complete(backwarded());
    harness
}

/// The gradient is on its way up and applied here.
fn applied() -> Harness {
    let mut harness = returned();
    harness.receive(feeder(), granted(&[ID]));
    harness.complete(JobOutcome::Applied);
    harness
}

// --- The life of a microbatch -----------------------------------------------------------------------------------------

/// The receivers of heartbeats among these actions.
fn greeted(harness: &mut Harness, event: Event<Payload>) -> Vec<PeerId> {
    harness.said.clear();
    harness.hear(event);
    let sent = harness.said.iter().filter_map(|action| match action {
        Action::Send { to, envelope } => matches!(envelope.message, Message::Heartbeat(_)).then_some(*to),
        _ => None,
    });
    sent.collect()
}

#[test]
fn a_change_of_the_table_is_told_to_new_neighbours_only() {
    let mut harness = Harness::new(1, 4);
    let mut change = |members: &[Hop]| {
        harness.version += 1;
        let members = members.iter().copied().map(member).collect();
        let version = harness.version;
        greeted(
            &mut harness,
            Event::Membership(Membership { version, members, ..Membership::default() }.into()),
        )
    };
    let mut members = line(4);
    members.push(b(3));
    assert_eq!(change(&members), [], "no neighbour");
    members.push(b(2));
    assert_eq!(change(&members), [b(2).peer()]);
    members.push(b(0));
    assert_eq!(change(&members), [b(0).peer()]);
}

#[test]
fn a_sender_that_begins_learns_its_credit_and_the_others_are_left_alone() {
    let mut harness = Harness::new(1, 3);
    harness.publish(&[line(3), vec![b(0)]].concat());
    let envelope = forward().by(&[feeder(), a(0)]);
    let first = greeted(&mut harness, Event::Received { from: a(0).instance, envelope });
    assert_eq!(first, [a(0).peer()]);
    let envelope = Forward { id: MicrobatchId(8), ..forward() }.by(&[feeder(), a(0)]);
    assert_eq!(greeted(&mut harness, Event::Received { from: a(0).instance, envelope }), []);
}

#[test]
fn a_middle_replica_hands_on_returns_the_gradient_and_applies() {
    let mut harness = Harness::new(1, 3);
    assert_eq!(harness.receive(a(0), forward().by(&[feeder(), a(0)])), [compute(ID)]);
    assert!(harness.said.contains(&claim(1)), "the answer is there before the gradient");
    let onward = Forward::computed().by(&[feeder(), a(0), a(1)]);
    assert_eq!(harness.complete(forwarded()), [send(a(0), forwarded_to(a(2))), send(a(2), onward)]);
    assert_eq!(harness.stage.slots_used(), 1);

    let said = harness.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    assert_eq!(said, [compute_back(false)]);
    assert_eq!(
        harness.complete(backwarded()),
        [send(a(0), backward(FIRST, &[a(2), a(1)], "upward"))],
        "upstream does not wait for the grant"
    );
    assert_eq!(harness.stage.slots_used(), 0);
    assert_eq!(harness.receive(feeder(), granted(&[ID])), [apply()]);
    assert_eq!(harness.complete(JobOutcome::Applied), []);
    assert_eq!((harness.counts().applied, harness.stage.held()), (1, 1));
}

#[test]
fn the_last_stage_computes_in_one_pass() {
    let mut harness = Harness::new(2, 3);
    let said = harness.receive(a(1), forward().by(&[feeder(), a(0), a(1)]));
    let job = Job::LossAndBackward { microbatch: ID, ids: "ids", activation: "in", granted: false };
    assert_eq!(said, [Action::Execute(job)]);
    assert!(harness.said.contains(&claim(2)));
    let said = harness.complete(JobOutcome::LossAndBackward { loss: LOSS, gradient: "upward" });
    assert_eq!(said, [send(a(1), backward(FIRST, &[a(2)], "upward"))]);
}

#[test]
fn stage_0_tells_the_feeder_with_an_empty_gradient() {
    let mut harness = Harness::new(0, 1);
    harness.receive(feeder(), forward().by(&[feeder()]));
    let said =
        harness.complete(JobOutcome::LossAndBackward { loss: LOSS, gradient: "not the feeder's business" });
    assert_eq!(said, [send(feeder(), backward(FIRST, &[a(0)], ""))]);
}

#[test]
fn an_evaluation_goes_forward_only_and_the_last_stage_tells_the_feeder() {
    let evaluation = Forward { purpose: Purpose::EvaluateCut, attempt: Attempt(8), ..forward() };
    let job = |cut| Action::Execute(Job::Evaluate { microbatch: ID, ids: "ids", activation: "in", cut });
    let mut harness = Harness::new(0, 2);
    assert_eq!(harness.receive(feeder(), evaluation.by(&[feeder()])), [job(false)]);
    let activation = Evaluation::Activation { version: WeightVersion(9), activation: "out" };
    let onward = Forward { version: 9, activation: "out", ..evaluation }.by(&[feeder(), a(0)]);
    assert_eq!(harness.complete(JobOutcome::Evaluated(activation)), [send(a(1), onward)]);
    assert_eq!((harness.stage.held(), harness.stage.slots_used()), (0, 0));

    let mut last = Harness::new(1, 2);
    assert_eq!(last.receive(a(0), evaluation.by(&[feeder(), a(0)])), [job(true)]);
    let evaluated = Message::Evaluated { proof: proof(ID, 1), attempt: Attempt(8), loss: LOSS };
    assert_eq!(last.complete(JobOutcome::Evaluated(Evaluation::Loss(LOSS))), [send(feeder(), evaluated)]);
    assert_eq!((last.stage.held(), last.counts().evaluated), (0, 1));
}

#[test]
fn the_executor_has_two_jobs_and_the_rest_waits_in_order() {
    let mut harness = Harness::new(0, 2);
    let mut given = Vec::new();
    for id in (0..4).map(MicrobatchId) {
        given.extend(harness.receive(feeder(), Forward { id, ..forward() }.by(&[feeder()])));
    }
    assert_eq!(given, [compute(MicrobatchId(0)), compute(MicrobatchId(1))]);
    assert_eq!(given.len(), EXECUTOR_DEPTH);
    harness.now = harness.now + Duration::from_millis(3);
    let progress = harness.stage.progress(harness.now);
    assert_eq!((progress.queued, progress.oldest), (2, Duration::from_millis(3)));
    let said = harness.complete_of(MicrobatchId(0), forwarded());
    assert!(said.contains(&compute(MicrobatchId(2))));
}

#[test]
fn a_retry_is_computed_before_others() {
    let mut harness = Harness::new(1, 3);
    for (id, attempt) in [(1, FIRST), (2, FIRST), (3, FIRST), (4, SECOND)] {
        let arrival = Forward { id: MicrobatchId(id), attempt, ..forward() };
        harness.receive(a(0), arrival.by(&[feeder(), a(0)]));
    }
    let said = harness.complete_of(MicrobatchId(1), forwarded());
    assert!(said.contains(&compute(MicrobatchId(4))), "{said:?}");
    assert_eq!((harness.stage.slots_used(), harness.counts().recovered), (3, 1));
}

// --- Grants -------------------------------------------------------------------------------------------------

#[test]
fn a_grant_that_comes_before_the_job_goes_with_it() {
    let mut harness = handed_on();
    let others = [MicrobatchId(8), MicrobatchId(9)];
    for id in others {
        harness.receive(a(0), Forward { id, ..forward() }.by(&[feeder(), a(0)]));
    }
    assert_eq!(harness.receive(a(2), backward(FIRST, &[a(2)], "gradient")), []);
    assert_eq!(harness.receive(feeder(), granted(&[ID])), []);
    assert!(harness.complete_of(others[0], forwarded()).contains(&compute_back(true)));
    assert_eq!(harness.complete(backwarded()), [send(a(0), backward(FIRST, &[a(2), a(1)], "upward"))]);
    assert_eq!(harness.counts().applied, 1);
}

#[test]
fn a_denied_replica_is_a_relay() {
    let up = || send(a(0), backward(FIRST, &[a(2), a(1)], "upward"));
    let mut late = returned();
    assert_eq!(late.receive(feeder(), denied(&[ID])), [drop_gradients()]);

    let mut meanwhile = computing_back();
    assert_eq!(meanwhile.receive(feeder(), denied(&[ID])), []);
    assert_eq!(meanwhile.complete(backwarded()), [up(), drop_gradients()]);
    for harness in [late, meanwhile] {
        assert_eq!((harness.counts().relayed, harness.counts().applied), (1, 0));
    }
}

#[test]
fn gradients_that_wait_for_their_grant_hold_back_others_but_no_forwards() {
    let mut harness = handed_on();
    let other = MicrobatchId(8);
    harness.receive(a(0), Forward { id: other, ..forward() }.by(&[feeder(), a(0)]));
    harness.complete_of(other, forwarded());
    harness.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    let heard = harness.receive(a(2), backward_of(other, FIRST, &[a(2)], "gradient"));
    assert_eq!(heard, []);
    let more = Forward { id: MicrobatchId(9), ..forward() };
    assert_eq!(harness.receive(a(0), more.by(&[feeder(), a(0)])), [compute(MicrobatchId(9))]);
    harness.complete(backwarded());
    let next = Job::Backward { microbatch: other, gradient: "gradient", granted: false };
    assert_eq!(harness.receive(feeder(), denied(&[ID])), [drop_gradients(), Action::Execute(next)]);
}

#[test]
fn a_claim_is_repeated_until_it_is_answered_and_only_the_feeder_answers() {
    let mut harness = returned();
    for stranger in [a(0), a(2), b(2)] {
        assert_eq!(harness.receive(stranger, granted(&[ID])), []);
    }
    assert_eq!(harness.claims(), 1);
    harness.wait(STATUS_AFTER);
    assert_eq!(harness.claims(), 2);
    assert_eq!(harness.receive(feeder(), granted(&[ID])), [apply()]);
    assert_eq!(harness.receive(feeder(), granted(&[ID])), []);
    assert_eq!(harness.receive(feeder(), denied(&[ID])), []);
    harness.complete(JobOutcome::Applied);
    harness.wait(STATUS_AFTER);
    assert_eq!(harness.claims(), 2);
}

#[test]
fn a_microbatch_applied_here_is_never_claimed_again() {
    let mut harness = applied();
    harness.receive(feeder(), ended());
    assert_eq!(harness.stage.held(), 0);
    harness.stage.outcomes = Outcomes::default();
    harness.receive(a(0), Forward { attempt: SECOND, ..forward() }.by(&[feeder(), a(0)]));
    harness.complete(forwarded());
    let said = harness.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    assert_eq!(said, [compute_back(false)]);
    assert!(harness.complete(backwarded()).contains(&drop_gradients()));
    assert_eq!((harness.counts().applied, harness.counts().relayed), (1, 1));
}

// --- Retention --------------------------------------------------------------------------------------------------------

#[test]
fn the_gradient_is_kept_until_the_outcome_is_announced() {
    let mut harness = applied();
    harness.publish(&[line(3), vec![b(0)]].concat());
    let again = |attempt| [send(b(0), backward(attempt, &[a(2), a(1)], "upward"))];
    assert_eq!(harness.receive(b(0), status_request(SECOND, &[feeder(), b(0)])), again(SECOND));
    assert_eq!(harness.receive(b(0), Forward { ..forward() }.by(&[feeder(), b(0)])), again(FIRST));
    assert_eq!(harness.receive(feeder(), ended()), []);
    assert_eq!(harness.stage.held(), 0);
    assert_eq!(harness.receive(b(0), status_request(Attempt(2), &[feeder(), b(0)])), []);
    assert_eq!(harness.receive(b(0), Forward { attempt: Attempt(3), ..forward() }.by(&[feeder(), b(0)])), []);
    assert_eq!((harness.stage.held(), harness.counts().late), (0, 1));
}

#[test]
fn an_outcome_frees_a_microbatch_in_every_phase() {
    let mut harness = handed_on();
    assert_eq!(harness.receive(feeder(), ended()), [forget()]);
    assert_eq!(harness.stage.held(), 0);

    let mut harness = Harness::new(1, 3);
    harness.receive(a(0), forward().by(&[feeder(), a(0)]));
    assert_eq!(harness.receive(feeder(), ended()), []);
    assert_eq!((harness.stage.held(), harness.complete(forwarded())), (1, vec![forget()]));
    assert_eq!((harness.stage.held(), harness.counts().refused), (0, 0));

    let mut harness = Harness::new(1, 3);
    for id in [100, 101, 7].map(MicrobatchId) {
        harness.receive(a(0), Forward { id, ..forward() }.by(&[feeder(), a(0)]));
    }
    assert_eq!(harness.receive(feeder(), ended()), []);
    assert_eq!((harness.stage.held(), harness.stage.progress(NOW).queued), (2, 0));
}

#[test]
fn granted_gradients_are_applied_after_the_outcome() {
    let mut harness = returned();
    assert_eq!(harness.receive(feeder(), ended()), []);
    assert_eq!(harness.stage.held(), 1);
    assert_eq!(harness.receive(feeder(), granted(&[ID])), [apply()]);
    harness.complete(JobOutcome::Applied);
    assert_eq!((harness.stage.held(), harness.counts().applied), (0, 1));
}

#[test]
fn only_a_feeder_announces_outcomes() {
    let mut harness = handed_on();
    for stranger in [a(0), a(2), b(0), restarted(feeder())] {
        assert_eq!(harness.receive(stranger, ended()), []);
    }
    assert_eq!(harness.stage.held(), 1);
}

// --- No room ----------------------------------------------------------------------------------------------------------

#[test]
fn a_full_replica_is_busy_but_takes_retries_and_evaluations() {
    let mut harness = Harness::with(0, 2, |config| config.slots = 1);
    let from = [feeder()];
    harness.receive(feeder(), Forward { id: MicrobatchId(1), ..forward() }.by(&from));
    assert_eq!(harness.receive(feeder(), forward().by(&from)), [send(feeder(), status(FIRST, Status::Busy))]);
    assert_eq!((harness.stage.held(), harness.counts().busy), (1, 1));
    let retry = Forward { attempt: SECOND, ..forward() };
    assert_eq!(harness.receive(feeder(), retry.by(&from)), [compute(ID)]);
    let id = MicrobatchId::evaluation(Block(0), 0);
    harness.receive(feeder(), Forward { id, purpose: Purpose::Evaluate, ..forward() }.by(&from));
    assert_eq!((harness.stage.held(), harness.stage.slots_used(), harness.counts().refused), (3, 1, 0));
}

#[test]
fn retries_are_bounded_too() {
    let mut harness = Harness::with(0, 2, |config| config.slots = 1);
    for id in (0..9).map(MicrobatchId) {
        harness.receive(feeder(), Forward { id, attempt: SECOND, ..forward() }.by(&[feeder()]));
    }
    assert_eq!(
        (harness.stage.held(), harness.counts().busy),
        (RETRIES_PER_SLOT, 9 - RETRIES_PER_SLOT as u64)
    );
}

#[test]
fn a_busy_neighbour_is_left_alone_until_it_beats() {
    let mut harness = handed_on();
    assert_eq!(harness.receive(a(2), status(FIRST, Status::Busy)), []);
    let again = Forward { attempt: SECOND, ..Forward::computed() }.sent(&[feeder(), a(0), a(1)], false);
    let said = harness.receive(a(2), Message::Heartbeat(Heartbeat { credit: 1, ..Heartbeat::default() }));
    assert_eq!(said, [send(a(0), forwarded_to(a(2))), send(a(2), again)]);
    assert_eq!(harness.counts().lost, 0);
}

#[test]
fn a_full_send_queue_holds_an_activation_back_and_is_no_loss() {
    let mut harness = handed_on();
    let full = |message| Event::SendQueueFull { to: a(2).peer(), message };
    let sent = Forward::computed().sent(&[feeder(), a(0), a(1)], false);
    assert_eq!(harness.hear(full(sent.message.clone())), []);
    let again = Forward { attempt: SECOND, ..Forward::computed() }.sent(&[feeder(), a(0), a(1)], false);
    let said = harness.receive(a(2), Message::Heartbeat(Heartbeat { credit: 1, ..Heartbeat::default() }));
    assert_eq!(said, [send(a(0), forwarded_to(a(2))), send(a(2), again)], "no retry: it takes a slot there");
    assert_eq!(harness.hear(full(sent.message)), [], "of an earlier attempt");
    assert_eq!((harness.counts().lost, harness.counts().retried), (0, 0));
}

#[test]
fn a_gradient_that_a_full_send_queue_did_not_take_is_sent_with_the_next_heartbeat() {
    let mut harness = returned();
    let gradient = backward(FIRST, &[a(2), a(1)], "gradient up");
    let message = gradient.message.clone();
    harness.hear(Event::SendQueueFull { to: a(0).peer(), message });
    let gradients = |said: &[Action<Payload>]| {
        said.iter().filter(|action| matches!(message_of(action), Some(Message::Backward { .. }))).count()
    };
    assert_eq!(gradients(&harness.wait(Duration::from_secs(1))), 1);
    assert_eq!(gradients(&harness.wait(Duration::from_secs(1))), 0);
}

#[test]
fn a_neighbour_whose_long_message_arrives_is_alive_without_a_heartbeat() {
    let mut harness = Harness::new(1, 3);
    for _ in 0..20 {
        harness.now = harness.now + Duration::from_secs(1);
        harness.receive(a(2), Message::Heartbeat(Heartbeat::default()));
        harness.hear(Event::Arriving(a(0).instance));
    }
    assert_eq!(harness.counts().lost, 0);
    for _ in 0..20 {
        harness.now = harness.now + Duration::from_secs(1);
        harness.receive(a(2), Message::Heartbeat(Heartbeat::default()));
    }
    assert_eq!(harness.counts().lost, 1);
}

#[test]
fn no_replica_gets_more_than_its_credit() {
    let mut harness = Harness::new(0, 2);
    harness.receive(a(1), Message::Heartbeat(Heartbeat { credit: 1, ..Heartbeat::default() }));
    let sent = |actions: &[Action<Payload>]| {
        actions.iter().filter(|action| matches!(message_of(action), Some(Message::Forward { .. }))).count()
    };
    for id in [MicrobatchId(8), ID] {
        harness.receive(feeder(), Forward { id, ..forward() }.by(&[feeder()]));
    }
    assert_eq!(sent(&harness.complete(forwarded())), 1);
    assert_eq!(sent(&harness.complete_of(MicrobatchId(8), forwarded())), 0);
    let said = harness.receive(a(1), backward(FIRST, &[a(1)], "gradient"));
    assert_eq!(sent(&said), 1);
}

/// Levels by sender in the latest heartbeats.
fn levels(harness: &Harness) -> BTreeMap<PeerId, u32> {
    let credit = |action: &Action<Payload>| match (action, message_of(action)) {
        (Action::Send { to, .. }, Some(Message::Heartbeat(heartbeat))) => Some((*to, heartbeat.credit)),
        _ => None,
    };
    harness.said.iter().filter_map(credit).collect()
}

#[test]
fn credits_follow_use_and_none_is_dealt_while_draining() {
    let mut harness = Harness::with(1, 3, |config| config.slots = 12);
    harness.publish(&[line(3), vec![b(0)]].concat());
    for id in (0..8).map(MicrobatchId) {
        harness.receive(a(0), Forward { id, ..forward() }.by(&[feeder(), a(0)]));
    }
    harness.wait(Duration::from_secs(1));
    let dealt = levels(&harness);
    let (often, seldom) = (dealt[&a(0).peer()], dealt[&b(0).peer()]);
    assert!(often > seldom && seldom >= 1 && often + seldom <= 12, "{dealt:?}");
    assert_eq!(dealt[&a(2).peer()], 0, "nothing comes from downstream");
    harness.hear(Event::Drain);
    harness.wait(Duration::from_secs(1));
    assert_eq!(levels(&harness)[&a(0).peer()], 0);
}

#[test]
fn where_senders_outnumber_slots_they_take_turns() {
    let mut harness = Harness::with(1, 3, |config| config.slots = 1);
    harness.publish(&[line(3), vec![b(0)]].concat());
    let mut turns = BTreeMap::new();
    for _ in 0..4 {
        harness.wait(Duration::from_secs(1));
        let dealt = levels(&harness);
        for sender in [a(0), b(0)] {
            *turns.entry(sender).or_insert(0) += dealt[&sender.peer()];
        }
    }
    assert_eq!(turns, BTreeMap::from([(a(0), 2), (b(0), 2)]));
}

// --- A peer is lost -------------------------------------------------------------------------------------------------

#[test]
fn a_microbatch_of_a_lost_replica_goes_to_another_under_a_new_number() {
    let mut harness = handed_on();
    harness.publish(&[line(3), vec![b(2)]].concat());
    let again = Forward { attempt: SECOND, ..Forward::computed() }.by(&[feeder(), a(0), a(1)]);
    assert_eq!(harness.lose(a(2)), [send(a(0), forwarded_to(b(2))), send(b(2), again)]);
    assert_eq!((harness.counts().lost, harness.counts().retried), (1, 1));
    assert_eq!(harness.lose(a(2)), [], "once");
    let said = harness.receive(b(2), backward(SECOND, &[b(2)], "gradient"));
    assert_eq!(said, [compute_back(false)]);
}

#[test]
fn a_restart_is_another_instance() {
    let mut harness = handed_on();
    harness.lose(restarted(a(2)));
    assert_eq!(harness.counts().lost, 0);
    let again = Forward { attempt: SECOND, ..Forward::computed() }.by(&[feeder(), a(0), a(1)]);
    let said = harness.publish(&[feeder(), a(0), a(1), restarted(a(2))]);
    assert_eq!(said, [send(a(0), forwarded_to(restarted(a(2)))), send(a(2), again)]);
    assert_eq!(harness.receive(a(2), backward(FIRST, &[a(2)], "of the dead")), []);
    assert_eq!(harness.counts().foreign, 1);
}

#[test]
fn the_first_gradient_wins_from_any_replica() {
    let mut harness = handed_on();
    harness.publish(&[line(3), vec![b(2)]].concat());
    harness.lose(a(2));
    let said = harness.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    assert_eq!(said, [compute_back(false)]);
    assert_eq!(harness.receive(b(2), backward(SECOND, &[b(2)], "second")), []);
    assert_eq!((harness.counts().duplicate, harness.counts().foreign), (1, 0));
}

#[test]
fn a_holder_without_upstream_tells_the_nearest_hop_that_lives() {
    let waiting = || {
        let mut harness = Harness::new(2, 4);
        harness.receive(a(1), forward().by(&[feeder(), a(0), a(1)]));
        harness
    };
    assert_eq!(waiting().lose(a(1)), [send(a(0), orphan(a(2)))]);
    let mut harness = waiting();
    assert_eq!(harness.publish(&[feeder(), b(0), b(1), a(2), a(3)]), [send(feeder(), orphan(a(2)))]);
}

#[test]
fn a_receipt_tells_the_replacement_of_a_lost_replica_which_holder_to_ask() {
    let mut harness = Harness::new(0, 3);
    harness.receive(feeder(), forward().by(&[feeder()]));
    harness.complete(forwarded());
    assert_eq!(harness.receive(a(1), forwarded_to(a(2))), []);
    harness.publish(&[line(3), vec![b(1)]].concat());
    let retry = Forward { attempt: SECOND, holder: Some(a(2)), ..Forward::computed() };
    let said = harness.lose(a(1));
    assert_eq!(said, [send(feeder(), forwarded_to(b(1))), send(b(1), retry.by(&[feeder(), a(0)]))]);

    let mut replacement = Harness::new(1, 3);
    let retry = Forward { activation: "in", ..retry };
    assert_eq!(replacement.receive(a(0), retry.by(&[feeder(), a(0)])), [compute(ID)]);
    let receipt = Message::Forwarded { microbatch: ID, attempt: SECOND, next: a(2) };
    let question = status_request(FIRST, &[feeder(), a(0), a(1)]);
    assert_eq!(replacement.complete(forwarded()), [send(a(0), receipt), send(a(2), question)]);
    assert_eq!((replacement.counts().found, replacement.counts().recovered), (1, 1));
}

#[test]
fn a_holder_that_was_replaced_before_the_forward_came_is_not_asked() {
    let mut harness = Harness::new(1, 3);
    harness.publish(&[feeder(), a(0), a(1), restarted(a(2))]);
    let retry = Forward { attempt: SECOND, holder: Some(a(2)), ..forward() };
    harness.receive(a(0), retry.by(&[feeder(), a(0)]));
    let said = harness.complete(forwarded());
    let onward = Forward::computed().by(&[feeder(), a(0), a(1)]);
    assert!(said.contains(&send(restarted(a(2)), onward)), "{said:?}");
}

/// A replica that has asked `a(2)` whether it holds the microbatch.
fn asked() -> Harness {
    let mut harness = Harness::new(1, 3);
    let retry = Forward { attempt: SECOND, holder: Some(a(2)), ..forward() };
    harness.receive(a(0), retry.by(&[feeder(), a(0)]));
    harness.complete(forwarded());
    harness
}

#[test]
fn a_holder_that_was_asked_is_waited_for_without_a_retry() {
    let mut harness = asked();
    assert_eq!(harness.receive(a(2), status(FIRST, Status::Held)), []);
    let said = harness.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    assert_eq!(said, [compute_back(false)]);
}

#[test]
fn only_a_denial_or_a_loss_of_the_holder_permits_a_retry() {
    let retry = |to| {
        let attempt = SECOND;
        send(to, Forward { attempt, ..Forward::computed() }.by(&[feeder(), a(0), a(1)]))
    };
    let mut denied = asked();
    let said = denied.receive(a(2), status(FIRST, Status::Missing));
    assert!(said.contains(&retry(a(2))), "{said:?}");

    let mut lost = asked();
    lost.publish(&[line(3), vec![b(2)]].concat());
    let said = lost.lose(a(2));
    assert!(said.contains(&retry(b(2))), "{said:?}");

    let mut other = asked();
    other.publish(&[line(3), vec![b(2)]].concat());
    assert_eq!(other.receive(b(2), status(FIRST, Status::Missing)), []);
    assert_eq!(other.counts().duplicate, 1);
}

#[test]
fn an_orphan_notice_is_passed_on_to_the_replica_that_has_the_retry() {
    let mut harness = Harness::new(0, 3);
    harness.receive(feeder(), forward().by(&[feeder()]));
    harness.complete(forwarded());
    assert_eq!(harness.receive(a(2), orphan(a(2))), [send(a(1), orphan(a(2)))]);
    for nonsense in [a(0), feeder(), restarted(a(2))] {
        assert_eq!(harness.receive(a(2), orphan(nonsense)), []);
    }
    assert_eq!(harness.receive(b(2), orphan(a(2))), []);
    assert_eq!(harness.counts().unknown, 4);
}

#[test]
fn an_orphan_notice_that_comes_in_time_spares_a_retry() {
    let mut harness = Harness::new(1, 3);
    let retry = Forward { attempt: SECOND, ..forward() };
    harness.receive(a(0), retry.by(&[feeder(), a(0)]));
    assert_eq!(harness.receive(a(2), orphan(a(2))), []);
    let said = harness.complete(forwarded());
    assert!(said.contains(&send(a(2), status_request(FIRST, &[feeder(), a(0), a(1)]))), "{said:?}");
}

#[test]
fn a_peer_that_asks_gets_the_gradient() {
    let mut harness = handed_on();
    harness.publish(&[line(3), vec![b(0)]].concat());
    let said = harness.receive(b(0), status_request(Attempt(5), &[feeder(), b(0)]));
    let receipt = Message::Forwarded { microbatch: ID, attempt: Attempt(5), next: a(2) };
    assert_eq!(said, [send(b(0), status(Attempt(5), Status::Held)), send(b(0), receipt)]);
    harness.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    let said = harness.complete(backwarded());
    assert!(said.contains(&send(b(0), backward(Attempt(5), &[a(2), a(1)], "upward"))), "{said:?}");
}

#[test]
fn a_microbatch_that_is_not_here_is_missing() {
    let mut harness = Harness::new(1, 3);
    let said = harness.receive(a(0), status_request(FIRST, &[feeder(), a(0)]));
    assert_eq!(said, [send(a(0), status(FIRST, Status::Missing))]);
    assert_eq!(harness.receive(b(0), status_request(FIRST, &[feeder(), b(0)])), []);
    assert_eq!(harness.counts().foreign, 1);
}

#[test]
fn a_neighbour_that_answers_no_request_has_lost_the_microbatch() {
    let mut harness = handed_on();
    let question = send(a(2), status_request(FIRST, &[feeder(), a(0), a(1)]));
    for _ in 0..5 {
        assert_eq!(harness.wait(STATUS_AFTER), std::slice::from_ref(&question));
    }
    let retry = Forward { attempt: SECOND, ..Forward::computed() }.by(&[feeder(), a(0), a(1)]);
    assert!(harness.wait(STATUS_AFTER).contains(&send(a(2), retry)));
}

#[test]
fn a_neighbour_that_holds_a_microbatch_is_asked_less_and_less_often_and_then_keeps_it_no_longer() {
    let mut harness = handed_on();
    harness.receive(feeder(), granted(&[ID]));
    let question = |attempt| send(a(2), status_request(attempt, &[feeder(), a(0), a(1)]));
    assert_eq!(harness.wait(STATUS_AFTER), [question(FIRST)]);
    for times in [2, 4] {
        assert_eq!(harness.receive(a(2), status(FIRST, Status::Held)), []);
        assert_eq!(harness.wait(STATUS_AFTER * times - Duration::from_secs(1)), []);
        assert_eq!(harness.wait(Duration::from_secs(1)), [question(FIRST)]);
    }
    let retry = Forward { attempt: SECOND, ..Forward::computed() }.by(&[feeder(), a(0), a(1)]);
    let said = harness.receive(a(2), status(FIRST, Status::Held));
    assert!(said.contains(&send(a(2), retry)), "it was kept too long: {said:?}");
    assert_eq!(harness.wait(STATUS_AFTER), [question(SECOND)]);
}

// --- Strangers and repetitions ------------------------------------------------------------------------------------------

#[test]
fn repetitions_change_nothing() {
    let mut harness = handed_on();
    let said = harness.receive(a(0), forward().by(&[feeder(), a(0)]));
    assert_eq!(said, [send(a(0), status(FIRST, Status::Held)), send(a(0), forwarded_to(a(2)))]);
    harness.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    assert_eq!(harness.receive(a(2), backward(FIRST, &[a(2)], "gradient")), []);
    assert_eq!((harness.counts().duplicate, harness.stage.held()), (2, 1));
}

#[test]
fn strangers_are_ignored() {
    let mut harness = handed_on();
    for (from, path) in [(b(2), b(2)), (a(0), a(0)), (restarted(a(2)), restarted(a(2)))] {
        assert_eq!(harness.receive(from, backward(FIRST, &[path], "forged")), []);
    }
    assert_eq!(harness.receive(a(2), backward(SECOND, &[a(2)], "of another attempt")), []);
    assert_eq!(harness.counts().foreign, 4);
    assert_eq!(harness.receive(a(2), claim_of(2, vec![ID], Vec::new())), []);
    assert_eq!((harness.counts().foreign, harness.stage.held()), (5, 1));
}

#[test]
fn a_gradient_of_an_unknown_microbatch_is_counted() {
    let mut harness = Harness::new(1, 3);
    assert_eq!(harness.receive(a(2), backward(FIRST, &[a(2)], "gradient")), []);
    assert_eq!(harness.counts().unknown, 1);
    harness.receive(feeder(), ended());
    assert_eq!(harness.receive(a(2), backward(FIRST, &[a(2)], "gradient")), []);
    assert_eq!((harness.counts().unknown, harness.counts().late), (1, 1));
}

#[test]
fn a_route_that_leads_elsewhere_is_refused() {
    let routes: [&[Hop]; 6] =
        [&[], &[feeder()], &[a(0), a(0)], &[feeder(), a(0), a(0)], &[feeder(), a(1)], &[feeder(), b(0)]];
    for route in routes {
        let mut harness = Harness::new(1, 3);
        let said = harness.receive(a(0), forward().by(route));
        let tells = route.first() == Some(&feeder());
        assert_eq!(said.len(), usize::from(tells), "{route:?}");
        for action in &said {
            let Some(Message::Refused { by, reason, .. }) = message_of(action) else { panic!("{said:?}") };
            assert_eq!(*by, a(1));
            assert!(matches!(reason, Refusal::Malformed(_)));
            assert!(matches!(action, Action::Send { to, .. } if *to == feeder().peer()));
        }
        assert_eq!((harness.stage.held(), harness.counts().malformed), (0, 1));
    }
}

#[test]
fn a_forward_of_an_id_that_no_feeder_has_is_never_computed() {
    let mut harness = Harness::new(1, 3);
    let stranger = Hop::feeder(Instance::new(PeerId([77; 32]), Incarnation(1)));
    let id = MicrobatchId(Block(5).first().0);
    assert_eq!(harness.receive(a(0), Forward { id, ..forward() }.by(&[stranger, a(0)])), []);
    harness.wait(PARKED_TIMEOUT);
    assert_eq!((harness.stage.held(), harness.counts().foreign), (0, 1));
    let said = harness.receive(a(0), forward().by(&[feeder(), a(0)]));
    assert_eq!(said, [compute(ID)], "it holds no other microbatch back");
}

#[test]
fn a_forward_is_claimed_from_the_feeder_that_has_its_id() {
    let mut harness = Harness::new(1, 3);
    let stranger = Hop::feeder(Instance::new(PeerId([77; 32]), Incarnation(1)));
    harness.receive(a(0), forward().by(&[stranger, a(0)]));
    assert!(harness.said.contains(&claim(1)), "{:?}", harness.said);
}

#[test]
fn a_feeder_ends_no_microbatch_of_another() {
    let mut harness = Harness::new(1, 3);
    let other = Hop::feeder(Instance::new(PeerId([77; 32]), Incarnation(1)));
    harness.publish(&[line(3), vec![other]].concat());
    harness.receive(a(0), forward().by(&[feeder(), a(0)]));
    harness.receive(other, ended());
    assert!(harness.stage.holds(ID));
    harness.complete(forwarded());
    harness.receive(feeder(), ended());
    assert!(!harness.stage.holds(ID));
}

#[test]
fn a_path_that_leads_elsewhere_is_ignored() {
    let paths: [&[Hop]; 5] = [&[], &[a(2), a(2)], &[a(2), a(1)], &[a(1)], &[b(2)]];
    for path in paths {
        let mut harness = handed_on();
        assert_eq!(harness.receive(a(2), backward(FIRST, path, "gradient")), [], "{path:?}");
        assert_eq!(harness.counts().foreign, 1);
    }
}

#[test]
fn a_status_request_with_a_wrong_route_changes_nothing() {
    let mut harness = handed_on();
    harness.publish(&[line(3), vec![b(0)]].concat());
    for route in [vec![], vec![feeder()], vec![feeder(), a(0)]] {
        assert_eq!(harness.receive(b(0), status_request(SECOND, &route)), [], "{route:?}");
    }
    assert_eq!(harness.counts().malformed, 3);
    harness.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    let said = harness.complete(backwarded());
    assert_eq!(said, [send(a(0), backward(FIRST, &[a(2), a(1)], "upward"))]);
}

#[test]
fn a_forward_that_is_faster_than_the_table_waits_for_it() {
    let mut harness = Harness::new(1, 3);
    assert_eq!(harness.receive(b(0), forward().by(&[feeder(), b(0)])), []);
    assert_eq!(harness.stage.poll_timeout(), Some((NOW + PARKED_TIMEOUT, Reason::ParkedExpires)));
    assert_eq!(harness.publish(&[line(3), vec![b(0)]].concat()), [compute(ID)]);

    let mut harness = Harness::new(1, 3);
    for id in (0..=PARKED_MAX as u64).map(MicrobatchId) {
        harness.receive(b(0), Forward { id, ..forward() }.by(&[feeder(), b(0)]));
    }
    assert_eq!(harness.counts().foreign, 1);
    harness.wait(PARKED_TIMEOUT);
    assert_eq!((harness.counts().foreign, harness.stage.held()), (PARKED_MAX as u64 + 1, 0));
}

// --- Refusals ---------------------------------------------------------------------------------------------------------

#[test]
fn a_refusal_is_told_again_until_its_end_is_announced() {
    let mut harness = Harness::new(1, 3);
    harness.receive(a(0), forward().by(&[feeder(), a(0)]));
    let told = || vec![refused(a(1), Refusal::NonFinite)];
    assert_eq!(harness.complete(JobOutcome::Refused(Refusal::NonFinite)), told());
    assert_eq!((harness.stage.slots_used(), harness.stage.held()), (0, 1));
    assert_eq!(harness.wait(STATUS_AFTER), told());
    assert_eq!(
        harness.receive(a(0), forward().by(&[feeder(), a(0)])),
        [told(), vec![send(a(0), status(FIRST, Status::Held))]].concat()
    );
    assert_eq!(harness.receive(feeder(), ended()), []);
    assert_eq!((harness.stage.held(), harness.counts().refused, harness.wait(STATUS_AFTER)), (0, 1, vec![]));
}

#[test]
fn an_activation_that_no_replica_takes_for_long_is_undeliverable() {
    let emptied = || {
        let mut harness = Harness::new(1, 3);
        harness.publish(&line(2));
        harness.receive(a(0), forward().by(&[feeder(), a(0)]));
        assert_eq!(harness.complete(forwarded()), []);
        harness
    };
    let timeout = emptied().stage.config().route_timeout;
    let mut harness = emptied();
    assert_eq!(harness.wait(timeout - Duration::from_secs(1)), []);
    let said = harness.publish(&line(3));
    assert!(matches!(message_of(&said[1]), Some(Message::Forward { .. })));

    let mut harness = emptied();
    assert_eq!(harness.wait(timeout), [forget(), refused(a(1), Refusal::Undeliverable)]);
}

#[test]
fn an_unexpected_reply_of_the_executor_costs_one_microbatch() {
    let mut harness = Harness::new(1, 3);
    assert_eq!(harness.complete(forwarded()), []);
    harness.receive(a(0), forward().by(&[feeder(), a(0)]));
    let said = harness.complete(backwarded());
    assert_eq!(said.len(), 1);
    assert!(matches!(message_of(&said[0]), Some(Message::Refused { reason: Refusal::Device(_), .. })));
    assert_eq!((harness.counts().unexpected, harness.counts().refused), (2, 1));
}

// --- The end ----------------------------------------------------------------------------------------------------------

#[test]
fn draining_finishes_the_microbatches_held_and_takes_no_more() {
    let mut harness = applied();
    assert_eq!(harness.hear(Event::Drain), []);
    let more = Forward { id: MicrobatchId(8), ..forward() }.by(&[feeder(), a(0)]);
    let busy = Message::StatusReply { microbatch: MicrobatchId(8), attempt: FIRST, status: Status::Busy };
    assert_eq!(harness.receive(a(0), more), [send(a(0), busy)]);
    assert_eq!(harness.receive(feeder(), ended()), [Action::Drained]);
    assert_eq!(harness.hear(Event::Drain), []);
}

#[test]
fn the_end_of_the_run_applies_nothing_that_was_not_granted() {
    assert_eq!(handed_on().hear(Event::Finished), [forget(), Action::Drained]);
    let mut ungranted = returned();
    assert_eq!(ungranted.hear(Event::Finished), [], "the grant may be on its way");
    assert_eq!(ungranted.wait(Duration::from_secs(2)), [drop_gradients(), Action::Drained]);
    let mut harness = returned();
    harness.receive(feeder(), granted(&[ID]));
    assert_eq!(harness.hear(Event::Finished), []);
    assert_eq!(harness.complete(JobOutcome::Applied), [Action::Drained]);
}

// --- Another feeder takes over --------------------------------------------------------------------------------------

fn successor() -> Hop {
    Hop::feeder(Instance::new(PeerId([0xAA; 32]), Incarnation(4)))
}

/// `a(1)` of three stages holds `ID` and has claimed it; then the feeder is gone and there is a successor.
fn inherited() -> Harness {
    let mut harness = Harness::new(1, 3);
    harness.receive(a(0), forward().by(&line(1)));
    harness.complete(JobOutcome::Forwarded { version: WeightVersion(9), activation: "out" });
    harness.receive(a(2), backward(FIRST, &[a(2)], "back"));
    take_over(&mut harness);
    harness
}

/// A table names the successor of the only feeder.
fn take_over(harness: &mut Harness) -> Vec<Action<Payload>> {
    let lease = Lease { first: MicrobatchId(0), count: 50, epoch: 1 };
    let mut members: Vec<_> = [successor(), a(0), a(1), a(2)].map(member).to_vec();
    members.sort_by_key(|member| member.instance);
    let leases = vec![LeasedRange::new(lease, successor().peer())];
    harness.version += 1;
    let table = Membership { version: harness.version, members, leases, ..Membership::default() };
    harness.hear(Event::Membership(table.into()))
}

fn recover() -> Message {
    Message::RecoverRange { first: MicrobatchId(0), epoch: 1, from: MicrobatchId(0) }
}

fn report(said: Vec<Action<Payload>>) -> Option<RecoveryReport> {
    said.into_iter().find_map(|action| match action {
        Action::Send { to, envelope: Envelope { message: Message::RecoveryReport(report), .. } } => {
            assert_eq!(to, successor().peer());
            Some(report)
        }
        _ => None,
    })
}

#[test]
fn a_successor_is_asked_for_the_grant_and_the_former_feeder_is_not_believed() {
    let mut harness = inherited();
    let claims = |action: &Action<Payload>| match (action, message_of(action)) {
        (Action::Send { to, .. }, Some(Message::Claim { claimed, .. })) => {
            *to == successor().peer() && claimed.iter().any(|proof| proof.microbatch == ID)
        }
        _ => false,
    };
    assert!(harness.said.iter().any(claims));
    harness.receive(feeder(), granted(&[ID]));
    let item =
        |harness: &mut Harness| report(harness.receive(successor(), recover())).unwrap().items.remove(0);
    assert_eq!(item(&mut harness).granted, None);
    harness.receive(successor(), granted(&[ID]));
    assert_eq!(item(&mut harness).granted, Some(true));
}

#[test]
fn a_former_feeder_that_joined_again_announces_no_outcome_of_its_successors_ids() {
    let mut harness = inherited();
    let own = Block(1).first().0;
    let mut leases = harness.stage.table().leases().to_vec();
    leases.push(LeasedRange::new(
        Lease { first: MicrobatchId(own), count: Block::IDS, epoch: 0 },
        feeder().peer(),
    ));
    let mut members: Vec<_> = [feeder(), successor(), a(0), a(1), a(2)].map(member).to_vec();
    members.sort_by_key(|member| member.instance);
    harness.version += 1;
    let version = harness.version;
    let table = Membership { version, members, leases, ..Membership::default() };
    harness.hear(Event::Membership(table.into()));
    let ended = |harness: &Harness| [7, own + 7].map(|id| harness.stage.outcomes.contain(MicrobatchId(id)));
    harness.receive(feeder(), ended_below(own + 60));
    assert_eq!(ended(&harness), [false, true]);
    harness.receive(successor(), ended_below(50));
    assert_eq!(ended(&harness), [true, true]);
}

#[test]
fn a_table_that_closes_a_block_ends_its_microbatches() {
    let mut harness = Harness::new(1, 3);
    harness.receive(a(0), forward().by(&line(1)));
    harness.complete(JobOutcome::Forwarded { version: WeightVersion(9), activation: "out" });
    assert_eq!(harness.stage.held(), 1);
    let closed = Lease { first: MicrobatchId(0), count: 0, epoch: 0 };
    let leases = vec![LeasedRange::new(closed, feeder().peer())];
    harness.publish_leased(&[feeder(), a(0), a(1), a(2)], leases);
    assert_eq!(harness.stage.held(), 0, "the last announcement of its feeder was lost");
}

#[test]
fn a_recovery_report_lists_microbatches_held_and_doubtful_grants() {
    let mut harness = inherited();
    let item = |may_have_been_granted| Item {
        microbatch: ID,
        granted: None,
        possession: Possession::Held,
        may_have_been_granted,
    };
    let told = report(harness.receive(successor(), recover())).unwrap();
    assert_eq!(
        (told.stage, told.next, told.ended, told.items),
        (StageIndex(1), None, vec![], vec![item(vec![])])
    );
    let mut members: Vec<_> = [successor(), a(0), a(1)].map(member).to_vec();
    members.sort_by_key(|member| member.instance);
    let leases = harness.stage.table().leases().to_vec();
    harness.version += 1;
    let table = Membership { version: harness.version, members, leases, ..Membership::default() };
    harness.hear(Event::Membership(table.into()));
    let told = report(harness.receive(successor(), recover())).unwrap();
    assert_eq!(told.items, [item(vec![StageIndex(2)])]);
}

#[test]
fn only_the_successor_in_the_table_gets_a_report() {
    let mut harness = inherited();
    let later = Message::RecoverRange { first: MicrobatchId(0), epoch: 2, from: MicrobatchId(0) };
    assert_eq!(report(harness.receive(successor(), later)), None);
    assert_eq!(report(harness.receive(a(0), recover())), None);
    assert_eq!(report(harness.receive(feeder(), recover())), None);
}

// --- Routes that can be proved -----------------------------------------------------------------------------------------

#[test]
fn each_hop_hands_the_next_one_its_key() {
    let mut harness = Harness::new(1, 3);
    let secret = crate::RouteSecret([1; 32]);
    let key = RouteKey::first(&secret, ID, a(0)).next(a(1));
    let mut envelope = forward().by(&[feeder(), a(0)]);
    if let Message::Forward { key: own, .. } = &mut envelope.message {
        *own = key;
    }
    let received = Event::Received { from: a(0).instance, envelope };
    harness.stage.handle(harness.now, received);
    harness.stage.handle(harness.now, Event::Completed(JobReply { microbatch: ID, outcome: forwarded() }));
    let said: Vec<_> = std::iter::from_fn(|| harness.stage.poll_action()).collect();
    let proven = said.iter().any(|action| match message_of(action) {
        Some(Message::Claim { claimed, .. }) => claimed.iter().all(|proof| proof.holds(&secret, a(1))),
        _ => false,
    });
    let next = said.iter().any(|action| match message_of(action) {
        Some(Message::Forward { key: sent, .. }) => *sent == key.next(a(2)),
        _ => false,
    });
    assert!(proven && next, "{said:?}");
}

#[test]
fn a_neighbour_that_names_a_false_route_is_avoided_and_its_microbatch_blocks_nothing() {
    let mut harness = returned();
    let forged = Message::ClaimReply { granted: Vec::new(), denied: Vec::new(), forged: vec![ID] };
    assert_eq!(harness.receive(a(2), forged.clone()), [], "only the feeder says so");
    assert_eq!(harness.receive(feeder(), forged), [drop_gradients()]);
    assert_eq!((harness.stage.held(), harness.counts().forged), (0, 1));
    let said = harness.receive(a(0), Forward { id: MicrobatchId(8), ..forward() }.by(&[feeder(), a(0)]));
    let busy = Message::StatusReply { microbatch: MicrobatchId(8), attempt: FIRST, status: Status::Busy };
    assert_eq!(said, [send(a(0), busy)]);
}

#[test]
fn a_peer_that_asks_for_a_gradient_takes_it_from_no_other() {
    let mut harness = handed_on();
    harness.publish(&[line(3), vec![b(0)]].concat());
    harness.receive(b(0), status_request(SECOND, &[feeder(), b(0)]));
    harness.receive(a(2), backward(FIRST, &[a(2)], "gradient"));
    let said = harness.complete(backwarded());
    let up = |to, attempt| send(to, backward(attempt, &[a(2), a(1)], "upward"));
    assert_eq!(said[..2], [up(a(0), FIRST), up(b(0), SECOND)]);
}

// --- Grants handed back -----------------------------------------------------------------------------------------------

#[test]
fn a_granted_microbatch_that_goes_another_way_is_forfeited_until_the_feeder_knows() {
    let mut harness = handed_on();
    harness.receive(feeder(), granted(&[ID]));
    assert_eq!(harness.receive(feeder(), ended()), [forget()]);
    let told = send(feeder(), claim_of(1, Vec::new(), vec![ID]));
    let times = |harness: &Harness| harness.said.iter().filter(|&action| *action == told).count();
    assert_eq!((times(&harness), harness.counts().forfeited), (1, 1));
    harness.wait(STATUS_AFTER);
    assert_eq!(times(&harness), 2, "the first may be lost");
    harness.receive(feeder(), denied(&[ID]));
    harness.wait(STATUS_AFTER * 3);
    assert_eq!(times(&harness), 2);
}

#[test]
fn a_microbatch_given_back_is_never_applied_here_and_its_attempts_are_numbered_on() {
    let mut harness = handed_on();
    harness.stage.give_back(harness.now, ID);
    harness.receive(a(0), forward().by(&[feeder(), a(0)]));
    let again = Forward { attempt: SECOND, ..Forward::computed() }.sent(&[feeder(), a(0), a(1)], false);
    assert!(harness.complete(forwarded()).contains(&send(a(2), again)));
    harness.receive(feeder(), granted(&[ID]));
    harness.receive(a(2), backward(SECOND, &[a(2)], "gradient"));
    assert!(harness.complete(backwarded()).contains(&drop_gradients()));
    assert_eq!((harness.counts().applied, harness.counts().relayed), (0, 1));
}

// --- Links that stay broken -------------------------------------------------------------------------------------------

const OTHER: MicrobatchId = MicrobatchId(8);

/// The gradient of `ID` waits for its grant, `OTHER` is with the executor, and the feeder answers nothing.
fn unanswered() -> Harness {
    let mut harness = returned();
    harness.receive(a(0), Forward { id: OTHER, ..forward() }.by(&[feeder(), a(0)]));
    harness.complete_of(OTHER, forwarded());
    harness
}

fn last_credit(harness: &Harness) -> u32 {
    let credit = |action: &Action<Payload>| match (action, message_of(action)) {
        (Action::Send { to, .. }, Some(Message::Heartbeat(beat))) if *to == a(0).peer() => Some(beat.credit),
        _ => None,
    };
    harness.said.iter().rev().find_map(credit).unwrap()
}

#[test]
fn a_replica_that_does_not_reach_the_feeder_gives_its_microbatches_back_and_takes_no_more() {
    let mut harness = unanswered();
    let said = harness.wait(FEEDER_LOST_AFTER + STATUS_AFTER);
    assert!(said.contains(&drop_gradients()), "{said:?}");
    let back = Message::StatusReply { microbatch: OTHER, attempt: FIRST, status: Status::GivenBack };
    assert!(said.contains(&send(a(0), back)), "{said:?}");
    assert!(harness.stage.holds(ID) && !harness.stage.holds(OTHER));
    assert_eq!((last_credit(&harness), harness.counts().given_back), (0, 1));
    let said = harness.receive(a(0), Forward { id: OTHER, ..forward() }.by(&[feeder(), a(0)]));
    let busy = Message::StatusReply { microbatch: OTHER, attempt: FIRST, status: Status::Busy };
    assert_eq!(said, [send(a(0), busy)]);

    harness.receive(feeder(), granted(&[]));
    harness.wait(Duration::from_secs(1));
    assert!(last_credit(&harness) > 0, "the link works again");
    assert_eq!(harness.receive(feeder(), granted(&[ID])), [], "its gradients are gone");
}

#[test]
fn the_gradients_of_a_feeder_that_is_gone_hold_up_no_other_feeder() {
    let second = Hop::feeder(Instance::new(PeerId([0xF2; 32]), Incarnation(1)));
    let lease = Lease { first: Block(1).first(), count: Block::IDS, epoch: 0 };
    let of_second = vec![LeasedRange::new(lease, second.peer())];
    // The block of the first feeder stays in the table until it is settled.
    for leases in [[leases(), of_second.clone()].concat(), of_second] {
        let mut harness = unanswered();
        harness.publish_leased(&[a(0), a(1), a(2), second], leases);
        harness.wait(FEEDER_LOST_AFTER + STATUS_AFTER);
        assert!(harness.stage.holds(ID) && harness.stage.holds(OTHER), "a successor may come");
        harness.receive(a(2), backward_of(OTHER, FIRST, &[a(2)], "gradient"));
        let third = Block(1).first();
        harness.receive(a(0), Forward { id: third, ..forward() }.by(&[second, a(0)]));
        harness.complete_of(third, forwarded());
        harness.receive(second, granted(&[third]));
        let said = harness.receive(a(2), backward_of(third, FIRST, &[a(2)], "gradient"));
        let job = |job: &Action<Payload>| matches!(job, Action::Execute(Job::Backward { microbatch, .. }) if *microbatch == third);
        assert!(said.iter().any(job), "{said:?}");
        harness.wait(KEPT_FOR_SUCCESSOR);
        assert!(!harness.stage.holds(ID) && !harness.stage.holds(OTHER), "no successor came");
    }
}

#[test]
fn a_gradient_that_waits_for_one_feeder_of_two_holds_up_no_other() {
    let second = Hop::feeder(Instance::new(PeerId([0xF2; 32]), Incarnation(1)));
    let lease = Lease { first: Block(1).first(), count: Block::IDS, epoch: 0 };
    let both = [leases(), vec![LeasedRange::new(lease, second.peer())]].concat();
    let mut harness = Harness::new(1, 3);
    harness.publish_leased(&[feeder(), a(0), a(1), a(2), second], both);
    let third = Block(1).first();
    for (id, feeder) in [(ID, feeder()), (third, second)] {
        harness.receive(a(0), Forward { id, ..forward() }.by(&[feeder, a(0)]));
        harness.complete_of(id, forwarded());
    }
    harness.receive(second, granted(&[third]));
    let begins = |said: &[Action<Payload>], id| {
        let job = |job: &Action<Payload>| matches!(job, Action::Execute(Job::Backward { microbatch, granted: true, .. }) if *microbatch == id);
        said.iter().any(job)
    };
    assert_eq!(harness.receive(a(2), backward_of(ID, FIRST, &[a(2)], "gradient")), [], "without an answer");
    harness.now = harness.now + Duration::from_secs(5);
    assert_eq!(
        harness.stage.progress(harness.now).oldest,
        Duration::ZERO,
        "it does not wait for this replica"
    );
    let said = harness.receive(a(2), backward_of(third, FIRST, &[a(2)], "gradient"));
    assert!(begins(&said, third), "{said:?}");
    let said = harness.receive(feeder(), granted(&[ID]));
    assert!(begins(&said, ID), "{said:?}");
}

#[test]
fn a_claim_that_a_feeder_leaves_unanswered_although_it_is_heard_is_given_up() {
    let mut harness = unanswered();
    let second = Duration::from_secs(1);
    let mut dropped = (0..95).map(|_| {
        harness.receive(feeder(), ended_below(0));
        harness.wait(second).contains(&drop_gradients())
    });
    assert_eq!(dropped.position(|dropped| dropped), Some(89));
    assert_eq!(harness.receive(feeder(), granted(&[ID])), [], "its gradients are gone");
}

#[test]
fn a_feeder_that_announces_no_outcome_fills_no_memory() {
    let mut harness = Harness::with(2, 3, |config| config.slots = 1);
    harness.publish(&[feeder(), a(0), a(1), a(2)]);
    let route = [feeder(), a(0), a(1)];
    let held_max = harness.stage.config().held_max();
    for id in (0..held_max as u64).map(MicrobatchId) {
        harness.receive(a(1), Forward { id, ..forward() }.by(&route));
        harness.receive(feeder(), granted(&[id]));
        let (loss, gradient) = (Loss::default(), "gradient");
        harness.complete_of(id, JobOutcome::LossAndBackward { loss, gradient });
        harness.complete_of(id, JobOutcome::Applied);
    }
    assert_eq!(harness.stage.held(), held_max);
    let next = MicrobatchId(held_max as u64);
    let busy = Message::StatusReply { microbatch: next, attempt: FIRST, status: Status::Busy };
    assert_eq!(harness.receive(a(1), Forward { id: next, ..forward() }.by(&route)), [send(a(1), busy)]);
}

#[test]
fn a_microbatch_that_was_denied_and_set_aside_goes_on_with_a_successor() {
    let mut harness = unanswered();
    harness.receive(feeder(), denied(&[OTHER]));
    harness.publish(&[a(0), a(1), a(2)]);
    harness.wait(FEEDER_LOST_AFTER + 2 * STATUS_AFTER);
    let backward = |said: &[Action<Payload>]| {
        let job = |job: &Action<Payload>| matches!(job, Action::Execute(Job::Backward { microbatch, .. }) if *microbatch == OTHER);
        said.iter().any(job)
    };
    let said = harness.receive(a(2), backward_of(OTHER, FIRST, &[a(2)], "gradient"));
    assert!(!backward(&said), "its feeder is lost: {said:?}");
    let said = take_over(&mut harness);
    assert!(backward(&said), "{said:?}");
}

#[test]
fn a_replica_that_hears_no_replica_of_the_next_stage_gives_its_activations_back() {
    let mut harness = Harness::new(1, 3);
    harness.publish(&[feeder(), a(0), a(1), restarted(a(2))]);
    let silent = restarted(restarted(a(2)));
    harness.version += 1;
    let members = [feeder(), a(0), a(1), silent].map(member).to_vec();
    let version = harness.version;
    let table = Membership { version, members, leases: leases(), ..Membership::default() };
    harness.hear(Event::Membership(table.into()));
    let beat = Message::Heartbeat(Heartbeat { credit: 8, ..Heartbeat::default() });
    for second in 0..=NEXT_STAGE_LOST_AFTER.as_secs() + 6 {
        harness.now = harness.now + Duration::from_secs(1);
        harness.receive(a(0), beat.clone());
        harness.receive(feeder(), ended_below(0));
        if second == 8 {
            harness.receive(a(0), forward().by(&[feeder(), a(0)]));
            harness.complete(forwarded());
        }
        harness.hear(Event::Timeout);
    }
    assert!(harness.said.contains(&send(a(0), status(FIRST, Status::GivenBack))), "{:?}", harness.said);
    assert_eq!((harness.stage.held(), last_credit(&harness)), (0, 0));
}

/// Every id below `end` has its outcome.
fn ended_below(end: u64) -> Message {
    Message::Outcomes { ranges: vec![AckRange { first: 0, end, open: Vec::new() }] }
}
