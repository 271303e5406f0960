//! Eight microbatches in flight: stale gradients, no lost microbatch.

use crate::recipe::Recipe;
use crate::swarm::{Swarm, account};

#[test]
fn an_asynchronous_run_loses_nothing() {
    // Long enough that the start, before replicas know each other, does not decide the median.
    let recipe = Recipe { steps: 2_000, ..Recipe::asynchronous() };
    let mut swarm = Swarm::serve(&recipe);
    let mut feeder = swarm.start_feeder(&[]);
    assert_eq!(feeder.end(), 0);
    let replicas = swarm.end();

    let account = account(&mut feeder);
    assert_eq!((account.injected, account.finished), (recipe.steps, recipe.steps));
    assert_eq!((account.lost, account.refused, account.ungranted), (0, 0, 0));
    assert!(replicas[0].staleness_p50 > 0, "{:?}", replicas[0]);
    for replica in replicas {
        assert_eq!((replica.steps, replica.refused), (recipe.steps, 0), "{replica:?}");
    }
}
