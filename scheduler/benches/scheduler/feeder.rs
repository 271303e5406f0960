//! A feeder with one microbatch in flight for each peer.

use std::collections::VecDeque;
use std::time::Duration;

use swarmline_scheduler::feeder::{Action, AveragingSchedule, Config, Event};
use swarmline_scheduler::router::{Policy, RouterFactory};
use swarmline_scheduler::{
    Admission, Attempt, Envelope, Feeder, Hop, Lease, Loss, Message, MicrobatchId, RouteKey, RouteProof,
    RouteSecret, StageIndex, TableUpdate, Time,
};

use super::swarm::{Changes, STAGES, Swarm, heartbeat};

/// Ids of a lease.
const LEASE: u64 = 1 << 20;

pub(super) struct Injection {
    swarm: Swarm,
    feeder: Feeder<u8>,
    now: Time,
    in_flight: VecDeque<(MicrobatchId, Attempt, Hop)>,
    returned: u64,
    heartbeats: u64,
    heartbeat_at: Time,
    leased: u64,
}

impl Injection {
    pub(super) fn new(peers: usize, averaging: bool) -> Self {
        let swarm = Swarm::new(peers);
        let window = u32::try_from(peers).expect("few peers");
        let mut config =
            Config::new(swarm.feeder.instance, STAGES, u64::MAX / 2, Admission::Asynchronous(window));
        config.lease_count = LEASE;
        config.averaging = averaging.then_some(AveragingSchedule { interval: 1 << 40, fragments: 20 });
        let feeder = Feeder::new(config, Policy::LeastOutstanding.build(1));
        let mut injection = Self {
            swarm,
            feeder,
            now: Time(0),
            in_flight: VecDeque::new(),
            returned: 0,
            heartbeats: 0,
            heartbeat_at: Time(0),
            leased: 0,
        };
        injection.handle(Event::Membership(injection.swarm.membership().into()));
        for _ in 0..injection.swarm.replicas[0].len() {
            injection.hear_heartbeat();
        }
        while injection.in_flight.len() < peers {
            injection.handle(Event::Timeout);
        }
        injection
    }

    /// A feeder that averages, and the changes that it follows: a replica of stage 0 enters and leaves in turn.
    pub(super) fn with_changes(peers: usize) -> (Self, Changes) {
        let injection = Self::new(peers, true);
        let changes = Changes::new(&injection.swarm.membership(), StageIndex(0));
        (injection, changes)
    }

    pub(super) fn change(&mut self, update: Option<TableUpdate>) {
        self.now = self.now + Duration::from_millis(5);
        if let Some(update) = update {
            self.handle(Event::Membership(update));
        }
    }

    /// A microbatch returns and another is injected: eleven events, and the heartbeats of the time between.
    pub(super) fn microbatch(&mut self) {
        self.now = self.now + self.swarm.pace();
        self.returned += 1;
        // One for each stage-0 replica and second.
        while self.heartbeat_at <= self.now {
            self.heartbeat_at = self.heartbeat_at + self.heartbeat_interval();
            self.hear_heartbeat();
        }
        let Some((microbatch, attempt, first)) = self.in_flight.pop_front() else { return };
        let path: Vec<Hop> = self.swarm.path(1..STAGES, self.returned).into_iter().chain([first]).collect();
        let next = path[path.len() - 2];
        self.hear(first, Message::Forwarded { microbatch, attempt, next });
        for &claimant in &path {
            let stage = claimant.stage.expect("a replica");
            let claimed = vec![self.proof(microbatch, &path, claimant)];
            self.hear(claimant, Message::Claim { stage, claimed, forfeited: Vec::new() });
        }
        let loss = Loss { sum: 2.0, tokens: 1 };
        self.hear(first, Message::Backward { microbatch, attempt, loss, path });
    }

    fn proof(&self, microbatch: MicrobatchId, path: &[Hop], of: Hop) -> RouteProof {
        let mut hops: Vec<Hop> = path.iter().copied().filter(|hop| hop.stage < of.stage).collect();
        hops.sort_by_key(|hop| hop.stage);
        let chain = hops.iter().copied().chain([of]);
        let key = chain.fold(None, |key: Option<RouteKey>, hop| {
            Some(key.map_or_else(
                || RouteKey::first(&RouteSecret::default(), microbatch, hop),
                |key| key.next(hop),
            ))
        });
        let route = std::iter::once(self.swarm.feeder).chain(hops).collect();
        RouteProof { microbatch, route, key: key.expect("a replica") }
    }

    fn heartbeat_interval(&self) -> Duration {
        Duration::from_secs(1) / u32::try_from(self.swarm.replicas[0].len()).expect("few replicas")
    }

    fn hear_heartbeat(&mut self) {
        let turn = usize::try_from(self.heartbeats).expect("small") % self.swarm.replicas[0].len();
        self.heartbeats += 1;
        self.hear(self.swarm.replicas[0][turn], Message::Heartbeat(heartbeat(self.heartbeats)));
    }

    fn hear(&mut self, from: Hop, message: Message) {
        self.handle(Event::Received { from: from.instance, envelope: message.into() });
    }

    fn handle(&mut self, event: Event<u8>) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.feeder.handle(self.now, event);
            while let Some(action) = self.feeder.poll_action() {
                events.extend(self.act(&action));
            }
            let _ = self.feeder.poll_timeout();
        }
    }

    fn act(&mut self, action: &Action<u8>) -> Option<Event<u8>> {
        match *action {
            Action::Draw { microbatch, .. } => Some(Event::Drawn { microbatch, ids: 1 }),
            Action::RequestLease { .. } => {
                let first = MicrobatchId(self.leased);
                self.leased += LEASE;
                Some(Event::Lease(Lease { first, count: LEASE, epoch: 0 }))
            }
            Action::Send {
                to,
                envelope: Envelope { message: Message::Forward { microbatch, attempt, .. }, .. },
            } => {
                let to = self.swarm.replica(to)?;
                self.in_flight.push_back((microbatch, attempt, to));
                None
            }
            _ => None,
        }
    }
}
