//! A replica of stage 1 that holds two hundred microbatches.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use swarmline_scheduler::router::{Policy, RouterFactory};
use swarmline_scheduler::stage::{Action, Config, Event, Job, JobOutcome, JobReply};
use swarmline_scheduler::{
    AckRange, Attempt, Envelope, Hop, Loss, Message, MicrobatchId, PeerId, Purpose, RouteKey, Stage,
    StageIndex, Status, TableUpdate, Time, WeightVersion,
};

use super::swarm::{Changes, STAGES, Swarm, heartbeat};

/// Microbatches held besides the one measured.
const HELD: usize = 200;
/// Microbatches that come back first, so that each replica of the next stage may have enough of those that stay.
const EARNING: usize = 1_024;
/// Ids of the microbatches that stay.
const STAYING: u64 = 1 << 40;
/// Microbatches between two announcements of outcomes.
const ANNOUNCED: u64 = 64;

pub(super) struct Serving {
    swarm: Swarm,
    stage: Stage<u8>,
    now: Time,
    upstream: Vec<Hop>,
    /// The peers that this replica sends heartbeats to, and hears them from.
    neighbours: Vec<Hop>,
    /// Whether gradients come back.
    answers: bool,
    next: u64,
    beats: u64,
}

impl Serving {
    pub(super) fn new(peers: usize) -> Self {
        let swarm = Swarm::new(peers);
        let me = swarm.replicas[1][0];
        let mut config = Config::new(me.instance, StageIndex(1), STAGES);
        config.slots = 2 * HELD;
        let stage = Stage::new(config, Policy::LeastOutstanding.build(1));
        let (upstream, neighbours) = (Vec::new(), Vec::new());
        let now = Time(0);
        let mut serving = Self { swarm, stage, now, upstream, neighbours, answers: false, next: 0, beats: 0 };
        serving.meet();
        (1..4).for_each(|_| serving.second_of_heartbeats());
        serving.answers = true;
        (0..EARNING).for_each(|_| serving.microbatch());
        serving.answers = false;
        let staying = STAYING..STAYING + HELD as u64;
        staying.for_each(|id| serving.forward(MicrobatchId(id)));
        serving.answers = true;
        serving
    }

    /// A microbatch from its forward to the update of the weights: six events, and its share of an announcement.
    pub(super) fn microbatch(&mut self) {
        self.now = self.now + Duration::from_micros(50);
        let id = self.next;
        self.next += 1;
        self.forward(MicrobatchId(id));
        if self.next.is_multiple_of(ANNOUNCED) {
            let ranges = vec![AckRange { first: 0, end: self.next, open: Vec::new() }];
            self.hear(self.swarm.feeder, Message::Outcomes { ranges });
        }
    }

    /// Every neighbour sends its heartbeat.
    pub(super) fn second_of_heartbeats(&mut self) {
        self.beats += 1;
        let count = u32::try_from(self.neighbours.len()).expect("few neighbours");
        for index in 0..self.neighbours.len() {
            self.now = self.now + Duration::from_secs(1) / count;
            self.hear(self.neighbours[index], Message::Heartbeat(heartbeat(self.beats)));
        }
    }

    /// A replica, and the changes that it follows: a replica of the next stage enters and leaves in turn.
    pub(super) fn with_changes(peers: usize) -> (Self, Changes) {
        let serving = Self::new(peers);
        let changes = Changes::new(&serving.swarm.membership(), StageIndex(2));
        (serving, changes)
    }

    pub(super) fn change(&mut self, update: Option<TableUpdate>) {
        self.now = self.now + Duration::from_millis(5);
        if let Some(update) = update {
            self.handle(Event::Membership(update));
        }
    }

    /// Reads the first table, and notes the peers that get the first heartbeats.
    fn meet(&mut self) {
        self.stage.handle(self.now, Event::Membership(self.swarm.membership().into()));
        let mut met = BTreeSet::<PeerId>::new();
        while let Some(action) = self.stage.poll_action() {
            if let Action::Send { to, .. } = action {
                met.insert(to);
            }
        }
        let replicas = self.swarm.replicas.iter().flatten().copied();
        self.neighbours = replicas.filter(|hop| met.contains(&hop.peer())).collect();
        let is_upstream = |hop: &&Hop| hop.stage == Some(StageIndex(0));
        self.upstream = self.neighbours.iter().filter(is_upstream).copied().collect();
    }

    fn forward(&mut self, microbatch: MicrobatchId) {
        let turn = usize::try_from(microbatch.0).expect("small") % self.upstream.len();
        let sender = self.upstream[turn];
        let message = Message::Forward {
            microbatch,
            attempt: Attempt(0),
            purpose: Purpose::Train,
            is_retry: false,
            route: vec![self.swarm.feeder, sender],
            key: RouteKey::default(),
            downstream_holder: None,
            version: WeightVersion(0),
        };
        self.hear(sender, message);
    }

    fn hear(&mut self, from: Hop, message: Message) {
        self.handle(Event::Received { from: from.instance, envelope: message.into() });
    }

    fn handle(&mut self, event: Event<u8>) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.stage.handle(self.now, event);
            while let Some(action) = self.stage.poll_action() {
                events.extend(self.act(action));
            }
            let _ = self.stage.poll_timeout();
        }
    }

    /// The executor, the next stage and the feeder reply at once.
    fn act(&self, action: Action<u8>) -> Option<Event<u8>> {
        match action {
            Action::Execute(job) => reply(&job).map(Event::Completed),
            Action::Send { to, envelope: Envelope { message, .. } } => self.answer(to, message),
            Action::Counted(_) | Action::Drained => None,
        }
    }

    fn answer(&self, to: PeerId, message: Message) -> Option<Event<u8>> {
        match message {
            Message::Forward { microbatch, attempt, .. } if self.answers => {
                // The replica of `with_changes` that comes and goes answers nothing.
                let from = self.swarm.replica(to)?;
                let path = self.swarm.path(3..STAGES, microbatch.0).into_iter().chain([from]).collect();
                let loss = Loss { sum: 2.0, tokens: 1 };
                let message = Message::Backward { microbatch, attempt, loss, path };
                Some(Event::Received { from: from.instance, envelope: Envelope::with_payload(message, 1) })
            }
            Message::StatusRequest { microbatch, attempt, .. } => {
                let message = Message::StatusReply { microbatch, attempt, status: Status::Held };
                Some(Event::Received { from: self.swarm.replica(to)?.instance, envelope: message.into() })
            }
            Message::Claim { claimed, .. } => {
                let granted = claimed.iter().map(|proof| proof.microbatch).collect();
                let message = Message::ClaimReply { granted, denied: Vec::new(), forged: Vec::new() };
                Some(Event::Received { from: self.swarm.feeder.instance, envelope: message.into() })
            }
            _ => None,
        }
    }
}

fn reply(job: &Job<u8>) -> Option<JobReply<u8>> {
    let outcome = match job {
        Job::Forward { .. } => JobOutcome::Forwarded { version: WeightVersion(1), activation: 1 },
        Job::Backward { .. } => JobOutcome::Backwarded { gradient: 1 },
        Job::Apply { .. } => JobOutcome::Applied,
        _ => return None,
    };
    Some(JobReply { microbatch: job.microbatch(), outcome })
}
