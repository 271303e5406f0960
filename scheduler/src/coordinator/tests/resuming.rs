//! A launch that begins at a checkpoint.

use super::*;
use crate::Origin;

const KEEPER: PeerId = PeerId([77; 32]);
const ORIGIN: Origin = Origin { launch: 6, microbatches: 7 };

impl Harness {
    /// A run of two stages, of whose ten microbatches seven had their outcome: four of one feeder, three of another.
    fn resumed() -> Self {
        let config = Config { total: TOTAL, launch: 8, table_interval: Duration::ZERO, ..Config::new(2) };
        let mut harness = Self::with(config.clone());
        let tally = |block, settled| BlockTally { block: Block(block), leased: 9, injected: 6, settled };
        harness.coordinator = Coordinator::resumed(config, ORIGIN, &[tally(0, 4), tally(2, 3)]);
        harness.hear(Event::Timeout);
        harness
    }

    /// A replica with initial weights wants to serve its stage.
    fn begins(&mut self, peer: PeerId, stage: u16) -> Reply {
        self.hear(Event::Ready { from: start(peer), stage: StageIndex(stage), initial: true }).unwrap()
    }

    /// All stages are restored from a keeper.
    fn restore(&mut self) {
        self.join(KEEPER, 1, Role::Keeper(None));
        self.hear(Event::KeeperHeartbeat { from: start(KEEPER), kept: ORIGIN.microbatches });
        for index in [0, 1] {
            assert_eq!(self.join(key(index), 1, Role::Replica), loading(index));
            assert_eq!(self.ready(key(index)), Reply::Noted(MemberState::Serving(StageIndex(index.into()))));
        }
    }
}

#[test]
fn no_replica_of_a_run_that_goes_on_from_a_checkpoint_begins_with_initial_weights() {
    let mut harness = Harness::resumed();
    assert_eq!(harness.restorable(), [0, 1], "there is no keeper yet");
    assert_eq!(harness.coordinator.run_progress(), RunTally { injected: 7, settled: 7 });
    harness.join(key(0), 1, Role::Replica);
    assert_eq!(harness.begins(key(0), 0), Reply::Noted(MemberState::Loading(StageIndex(0))));
    harness.pass(60, &[key(0)]);
    assert_eq!(harness.begins(key(0), 0), Reply::Noted(MemberState::Loading(StageIndex(0))));
    harness.restore();
    assert_eq!((harness.restorable(), &harness.restored[..]), (vec![], &[][..]), "nothing is lost");
    harness.hear(Event::Leave { from: start(key(1)) });
    harness.hear(Event::Leave { from: start(KEEPER) });
    harness.join(key(2), 1, Role::Replica);
    assert_eq!(harness.begins(key(2), 1), Reply::Noted(MemberState::Loading(StageIndex(1))));
    assert_eq!(harness.restorable(), [1], "its keeper is gone, and is waited for");
}

#[test]
fn the_feeders_of_a_run_that_goes_on_get_ids_behind_those_that_had_their_outcome() {
    let mut harness = Harness::resumed();
    harness.restore();
    let other = key(8);
    harness.join(FEEDER, 1, Role::Feeder);
    harness.join(other, 1, Role::Feeder);
    assert_eq!(harness.lease(FEEDER, 2), leased(0, 4, 2).with_others(3, 3));
    assert_eq!(harness.lease(FEEDER, 2), leased(0, 4, 2).with_others(3, 3), "its reply was lost");
    assert_eq!(harness.lease(other, 2), leased(2, 3, 1).with_others(4, 4));
    harness.report(FEEDER, 0, (6, 0), true);
    harness.report(other, 2, (4, 0), true);
    assert_eq!(harness.coordinator.state(), RunState::Finished);
}

#[test]
fn what_a_launch_began_at_outlives_the_coordinator_and_its_log() {
    let mut harness = Harness::resumed();
    harness.restore();
    harness.join(FEEDER, 1, Role::Feeder);
    harness.lease(FEEDER, 2);
    harness.hear(Event::Leave { from: start(key(1)) });
    let table = harness.coordinator.membership();
    let config = harness.coordinator.config().clone();
    let facts = harness.facts.clone();
    assert_eq!((facts.launch(), facts.settled()), (8, 7));
    harness.coordinator = Coordinator::restored(harness.now, config, facts);
    assert_eq!(harness.coordinator.origin(), Some(ORIGIN));
    assert_eq!(harness.coordinator.run_progress(), RunTally { injected: 7, settled: 7 });

    harness.restart();
    harness.return_table(key(0), &table);
    harness.pass(RETURN_WITHIN.as_secs() + HOLDERS_AWAITED.as_secs() + 1, &[key(0), FEEDER]);
    assert_eq!((harness.coordinator.origin(), harness.restorable()), (Some(ORIGIN), vec![1]));
    let next = MicrobatchId(6);
    assert_eq!(harness.lease_from(FEEDER, Some(next), 1), leased(0, 6, 1).with_others(3, 3));
    let another = key(8);
    harness.join(another, 1, Role::Feeder);
    assert_eq!(harness.lease(another, 9), leased(2, 3, 0).with_others(4, 4), "no block is opened beside it");
}

#[test]
fn members_of_the_launch_before_are_none_of_the_next_and_take_its_table_for_newer() {
    let before = Harness::running().coordinator.membership();
    let mut harness = Harness::resumed();
    let table = Membership { launch: ORIGIN.launch, version: 9 << 32, ..before };
    assert_eq!(harness.beat(key(0)), Reply::Unknown);
    assert_eq!(harness.return_table(key(0), &table), Reply::Unknown);
    harness.hear(Event::Timeout);
    let newest = harness.published.last().unwrap();
    assert!(newest.version > table.version && newest.launch == 8 && newest.members.is_empty());
    assert_eq!(harness.return_with(key(0), 2, 0), loading(0));
    assert_eq!(harness.restorable(), [0, 1], "weights of the launch before are not waited for");
    harness.join(FEEDER, 1, Role::Feeder);
    let stale = harness.lease_from(FEEDER, Some(MicrobatchId(5)), 3);
    assert!(matches!(stale, Reply::Leased { .. }) && stale != leased(0, 5, 3), "{stale:?}");
}
