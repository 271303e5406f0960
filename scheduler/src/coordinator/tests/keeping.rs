//! Keepers: who may be one, what they hear, and the replicas that stay for them at the end.

use super::*;

const KEEPER: PeerId = PeerId([77; 32]);

fn keeper_of(stage: impl Into<Option<u16>>) -> Role {
    Role::Keeper(stage.into().map(StageIndex))
}

impl Harness {
    /// The keeper has a checkpoint of so many microbatches, or 0 without one.
    fn keep(&mut self, kept: u64) -> Reply {
        self.hear(Event::KeeperHeartbeat { from: start(KEEPER), kept }).unwrap()
    }

    /// A run of two trained stages and a keeper.
    fn kept(microbatches: u64) -> Self {
        let mut harness = Self::running();
        harness.join(KEEPER, 1, keeper_of(None));
        harness.lease(FEEDER, 10);
        harness.report(FEEDER, 0, (6, 0), false);
        harness.pass(1, &[key(0), key(1)]);
        harness.keep(microbatches);
        harness
    }

    pub(super) fn restorable(&self) -> Vec<u16> {
        self.published.last().unwrap().restorable.iter().map(|stage| stage.0).collect()
    }

    /// A replica with initial weights wants to serve stage 1.
    fn begin(&mut self, peer: PeerId) -> Reply {
        self.hear(Event::Ready { from: start(peer), stage: StageIndex(1), initial: true }).unwrap()
    }
}

#[test]
fn a_stage_that_lost_its_last_replica_is_restored_from_a_keeper_and_begins_with_no_initial_weights() {
    let mut harness = Harness::kept(4);
    assert_eq!(harness.restorable(), [0; 0]);
    harness.hear(Event::Leave { from: start(key(1)) });
    assert_eq!(harness.restorable(), [1]);
    assert_eq!(harness.join(key(2), 1, Role::Replica), loading(1));
    assert_eq!(harness.begin(key(2)), Reply::Noted(MemberState::Loading(StageIndex(1))), "initial weights");
    assert_eq!(harness.ready(key(2)), Reply::Noted(MemberState::Serving(StageIndex(1))));
    assert_eq!(harness.restored, [(StageIndex(1), 4, 2)]);
    assert_eq!(harness.restorable(), [0; 0]);
}

#[test]
fn without_a_keeper_that_has_its_state_a_stage_begins_with_initial_weights() {
    let mut harness = Harness::kept(0);
    harness.hear(Event::Leave { from: start(key(1)) });
    assert_eq!(harness.restorable(), [0; 0]);
    harness.keep(4);
    assert_eq!(harness.restorable(), [1]);
    harness.keep(0);
    assert_eq!(harness.restorable(), [0; 0], "its checkpoint cannot be read");
    harness.keep(4);
    harness.hear(Event::Leave { from: start(KEEPER) });
    assert_eq!(harness.join(key(2), 1, Role::Replica), loading(1));
    assert_eq!(harness.begin(key(2)), Reply::Noted(MemberState::Serving(StageIndex(1))));
    assert_eq!((&*harness.restored, &*harness.reset), (&[][..], &[StageIndex(1)][..]));
    assert_eq!(harness.keeper_silent, 0, "it has left");
}

#[test]
fn the_coordinator_says_that_the_last_keeper_with_a_checkpoint_fell_silent() {
    let mut harness = Harness::kept(4);
    harness.pass(harness.coordinator.config().lease.as_secs() + 1, &[key(0), key(1), FEEDER]);
    assert_eq!(harness.keeper_silent, 1);
}

#[test]
fn a_replica_that_fell_silent_with_newer_weights_is_awaited_before_a_keeper_gives_its_own() {
    let mut harness = Harness::kept(4);
    let lease = harness.coordinator.config().lease.as_secs();
    for _ in 0..lease + 1 {
        harness.pass(1, &[key(0), FEEDER]);
        harness.keep(4);
    }
    assert_eq!(harness.published.last().unwrap().awaited, [StageIndex(1)]);
    assert_eq!(harness.restorable(), [0; 0]);
    for _ in 0..HOLDERS_AWAITED.as_secs() {
        harness.pass(1, &[key(0), FEEDER]);
        harness.keep(4);
    }
    assert_eq!(harness.restorable(), [1]);
    assert_eq!(harness.return_with(key(1), 2, 1), loading(1));
    assert_eq!(harness.restorable(), [0; 0], "it is back");
}

#[test]
fn a_keeper_takes_no_place_and_hears_how_far_every_block_has_come() {
    let mut harness = Harness::running();
    assert_eq!(harness.join(KEEPER, 1, keeper_of(None)), Reply::Joined(MemberState::Keeping(None)));
    assert_eq!(harness.coordinator.state(), RunState::Running);
    harness.lease(FEEDER, 10);
    harness.report(FEEDER, 0, (6, 2), false);
    let tally = BlockTally { block: Block(0), leased: 10, injected: 6, settled: 4 };
    assert_eq!(harness.keep(40), Reply::Progress(vec![tally]));
}

#[test]
fn the_replicas_of_a_finished_run_stay_until_its_keepers_have_left() {
    let mut harness = Harness::running();
    harness.join(KEEPER, 1, keeper_of(None));
    harness.feed();
    assert!(harness.coordinator.tells_end(KEEPER) && harness.coordinator.tells_end(FEEDER));
    assert!(!harness.coordinator.tells_end(key(0)), "it has the final state of its stage");
    harness.pass(60, &[key(0), key(1), KEEPER]);
    assert!(!harness.coordinator.tells_end(key(0)));
    harness.hear(Event::Leave { from: start(KEEPER) });
    assert!(harness.coordinator.tells_end(key(0)));
    assert_eq!(harness.ended, 0);
    for peer in [key(0), key(1), FEEDER] {
        harness.hear(Event::Leave { from: start(peer) });
    }
    assert_eq!(harness.ended, 1);
}

#[test]
fn a_keeper_that_does_not_leave_holds_no_replica_for_ever() {
    let mut harness = Harness::running();
    harness.join(KEEPER, 1, keeper_of(None));
    harness.feed();
    let Config { keeping, farewell, .. } = *harness.coordinator.config();
    harness.pass(keeping.as_secs() - 1, &[key(0), key(1), KEEPER]);
    assert!(!harness.coordinator.tells_end(key(0)));
    harness.pass(1, &[key(0), key(1), KEEPER]);
    assert!(harness.coordinator.tells_end(key(0)));
    harness.pass(farewell.as_secs(), &[key(0), key(1), KEEPER]);
    assert_eq!(harness.ended, 1);
}

#[test]
fn a_keeper_that_dies_at_the_end_is_not_waited_for() {
    let mut harness = Harness::running();
    harness.join(KEEPER, 1, keeper_of(None));
    harness.feed();
    harness.pass(harness.coordinator.config().lease.as_secs() + 1, &[key(0), key(1)]);
    assert!(harness.coordinator.tells_end(key(0)));
}

#[test]
fn a_keeper_that_died_at_the_end_and_is_back_takes_the_final_states() {
    let mut harness = Harness::running();
    harness.join(KEEPER, 1, keeper_of(None));
    harness.feed();
    assert_eq!(harness.join(KEEPER, 2, keeper_of(None)), Reply::Joined(MemberState::Keeping(None)));
    assert!(!harness.coordinator.tells_end(key(0)), "the replicas stay for it");
    assert_eq!(harness.join(key(7), 1, Role::Replica), Reply::JoinRefused(JoinRefusal::Finished));
    harness.hear(Event::Leave { from: Instance::new(KEEPER, Incarnation(2)) });
    assert_eq!(harness.join(KEEPER, 3, keeper_of(None)), Reply::JoinRefused(JoinRefusal::Finished));
}

#[test]
fn where_weights_stay_split_a_key_keeps_the_same_stage_whenever_it_joins() {
    let config = Config { weights: crate::WeightsPolicy::Split, ..Config::new(2) };
    let mut harness = Harness::with(config);
    let refused = |refusal| Reply::JoinRefused(refusal);
    assert_eq!(harness.join(KEEPER, 1, keeper_of(None)), refused(JoinRefusal::WeightsSplit { last: 1 }));
    let beyond = JoinRefusal::NoSuchStage { stage: StageIndex(2), last: 1 };
    assert_eq!(harness.join(KEEPER, 1, keeper_of(2)), refused(beyond));
    let kept = StageIndex(1);
    assert_eq!(harness.join(KEEPER, 1, keeper_of(1)), Reply::Joined(MemberState::Keeping(Some(kept))));
    let other = JoinRefusal::KeepsAnother { key: KEEPER, kept };
    assert_eq!(harness.join(KEEPER, 2, keeper_of(0)), refused(other));
    harness.hear(Event::Leave { from: start(KEEPER) });
    assert_eq!(harness.join(KEEPER, 2, keeper_of(1)), Reply::Joined(MemberState::Keeping(Some(kept))));
}

#[test]
fn a_keeper_that_fell_silent_joins_again_as_the_same_start() {
    let mut harness = Harness::running();
    harness.join(KEEPER, 1, keeper_of(None));
    harness.pass(harness.coordinator.config().lease.as_secs() + 1, &[key(0), key(1), FEEDER]);
    assert_eq!(harness.keep(0), Reply::Unknown);
    assert_eq!(harness.join(KEEPER, 1, keeper_of(None)), Reply::Joined(MemberState::Keeping(None)));
}
