//! Tests of a feeder, by its events and actions. `sim` has the way through replicas.

use super::config::CLAIMS_WITHIN;
use super::*;
use crate::fixtures::{a, b, leases, member, restarted};
use crate::recovery_report::{Item, Possession, RecoveryReport};
use crate::router::{RouterFactory, UniformConfig};
use crate::{
    ACK_OPEN_MAX, AckRange, Attempt, Block, Duration, Heartbeat, Incarnation, LeasedRange, Loss, Membership,
    PeerId, RouteKey, RouteProof, RouteSecret, Status, WeightVersion,
};

const START: Incarnation = Incarnation(1);
const LOSS: Loss = Loss { sum: 3.0, tokens: 2 };
const SECOND: Duration = Duration::from_secs(1);

struct Harness {
    feeder: Feeder<u8>,
    now: Time,
    version: u64,
    said: Vec<Action<u8>>,
}

impl Harness {
    /// Two stages, `total` microbatches, two in flight.
    fn new(total: u64) -> Self {
        Self::of(Feeder::new(config(total, START), UniformConfig.build(1)))
    }

    fn of(feeder: Feeder<u8>) -> Self {
        Self { feeder, now: Time(0), version: 0, said: Vec::new() }
    }

    /// Both stages serve, ids are leased, the first two microbatches are on their way.
    fn under_way(total: u64) -> Self {
        Self::under_way_by(Admission::Asynchronous(2), total)
    }

    fn under_way_by(admission: Admission, total: u64) -> Self {
        let config = Config { admission, ..config(total, START) };
        let mut harness = Self::of(Feeder::new(config, UniformConfig.build(1)));
        harness.publish(&[a(0), a(1)]);
        harness.hear(lease(0, total));
        harness.draw(0);
        harness.draw(1);
        harness
    }

    /// A feeder that resumes from the journal of this feeder.
    fn restart(&self) -> Self {
        let config = config(self.feeder.config().total, Incarnation(2));
        let journal = Snapshot::of(&self.journal(), config.averaging);
        let mut harness = Self::of(Feeder::resume(config, UniformConfig.build(1), &journal));
        harness.said = std::iter::from_fn(|| harness.feeder.poll_action()).collect();
        harness
    }

    /// The coordinator publishes a table; stage 0 sends heartbeats.
    fn publish(&mut self, members: &[Hop]) -> Vec<Action<u8>> {
        self.version += 1;
        let me = self.feeder.config().hop();
        let members = [me].iter().chain(members).copied().map(member).collect();
        let table = Membership { version: self.version, members, leases: leases(), ..Membership::default() };
        let mut said = self.hear(Event::Membership(table.into()));
        said.extend(self.stage_0_beats());
        said
    }

    /// Handles an event. Returns its actions without announcements and records.
    fn hear(&mut self, event: Event<u8>) -> Vec<Action<u8>> {
        self.feeder.handle(self.now, event);
        let all: Vec<_> = std::iter::from_fn(|| self.feeder.poll_action()).collect();
        self.said.extend(all.iter().cloned());
        let aside = |action: &Action<u8>| {
            matches!(action, Action::Journal(_))
                || matches!(message_of(action), Some(Message::Outcomes { .. } | Message::RoundCall { .. }))
        };
        all.into_iter().filter(|action| !aside(action)).collect()
    }

    /// A replica sends a message, with proofs that hold.
    fn receive(&mut self, from: Hop, message: Message) -> Vec<Action<u8>> {
        self.receive_as_it_is(from, proven(message, from))
    }

    fn receive_as_it_is(&mut self, from: Hop, message: Message) -> Vec<Action<u8>> {
        self.hear(Event::Received { from: from.instance, envelope: message.into() })
    }

    /// A microbatch is back, and every replica on its path has claimed it.
    fn receive_back(&mut self, id: u64, attempt: u32, path: &[Hop]) -> Vec<Action<u8>> {
        for &hop in path {
            self.receive(hop, claim(hop.stage.unwrap().0, &[id]));
        }
        self.receive(path[path.len() - 1], returned(id, attempt, path))
    }

    fn draw(&mut self, id: u64) -> Vec<Action<u8>> {
        self.hear(Event::Drawn { microbatch: MicrobatchId(id), ids: 1 })
    }

    fn finish(&mut self, id: u64) -> Vec<Action<u8>> {
        self.receive_back(id, 0, &[a(1), a(0)])
    }

    fn lose(&mut self, hop: Hop) -> Vec<Action<u8>> {
        self.hear(Event::PeerLost(hop.instance))
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
        let beat = Message::Heartbeat(Heartbeat { credit: 8, ..Heartbeat::default() });
        let replicas: Vec<Hop> = self.feeder.table().hops(StageIndex(0)).iter().copied().collect();
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
    let mut config =
        Config::new(Instance::new(PeerId([0; 32]), incarnation), 2, total, Admission::Asynchronous(2));
    config.evaluation_timeout = 2 * config.status_after;
    config
}

/// The message of a `Send` action.
fn message_of(action: &Action<u8>) -> Option<&Message> {
    if let Action::Send { envelope, .. } = action { Some(&envelope.message) } else { None }
}

/// The proof of a replica of stage 0, or of a replica of stage 1 that `a(0)` handed the microbatch to.
fn proof(microbatch: MicrobatchId, of: Hop) -> RouteProof {
    let (secret, me) = (RouteSecret::default(), Hop::feeder(Instance::new(PeerId([0; 32]), START)));
    if of.stage == Some(StageIndex(0)) {
        return RouteProof { microbatch, route: vec![me], key: RouteKey::first(&secret, microbatch, of) };
    }
    let key = RouteKey::first(&secret, microbatch, a(0)).next(of);
    RouteProof { microbatch, route: vec![me, a(0)], key }
}

/// The same message with proofs of `from` that hold.
fn proven(mut message: Message, from: Hop) -> Message {
    match &mut message {
        Message::Claim { claimed, .. } => {
            claimed.iter_mut().for_each(|one| *one = proof(one.microbatch, from));
        }
        Message::Refused { proof: one, .. } | Message::Evaluated { proof: one, .. } => {
            *one = proof(one.microbatch, from);
        }
        _ => {}
    }
    message
}

fn unproven(microbatch: MicrobatchId) -> RouteProof {
    RouteProof { microbatch, route: Vec::new(), key: RouteKey::default() }
}

// --- Messages -------------------------------------------------------------------------------------------------------

fn lease(first: u64, count: u64) -> Event<u8> {
    Event::Lease(Lease { first: MicrobatchId(first), count, epoch: 0 })
}

fn returned(id: u64, attempt: u32, path: &[Hop]) -> Message {
    let (microbatch, attempt) = (MicrobatchId(id), Attempt(attempt));
    Message::Backward { microbatch, attempt, loss: LOSS, path: path.to_vec() }
}

fn status(id: u64, attempt: u32, status: Status) -> Message {
    Message::StatusReply { microbatch: MicrobatchId(id), attempt: Attempt(attempt), status }
}

fn status_request(id: u64, attempt: u32, route: Vec<Hop>) -> Message {
    let (microbatch, key) =
        (MicrobatchId(id), RouteKey::first(&RouteSecret::default(), MicrobatchId(id), a(0)));
    Message::StatusRequest { microbatch, attempt: Attempt(attempt), route, key }
}

fn claim(stage: u16, ids: &[u64]) -> Message {
    claim_and_forfeit(stage, ids, &[])
}

fn claim_and_forfeit(stage: u16, claimed: &[u64], forfeited: &[u64]) -> Message {
    let ids = |ids: &[u64]| ids.iter().copied().map(MicrobatchId).collect();
    let claimed = claimed.iter().map(|&id| unproven(MicrobatchId(id))).collect();
    Message::Claim { stage: StageIndex(stage), claimed, forfeited: ids(forfeited) }
}

fn answer(granted: &[u64], denied: &[u64]) -> Message {
    let ids = |ids: &[u64]| ids.iter().copied().map(MicrobatchId).collect();
    Message::ClaimReply { granted: ids(granted), denied: ids(denied), forged: Vec::new() }
}

fn refusal(id: u64, by: Hop, reason: Refusal) -> Message {
    Message::Refused { proof: unproven(MicrobatchId(id)), by, reason }
}

fn send(to: Hop, message: Message) -> Action<u8> {
    Action::Send { to: to.peer(), envelope: message.into() }
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

/// The forwards among the actions: microbatch, receiver, number of the attempt, and downstream holder.
fn forwards(said: &[Action<u8>]) -> Vec<(u64, PeerId, u32, Option<Hop>)> {
    let forward = |action: &Action<u8>| match (action, message_of(action)) {
        (Action::Send { to, .. }, Some(Message::Forward { microbatch, attempt, downstream_holder, .. })) => {
            Some((microbatch.0, *to, attempt.0, *downstream_holder))
        }
        _ => None,
    };
    said.iter().filter_map(forward).collect()
}

// --- The life of a microbatch -----------------------------------------------------------------------------------------

#[test]
fn waits_for_every_stage_then_draws_sends_and_counts() {
    let mut harness = Harness::new(3);
    assert_eq!(harness.publish(&[a(0)]), [Action::RequestLease { next: None, count: 3 }]);
    assert_eq!(harness.hear(lease(0, 3)), []);
    assert_eq!(harness.publish(&[a(0), a(1)]), [draw(0), draw(1)]);
    let sent = harness.draw(1);
    assert!(matches!(message_of(&sent[0]), Some(Message::Forward { route, version, .. })
        if *route == [harness.feeder.config().hop()] && *version == WeightVersion(0)));
    assert_eq!(forwards(&sent), [(1, a(0).peer(), 0, None)]);
    harness.draw(0);
    assert_eq!(harness.finish(0), [finished(0), draw(2)]);
    harness.draw(2);
    assert_eq!(harness.finish(2), [finished(2)]);
    assert_eq!(harness.finish(1), [finished(1), Action::End(End::Finished)]);
    let Counts { finished, in_flight, lost, ungranted, contributions_lost, .. } = harness.counts();
    assert_eq!((finished, in_flight, lost, ungranted, contributions_lost), (3, 0, 0, 0, 0));
}

#[test]
fn an_unanswered_request_for_ids_is_repeated() {
    let mut harness = Harness::new(5);
    assert_eq!(harness.hear(Event::Timeout), [Action::RequestLease { next: None, count: 5 }]);
    assert_eq!(harness.wait(LEASE_RETRY - SECOND), []);
    assert_eq!(harness.wait(SECOND), [Action::RequestLease { next: None, count: 5 }]);
}

#[test]
fn a_second_outcome_is_counted_and_changes_nothing() {
    let mut harness = Harness::under_way(2);
    harness.finish(0);
    assert_eq!(harness.finish(0), []);
    assert_eq!(harness.finish(77), []);
    assert_eq!(harness.receive(a(1), refusal(0, a(1), Refusal::NonFinite)), []);
    assert_eq!((harness.counts().late, harness.counts().finished, harness.counts().refused), (3, 1, 0));
}

#[test]
fn only_the_replica_it_was_sent_to_may_return_it() {
    let mut harness = Harness::under_way(2);
    for from in [a(1), b(0), restarted(a(0))] {
        assert_eq!(harness.receive(from, returned(0, 0, &[a(1), from])), []);
    }
    for path in [vec![], vec![a(0)], vec![a(0), a(1)], vec![a(1), a(1), a(0)], vec![a(1), b(0)]] {
        assert_eq!(harness.receive(a(0), returned(0, 0, &path)), []);
    }
    assert_eq!(harness.receive(a(0), returned(0, 1, &[a(1), a(0)])), [], "of another sending");
    assert_eq!((harness.counts().foreign, harness.counts().in_flight), (9, 2));
}

#[test]
fn a_loss_that_is_no_number_is_refused() {
    let mut harness = Harness::under_way(2);
    let (loss, path) = (Loss { sum: f64::NAN, tokens: 1 }, vec![a(1), a(0)]);
    let message = Message::Backward { microbatch: MicrobatchId(0), attempt: Attempt(0), loss, path };
    let refused = Outcome::Refused { by: a(0), reason: Refusal::NonFinite };
    assert_eq!(harness.receive(a(0), message), [outcome(0, refused)]);
    assert_eq!((harness.counts().refused, harness.counts().finished), (1, 0));
}

#[test]
fn a_refusal_counts_if_it_is_the_refusers_own() {
    let mut harness = Harness::under_way(2);
    for by in [a(0), restarted(a(1)), b(1)] {
        assert_eq!(harness.receive(a(1), refusal(0, by, Refusal::NonFinite)), []);
    }
    assert_eq!(harness.counts().foreign, 3);
    let refused = Outcome::Refused { by: a(1), reason: Refusal::NonFinite };
    assert_eq!(harness.receive(a(1), refusal(0, a(1), Refusal::NonFinite)), [outcome(0, refused)]);
    assert_eq!((harness.counts().refused, harness.counts().in_flight), (1, 1));
}

#[test]
fn ids_are_not_wasted_while_a_stage_is_empty() {
    let mut harness = Harness::under_way(9);
    let refused = Outcome::Refused { by: a(0), reason: Refusal::Undeliverable };
    let said = harness.receive(a(0), refusal(0, a(0), Refusal::Undeliverable));
    assert_eq!(said, [outcome(0, refused)]);
    assert_eq!(harness.wait(REFUSED_PAUSE / 2), []);
    assert_eq!(harness.wait(REFUSED_PAUSE / 2), [draw(2)]);
}

// --- Grants -----------------------------------------------------------------------------------------------

#[test]
fn the_first_claim_of_a_stage_is_granted_and_the_same_answer_given_again() {
    let mut harness = Harness::under_way(4);
    harness.publish(&[a(0), a(1), b(1)]);
    assert_eq!(harness.receive(a(1), claim(1, &[0, 1])), [send(a(1), answer(&[0, 1], &[]))]);
    assert_eq!(harness.receive(b(1), claim(1, &[0])), [send(b(1), answer(&[], &[0]))]);
    assert_eq!(harness.receive(a(1), claim(1, &[0])), [send(a(1), answer(&[0], &[]))]);
    assert_eq!(harness.receive(a(0), claim(0, &[0])), [send(a(0), answer(&[0], &[]))]);
    assert_eq!(harness.receive(a(1), claim(1, &[2])), [send(a(1), answer(&[], &[2]))], "not injected");
    assert_eq!(harness.counts().denied, 2);
    harness.finish(0);
    assert_eq!(harness.receive(a(1), claim(1, &[0])), [send(a(1), answer(&[0], &[]))], "after the end");
    assert_eq!(harness.receive(b(1), claim(1, &[0])), [send(b(1), answer(&[], &[0]))]);
}

#[test]
fn a_grant_belongs_to_one_start_of_a_replica_for_ever() {
    let mut harness = Harness::under_way(2);
    harness.receive(a(1), claim(1, &[0]));
    assert_eq!(harness.receive(restarted(a(1)), claim(1, &[1])), [], "not in the table");
    assert_eq!(harness.receive(a(1), claim(0, &[1])), [], "not its stage");
    assert_eq!(harness.counts().foreign, 2);
    harness.publish(&[a(0), restarted(a(1))]);
    assert_eq!(harness.receive(restarted(a(1)), claim(1, &[0])), [send(a(1), answer(&[], &[0]))]);
}

#[test]
fn a_replica_on_the_path_has_the_grant_unless_another_has() {
    let mut harness = Harness::under_way(2);
    harness.publish(&[a(0), a(1), b(1)]);
    harness.receive(b(1), claim(1, &[0]));
    harness.finish(0);
    harness.finish(1);
    let granted = |id, to| Record::Granted { microbatch: MicrobatchId(id), to };
    let is_grant = |record: &Record| matches!(record, Record::Granted { .. });
    let grants: Vec<_> = harness.journal().into_iter().filter(is_grant).collect();
    assert_eq!(grants, [granted(0, b(1)), granted(0, a(0)), granted(1, a(1)), granted(1, a(0))]);
    assert_eq!(harness.counts().ungranted, 0);
}

#[test]
fn records_come_before_the_messages_that_rely_on_them() {
    let mut harness = Harness::under_way(2);
    harness.receive(a(1), claim(1, &[0]));
    harness.finish(0);
    let id = MicrobatchId(0);
    let place = |action: &Action<u8>| harness.said.iter().position(|said| said == action).unwrap();
    let written = |record| place(&Action::Journal(record));
    let sent = harness.said.iter().position(|said| !forwards(std::slice::from_ref(said)).is_empty());
    assert!(written(Record::Sent { microbatch: id, to: a(0) }) < sent.unwrap());
    assert!(written(Record::Granted { microbatch: id, to: a(1) }) < place(&send(a(1), answer(&[0], &[]))));
    let outcome = Outcome::Finished { loss: LOSS };
    assert!(written(Record::Ended { microbatch: id, outcome }) < place(&finished(0)));
}

#[test]
fn replicas_hear_which_ids_have_their_outcome() {
    let mut harness = Harness::under_way(4);
    harness.finish(0);
    harness.draw(2);
    harness.finish(2);
    harness.wait(SECOND);
    let told = |to: Hop| {
        let ranges = |action: &Action<u8>| match (action, message_of(action)) {
            (Action::Send { to: receiver, .. }, Some(Message::Outcomes { ranges }))
                if *receiver == to.peer() =>
            {
                Some(ranges.clone())
            }
            _ => None,
        };
        harness.said.iter().rev().find_map(ranges)
    };
    let expected = vec![AckRange { first: 0, end: 3, open: vec![1] }];
    assert_eq!([a(0), a(1)].map(told), [Some(expected.clone()), Some(expected)]);
}

#[test]
fn a_stuck_microbatch_holds_back_no_announcement_and_stops_admission_far_behind_it() {
    let reach = ACK_OPEN_MAX as u64;
    let mut harness = Harness::under_way(2 * reach);
    for id in 1..reach {
        harness.finish(id);
        harness.draw(id + 1);
    }
    assert_eq!((harness.counts().finished, harness.counts().in_flight), (reach - 1, 1));
    let ranges = harness.feeder.announcement.announce();
    assert_eq!(ranges, [AckRange { first: 0, end: reach, open: vec![0] }]);
    assert!(harness.finish(0).contains(&draw(reach)), "admission goes on");
}

#[test]
fn a_path_is_the_word_of_its_sender_and_claims_are_awaited_for_a_while_only() {
    let mut harness = Harness::under_way(9);
    harness.receive(a(0), claim(0, &[0]));
    assert_eq!(harness.receive(a(0), returned(0, 0, &[a(1), a(0)])), []);
    assert!(harness.receive(a(1), claim(1, &[0])).contains(&finished(0)));
    harness.receive(a(0), claim(0, &[1]));
    harness.receive(a(0), returned(1, 0, &[a(1), a(0)]));
    assert!(!harness.wait(CLAIMS_WITHIN - SECOND).contains(&finished(1)));
    assert!(harness.wait(SECOND).contains(&finished(1)));
    assert_eq!((harness.counts().contributions_lost, harness.counts().ungranted), (1, 0));
    assert_eq!(harness.receive(a(1), claim(1, &[1])), [send(a(1), answer(&[], &[1]))]);
}

#[test]
fn a_replica_that_was_handed_nothing_gets_no_grant_refuses_nothing_and_is_struck() {
    let mut harness = Harness::under_way(1_000);
    harness.publish(&[a(0), a(1), b(1)]);
    for _ in 0..20 {
        harness.receive(a(1), claim(1, &[0]));
    }
    let mut said = Vec::new();
    for _ in 0..20 {
        said.extend(harness.receive_as_it_is(b(1), claim(1, &[0, 1])));
        said.extend(harness.receive_as_it_is(b(1), refusal(1, b(1), Refusal::NonFinite)));
    }
    let struck: Vec<_> = said.iter().filter(|action| matches!(action, Action::Struck { .. })).collect();
    let [Action::Struck { replica, evidence }] = struck[..] else { panic!("{struck:?}") };
    assert_eq!((*replica, evidence.convicts()), (b(1), true));
    let forged = vec![MicrobatchId(0), MicrobatchId(1)];
    let reply = Message::ClaimReply { granted: Vec::new(), denied: Vec::new(), forged };
    assert_eq!(said[0], send(b(1), reply));
    assert_eq!((harness.counts().refused, harness.counts().denied), (0, 0));
    assert_eq!(
        harness.receive(b(1), claim(1, &[1])),
        [send(b(1), answer(&[], &[1]))],
        "not believed any more"
    );
    assert_eq!(harness.finish(1).first(), Some(&finished(1)), "honest replicas go on");
}

#[test]
fn a_grant_handed_back_is_free_while_the_microbatch_is_open_and_lost_afterwards() {
    let mut harness = Harness::under_way(3);
    harness.publish(&[a(0), a(1), b(1)]);
    assert_eq!(harness.receive(a(1), claim(1, &[0, 1])), [send(a(1), answer(&[0, 1], &[]))]);
    assert_eq!(
        harness.receive(a(1), claim_and_forfeit(1, &[], &[0])),
        [send(a(1), answer(&[], &[0])), send(a(1), answer(&[], &[])),]
    );
    assert_eq!(harness.receive(b(1), claim(1, &[0, 1])), [send(b(1), answer(&[0], &[1]))]);
    harness.receive_back(1, 0, &[b(1), a(0)]);
    for _ in 0..2 {
        harness.receive(a(1), claim_and_forfeit(1, &[], &[1]));
    }
    assert_eq!((harness.counts().contributions_lost, harness.counts().ungranted), (1, 0));
    let granted = |id| Record::Granted { microbatch: MicrobatchId(id), to: b(1) };
    assert!(harness.journal().contains(&granted(0)) && !harness.journal().contains(&granted(1)));
    assert_eq!(harness.restart().counts().contributions_lost, 1);
}

// --- Losses -----------------------------------------------------------------------------------------------------------

#[test]
fn a_silent_replica_is_asked_and_sent_a_missing_microbatch() {
    let mut harness = Harness::under_way(2);
    harness.finish(1);
    let route = vec![harness.feeder.config().hop()];
    let ask = status_request(0, 0, route);
    let timeout = harness.feeder.config().status_after;
    assert_eq!(harness.wait(timeout), [send(a(0), ask.clone())]);
    for times in [2, 4, 8] {
        assert_eq!(harness.receive(a(0), status(0, 0, Status::Held)), []);
        assert_eq!(harness.wait(times * timeout - SECOND), []);
        assert_eq!(harness.wait(SECOND), [send(a(0), ask.clone())]);
    }
    assert_eq!(harness.wait(timeout), [send(a(0), ask)], "that it was not answered changes nothing");
    let actions = harness.receive(a(0), status(0, 0, Status::Missing));
    assert_eq!(forwards(&actions), [(0, a(0).peer(), 1, None)]);
    assert_eq!((harness.counts().retried, harness.counts().injected), (1, 2));
    assert_eq!(harness.receive(a(0), status(0, 0, Status::Missing)), [], "of an earlier attempt");
    assert!(matches!(message_of(&harness.wait(timeout)[0]), Some(Message::StatusRequest { .. })));
}

#[test]
fn one_feeder_feeds_each_replica_of_a_wide_stage() {
    let replica = |index: u16| {
        let mut key = [9; 32];
        key[..2].copy_from_slice(&index.to_be_bytes());
        Hop::replica(StageIndex(0), Instance::new(PeerId(key), START))
    };
    let replicas: Vec<Hop> = (0..300).map(replica).collect();
    let wide = Config { admission: Admission::Asynchronous(300), ..config(900, START) };
    let mut harness = Harness::of(Feeder::new(wide, UniformConfig.build(1)));
    harness.publish(&[&replicas[..], &[a(1)]].concat());
    harness.hear(lease(0, 900));
    let mut fed = BTreeSet::new();
    for id in 0..900 {
        let said = harness.draw(id);
        let Some((_, to, ..)) = forwards(&said).first().copied() else { continue };
        fed.insert(to);
        let from = *replicas.iter().find(|hop| hop.peer() == to).unwrap();
        harness.receive_back(id, 0, &[a(1), from]);
    }
    assert!(fed.len() > 250, "{} of 300 replicas got one of 900 microbatches", fed.len());
}

#[test]
fn a_busy_replica_is_left_alone_until_its_heartbeat() {
    let mut harness = Harness::under_way(2);
    assert_eq!(harness.receive(a(0), status(0, 0, Status::Busy)), []);
    let said = harness.receive(a(0), Message::Heartbeat(Heartbeat { credit: 2, ..Heartbeat::default() }));
    assert_eq!(forwards(&said), [(0, a(0).peer(), 1, None)]);
}

#[test]
fn a_full_send_queue_holds_a_microbatch_back_until_the_next_heartbeat() {
    let mut harness = Harness::under_way(2);
    let message = Message::Forward {
        microbatch: MicrobatchId(0),
        attempt: Attempt(0),
        purpose: Purpose::Train,
        is_retry: false,
        key: RouteKey::default(),
        downstream_holder: None,
        route: Vec::new(),
        version: WeightVersion(0),
    };
    assert_eq!(harness.hear(Event::SendQueueFull { to: a(0).peer(), message }), []);
    let said = harness.receive(a(0), Message::Heartbeat(Heartbeat { credit: 2, ..Heartbeat::default() }));
    assert_eq!(forwards(&said), [(0, a(0).peer(), 1, None)]);
    assert_eq!((harness.counts().retried, harness.counts().injected), (0, 2));
}

#[test]
fn a_microbatch_of_a_lost_replica_goes_to_another_with_the_known_holder() {
    let mut harness = Harness::under_way(2);
    harness.publish(&[a(0), b(0), a(1)]);
    let receipt = Message::Forwarded { microbatch: MicrobatchId(1), attempt: Attempt(0), next: a(1) };
    assert_eq!(harness.receive(a(0), receipt), []);
    let said = harness.lose(a(0));
    assert_eq!(forwards(&said), [(0, b(0).peer(), 1, None), (1, b(0).peer(), 1, Some(a(1)))]);
    let orphan = Message::OrphanNotice { microbatch: MicrobatchId(0), holder: a(1) };
    assert_eq!(harness.receive(a(1), orphan.clone()), [send(b(0), orphan)], "passed on");
    assert_eq!(harness.receive_back(0, 0, &[a(1), a(0)]), [finished(0)], "the first answer wins");
}

#[test]
fn without_another_replica_of_stage_0_everything_waits() {
    let mut harness = Harness::under_way(2);
    assert_eq!(harness.lose(a(0)), []);
    let said = harness.publish(&[restarted(a(0)), a(1)]);
    assert_eq!(forwards(&said), [(0, a(0).peer(), 1, None), (1, a(0).peer(), 1, None)]);
    assert_eq!((harness.counts().injected, harness.counts().lost), (2, 0));
}

// --- Several feeders --------------------------------------------------------------------------------------------------

fn others(injected: u64, settled: u64) -> Event<u8> {
    Event::RunProgress(crate::RunTally { injected, settled })
}

#[test]
fn a_feeder_is_done_when_the_whole_run_is() {
    let mut harness = Harness::new(5);
    harness.publish(&[a(0), a(1)]);
    harness.hear(others(2, 0));
    harness.hear(lease(0, 1));
    harness.draw(0);
    harness.receive(a(0), claim(0, &[0]));
    harness.receive(a(1), claim(1, &[0]));
    harness.finish(0);
    assert!(!harness.feeder.is_trained(), "others have microbatches");
    let asks = harness.wait(LEASE_RETRY);
    assert!(asks.contains(&Action::RequestLease { next: Some(MicrobatchId(1)), count: 4 }), "{asks:?}");
    assert_eq!(harness.hear(lease(1, 0)), [], "nothing is left");
    assert!(harness.wait(LEASE_RETRY).iter().any(|action| matches!(action, Action::RequestLease { .. })));
    assert_eq!(harness.hear(others(4, 4)), [Action::End(End::Finished)]);
    assert_eq!(harness.feeder.tallies()[0].settled, 1);
}

#[test]
fn of_two_feeders_the_one_with_the_lower_block_calls_rounds_and_measures() {
    let mut config = config(5, START);
    config.averaging = Some(AveragingSchedule { interval: 1, fragments: 1 });
    config.evaluation = Some(EvaluationSchedule { microbatches: 1, interval: None });
    let mut harness = Harness::of(Feeder::new(config, UniformConfig.build(1)));
    let other = Hop::feeder(Instance::new(PeerId([77; 32]), START));
    let leased = |block: u32, feeder: Hop| {
        let lease = Lease { first: Block(block).first(), count: Block::IDS, epoch: 0 };
        LeasedRange::new(lease, feeder.peer())
    };
    let me = harness.feeder.config().hop();
    let members: Vec<_> = [me, other, a(0), a(1), b(1)].map(member).into();
    let leases = vec![leased(0, other), leased(1, me)];
    let table = Membership { version: 1, members, leases, ..Membership::default() };
    harness.hear(Event::Membership(table.clone().into()));
    harness.stage_0_beats();
    let first = Block(1).first();
    harness.hear(Event::Lease(Lease { first, count: 2, epoch: 0 }));
    harness.draw(first.0);
    harness.finish(first.0);
    let calls = |harness: &Harness| {
        let is_call = |action: &&Action<u8>| matches!(message_of(action), Some(Message::RoundCall { .. }));
        harness.said.iter().filter(is_call).count()
    };
    for hop in [a(1), b(1)] {
        harness.receive(hop, Message::RoundReport { round: Round(7), carried: None, is_complete: false });
    }
    assert_eq!(calls(&harness), 0, "the other one calls");
    let leases = vec![leased(1, me)];
    harness.hear(Event::Membership(Membership { version: 2, leases, ..table }.into()));
    assert!(calls(&harness) > 0, "the other one has left");
    let called = Message::RoundCall { round: Round(9), is_closing: false, weights: Vec::new() };
    assert!(harness.said.iter().any(|action| message_of(action) == Some(&called)), "8 may be under way");
}

#[test]
fn a_claim_of_an_id_that_the_table_gives_to_another_feeder_is_not_decided_and_casts_no_doubt() {
    let mut harness = Harness::new(5);
    let lease = Lease { first: MicrobatchId(0), count: Block::IDS, epoch: 0 };
    let leases = vec![LeasedRange::new(lease, PeerId([77; 32]))];
    let members = [a(0), a(1)].map(member).into();
    let table = Membership { version: 1, members, leases, ..Membership::default() };
    harness.hear(Event::Membership(table.into()));
    let lives = [send(a(1), answer(&[], &[]))];
    assert_eq!(
        harness.receive(a(1), claim(1, &[0])),
        lives,
        "the table that names this feeder may come later"
    );
    assert_eq!(harness.counts().forged, 0);
}

// --- After a restart --------------------------------------------------------------------------------------------------

#[test]
fn a_restarted_feeder_asks_for_microbatches_in_flight_and_injects_nothing_twice() {
    let mut before = Harness::under_way(5);
    before.receive(a(1), claim(1, &[1]));
    before.finish(0);
    let mut harness = before.restart();
    assert_eq!(harness.said, [draw(1)]);
    assert_eq!(harness.counts(), before.counts());

    let said = harness.publish(&[a(0), a(1), b(1)]);
    assert_eq!(said, [Action::RequestLease { next: Some(MicrobatchId(2)), count: 3 }], "no id again");
    assert_eq!(harness.hear(lease(2, 3)), [draw(2)]);
    let route = vec![harness.feeder.config().hop()];
    let ask = status_request(1, 1, route);
    assert_eq!(harness.draw(1), [send(a(0), ask)]);
    assert_eq!(harness.receive(b(1), claim(1, &[1])), [send(b(1), answer(&[], &[1]))], "grants count on");
    let said = harness.receive_back(1, 1, &[a(1), a(0)]);
    assert_eq!(said, [finished(1), draw(3)]);
    let Counts { injected, finished, in_flight, lost, .. } = harness.counts();
    assert_eq!((injected, finished, in_flight, lost), (2, 2, 0, 0));
}

#[test]
fn a_microbatch_in_flight_is_sent_again_only_if_no_replica_has_it() {
    let under_way = Harness::under_way(2);
    let mut denied = under_way.restart();
    denied.publish(&[a(0), a(1)]);
    denied.draw(0);
    let said = denied.receive(a(0), status(0, 1, Status::Missing));
    assert_eq!(forwards(&said), [(0, a(0).peer(), 2, None)]);

    let mut gone = under_way.restart();
    gone.publish(&[b(0), a(1)]);
    assert_eq!(forwards(&gone.draw(0)), [(0, b(0).peer(), 1, None)]);
    assert_eq!((gone.counts().injected, gone.counts().retried), (2, 1));
}

#[test]
fn a_feeder_that_was_done_is_done_again() {
    let mut before = Harness::under_way(2);
    before.finish(0);
    before.finish(1);
    let mut harness = before.restart();
    assert_eq!(
        (harness.hear(Event::Timeout), harness.counts().finished),
        (vec![Action::End(End::Finished)], 2)
    );
}

// --- Evaluations and the end ------------------------------------------------------------------------------------------

/// Training is over but for id 2; an evaluation of one text is on its way.
fn measuring() -> Harness {
    let mut harness = Harness::under_way_by(Admission::Synchronous(2), 3);
    harness.hear(Event::Evaluate { first: 5, count: 1, purpose: Purpose::Evaluate });
    harness.finish(0);
    harness.finish(1);
    harness.hear(Event::Drawn { microbatch: MicrobatchId::evaluation(Block(0), 5), ids: 1 });
    harness
}

fn evaluated(attempt: u32) -> Message {
    Message::Evaluated {
        proof: unproven(MicrobatchId::evaluation(Block(0), 5)),
        attempt: Attempt(attempt),
        loss: LOSS,
    }
}

fn measured(answered: u64) -> Measured {
    let (sum, tokens) = if answered > 0 { (3.0, 2) } else { (0.0, 0) };
    Measured { purpose: Purpose::Evaluate, sum, tokens, answered, unanswered: 1 - answered }
}

#[test]
fn an_evaluation_goes_among_training_microbatches() {
    let mut harness = Harness::under_way(4);
    let id = MicrobatchId::evaluation(Block(0), 5);
    let draw_held_out = Action::Draw { microbatch: id, purpose: Purpose::Evaluate };
    let evaluate = Event::Evaluate { first: 5, count: 1, purpose: Purpose::Evaluate };
    assert_eq!(harness.hear(evaluate), [draw_held_out]);
    assert_eq!(harness.finish(0), [finished(0), draw(2)], "training goes on");
    let drawn = harness.hear(Event::Drawn { microbatch: id, ids: 1 });
    assert_eq!(forwards(&drawn), [(id.0, a(0).peer(), 0, None)]);
    assert!(harness.receive(a(1), evaluated(0)).contains(&Action::Evaluated(measured(1))));
}

#[test]
fn in_step_an_evaluation_waits_for_training_and_training_for_the_evaluation() {
    let mut harness = Harness::under_way_by(Admission::Synchronous(2), 3);
    assert_eq!(harness.hear(Event::Evaluate { first: 5, count: 1, purpose: Purpose::Evaluate }), []);
    assert_eq!(harness.finish(0), [finished(0)]);
    let id = MicrobatchId::evaluation(Block(0), 5);
    assert_eq!(harness.finish(1), [finished(1), Action::Draw { microbatch: id, purpose: Purpose::Evaluate }]);
    harness.hear(Event::Drawn { microbatch: id, ids: 1 });
    assert_eq!(harness.receive(a(0), evaluated(0)), [], "not the last stage");
    let said = harness.receive(a(1), evaluated(0));
    let outcome = Action::Outcome { microbatch: id, outcome: Outcome::Evaluated { loss: LOSS } };
    assert_eq!(said, [outcome, Action::Evaluated(measured(1)), draw(2)]);
}

#[test]
fn an_evaluation_without_an_answer_is_sent_again_and_given_up_at_last() {
    let mut harness = measuring();
    let timeout = harness.feeder.config().status_after;
    for attempt in 1..EVALUATION_TRIES {
        let said = harness.wait(timeout);
        assert_eq!(forwards(&said), [(MicrobatchId::evaluation(Block(0), 5).0, a(0).peer(), attempt, None)]);
    }
    let unanswered =
        Action::Outcome { microbatch: MicrobatchId::evaluation(Block(0), 5), outcome: Outcome::Unanswered };
    assert_eq!(harness.wait(timeout), [unanswered, Action::Evaluated(measured(0)), draw(2)]);

    let mut harness = measuring();
    harness.wait(timeout);
    assert!(harness.receive(a(1), evaluated(0)).contains(&Action::Evaluated(measured(1))), "any try counts");
    assert_eq!(harness.receive(a(1), evaluated(1)), []);
}

#[test]
fn a_result_is_awaited_long_before_the_first_and_for_a_few_turnarounds_after_it() {
    let mut config = config(1, START);
    config.evaluation = Some(EvaluationSchedule { microbatches: 2, interval: None });
    let (short, long) = (config.status_after, config.evaluation_timeout);
    let ids = [0, 1].map(|index| MicrobatchId::evaluation(Block(0), index));
    let under_way = || {
        let mut harness = Harness::of(Feeder::new(config.clone(), UniformConfig.build(1)));
        harness.hear(lease(0, 1));
        harness.publish(&[a(0), a(1)]);
        for microbatch in ids {
            harness.hear(Event::Drawn { microbatch, ids: 1 });
        }
        harness
    };
    let again = |said: &[Action<u8>]| forwards(said).iter().map(|sent| sent.0).collect::<Vec<_>>();

    let mut harness = under_way();
    assert_eq!(again(&harness.wait(long - SECOND)), [], "nothing has shown how fast the replicas are");
    assert_eq!(again(&harness.wait(SECOND)), ids.map(|id| id.0));

    let mut harness = under_way();
    harness.publish(&[a(0), a(1), b(1)]);
    harness.publish(&[a(0), a(1)]);
    assert_eq!(again(&harness.wait(short)), ids.map(|id| id.0), "the replica that left may have had them");

    let mut harness = under_way();
    let answer = Message::Evaluated { proof: unproven(ids[0]), attempt: Attempt(0), loss: LOSS };
    harness.receive(a(1), answer.clone());
    assert_eq!(again(&harness.wait(short - SECOND)), []);
    assert_eq!(again(&harness.wait(SECOND)), [ids[1].0]);

    let mut harness = under_way();
    harness.wait(short - SECOND);
    harness.receive(a(1), answer);
    assert_eq!(again(&harness.wait(long)), [], "the first took two thirds of a short wait");
    assert_eq!(again(&harness.wait(SECOND)), [ids[1].0]);
}

#[test]
fn evaluations_are_bounded_and_an_empty_one_is_over_at_once() {
    let mut harness = Harness::under_way(3);
    let evaluate = |count| Event::Evaluate { first: 0, count, purpose: Purpose::Evaluate };
    let said = harness.hear(evaluate(0));
    assert!(matches!(said[..], [Action::Evaluated(Measured { answered: 0, .. })]));
    for _ in 0..EVALUATIONS_MAX {
        assert!(!harness.hear(evaluate(1)).contains(&Action::EvaluationDeclined));
    }
    assert_eq!(harness.hear(evaluate(1)), [Action::EvaluationDeclined]);
}

#[test]
fn stopping_finishes_the_microbatches_in_flight_and_no_more() {
    let mut harness = Harness::under_way(9);
    assert_eq!(harness.finish(0), [finished(0), draw(2)]);
    assert_eq!(harness.hear(Event::Stop), []);
    assert_eq!(harness.draw(2), []);
    let evaluate = Event::Evaluate { first: 0, count: 1, purpose: Purpose::Evaluate };
    assert_eq!(harness.hear(evaluate), [Action::EvaluationDeclined]);
    assert_eq!(harness.finish(1), [finished(1), Action::End(End::Stopped)]);
    assert_eq!(harness.counts().injected, 2);
    assert_eq!(harness.wait(SECOND), []);
}

#[test]
fn each_call_of_a_round_says_what_the_members_of_the_group_may_weigh() {
    let averaging = Some(AveragingSchedule { interval: 1, fragments: 1 });
    let config = Config { averaging, ..config(100, START) };
    let mut harness = Harness::of(Feeder::new(config, UniformConfig.build(1)));
    harness.publish(&[a(0), a(1), b(1)]);
    harness.hear(lease(0, 100));
    let weights = |harness: &Harness, to: Hop| {
        let calls = harness.said.iter().rev().filter_map(|action| match action {
            Action::Send { to: peer, envelope } if *peer == to.peer() => Some(&envelope.message),
            _ => None,
        });
        let mut calls = calls.filter_map(|message| match message {
            Message::RoundCall { weights, .. } => Some(weights.clone()),
            _ => None,
        });
        calls.next().unwrap()
    };
    let group = [a(1), b(1)].map(|hop| hop.peer());
    let before = weights(&harness, b(1));
    assert_eq!(before.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(), group);
    for id in 0..2 {
        harness.draw(id);
        harness.finish(id);
    }
    harness.wait(SECOND);
    let after = weights(&harness, b(1));
    assert_eq!(after[0].1 - before[0].1, 2, "it was granted two microbatches");
    assert_eq!(after[1].1, before[1].1);
}

#[test]
fn a_resumed_feeder_counts_lost_contributions_since_the_last_cycle_of_rounds_only() {
    let averaging = Some(AveragingSchedule { interval: 1, fragments: 2 });
    let config = Config { averaging, ..config(100, Incarnation(2)) };
    let mut journal = vec![Record::Leased(Lease { first: MicrobatchId(0), count: 100, epoch: 0 })];
    for microbatch in (0..20).map(MicrobatchId) {
        let outcome = Outcome::Finished { loss: LOSS };
        journal.extend([
            Record::Sent { microbatch, to: a(0) },
            Record::Granted { microbatch, to: a(1) },
            Record::Ended { microbatch, outcome },
            Record::RoundCalled { stage: StageIndex(0) },
            Record::RoundCalled { stage: StageIndex(1) },
        ]);
    }
    let journal = Snapshot::of(&journal, averaging);
    let mut harness = Harness::of(Feeder::resume(config, UniformConfig.build(1), &journal));
    harness.publish(&[a(0), b(1)]);
    assert_eq!(harness.counts().contributions_lost, 3);
}

/// What a feeder knows of its microbatches, as text: outcomes, grants, attempts, and contributions that may be lost.
fn knowledge(harness: &mut Harness) -> String {
    let feeder = &mut harness.feeder;
    let grants = |id| {
        let mut grants = feeder.grants.of(MicrobatchId(id)).to_vec();
        grants.sort();
        grants
    };
    let grants: Vec<_> = (0..60).map(grants).collect();
    let latest: Vec<_> =
        (0..60).map(|id| feeder.handoff.latest(MicrobatchId(id)).map(|leg| leg.hop)).collect();
    let counts = feeder.counts();
    let totals =
        [counts.injected, counts.finished, counts.refused, counts.in_flight, counts.contributions_lost];
    let to_lose: Vec<_> = [a(0), a(1), b(1)].map(|hop| feeder.contributions.lose(&hop)).to_vec();
    let outcomes = feeder.announcement.announce().iter().map(|range| range.open.clone()).collect::<Vec<_>>();
    format!("{totals:?} {outcomes:?} {grants:?} {latest:?} {to_lose:?}")
}

#[test]
fn a_restarted_feeder_knows_what_it_knew_whatever_happened() {
    for seed in 0..200 {
        let mut rng = crate::Rng::new(seed);
        let mut harness = Harness::under_way(60);
        for _ in 0..rng.below(60) {
            let open: Vec<_> = harness.feeder.open.keys().map(|id| id.0).collect();
            let Some(&id) = rng.pick(&open) else { break };
            let claimant = if rng.below(2) == 0 { a(1) } else { b(1) };
            let said = match rng.below(6) {
                0 => harness.receive(claimant, claim(1, &[id])),
                1 => harness.receive(claimant, claim_and_forfeit(1, &[], &[rng.below(id + 1)])),
                2 => harness.publish(&[a(0), a(1), b(1)]),
                3 => harness.publish(&[a(0), a(1)]),
                4 => harness.receive(a(0), refusal(id, a(0), Refusal::NonFinite)),
                _ => harness.receive_back(id, 0, &[claimant, a(0)]),
            };
            for action in said {
                if let Action::Draw { microbatch, .. } = action {
                    harness.draw(microbatch.0);
                }
            }
        }
        let mut again = harness.restart();
        assert_eq!(knowledge(&mut again), knowledge(&mut harness), "seed {seed}");
    }
}

// --- Succession -----------------------------------------------------------------------------------------------------

fn succession(feeder: PeerId) -> Vec<LeasedRange> {
    let lease = Lease { first: MicrobatchId(0), count: 50, epoch: 1 };
    vec![LeasedRange::new(lease, feeder)]
}

fn inherits(harness: &mut Harness, members: &[Hop], feeder: PeerId) -> Vec<Action<u8>> {
    harness.version += 1;
    let members = members.iter().copied().map(member).collect();
    let leases = succession(feeder);
    let table = Membership { version: harness.version, members, leases, ..Membership::default() };
    harness.hear(Event::Membership(table.into()))
}

fn page(of: Hop, items: Vec<Item>) -> Message {
    Message::RecoveryReport(RecoveryReport {
        first: MicrobatchId(0),
        epoch: 1,
        from: MicrobatchId(0),
        next: None,
        stage: of.stage.unwrap(),
        ended: vec![AckRange { first: 0, end: 4, open: Vec::new() }],
        items,
    })
}

#[test]
fn a_successor_asks_every_replica_and_continues_microbatches_held() {
    let mut harness = Harness::new(8);
    let recover = Message::RecoverRange { first: MicrobatchId(0), epoch: 1, from: MicrobatchId(0) };
    let asked = [a(0), a(1)].map(|hop| send(hop, recover.clone()));
    assert_eq!(inherits(&mut harness, &[a(0), a(1)], PeerId([0; 32])), asked);
    let item = |id, granted| Item {
        microbatch: MicrobatchId(id),
        granted,
        possession: Possession::Held,
        may_have_been_granted: Vec::new(),
    };
    harness.receive(a(0), page(a(0), vec![item(4, None)]));
    let claim = |id| claim(1, &[id]);
    assert_eq!(harness.receive(b(1), claim(4)), [], "not decided yet");
    let actions = harness.receive(a(1), page(a(1), vec![item(4, Some(true)), item(5, None)]));
    let refused = |id| Action::Outcome {
        microbatch: MicrobatchId(id),
        outcome: Outcome::Refused { by: harness.feeder.config().hop(), reason: Refusal::Abandoned },
    };
    let draw = Action::Draw { microbatch: MicrobatchId(4), purpose: Purpose::Train };
    assert!(actions.starts_with(&[refused(5), draw]), "{actions:?}");
    let Counts { inherited, abandoned, in_flight, injected, .. } = harness.counts();
    assert_eq!((inherited, abandoned, in_flight, injected), (4, 1, 1, 2));

    harness.publish(&[a(0), a(1), b(1)]);
    let asked = harness.draw(4);
    assert!(matches!(message_of(&asked[0]), Some(Message::StatusRequest { .. })), "{asked:?}");
    assert_eq!(harness.receive(b(1), claim(4)), [send(b(1), answer(&[], &[4]))]);
    assert_eq!(harness.counts().contributions_lost, 0, "another replica has it");
    (0..2).for_each(|_| drop(harness.receive(b(1), claim(3))));
    assert_eq!(harness.counts().contributions_lost, 1, "only the former feeder knew its answer");

    let restarted = harness.restart();
    assert_eq!(restarted.counts().inherited, 4);
    assert_eq!(restarted.counts().in_flight, 1);
}

#[test]
fn a_feeder_that_was_succeeded_does_nothing_any_more() {
    let mut harness = Harness::under_way(8);
    let by = PeerId([0xAA; 32]);
    let said = inherits(&mut harness, &[a(0), a(1)], by);
    assert_eq!(said.first(), Some(&Action::End(End::Succeeded { by })));
    assert_eq!(harness.finish(0), []);
    assert_eq!(harness.wait(60 * SECOND), []);
}

// --- Schedule and end -----------------------------------------------------------------------------------------------

#[test]
fn measures_by_its_schedule_before_training_and_after_it() {
    let mut config = config(1, START);
    config.evaluation = Some(EvaluationSchedule { microbatches: 1, interval: None });
    let mut harness = Harness::of(Feeder::new(config, UniformConfig.build(1)));
    harness.hear(lease(0, 1));
    let id = MicrobatchId::evaluation(Block(0), 0);
    let draw_held_out = |purpose| Action::Draw { microbatch: id, purpose };
    let measure = |harness: &mut Harness, attempt| {
        harness.hear(Event::Drawn { microbatch: id, ids: 1 });
        let result = Message::Evaluated { proof: unproven(id), attempt: Attempt(attempt), loss: LOSS };
        harness.receive(a(1), result)
    };
    assert_eq!(harness.publish(&[a(0), a(1)]), [draw_held_out(Purpose::Evaluate)]);
    assert!(measure(&mut harness, 0).contains(&draw(0)));
    harness.draw(0);
    let actions = harness.finish(0);
    assert!(actions.contains(&draw_held_out(Purpose::Evaluate)), "{actions:?}");
    assert!(harness.feeder.is_trained());
    assert!(measure(&mut harness, EVALUATION_TRIES).contains(&draw_held_out(Purpose::EvaluateCut)));
    let last = measure(&mut harness, 2 * EVALUATION_TRIES);
    assert_eq!(last.last(), Some(&Action::End(End::Finished)));
}

#[test]
fn a_stop_waits_for_microbatches_in_flight_within_a_time_limit() {
    let mut harness = Harness::under_way(9);
    harness.hear(Event::Stop);
    let within = harness.feeder.config().stop_within;
    assert!(!harness.wait(within - SECOND).contains(&Action::End(End::Stopped)));
    assert!(harness.wait(SECOND).contains(&Action::End(End::Stopped)));
}

#[test]
fn a_feeder_ends_when_the_coordinator_says_so() {
    let mut over = Harness::under_way(9);
    assert_eq!(over.hear(Event::Directive(Directive::Finished)), [Action::End(End::RunFinished)]);
    assert_eq!(over.finish(0), []);
    let mut dismissed = Harness::under_way(9);
    let leave = Directive::Leave("maintenance".to_owned());
    let end = End::Dismissed("maintenance".to_owned());
    assert_eq!(dismissed.hear(Event::Directive(leave)), [Action::End(end)]);
}

// --- Divergence -------------------------------------------------------------------------------------------------------

/// Every microbatch from id 0 on is refused for its numbers, by these replicas in turns, until the feeder ends.
fn refuse_all(harness: &mut Harness, by: &[Hop], count: u64) -> Vec<Action<u8>> {
    let refused = |(id, &by): (u64, &Hop)| {
        harness.draw(id);
        harness.receive(by, refusal(id, by, Refusal::NonFinite))
    };
    (0..count).zip(by.iter().cycle()).flat_map(refused).collect()
}

#[test]
fn a_run_whose_microbatches_are_refused_one_after_the_other_has_diverged() {
    let mut harness = Harness::under_way(200);
    let said = refuse_all(&mut harness, &[a(0)], 33);
    let end = End::Diverged { at: 33, sign: Divergence::Refusals(33) };
    assert_eq!(said.last(), Some(&Action::End(end)));
    assert_eq!(harness.finish(33), [], "an end is the last action");
}

#[test]
fn one_replica_of_several_that_refuses_all_is_no_divergence_of_the_run() {
    let mut harness = Harness::under_way(200);
    harness.publish(&[a(0), b(0), a(1)]);
    let ends = |said: &[Action<u8>]| said.iter().any(|action| matches!(action, Action::End(_)));
    let said = refuse_all(&mut harness, &[a(0)], 40);
    assert!(!ends(&said), "{said:?}");
}

#[test]
fn a_held_out_loss_that_is_no_number_ends_the_run() {
    let mut harness = measuring();
    let loss = Loss { sum: f64::NAN, tokens: 2 };
    let proof = unproven(MicrobatchId::evaluation(Block(0), 5));
    let said = harness.receive(a(1), Message::Evaluated { proof, attempt: Attempt(0), loss });
    let end = End::Diverged { at: 2, sign: Divergence::HeldOutLoss };
    assert_eq!(said.last(), Some(&Action::End(end)), "{said:?}");
}

#[test]
fn a_feeder_ends_when_another_reports_a_divergence() {
    let mut harness = Harness::under_way(9);
    let end = End::Diverged { at: 5, sign: Divergence::Reported };
    assert_eq!(harness.hear(Event::Directive(Directive::Diverged { at: 5 })), [Action::End(end)]);
}

// --- A run that goes on from a checkpoint ---------------------------------------------------------------------------

#[test]
fn a_feeder_of_a_run_that_goes_on_counts_what_had_its_outcome_before() {
    let mut harness = Harness::new(8);
    harness.publish(&[a(0), a(1)]);
    harness.hear(lease(5, 3));
    assert_eq!((harness.counts().inherited, harness.feeder.settled_of_run()), (5, 5));
    harness.hear(lease(5, 3));
    assert_eq!(harness.feeder.tallies(), [BlockTally { leased: 8, ..BlockTally::settled(Block(0), 5) }]);
    harness.draw(5);
    harness.draw(6);
    harness.finish(5);
    assert_eq!(harness.feeder.settled_of_run(), 6);

    let mut restarted = harness.restart();
    assert_eq!((restarted.counts().inherited, restarted.feeder.settled_of_run()), (5, 6));
    let tally = BlockTally { block: Block(0), leased: 7, injected: 7, settled: 6 };
    assert_eq!(restarted.feeder.tallies(), [tally]);
    restarted.publish(&[a(0), a(1)]);
    restarted.draw(6);
    let asked = restarted.hear(lease(7, 1));
    assert!(asked.contains(&draw(7)), "{asked:?}");
    restarted.draw(7);
    restarted.receive(a(0), status(6, 1, Status::Missing));
    for id in [6, 7] {
        let sent = restarted.said.iter().rev().filter_map(message_of).find_map(|message| match message {
            Message::Forward { microbatch, attempt, .. } if microbatch.0 == id => Some(attempt.0),
            _ => None,
        });
        let attempt = sent.expect("it was sent");
        restarted.receive_back(id, attempt, &[a(1), a(0)]);
    }
    assert_eq!(restarted.feeder.settled_of_run(), 8);
    assert_eq!((restarted.counts().lost, restarted.feeder.is_trained()), (0, true));
}

#[test]
fn a_successor_counts_what_had_its_outcome_before_the_run_went_on() {
    let mut harness = Harness::new(8);
    let lease = Lease { first: MicrobatchId(5), count: 3, epoch: 1 };
    harness.version += 1;
    let members = [a(0)].map(member).to_vec();
    let leases = vec![LeasedRange::new(lease, PeerId([0; 32]))];
    let table = Membership { version: harness.version, members, leases, ..Membership::default() };
    harness.hear(Event::Membership(table.into()));
    let report = RecoveryReport {
        first: lease.first,
        epoch: 1,
        from: lease.first,
        next: None,
        stage: StageIndex(0),
        ended: vec![AckRange { first: 5, end: 7, open: Vec::new() }],
        items: Vec::new(),
    };
    harness.receive(a(0), Message::RecoveryReport(report));
    assert_eq!(harness.feeder.tallies(), [BlockTally::settled(Block(0), 7)]);
    assert_eq!(harness.feeder.settled_of_run(), 7);
    let restarted = harness.restart();
    assert_eq!(restarted.feeder.tallies(), [BlockTally::settled(Block(0), 7)]);
    assert_eq!(restarted.feeder.settled_of_run(), 7);
}
