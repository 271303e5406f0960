//! A coordinator whose members all serve.

use std::collections::BTreeMap;
use std::time::Duration;

use swarmline_scheduler::coordinator::{Action, Config, Event, Join, Reply};
use swarmline_scheduler::stage::Progress;
use swarmline_scheduler::{Coordinator, Instance, MemberState, ProcessNumber, Rng, Role, Time};

use super::swarm::{PEERS, address, instance};

pub(super) struct Members {
    coordinator: Coordinator,
    members: Vec<Instance>,
    now: Time,
    turn: usize,
}

impl Members {
    pub(super) fn new(mut config: Config, peers: usize) -> Self {
        config.replicas_per_stage = u32::try_from(PEERS[PEERS.len() - 1]).expect("few peers");
        config.table_interval = Duration::ZERO;
        let mut rng = Rng::new(1);
        let members: Vec<Instance> = (0..peers).map(|_| instance(&mut rng)).collect();
        let mut joined = Self { coordinator: Coordinator::new(config), members, now: Time(0), turn: 0 };
        joined.members.clone().into_iter().for_each(|from| joined.join(from));
        joined
    }

    /// The next member sends its heartbeat; each sends one a second.
    pub(super) fn heartbeat(&mut self) {
        self.now =
            self.now + Duration::from_secs(1) / u32::try_from(self.members.len()).expect("few members");
        self.turn = (self.turn + 1) % self.members.len();
        let from = self.members[self.turn];
        self.handle(Event::Heartbeat { from, progress: Progress::default() });
    }

    fn join(&mut self, from: Instance) {
        let (role, address) = (Role::Replica, address());
        let join = Join { from, process: ProcessNumber(0), takes_over: false, role, address, holds: None };
        let replies = self.handle(Event::Join(join));
        if let Some(Reply::Joined(MemberState::Loading(stage))) = replies.get(&from).cloned() {
            self.handle(Event::Ready { from, stage, initial: false });
        }
    }

    fn handle(&mut self, event: Event) -> BTreeMap<Instance, Reply> {
        let from = match event {
            Event::Join(Join { from, .. }) | Event::Ready { from, .. } | Event::Heartbeat { from, .. } => {
                Some(from)
            }
            _ => None,
        };
        self.coordinator.handle(self.now, event);
        let mut replies = BTreeMap::new();
        while let Some(action) = self.coordinator.poll_action() {
            if let (Action::Reply { reply, .. }, Some(from)) = (action, from) {
                replies.insert(from, reply);
            }
        }
        let _ = self.coordinator.poll_timeout();
        replies
    }
}
