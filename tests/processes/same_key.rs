//! Two processes with one key never take the place of each other in turns.

use crate::recipe::Recipe;
use crate::swarm::{Swarm, serving};

const REFUSED: i32 = 3;

#[test]
fn a_process_whose_key_is_used_again_ends_and_does_not_come_back() {
    let mut swarm = Swarm::coordinate(&Recipe::endless());
    let (key, save) = (swarm.folder.argument("replica.key"), swarm.folder.argument("kept"));
    swarm.join(&["--identity", &key, "--save", &save]);
    let mut second = swarm.start_replica("second", &["--identity", &key]);
    assert_eq!(serving(&mut second), 0, "the same stage");
    let first = &mut swarm.replicas[0];
    assert_eq!(first.end(), REFUSED);
    assert!(first.errors().contains("has taken its place"), "{}", first.errors());
    assert!(swarm.folder.file("kept").is_file(), "its weights are saved");
    second.interrupt();
    assert_eq!(second.end(), 0, "it was a member to its end: {}", second.errors());
}
