//! The life of a keeper's process: it joins, performs the actions of its machine, and writes checkpoints.

use crate::coordinator::{self, JoinRefusal};
use crate::keeper::{Action, Config, End, Event, Keeper, Written};
use crate::transfer::{Limits, SketchSecret, TransferMessage};
use crate::{
    Duration, Envelope, Incarnation, Instance, MemberState, Message, ProcessNumber, Role, StageIndex,
    TableUpdate, WeightVersion,
};

use super::super::delivery::{Delivery, Purpose};
use super::super::keeper_process::{Checkpoint, KeeperProcess};
use super::super::payload::{Payload, digest, sketch};
use super::super::process::{coordinator_key, join};
use super::super::state::{self, Weights};
use super::{HEARTBEAT, Machine, REQUEST_MAX, World};

/// Reading or writing a file takes a random time below this.
const FILE_MAX: Duration = Duration::from_millis(500);

impl World {
    // --- The process ----------------------------------------------------------------------------------------

    /// Starts the keeper. Its target has what an earlier start has kept.
    pub(super) fn start_keeper(&mut self) {
        let (Some(former), Some(interval)) = (&mut self.keeper, self.scenario.keeping) else { return };
        let newest = std::mem::take(&mut former.newest);
        let incarnation = Incarnation(former.instance.incarnation.0 + 1);
        let limits = Limits {
            bytes_max: Weights::bytes(self.scenario.fragments()),
            chunk_bytes_max: state::chunk_bytes(),
        };
        let mut secret = SketchSecret([3; 32]);
        secret.0[..8].copy_from_slice(&incarnation.0.to_be_bytes());
        let config = Config {
            stages: (0..self.scenario.stages).map(|stage| (StageIndex(stage), limits)).collect(),
            interval,
            gradient_accumulation_steps: self.scenario.gradient_accumulation_steps,
            newest: Some(newest.microbatches).filter(|&kept| kept > 0),
            digest,
            sketch,
            secret,
        };
        let (now, mut next) = (self.now(), KeeperProcess::new(incarnation, newest));
        (next.machine, next.registered_at) = (Some(Keeper::new(now, config)), now);
        let from = next.instance;
        self.keeper = Some(next);
        let join = join(from, ProcessNumber(incarnation.0), Role::Keeper(None));
        self.tell_coordinator(from.peer, coordinator::Event::Join(join), Purpose::Routine);
        self.soon(Delivery::KeeperHeartbeat(incarnation));
    }

    /// The process dies. It is started again after `back_after`; `None` if never.
    pub(super) fn kill_keeper(&mut self, back_after: Option<Duration>) {
        let Some(keeper) = &mut self.keeper else { return };
        keeper.machine = None;
        let instance = keeper.instance;
        self.queue.set_alarm(Machine::Keeper, None);
        self.break_connections(instance, Duration::ZERO);
        if let Some(after) = back_after {
            self.queue.schedule_in(after, Delivery::StartKeeper);
        }
    }

    pub(super) fn send_keeper_heartbeat(&mut self, incarnation: Incarnation) {
        let Some(keeper) = &self.keeper else { return };
        let (from, Some(machine)) = (keeper.instance, &keeper.machine) else { return };
        if from.incarnation != incarnation {
            return;
        }
        if keeper.admitted {
            let heartbeat = coordinator::Event::KeeperHeartbeat { from, kept: machine.kept() };
            let tables_open = keeper.tables_open_at.is_some_and(|at| at <= self.now());
            self.tell_coordinator(from.peer, heartbeat, Purpose::Routine);
            if tables_open {
                let table = self.whole_table();
                self.send_table_to_keeper(table);
            }
        } else if keeper.registered_at + REQUEST_MAX <= self.now() {
            return self.start_keeper();
        }
        self.queue.schedule_in(HEARTBEAT, Delivery::KeeperHeartbeat(incarnation));
    }

    /// Sends a table to the keeper, if it is a member.
    pub(super) fn send_table_to_keeper(&mut self, update: TableUpdate) {
        let Some(Instance { peer, incarnation }) = self.keeper.as_ref().map(|keeper| keeper.instance) else {
            return;
        };
        if self.table.members().contains_key(&peer) {
            let delivery = Delivery::Keeper(incarnation, Event::Membership(update));
            let arrives = self.carry(coordinator_key(), peer, delivery);
            let opens = self.stream_opens(arrives);
            if let Some(keeper) = &mut self.keeper {
                keeper.tables_open_at = opens;
            }
        }
    }

    /// The coordinator answered.
    pub(super) fn reply_to_keeper(&mut self, reply: coordinator::Reply, finished: bool) {
        let Some(keeper) = self.keeper.as_mut().filter(|keeper| keeper.machine.is_some()) else { return };
        match reply {
            coordinator::Reply::Joined(MemberState::Keeping(_)) => {
                keeper.admitted = true;
                let table = self.whole_table();
                self.send_table_to_keeper(table);
            }
            coordinator::Reply::Progress(blocks) => {
                self.at_keeper(Event::Progress { blocks, finished });
            }
            coordinator::Reply::Unknown if keeper.admitted => self.return_table_of_keeper(),
            coordinator::Reply::NotAMember if keeper.admitted => {
                self.model.path("keeper expelled");
                self.kill_keeper(Some(Duration::ZERO));
            }
            coordinator::Reply::JoinRefused(JoinRefusal::Finished) => self.kill_keeper(None),
            _ => {}
        }
    }

    /// The coordinator does not know the keeper: it may have been started again, and gets its newest table back.
    fn return_table_of_keeper(&mut self) {
        let Some(keeper) = &self.keeper else { return };
        let Some(machine) = &keeper.machine else { return };
        let (from, table) = (keeper.instance, Box::new(machine.table().membership()));
        let returned = coordinator::Event::TableReturned { from, table };
        self.tell_coordinator(from.peer, returned, Purpose::Return { confirms: false });
    }

    // --- The machine ----------------------------------------------------------------------------------------

    pub(super) fn at_keeper(&mut self, event: Event<Payload>) {
        let now = self.now();
        let version = match self.keeper.as_ref().and_then(|keeper| keeper.machine.as_ref()) {
            Some(machine) => machine.table().version(),
            None => return,
        };
        let event = match event {
            Event::Membership(update) => Event::Membership(self.read(update, version)),
            event => event,
        };
        if let Some(machine) = self.machine_of_keeper() {
            machine.handle(now, event);
        }
        while let Some(action) = self.machine_of_keeper().and_then(Keeper::poll_action) {
            self.keeper_acts(action);
        }
        let alarm = self.machine_of_keeper().and_then(|machine| machine.poll_timeout());
        self.queue.set_alarm(Machine::Keeper, alarm);
    }

    fn machine_of_keeper(&mut self) -> Option<&mut Keeper<Payload>> {
        self.keeper.as_mut()?.machine.as_mut()
    }

    fn keeper_acts(&mut self, action: Action<Payload>) {
        let Some(keeper) = &mut self.keeper else { return };
        match action {
            Action::Open(watermark) => {
                if watermark.is_agreed {
                    self.model.path("clock of a checkpoint agreed");
                }
                keeper.open = Checkpoint { microbatches: watermark.microbatches, ..Checkpoint::default() };
            }
            Action::Send { to, envelope } => {
                let me = keeper.instance;
                self.post(me, to, envelope);
            }
            Action::Begin { .. } => keeper.inbox.clear(),
            Action::Store { offset, payload } => {
                if let Payload::Chunk(words) = payload {
                    state::store(&mut keeper.inbox, offset, &words);
                }
            }
            Action::Write { stage, .. } => self.write_state(stage),
            Action::Complete => self.complete_checkpoint(),
            Action::GiveUp => self.model.path("checkpoint given up"),
            Action::Export(given) => {
                let words = keeper.newest.states.get(&given.stage).cloned().unwrap_or_default();
                let manifest = Some(state::manifest(&words, WeightVersion(1)));
                keeper.copies.insert(given, words);
                self.reply_of_file(Event::Exported { given, manifest });
            }
            Action::SendChunk { to, given, chunk, offset, bytes } => {
                let (me, copy) = (keeper.instance, keeper.copies.get(&given));
                let Some(words) = copy.map(|words| state::words_at(words, offset, bytes)) else { return };
                let message = Message::Transfer(TransferMessage::Chunk { state: given.state, chunk });
                self.post(me, to, Envelope::with_payload(message, Payload::Chunk(words)));
            }
            Action::Sketch { to, given, seed } => {
                let Some(words) = keeper.copies.get(&given) else { return };
                let sketch = state::sketch(words, seed);
                self.reply_of_file(Event::Sketched { to, given, seed, sketch });
            }
            Action::Release(given) => drop(keeper.copies.remove(&given)),
            Action::Counted(_) => {}
            Action::End(end) => self.keeper_ended(end),
        }
    }

    fn write_state(&mut self, stage: StageIndex) {
        let takes = self.takes_file();
        let Some(keeper) = &mut self.keeper else { return };
        if takes {
            let words = keeper.inbox.clone();
            self.model.imports(keeper.instance, &words);
            keeper.open.states.insert(stage, words);
        }
        self.reply_of_file(Event::Written(if takes { Written::Done } else { Written::Failed }));
    }

    fn complete_checkpoint(&mut self) {
        let takes = self.takes_file();
        let Some(keeper) = &mut self.keeper else { return };
        if takes {
            keeper.newest = std::mem::take(&mut keeper.open);
            let is_whole = keeper.newest.states.len() == usize::from(self.scenario.stages);
            self.model.require(is_whole, || "a checkpoint is complete without all stages".to_owned());
            self.model.path("checkpoint kept");
        }
        self.reply_of_file(Event::Written(if takes { Written::Done } else { Written::Failed }));
    }

    /// Whether the target takes the next file.
    fn takes_file(&mut self) -> bool {
        let refused = self.rng.chance(self.scenario.unwritten_per_mille, 1_000);
        if refused {
            self.model.path("target took no file");
        }
        !refused
    }

    fn reply_of_file(&mut self, event: Event<Payload>) {
        let Some(incarnation) = self.keeper.as_ref().map(|keeper| keeper.instance.incarnation) else {
            return;
        };
        let takes = self.time_between(Duration::ZERO, FILE_MAX);
        self.queue.schedule_in(takes, Delivery::Keeper(incarnation, event));
    }

    fn keeper_ended(&mut self, end: End) {
        self.model.path(match end {
            End::Finished => "final states kept",
            End::Untaken(_) | End::Unwritten => "final states not kept",
            End::Stopped => "keeper stopped",
        });
        if let Some(from) = self.keeper.as_ref().map(|keeper| keeper.instance) {
            self.tell_coordinator(from.peer, coordinator::Event::Leave { from }, Purpose::Routine);
        }
        self.kill_keeper(None);
    }
}
