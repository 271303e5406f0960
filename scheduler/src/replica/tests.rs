//! Tests of one replica from its first table to its departure: the machine of each event, and the process that stands
//! still.

use super::*;
use crate::averaging::{
    FragmentIndex, FragmentSize, Job as AveragingJob, MemberSet, PartIndex, Reply, Round,
};
use crate::fixtures::{a, b, feeder, leases, member, restarted};
use crate::router::{RouterFactory, UniformConfig};
use crate::stage::{Job, JobOutcome, JobReply};
use crate::transfer::{ChunkHash, ChunkSketch, Limits, Manifest, SketchSecret, StateId, TransferMessage};
use crate::{
    Attempt, Duration, Hop, Member, MemberState, Membership, MicrobatchId, Purpose, StageIndex,
    WeightVersion, WeightsPolicy,
};

type Payload = &'static str;

const ID: MicrobatchId = MicrobatchId(7);
const LIMITS: Limits = Limits { bytes_max: 100, chunk_bytes_max: 4 };
const STATE: StateId = StateId(1);
const SECOND: Duration = Duration::from_secs(1);

fn digest(payload: &Payload) -> (u64, ChunkHash) {
    let mut hash = [0; 32];
    hash.iter_mut().zip(payload.bytes()).for_each(|(byte, value)| *byte = value);
    (payload.len() as u64, hash)
}

/// `a(1)` of three stages, which averages two fragments with `b(1)`.
struct Harness {
    replica: Replica<Payload>,
    now: Time,
    version: u64,
}

impl Harness {
    /// A replica that is placed and has no table.
    fn placed(begin: Begin) -> Self {
        Self::stepping(begin, 1)
    }

    /// Likewise; it steps once for so many contributions.
    fn stepping(begin: Begin, gradient_accumulation_steps: u64) -> Self {
        let me = a(1);
        let stage = stage::Config::new(me.instance, StageIndex(1), 3);
        let secret = SketchSecret::default();
        let sketch = |_: &Payload, _, _| ChunkSketch::default();
        let config = Config {
            stage,
            gradient_accumulation_steps,
            fragments: 2,
            fragment_size: FragmentSize::default(),
            begin,
            weights: WeightsPolicy::Open,
            digest,
            sketch,
            secret,
        };
        Self { replica: Replica::new(config, UniformConfig.build(1)), now: Time(1_000), version: 0 }
    }

    /// A replica that serves, with `others` and the feeder.
    fn serving(others: &[Hop]) -> Self {
        Self::begun(Self::placed(Begin::Given), others)
    }

    /// Likewise; it steps once for four contributions.
    fn accumulating(others: &[Hop]) -> Self {
        Self::begun(Self::stepping(Begin::Given, 4), others)
    }

    fn begun(mut harness: Self, others: &[Hop]) -> Self {
        let begun = harness.publish(&all(others), &[]);
        assert_eq!(
            begun[..2],
            [Action::Counted(Note::Began(InitialState::Given)), Action::Ready { initial: false }]
        );
        harness
    }

    /// Handles an event. Returns its actions without heartbeats.
    fn hear(&mut self, event: Event<Payload>) -> Vec<Action<Payload>> {
        self.replica.handle(self.now, event);
        let all = std::iter::from_fn(|| self.replica.poll_action());
        all.filter(|action| !matches!(message_of(action), Some(Message::Heartbeat(_)))).collect()
    }

    /// The coordinator publishes a table.
    fn publish(&mut self, members: &[Member], trained: &[StageIndex]) -> Vec<Action<Payload>> {
        self.version += 1;
        self.follow(Membership {
            members: members.to_vec(),
            trained: trained.to_vec(),
            ..Membership::default()
        })
    }

    fn follow(&mut self, table: Membership) -> Vec<Action<Payload>> {
        let (version, leases) = (self.version, leases());
        self.hear(Event::Membership(Membership { version, leases, ..table }.into()))
    }

    fn receive(&mut self, from: Hop, envelope: impl Into<Envelope<Payload>>) -> Vec<Action<Payload>> {
        self.hear(Event::Received { from: from.instance, envelope: envelope.into() })
    }

    fn transfer(&mut self, from: Hop, message: TransferMessage) -> Vec<Action<Payload>> {
        self.receive(from, Message::Transfer(message))
    }

    fn chunk(&mut self, from: Hop, chunk: u32, bytes: Payload) -> Vec<Action<Payload>> {
        let message = Message::Transfer(TransferMessage::Chunk { state: STATE, chunk });
        self.receive(from, Envelope::with_payload(message, bytes))
    }

    /// Time passes in steps that are no suspension.
    fn wait(&mut self, time: Duration) -> Vec<Action<Payload>> {
        let until = self.now + time;
        let mut actions = Vec::new();
        while self.now < until {
            self.now = (self.now + SECOND).min(until);
            actions.extend(self.hear(Event::Timeout));
        }
        actions
    }

    /// A forward arrives.
    fn forward(&mut self) -> Vec<Action<Payload>> {
        self.forward_of(ID)
    }

    fn forward_of(&mut self, microbatch: MicrobatchId) -> Vec<Action<Payload>> {
        let message = Message::Forward {
            microbatch,
            attempt: Attempt(0),
            purpose: Purpose::Train,
            is_retry: false,
            route: vec![feeder(), a(0)],
            key: crate::RouteKey::default(),
            downstream_holder: None,
            version: WeightVersion(0),
        };
        self.receive(a(0), Envelope { message, ids: "ids", payload: "in" })
    }

    fn completed(&mut self, outcome: JobOutcome<Payload>) -> Vec<Action<Payload>> {
        self.hear(Event::Completed(JobReply { microbatch: ID, outcome }))
    }

    /// Applies the gradients of one microbatch, which then has its outcome.
    fn train(&mut self) {
        self.train_until_applied();
        self.hear_outcome();
        assert_eq!((self.replica.stage().held(), self.replica.stage().counts().applied), (0, 1));
    }

    fn hear_outcome(&mut self) -> Vec<Action<Payload>> {
        let range = crate::AckRange { first: 0, end: 100, open: Vec::new() };
        self.receive(feeder(), Message::Outcomes { ranges: vec![range] })
    }

    /// Applies the gradients of one microbatch, which has no outcome yet.
    fn train_until_applied(&mut self) {
        self.forward();
        self.completed(JobOutcome::Forwarded { version: WeightVersion(0), activation: "out" });
        let path = vec![a(2)];
        let loss = crate::Loss { sum: 1.0, tokens: 1 };
        let message = Message::Backward { microbatch: ID, attempt: Attempt(0), loss, path };
        self.receive(a(2), Envelope::with_payload(message, "back"));
        self.completed(JobOutcome::Backwarded { gradient: "up" });
        self.receive(
            feeder(),
            Message::ClaimReply { granted: vec![ID], denied: Vec::new(), forged: Vec::new() },
        );
        self.completed(JobOutcome::Applied);
    }

    fn call(&mut self, round: u64) -> Vec<Action<Payload>> {
        self.call_round(round, false)
    }

    fn call_round(&mut self, round: u64, is_closing: bool) -> Vec<Action<Payload>> {
        self.receive(feeder(), Message::RoundCall { round: Round(round), is_closing, weights: Vec::new() })
    }

    /// A whole round with the other member, which contributed nothing.
    fn average(&mut self, round: u64) -> Vec<Action<Payload>> {
        self.call(round);
        let round = Round(round);
        let parts = vec!["first", "second"];
        self.hear(Event::Averaged(Reply::Snapshot { round, uncarried: 0, weight: 0, parts }));
        let (group, _) = self.replica.averaging().group().expect("the round has begun");
        let mut last = Vec::new();
        // Each member owns one part and says that there is nothing to average.
        for part in [PartIndex(0), PartIndex(1)] {
            let say = |content| {
                let message = averaging::AveragingMessage { group, part, attempt: Attempt(0), content };
                Envelope::with_payload(Message::Averaging(message), "other")
            };
            last = self.receive(b(1), say(averaging::Content::Contribution { weight: 0 }));
            last.extend(self.receive(b(1), say(averaging::Content::Empty { heard: MemberSet(0b11) })));
        }
        last
    }
}

/// The feeder, `a(1)`, its neighbours and `others`.
fn all(others: &[Hop]) -> Vec<Member> {
    [feeder(), a(0), a(1), a(2)].iter().chain(others).copied().map(member).collect()
}

/// The feeder, the neighbours of `a(1)` and `others`; `a(1)` is loading.
fn loading(others: &[Hop]) -> Vec<Member> {
    let me = Member { state: MemberState::Loading(StageIndex(1)), ..member(a(1)) };
    [feeder(), a(0), a(2)].iter().chain(others).copied().map(member).chain([me]).collect()
}

fn message_of(action: &Action<Payload>) -> Option<&Message> {
    if let Action::Send { envelope, .. } = action { Some(&envelope.message) } else { None }
}

fn send(to: Hop, message: Message) -> Action<Payload> {
    Action::Send { to: to.peer(), envelope: message.into() }
}

fn began(initial: InitialState) -> Action<Payload> {
    Action::Counted(Note::Began(initial))
}

/// Eight bytes in two chunks.
fn offer() -> TransferMessage {
    let hashes = ["good", "news"].iter().map(|bytes| digest(bytes).1).collect();
    let manifest = Manifest { version: WeightVersion(5), bytes: 8, chunk_bytes: 4, hashes };
    TransferMessage::Offer { state: STATE, manifest, age: Duration::ZERO, clock: None }
}

// --- Joining ------------------------------------------------------------------------------------------------

#[test]
fn a_joiner_takes_the_state_of_a_replica_before_it_serves() {
    let mut harness = Harness::placed(Begin::FromDonor(LIMITS));
    let request = send(b(1), Message::Transfer(TransferMessage::Request));
    assert_eq!(harness.publish(&loading(&[b(1)]), &[]), [request]);
    assert_eq!(harness.forward(), [], "microbatches are for replicas that serve");
    let wanted = harness.transfer(b(1), offer());
    assert_eq!(wanted[0], Action::Begin { bytes: 8 });
    assert_eq!(harness.chunk(b(1), 1, "news"), [Action::Store { offset: 4, payload: "news" }]);
    let stored = harness.chunk(b(1), 0, "good");
    let (donor, version) = (b(1).instance, WeightVersion(5));
    assert!(stored.contains(&Action::Store { offset: 0, payload: "good" }), "{stored:?}");
    assert!(stored.contains(&Action::Import { donor, version, is_restored: false }), "{stored:?}");
    assert!(!harness.replica.is_serving(), "not before the executor has taken the state over");
    let begun = harness.hear(Event::Imported(true));
    assert_eq!(
        begun[begun.len() - 2..],
        [began(InitialState::Downloaded { donor, version }), Action::Ready { initial: false }]
    );
    assert!(harness.replica.is_serving());
}

#[test]
fn a_donor_that_lies_is_followed_by_another() {
    let mut harness = Harness::placed(Begin::FromDonor(LIMITS));
    let other = restarted(b(1));
    harness.publish(&loading(&[b(1)]), &[]);
    harness.transfer(b(1), offer());
    let caught = harness.chunk(b(1), 0, "fake");
    assert!(
        caught
            .contains(&Action::Counted(Note::Download(crate::transfer::DownloadNote::Wrong(b(1).instance))))
    );
    assert!(!caught.iter().any(|action| matches!(action, Action::Store { .. })), "{caught:?}");
    let asked = harness.publish(&loading(&[other]), &[]);
    assert_eq!(asked, [send(other, Message::Transfer(TransferMessage::Request))]);
}

#[test]
fn without_a_replica_that_serves_the_stage_a_joiner_begins_with_the_initial_weights() {
    for (trained, was_trained) in [(vec![], false), (vec![StageIndex(1)], true), (vec![StageIndex(2)], false)]
    {
        let mut harness = Harness::placed(Begin::FromDonor(LIMITS));
        assert!(harness.publish(&loading(&[]), &trained).ends_with(&[Action::Ready { initial: true }]));
        let accepted = harness.publish(&all(&[]), &trained);
        assert!(accepted.contains(&began(InitialState::Initial { was_trained })), "{accepted:?}");
    }
}

#[test]
fn a_joiner_begins_no_stage_whose_weights_may_come_back() {
    let mut harness = Harness::placed(Begin::FromDonor(LIMITS));
    harness.version = 1;
    let table = Membership { members: loading(&[]), trained: vec![StageIndex(1)], ..Membership::default() };
    let awaited = vec![StageIndex(1)];
    harness.follow(Membership { awaited, ..table.clone() });
    assert!(!harness.replica.is_serving());
    harness.version = 2;
    let begun = harness.follow(table);
    assert!(begun.contains(&Action::Ready { initial: true }), "{begun:?}");
}

#[test]
fn an_expelled_replica_begins_with_the_state_it_kept_unless_a_donor_serves() {
    let mut alone = Harness::placed(Begin::Kept(LIMITS));
    let begun = alone.publish(&loading(&[]), &[StageIndex(1)]);
    assert!(begun.contains(&began(InitialState::Kept)), "{begun:?}");
    let mut beside = Harness::placed(Begin::Kept(LIMITS));
    let request = send(b(1), Message::Transfer(TransferMessage::Request));
    assert_eq!(beside.publish(&loading(&[b(1)]), &[]), [request]);
    assert_eq!(beside.hear(Event::Expelled), [Action::End(End::Expelled { has_state: true })]);
}

#[test]
fn the_last_donor_dies_and_with_it_the_download() {
    let mut harness = Harness::placed(Begin::FromDonor(LIMITS));
    harness.publish(&loading(&[b(1)]), &[]);
    harness.transfer(b(1), offer());
    let begun = harness.publish(&loading(&[]), &[StageIndex(1)]);
    assert!(begun.ends_with(&[Action::Ready { initial: true }]), "{begun:?}");
}

#[test]
fn a_joiner_ends_with_the_run_and_leaves_when_it_is_asked_to() {
    let endings = [
        (Event::Directive(Directive::Finished), End::RunFinished),
        (Event::Directive(Directive::Diverged { at: 7 }), End::Diverged { at: 7 }),
        (Event::Directive(Directive::Leave("maintenance".to_owned())), End::Left(None)),
        (Event::Stop, End::Left(None)),
        (Event::Expelled, End::Expelled { has_state: false }),
    ];
    for (event, end) in endings {
        let mut harness = Harness::placed(Begin::FromDonor(LIMITS));
        harness.publish(&loading(&[b(1)]), &[]);
        assert_eq!(harness.hear(event), [Action::End(end)]);
        assert_eq!(harness.hear(Event::Stop), [], "an end is the last action");
        assert_eq!(harness.replica.poll_timeout(), None);
    }
}

#[test]
fn it_says_that_it_serves_until_the_coordinator_has_heard() {
    let mut harness = Harness::serving(&[]);
    let told = harness.hear(Event::Directive(Directive::Serve(StageIndex(1))));
    assert_eq!(told, [Action::Ready { initial: false }]);
    assert_eq!(harness.hear(Event::Directive(Directive::Continue)), []);
}

#[test]
fn a_replica_with_initial_weights_gives_way_to_another_that_serves_its_stage() {
    let told = || Event::Directive(Directive::Serve(StageIndex(1)));
    let mut harness = Harness::placed(Begin::FromDonor(LIMITS));
    harness.publish(&loading(&[]), &[]);
    harness.publish(&loading(&[b(1)]), &[]);
    let said = [Action::Ready { initial: true }];
    assert_eq!([harness.hear(told()), harness.hear(told())], [said.clone(), said]);
    assert_eq!(harness.hear(told()), [Action::End(End::Expelled { has_state: false })]);
}

#[test]
fn a_replica_with_initial_weights_gives_way_to_a_keeper_that_has_the_state_of_its_stage() {
    let told = || Event::Directive(Directive::Serve(StageIndex(1)));
    let mut harness = Harness::placed(Begin::FromDonor(LIMITS));
    let mut actions = harness.publish(&loading(&[]), &[StageIndex(1)]);
    harness.version += 1;
    let restorable = vec![StageIndex(1)];
    actions.extend(harness.follow(Membership { members: loading(&[]), restorable, ..Membership::default() }));
    actions.extend(std::iter::repeat_with(told).take(3).flat_map(|event| harness.hear(event)));
    assert_eq!(actions.last(), Some(&Action::End(End::Expelled { has_state: false })));
    let lost = began(InitialState::Initial { was_trained: true });
    assert!(!actions.contains(&lost), "no stage is said to be lost that the keeper has: {actions:?}");
}

#[test]
fn a_replica_that_is_placed_at_another_stage_begins_again() {
    let elsewhere = || Event::Directive(Directive::Serve(StageIndex(2)));
    let expelled = |has_state| [Action::End(End::Expelled { has_state })];
    assert_eq!(Harness::serving(&[]).hear(elsewhere()), expelled(true));
    let mut joining = Harness::placed(Begin::FromDonor(LIMITS));
    joining.publish(&loading(&[b(1)]), &[]);
    assert_eq!(joining.hear(elsewhere()), expelled(false));
}

// --- Three machines -----------------------------------------------------------------------------------------

#[test]
fn every_message_goes_to_the_machine_that_it_concerns() {
    let mut harness = Harness::serving(&[b(1)]);
    let computed = harness.forward();
    let job = Job::Forward { microbatch: ID, ids: "ids", activation: "in" };
    assert_eq!(computed[0], Action::Execute(job));
    assert!(matches!(message_of(&computed[1]), Some(Message::Claim { .. })), "{computed:?}");

    let joiner = Member { state: MemberState::Loading(StageIndex(1)), ..member(restarted(b(1))) };
    let mut members = all(&[]);
    members.push(joiner);
    harness.publish(&members, &[]);
    let copied = harness.transfer(restarted(b(1)), TransferMessage::Request);
    assert_eq!(copied, [Action::Export { state: STATE }]);
    harness.publish(&all(&[b(1)]), &[]);

    let round = |round| Message::RoundReport { round: Round(round), carried: None, is_complete: false };
    assert_eq!(harness.call(3), [send(feeder(), round(3))], "the first round heard of is left to the others");
    let snapshot = AveragingJob::Snapshot { round: Round(4), fragment: FragmentIndex(0), parts: 2 };
    assert_eq!(harness.call(4).last(), Some(&Action::Average(snapshot)));
    let mut alone = Harness::serving(&[]);
    alone.call(3);
    assert_eq!(alone.call(4), [send(feeder(), round(4))], "a round without another member is over at once");
}

#[test]
fn a_stranger_calls_no_round() {
    let mut harness = Harness::serving(&[b(1)]);
    let call = Message::RoundCall { round: Round(9), is_closing: false, weights: Vec::new() };
    assert_eq!(harness.receive(a(0), call), []);
    assert_eq!(harness.call(3).len(), 1);
}

#[test]
fn a_member_that_asks_without_end_gets_no_more_answers_than_the_limit() {
    let mut harness = Harness::serving(&[b(0), b(1)]);
    let ask = |id, from| Message::StatusRequest {
        microbatch: MicrobatchId(id),
        attempt: Attempt(0),
        route: vec![feeder(), from],
        key: crate::RouteKey::default(),
    };
    let answers = |harness: &mut Harness, from| -> u32 {
        let asked = (0..10_000).flat_map(|id| harness.receive(from, ask(id, from)));
        asked.map(|action| u32::from(matches!(message_of(&action), Some(Message::StatusReply { .. })))).sum()
    };
    assert_eq!(answers(&mut harness, a(0)), STATUS_REQUESTS_AT_ONCE);
    let unanswered = harness.receive(a(0), ask(0, a(0)));
    assert_eq!(unanswered, [Action::Counted(Note::Unanswered(a(0).instance))]);
    assert!(!harness.receive(b(0), ask(0, b(0))).is_empty(), "others get theirs");
    harness.wait(SECOND);
    assert_eq!(answers(&mut harness, a(0)), STATUS_REQUESTS_PER_SECOND);
}

#[test]
fn a_second_feeder_calls_no_round_and_hears_of_those_that_end() {
    let mut harness = Harness::serving(&[b(1)]);
    let second = Hop::feeder(Instance::new(PeerId([77; 32]), crate::Incarnation(1)));
    harness.publish(&[all(&[b(1)]), vec![member(second)]].concat(), &[]);
    let call = Message::RoundCall { round: Round(9), is_closing: true, weights: Vec::new() };
    assert_eq!(harness.receive(second, call), []);
    let report = Message::RoundReport { round: Round(3), carried: None, is_complete: false };
    assert_eq!(harness.call(3), [send(feeder(), report.clone()), send(second, report)]);
}

// --- A process that stood still -----------------------------------------------------------------------------

#[test]
fn after_a_suspension_nothing_is_sent_before_the_coordinator_confirms() {
    let mut harness = Harness::serving(&[b(1)]);
    harness.forward();
    harness.call(3);
    harness.call(4);
    harness.now = harness.now + 60 * SECOND;
    let outcome = JobOutcome::Forwarded { version: WeightVersion(0), activation: "out" };
    assert_eq!(harness.completed(outcome), [Action::Confirm]);
    let parts = vec!["first", "second"];
    let snapshot = Reply::Snapshot { round: Round(4), uncarried: 1, weight: 1, parts };
    let held_back = harness.hear(Event::Averaged(snapshot));
    assert!(held_back.iter().all(|action| message_of(action).is_none()), "{held_back:?}");
    let sent = harness.hear(Event::Confirmed(Confirmation::Member));
    let messages: Vec<_> = sent.iter().filter_map(message_of).collect();
    assert!(messages.iter().any(|message| matches!(message, Message::Forward { .. })), "{sent:?}");
    assert!(messages.iter().any(|message| matches!(message, Message::Forwarded { .. })), "{sent:?}");
    assert!(messages.iter().any(|message| matches!(message, Message::Averaging(_))), "{sent:?}");
}

#[test]
fn a_coordinator_that_never_answers_fills_no_memory() {
    let mut harness = Harness::serving(&[b(1)]);
    harness.forward();
    harness.now = harness.now + 60 * SECOND;
    for _ in 0..2 * WITHHELD_MAX {
        // Each repetition is answered with the status of the microbatch.
        harness.forward();
    }
    assert_eq!(harness.replica.withheld.len(), WITHHELD_MAX);
}

#[test]
fn a_replica_that_was_expelled_meanwhile_sends_nothing_more() {
    let mut harness = Harness::serving(&[]);
    harness.forward();
    harness.now = harness.now + 60 * SECOND;
    assert_eq!(harness.hear(Event::Timeout), [Action::Confirm]);
    let end = harness.hear(Event::Confirmed(Confirmation::NotAMember));
    assert_eq!(end, [Action::End(End::Expelled { has_state: true })]);
}

#[test]
fn an_unreachable_coordinator_holds_nothing_back_for_good() {
    let mut harness = Harness::serving(&[]);
    harness.forward();
    harness.now = harness.now + 60 * SECOND;
    harness.completed(JobOutcome::Forwarded { version: WeightVersion(0), activation: "out" });
    let sent = harness.hear(Event::Confirmed(Confirmation::Unreachable));
    assert!(sent.iter().filter_map(message_of).any(|message| matches!(message, Message::Forward { .. })));
}

// --- Leaving ------------------------------------------------------------------------------------------------

#[test]
fn it_leaves_when_its_updates_are_averaged() {
    let mut harness = Harness::serving(&[b(1)]);
    harness.call(3);
    harness.train();
    assert_eq!(harness.hear(Event::Stop), []);
    let first = harness.average(4);
    assert!(!first.contains(&Action::End(End::Left(None))), "one of two fragments: {first:?}");
    let second = harness.average(5);
    assert_eq!(second.last(), Some(&Action::End(End::Left(None))), "{second:?}");
}

#[test]
fn it_steps_the_rest_of_an_accumulation_before_it_leaves() {
    let mut harness = Harness::accumulating(&[b(1)]);
    harness.call(3);
    harness.train();
    assert_eq!(harness.hear(Event::Stop), [Action::StepRest]);
    let averaged = [4, 5].map(|round| harness.average(round));
    assert!(!averaged.concat().contains(&Action::StepRest), "nothing more waits");
    assert_eq!(averaged[1].last(), Some(&Action::End(End::Left(None))), "the rounds have carried it");

    let mut idle = Harness::accumulating(&[b(1)]);
    assert_eq!(idle.hear(Event::Stop), [Action::End(End::Left(None))], "it has accumulated nothing");
}

#[test]
fn the_last_rounds_carry_the_rest_of_an_accumulation() {
    let mut harness = Harness::accumulating(&[b(1)]);
    harness.call(3);
    harness.train();
    let snapshot = AveragingJob::Snapshot { round: Round(4), fragment: FragmentIndex(0), parts: 2 };
    let begun = harness.call_round(4, true);
    let jobs: Vec<_> =
        begun.iter().filter(|action| matches!(action, Action::StepRest | Action::Average(_))).collect();
    assert_eq!(jobs, [&Action::StepRest, &Action::Average(snapshot)], "the copy is made after the step");
    assert!(!harness.call_round(5, true).contains(&Action::StepRest), "once");
    let ended = harness.hear(Event::Directive(Directive::Finished));
    assert_eq!(ended, [Action::End(End::RunFinished)]);
}

#[test]
fn a_last_round_waits_with_the_rest_until_no_microbatch_is_held() {
    let mut harness = Harness::accumulating(&[]);
    harness.call(3);
    harness.train_until_applied();
    assert_eq!(harness.call_round(4, true), [], "it holds a microbatch");
    let report = send(feeder(), Message::RoundReport { round: Round(4), carried: None, is_complete: false });
    assert_eq!(
        harness.hear_outcome(),
        [Action::StepRest, report],
        "then it steps, alone as it is, and says so"
    );
}

#[test]
fn what_it_could_not_finish_in_time_makes_no_step_and_the_rest_does() {
    let mut harness = Harness::accumulating(&[]);
    harness.train();
    harness.forward_of(MicrobatchId(ID.0 + 200));
    harness.hear(Event::Stop);
    let waited = harness.wait(DRAIN_WITHIN);
    let end = Action::End(End::Left(Some(Unfinished::Microbatches(1))));
    assert_eq!(waited[waited.len() - 2..], [Action::StepRest, end]);
}

#[test]
fn it_leaves_without_them_when_rounds_stand_still() {
    let mut harness = Harness::serving(&[b(1)]);
    harness.train();
    harness.hear(Event::Stop);
    let waited = harness.wait(HAND_OVER_WITHIN);
    assert_eq!(waited.last(), Some(&Action::End(End::Left(Some(Unfinished::Fragments(2))))));
}

#[test]
fn it_leaves_at_once_with_nothing_to_hand_over() {
    let left = [Action::End(End::Left(None))];
    let mut idle = Harness::serving(&[b(1)]);
    assert_eq!(idle.hear(Event::Stop), left, "it applied nothing");
    let mut alone = Harness::serving(&[]);
    alone.train();
    assert_eq!(alone.hear(Event::Directive(Directive::Leave("full".to_owned()))), left, "no other replica");
}

#[test]
fn it_finishes_its_microbatches_within_a_time_limit() {
    let mut harness = Harness::serving(&[b(1)]);
    harness.forward();
    assert_eq!(harness.hear(Event::Stop), []);
    let waited = harness.wait(DRAIN_WITHIN);
    assert_eq!(waited.last(), Some(&Action::End(End::Left(Some(Unfinished::Microbatches(1))))));
}

#[test]
fn a_finished_run_needs_no_further_round() {
    let mut harness = Harness::serving(&[b(1)]);
    harness.train();
    let ended = harness.hear(Event::Directive(Directive::Finished));
    assert_eq!(ended, [Action::End(End::RunFinished)]);
}
