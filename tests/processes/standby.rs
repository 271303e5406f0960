//! A replica beyond the number that the run takes.

use swarmline::report::Event;

use crate::recipe::Recipe;
use crate::swarm::{Swarm, account};

#[test]
fn a_fifth_replica_waits_and_leaves_without_disturbing_the_run() {
    let recipe = Recipe::asynchronous();
    let mut swarm = Swarm::serve(&recipe);
    let mut fifth = swarm.start_replica("standby", &[]);
    fifth.hear("that it waits", |event| matches!(event, Event::Standby { stages: 4, .. }).then_some(()));
    let mut feeder = swarm.start_feeder(&[]);
    feeder.hear("that it has its text", |event| matches!(event, Event::Corpus { .. }).then_some(()));
    fifth.interrupt();
    assert_eq!(fifth.end(), 0);

    assert_eq!(feeder.end(), 0);
    swarm.end();
    let account = account(&mut feeder);
    assert_eq!((account.finished, account.lost), (recipe.steps, 0));
}
