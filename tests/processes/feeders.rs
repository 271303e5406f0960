//! Several feeders of one run.

use std::collections::BTreeMap;

use swarmline::report::{Event, FeederReport};

use crate::process::Process;
use crate::recipe::Recipe;
use crate::swarm::{STAGES, Swarm, account};

/// Microbatches of the run.
const TOTAL: u64 = 400;
const WINDOW: usize = 8;
/// Exit code of a process that was interrupted before its end.
const INTERRUPTED: i32 = 130;

#[test]
fn two_feeders_share_the_microbatches_of_a_run() {
    let mut pair = Pair::begin();
    for feeder in &mut pair.feeders {
        assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    }
    let accounts = pair.feeders.each_mut().map(account);
    assert!(accounts.iter().all(|account| account.finished > 0), "{accounts:?}");
    assert_eq!(accounts.iter().map(|account| account.finished).sum::<u64>(), TOTAL, "{accounts:?}");
    pair.swarm.end();
    let applied = pair.applied();
    assert!(applied.values().all(|&times| times == 1), "applied twice: {applied:?}");
    assert_eq!(applied.len() as u64, TOTAL * STAGES as u64);
}

#[test]
fn of_two_feeders_the_one_that_lives_finishes_the_run() {
    let mut pair = Pair::begin();
    let [survivor, killed] = &mut pair.feeders;
    killed.hear("its progress", |event| matches!(event, Event::Progress(_)).then_some(()));
    killed.kill();
    assert_eq!(survivor.end(), 0, "{}", survivor.errors());
    let account = account(survivor);
    let FeederReport { finished, inherited, abandoned, lost, .. } = account;
    assert_eq!((finished + inherited + abandoned, lost), (TOTAL, 0), "{account:?}");
    assert!(inherited > 0 && abandoned <= WINDOW as u64, "{account:?}");
    pair.swarm.end();
    let applied = pair.applied();
    assert!(applied.values().all(|&times| times == 1), "applied twice: {applied:?}");
}

#[test]
fn a_feeder_that_stopped_is_started_again_without_a_journal_and_ends_the_run() {
    let recipe = Recipe { steps: TOTAL, max_in_flight: WINDOW, ..Recipe::asynchronous() };
    let mut swarm = Swarm::coordinate(&recipe);
    let key = swarm.folder.argument("feeder.key");
    let mut feeder = swarm.start_feeder(&["--identity", &key]);
    for _ in 0..STAGES {
        swarm.join(&[]);
    }
    feeder.hear("its progress", |event| matches!(event, Event::Progress(_)).then_some(()));
    feeder.interrupt();
    assert_eq!(feeder.end(), INTERRUPTED, "{}", feeder.errors());
    let mut again = swarm.start_feeder(&["--identity", &key]);
    assert_eq!(again.end(), 0, "{}", again.errors());
    swarm.end();
}

/// A run that trains, with two feeders and one replica of each stage.
struct Pair {
    swarm: Swarm,
    feeders: [Process; 2],
}

impl Pair {
    /// The feeders join first, so that both have ids when training begins.
    fn begin() -> Self {
        let more = "[policy]\nfeed = \"members\"\n".to_owned();
        let recipe = Recipe { steps: TOTAL, max_in_flight: WINDOW, more, ..Recipe::asynchronous() };
        let mut swarm = Swarm::coordinate(&recipe);
        let mut feeders = [0, 1].map(|_| swarm.start_feeder(&[]));
        for feeder in &mut feeders {
            feeder.hear("its text", |event| matches!(event, Event::Corpus { .. }).then_some(()));
        }
        for stage in 0..STAGES {
            let log = swarm.folder.argument(format!("applied-{stage}"));
            swarm.join(&["--applied-log", &log]);
        }
        Self { swarm, feeders }
    }

    /// Number of times that each stage applied each microbatch.
    fn applied(&self) -> BTreeMap<String, usize> {
        let mut applied = BTreeMap::new();
        for stage in 0..STAGES {
            let log = std::fs::read_to_string(self.swarm.folder.file(format!("applied-{stage}"))).unwrap();
            log.lines().for_each(|line| *applied.entry(line.to_owned()).or_default() += 1);
        }
        applied
    }
}
