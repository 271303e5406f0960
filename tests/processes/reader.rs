//! Text from the live replicas of a run, whatever becomes of them, and no weights in one place.

use std::time::{Duration, Instant};

use swarmline::Identity;
use swarmline::report::{Event, GenerateReport, Incident};

use crate::process::Process;
use crate::recipe::Recipe;
use crate::swarm::{STAGES, Swarm, account};

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 3;
const INTERRUPTED: i32 = 130;
/// A member that says nothing is one for so long.
const LEASE: Duration = Duration::from_secs(15);
const PROMPT: &str = "1: the line";

fn start(swarm: &Swarm, prompt: &str, more: &[&str]) -> Process {
    let fixed = ["generate", "--swarm", &swarm.invite, prompt, "--json"];
    Process::start("reader", fixed.iter().chain(more).copied())
}

fn written(process: &mut Process) -> GenerateReport {
    let report = process.hear("the text", |event| match event {
        Event::Generated(report) => Some(report),
        _ => None,
    });
    assert_eq!(process.end(), 0, "{}", process.errors());
    report
}

#[test]
fn a_live_swarm_writes_what_its_weights_write_in_one_process() {
    for boundary in ["identity", "subspace"] {
        let recipe = Recipe { boundary, steps: 60, ..Recipe::exact() };
        let mut swarm = Swarm::coordinate(&recipe);
        let (run, saved) = (swarm.folder.run_file(), swarm.folder.argument("saved"));
        let mut train = Process::start("train", ["train", "--run", &run, "--save", &saved]);
        assert_eq!(train.end(), 0, "{}", train.errors());
        for stage in 0..STAGES {
            let weights = swarm.folder.argument(format!("saved/stage-{stage}.safetensors"));
            swarm.join(&["--resume", &weights]);
        }
        for sampling in [&["--tokens", "16"][..], &["--tokens", "16", "--temperature", "0.7", "--seed", "3"]]
        {
            let fixed = ["generate", &saved, PROMPT, "--run", &run, "--json"];
            let mut alone = Process::start("generate", fixed.iter().chain(sampling).copied());
            let (alone, swarm) = (written(&mut alone), written(&mut start(&swarm, PROMPT, sampling)));
            assert_eq!((alone.ids.len(), &alone.ids), (16, &swarm.ids), "{boundary} {sampling:?}");
            assert_eq!(alone.text, swarm.text);
        }
    }
}

#[test]
fn replicas_that_die_or_stand_still_in_the_middle_of_a_text_are_replaced_and_training_goes_on() {
    let mut swarm = Swarm::coordinate(&Recipe { replicas: 2, ..Recipe::endless() });
    for replica in 0..2 * STAGES {
        let mut started = swarm.start_replica(&format!("replica {replica}"), &[]);
        assert_eq!(usize::from(crate::swarm::serving(&mut started)), replica % STAGES);
        swarm.replicas.push(started);
    }
    let mut feeder = swarm.start_feeder(&[]);
    feeder.hear("progress", |event| matches!(event, Event::Progress(_)).then_some(()));
    let mut reader = start(&swarm, PROMPT, &["--tokens", "300"]);
    swarm.coordinator.hear("that a reader has joined", |event| {
        matches!(event, Event::Members { readers: 1, .. }).then_some(())
    });
    swarm.replicas[1].kill();
    let now = reader.moment();
    swarm.replicas[2].suspend();
    reader.hear_since(now, "that a replica of stage 2 is replaced", |event| {
        matches!(event, Event::Incident(Incident::ReplicaReplaced { stage: 2, .. })).then_some(())
    });
    assert_eq!(
        written(&mut reader).ids.len(),
        300,
        "longer than a sequence: the text is continued by its end"
    );
    feeder.interrupt();
    feeder.end();
    let account = account(&mut feeder);
    assert_eq!((account.lost, account.ungranted), (0, 0), "predictions are outside of the ledger");
}

#[test]
fn a_text_that_cannot_be_generated_is_refused_with_the_cause() {
    let mut swarm = Swarm::coordinate(&Recipe::exact());
    swarm.join(&[]);
    let refused = |prompt: &str, more: &[&str], code: i32, parts: &[&str]| {
        let mut reader = start(&swarm, prompt, more);
        assert_eq!(reader.end(), code, "{}", reader.errors());
        parts.iter().for_each(|part| assert!(reader.errors().contains(part), "{part}: {}", reader.errors()));
    };
    refused(PROMPT, &[], FAILED, &["no replica serves stage 1"]);
    refused(&"a".repeat(33), &[], FAILED, &["33 tokens", "32 at once", "shorten it"]);
    refused("", &[], FAILED, &["the prompt has no token"]);
    refused("saved", &["a prompt"], USAGE, &["with --swarm give a prompt only"]);
}

#[test]
fn a_reader_that_is_interrupted_leaves_at_once() {
    let mut swarm = Swarm::coordinate(&Recipe::exact());
    (0..STAGES).for_each(|_| swarm.join(&[]));
    let mut reader = start(&swarm, PROMPT, &["--tokens", "1000000"]);
    let members = |wanted: usize| {
        move |event| matches!(event, Event::Members { readers, .. } if readers == wanted).then_some(())
    };
    swarm.coordinator.hear("that a reader has joined", members(1));
    let (now, began) = (swarm.coordinator.moment(), Instant::now());
    reader.interrupt();
    assert_eq!(reader.end(), INTERRUPTED, "{}", reader.errors());
    swarm.coordinator.hear_since(now, "that it has left", members(0));
    assert!(began.elapsed() < LEASE / 2, "{:?}", began.elapsed());
}

#[test]
fn a_reader_that_is_not_listed_is_refused() {
    let listed = Identity::from_seed([1; 32]).peer();
    let more = format!("[policy]\njoin = [\"{listed}\"]");
    let swarm = Swarm::coordinate(&Recipe { more, ..Recipe::exact() });
    let mut reader = start(&swarm, PROMPT, &[]);
    assert_eq!(reader.end(), REFUSED, "{}", reader.errors());
    assert!(reader.errors().contains("listed keys only"), "{}", reader.errors());
}
