//! What a process keeps: targets that are tried before the work, journals that belong to their text, and accounts that cover
//! the whole run.

use swarmline::report::{Event, FeederReport};

use crate::process::Process;
use crate::recipe::Recipe;
use crate::swarm::{STAGES, Swarm, account, last_word, serving};

const FAILED: i32 = 1;
/// Tokens of a microbatch of these runs.
const TOKENS: u64 = 64;

#[test]
fn a_target_that_cannot_be_written_is_refused_before_any_work() {
    let swarm = Swarm::coordinate(&Recipe::endless());
    let (run, nowhere) = (swarm.folder.run_file(), swarm.folder.argument("nowhere/file"));
    let key = swarm.folder.argument("f.key");
    let join = ["join", swarm.invite.as_str()];
    for arguments in [
        &[&join[..], &["--save", &nowhere]].concat(),
        &[&join[..], &["--applied-log", &nowhere]].concat(),
        &["feed", &swarm.invite, "--identity", &key, "--journal", &nowhere].to_vec(),
        &["train", "--run", &run, "--save", "/proc/weights"].to_vec(),
    ] {
        let mut process = Process::start(arguments[0], [&arguments[..], &["--json"]].concat());
        assert_eq!(process.end(), FAILED, "{arguments:?}");
        let failed = process.hear("that it failed", |event| match event {
            Event::Failed { code, message } => Some((code, message)),
            _ => None,
        });
        assert_eq!(i32::from(failed.0), FAILED);
        assert!(process.errors().contains(&failed.1), "both outputs say the same: {failed:?}");
        let worked = |line: &String| line.contains("\"corpus\"") || line.contains("\"placed\"");
        assert!(!process.lines().iter().any(worked), "{arguments:?}: {:?}", process.lines());
    }
}

#[test]
fn a_resumed_feeder_reports_the_whole_run_and_refuses_another_text() {
    let mut swarm = Swarm::serve(&Recipe::asynchronous());
    let (key, journal) = (swarm.folder.argument("f.key"), swarm.folder.argument("f.log"));
    let kept = ["--identity", &key, "--journal", &journal];
    let mut feeder = swarm.start_feeder(&kept);
    feeder.hear("progress", |event| matches!(event, Event::Progress(_)).then_some(()));
    feeder.kill();

    let text = swarm.folder.file("text/0.txt");
    let before = std::fs::read_to_string(&text).unwrap();
    std::fs::write(&text, format!("{before}one line more\n")).unwrap();
    let mut changed = swarm.start_feeder(&kept);
    assert_eq!(changed.end(), FAILED, "{}", changed.errors());
    let digest = |event| match event {
        Event::Corpus { digest, .. } => Some(digest),
        _ => None,
    };
    let first = feeder.hear("its text", digest);
    assert!(changed.errors().contains(&first), "both digests: {}", changed.errors());

    std::fs::write(&text, before).unwrap();
    let mut feeder = swarm.start_feeder(&kept);
    assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    let FeederReport { injected, finished, refused, tokens, seconds, tokens_per_s, .. } =
        account(&mut feeder);
    assert_eq!((injected, tokens), (200, finished * TOKENS));
    assert_eq!(injected, finished + refused);
    assert!((tokens_per_s * seconds - tokens as f64).abs() < 1.0, "the speed is that of the whole run");
    swarm.end();
}

/// Two replicas share the microbatches of a stage as they come, so hardly any of them ends with a whole step.
#[test]
fn every_contribution_is_in_a_step_at_the_end_of_a_run_that_accumulates() {
    let each = 4;
    let recipe =
        Recipe { gradient_accumulation_steps: each, replicas: 2, steps: 13, ..Recipe::asynchronous() };
    let swarm = Swarm::coordinate(&recipe);
    let mut replicas: Vec<Process> =
        (0..8).map(|index| swarm.start_replica(&format!("replica {index}"), &[])).collect();
    for replica in &mut replicas {
        serving(replica);
    }
    let mut feeder = swarm.start_feeder(&[]);
    assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    let FeederReport { injected, finished, lost, contributions_lost, .. } = account(&mut feeder);
    assert_eq!((injected, finished, lost, contributions_lost), (104, 104, 0, 0));
    let mut applied = 0;
    for replica in &mut replicas {
        assert_eq!(replica.end(), 0, "{}", replica.errors());
        let last = last_word(replica);
        assert_eq!((last.waiting, last.steps), (0, last.done.div_ceil(each as u64)), "{last:?}");
        applied += last.done;
    }
    assert_eq!(applied, STAGES as u64 * finished);
}
