//! Benchmark of one routing decision of every policy: list the candidates, choose, note the attempt and the return.
//!
//! Stages have 8, 64 and 1,000 replicas: above 64 a sender sees a sample, so the last two should cost the same. Two
//! microbatches a candidate are in flight, as in a busy swarm.

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use swarmline_scheduler::router::{
    CANDIDATES_MAX, Candidate, Choice, Completion, Policy, Router, RouterFactory,
};
use swarmline_scheduler::{
    Hop, Incarnation, Instance, Member, MemberState, Membership, MicrobatchId, PeerId, PeerTable, Rng,
    StageIndex, Time,
};

const STAGE: StageIndex = StageIndex(1);
const MEMBERS: [usize; 3] = [8, 64, 1_000];

fn table(members: usize) -> PeerTable {
    let mut rng = Rng::new(1);
    let mut member = || {
        let mut key = [0; 32];
        key.fill_with(|| rng.next_u64().to_le_bytes()[0]);
        let address = SocketAddr::from(([127, 0, 0, 1], 4_000));
        let instance = Instance::new(PeerId(key), Incarnation(1));
        Member { instance, state: MemberState::Serving(STAGE), address }
    };
    let mut table =
        PeerTable::new(Hop::replica(StageIndex(0), Instance::new(PeerId([7; 32]), Incarnation(1))));
    table.update(Membership {
        version: 1,
        members: (0..members).map(|_| member()).collect(),
        ..Membership::default()
    });
    table
}

/// A sender in the middle of a run.
struct Sender {
    table: PeerTable,
    router: Box<dyn Router>,
    in_flight: VecDeque<(Hop, MicrobatchId)>,
    window: usize,
    sent: u64,
    candidates: Vec<Candidate>,
}

impl Sender {
    fn new(policy: Policy, members: usize) -> Self {
        let mut sender = Self {
            table: table(members),
            router: policy.build(1),
            in_flight: VecDeque::new(),
            window: 2 * members.min(CANDIDATES_MAX),
            sent: 0,
            candidates: Vec::new(),
        };
        (0..sender.window).for_each(|_| sender.send());
        sender
    }

    /// Sends one microbatch. Replicas report 50 to 113 ms for a forward.
    fn send(&mut self) {
        let now = Time(self.sent * 1_000_000);
        self.candidates.clear();
        self.candidates.extend(self.table.downstream().iter().take(CANDIDATES_MAX).map(|&hop| {
            let service = Some(Duration::from_millis(50 + u64::from(hop.peer().0[0] % 64)));
            Candidate { service, ..Candidate::unknown(hop) }
        }));
        let choice = Choice { candidates: &self.candidates, senders: self.table.senders(STAGE) };
        let to = self.router.choose(now, &choice).expect("service times are known");
        let microbatch = MicrobatchId(self.sent);
        self.sent += 1;
        self.router.on_sent(now, to, microbatch);
        self.in_flight.push_back((to, microbatch));
    }

    /// The oldest microbatch returns, and the next is sent.
    fn turn(&mut self) {
        if let Some((from, microbatch)) = self.in_flight.pop_front() {
            self.router.on_completed(Time(self.sent * 1_000_000), from, microbatch, Completion::Returned);
        }
        self.send();
    }
}

fn route(c: &mut Criterion) {
    for &policy in Policy::ALL {
        let mut group = c.benchmark_group(<&str>::from(policy));
        for members in MEMBERS {
            let mut sender = Sender::new(policy, members);
            group.bench_function(BenchmarkId::from_parameter(members), |b| {
                b.iter(|| black_box(&mut sender).turn());
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = route
}
criterion_main!(benches);
