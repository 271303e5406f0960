//! A run leaves checkpoints behind, whatever happens to its keeper and to the place where they are kept.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use swarmline::checkpoint::{Manifest, Store};
use swarmline::report::{Event, ExportReport, Incident, KeptReport};

use crate::process::Process;
use crate::recipe::{Recipe, RunFolder};
use crate::swarm::{STAGES, Swarm, account, serving};

/// Exit codes.
const FAILED: i32 = 1;
const REFUSED: i32 = 3;
const INTERRUPTED: i32 = 130;
/// Limit of a wait for a file.
const PATIENCE: Duration = Duration::from_secs(40);

/// Starts a keeper, without a wait.
fn start_keeper(swarm: &Swarm, to: &str, more: &[&str]) -> Process {
    let fixed = ["keep", &swarm.invite, "--to", to, "--json", "--leash"];
    Process::start("keeper", fixed.iter().chain(more).copied())
}

/// Waits until a keeper has joined.
fn keeping(keeper: &mut Process) {
    keeper.hear("that it keeps", |event| matches!(event, Event::Keeping(_)).then_some(()));
}

/// Waits until a further checkpoint is complete.
pub(crate) fn kept(keeper: &mut Process) -> KeptReport {
    let moment = keeper.moment();
    keeper.hear_since(moment, "that a checkpoint is kept", |event| match event {
        Event::Kept(kept) => Some(kept),
        _ => None,
    })
}

/// The manifest of a checkpoint, and whether every file is as it was written.
pub(crate) fn manifest(path: &str) -> Manifest {
    let path = Path::new(path);
    let (target, folder) = (path.parent().unwrap(), path.file_name().unwrap());
    let store = Store::open(target.to_str().unwrap()).unwrap();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
        let checkpoint = store.checkpoint(folder.to_str().unwrap()).await.unwrap();
        checkpoint.verify().await.unwrap();
        checkpoint.manifest().clone()
    })
}

/// A folder of a checkpoint that is not complete.
fn incomplete(target: &Path) -> Option<PathBuf> {
    let entries = target.read_dir().unwrap().flatten().map(|entry| entry.path());
    entries.into_iter().find(|folder| folder.is_dir() && !folder.join("manifest.json").exists())
}

#[test]
fn the_model_that_a_run_leaves_behind_has_the_loss_of_the_run() {
    let mut swarm = Swarm::serve(&Recipe { steps: 60, ..Recipe::exact() });
    let target = swarm.folder.argument("kept");
    let mut keeper = start_keeper(&swarm, &target, &["--every", "20", "--keep", "2"]);
    keeping(&mut keeper);
    let mut feeder = swarm.start_feeder(&[]);
    assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    let account = account(&mut feeder);
    assert_eq!((account.finished, account.lost, account.ungranted), (60, 0, 0));
    let last = keeper.hear("the final states", |event| match event {
        Event::Kept(kept) if kept.is_final => Some(kept),
        _ => None,
    });
    assert_eq!(keeper.end(), 0, "{}", keeper.errors());
    swarm.end();
    let manifest = manifest(&last.path);
    assert_eq!((manifest.microbatches, manifest.stages.len(), manifest.is_final), (60, STAGES, true));
    assert!(manifest.stages.iter().all(|stage| stage.steps == 60), "{:?}", manifest.stages);
    assert_eq!(manifest.cursor.iter().map(|block| block.settled).sum::<u64>(), 60);
    assert_eq!((manifest.heldout_loss.is_some(), manifest.heldout_after), (true, Some(60)));

    let (run, to) = (swarm.folder.run_file(), swarm.folder.argument("model"));
    let mut export = Process::start("export", ["export", &target, "--run", &run, "--to", &to, "--json"]);
    let report: ExportReport = export.hear("the export", |event| match event {
        Event::Exported(report) => Some(report),
        _ => None,
    });
    assert_eq!(report.loss_of_run_after, Some(60));
    let (found, of_run) = (report.loss.unwrap(), report.loss_of_run.unwrap());
    assert!((found - of_run).abs() < 1e-5, "{found} where the run has {of_run}");
    assert!(of_run < 5.3, "the run has learned something, and ends at {of_run}");
}

#[test]
fn a_keeper_that_is_killed_while_it_writes_leaves_the_checkpoint_before_whole() {
    let swarm = Swarm::serve(&Recipe::endless());
    let target = swarm.folder.file("kept");
    let argument = swarm.folder.argument("kept");
    let _feeder = swarm.start_feeder(&[]);
    let deadline = Instant::now() + PATIENCE;
    let (torn, before) = loop {
        let mut keeper = start_keeper(&swarm, &argument, &["--every", "1"]);
        let before = kept(&mut keeper);
        while incomplete(&target).is_none() {
            assert!(Instant::now() < deadline, "no checkpoint is being written");
        }
        keeper.kill();
        if let Some(torn) = incomplete(&target) {
            break (torn, before);
        }
        assert!(Instant::now() < deadline, "every checkpoint was complete when the keeper was dead");
    };
    assert!(manifest(&before.path).microbatches > 0);
    let mut next = start_keeper(&swarm, &argument, &["--every", "1"]);
    keeping(&mut next);
    assert!(!torn.exists(), "the next start removes what is not complete");
    assert!(kept(&mut next).microbatches > before.microbatches);
    next.interrupt();
    assert_eq!(next.end(), INTERRUPTED);
}

#[test]
fn two_keepers_keep_one_run_each_in_a_folder_of_its_own() {
    let swarm = Swarm::serve(&Recipe::endless());
    let _feeder = swarm.start_feeder(&[]);
    let [one, other] = ["one", "other"].map(|name| swarm.folder.argument(name));
    let mut first = start_keeper(&swarm, &one, &["--every", "1s"]);
    let mut second = start_keeper(&swarm, &other, &["--every", "1s"]);
    for keeper in [&mut first, &mut second] {
        assert_eq!(manifest(&kept(keeper).path).stages.len(), STAGES);
    }
    let mut third = start_keeper(&swarm, &one, &[]);
    assert_eq!(third.end(), FAILED);
    assert!(third.errors().contains("another keeper writes here"), "{}", third.errors());
    kept(&mut first);
}

#[test]
fn a_target_that_takes_no_files_is_refused_at_once() {
    let swarm = Swarm::coordinate(&Recipe::endless());
    let blocked = swarm.folder.file("blocked");
    std::fs::write(&blocked, "a file is in the way").unwrap();
    let inside = blocked.join("kept");
    let mut no_folder = start_keeper(&swarm, inside.to_str().unwrap(), &[]);
    assert_eq!(no_folder.end(), FAILED);
    assert!(no_folder.errors().contains("check path, free space and permissions"), "{}", no_folder.errors());

    let fixed = ["keep", &swarm.invite, "--to", "s3://bucket/run", "--json", "--leash"];
    let environment = [
        ("AWS_ENDPOINT", "http://127.0.0.1:1"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ];
    let environment = environment.map(|(name, value)| (name, value.into()));
    let mut no_bucket = Process::start_in(&environment, "keeper", fixed);
    assert_eq!(no_bucket.end(), FAILED);
    assert!(no_bucket.errors().contains("s3://bucket/run"), "{}", no_bucket.errors());
    assert!(!no_bucket.errors().contains("secret"), "{}", no_bucket.errors());
}

#[test]
fn a_run_goes_on_while_its_keeper_cannot_write_and_is_kept_when_it_can() {
    let swarm = Swarm::serve(&Recipe::endless());
    let target = swarm.folder.file("kept");
    let mut feeder = swarm.start_feeder(&[]);
    let mut keeper = start_keeper(&swarm, target.to_str().unwrap(), &["--every", "1s"]);
    kept(&mut keeper);
    let away = swarm.folder.file("away");
    std::fs::rename(&target, &away).unwrap();
    std::fs::write(&target, "a file is in the way").unwrap();
    let fault = keeper.hear("that it cannot write", |event| match event {
        Event::Incident(incident @ Incident::NotKept { .. }) => Some(incident.to_string()),
        _ => None,
    });
    assert!(fault.contains("tried again, and the run goes on"), "{fault}");
    let moment = feeder.moment();
    feeder.hear_since(moment, "that the run goes on", |event| match event {
        Event::Progress(progress) if progress.loss > 0.0 => Some(()),
        _ => None,
    });
    std::fs::remove_file(&target).unwrap();
    std::fs::rename(&away, &target).unwrap();
    manifest(&kept(&mut keeper).path);
}

#[test]
fn a_donor_that_is_killed_costs_no_checkpoint() {
    let mut swarm = Swarm::coordinate(&Recipe { replicas: 2, ..Recipe::endless() });
    let mut replicas: Vec<_> =
        (0..2 * STAGES).map(|index| swarm.start_replica(&format!("replica {index}"), &[])).collect();
    for replica in &mut replicas {
        serving(replica);
    }
    let _feeder = swarm.start_feeder(&[]);
    let mut keeper = start_keeper(&swarm, &swarm.folder.argument("kept"), &["--every", "1s"]);
    kept(&mut keeper);
    let victim = (0..2 * STAGES).find(|&index| serving(&mut replicas[index]) == 1).unwrap();
    replicas[victim].kill();
    for _ in 0..2 {
        assert_eq!(manifest(&kept(&mut keeper).path).stages.len(), STAGES);
    }
    swarm.coordinator.moment();
}

#[test]
fn a_folder_with_checkpoints_of_another_run_is_refused() {
    let first = Swarm::serve(&Recipe::endless());
    let _feeder = first.start_feeder(&[]);
    let target = first.folder.argument("kept");
    let mut keeper = start_keeper(&first, &target, &["--every", "1s"]);
    let before = kept(&mut keeper);
    keeper.kill();
    let folder = first.folder;
    drop((first.replicas, first.coordinator, first._turn));
    let other = Swarm::coordinate(&Recipe { steps: 7, ..Recipe::endless() });
    let mut refused = start_keeper(&other, &target, &[]);
    assert_eq!(refused.end(), FAILED);
    assert!(refused.errors().contains("it is of run processes with manifest"), "{}", refused.errors());
    assert!(manifest(&before.path).microbatches > 0, "nothing in {:?} is removed", folder.path());
}

#[test]
fn where_weights_stay_split_a_key_keeps_one_stage() {
    let policy = "[policy]\nweights = \"split\"".to_owned();
    let swarm = Swarm::serve(&Recipe { more: policy, ..Recipe::endless() });
    let _feeder = swarm.start_feeder(&[]);
    let mut all = start_keeper(&swarm, &swarm.folder.argument("all"), &[]);
    assert_eq!(all.end(), REFUSED);
    assert!(all.errors().contains("name it with --stage"), "{}", all.errors());

    let key = swarm.folder.argument("keeper.key");
    let stage = |stage| ["--every", "1s", "--identity", &key, "--stage", stage];
    let mut keeper = start_keeper(&swarm, &swarm.folder.argument("one"), &stage("1"));
    let kept = manifest(&kept(&mut keeper).path);
    assert_eq!(kept.stages.iter().map(|file| file.stage).collect::<Vec<_>>(), [1]);
    keeper.interrupt();
    assert_eq!(keeper.end(), INTERRUPTED);
    let mut second = start_keeper(&swarm, &swarm.folder.argument("two"), &stage("2"));
    assert_eq!(second.end(), REFUSED);
    assert!(second.errors().contains("has kept stage 1 already"), "{}", second.errors());
    let mut beyond = start_keeper(&swarm, &swarm.folder.argument("beyond"), &stage("4"));
    assert_eq!(beyond.end(), REFUSED);
    assert!(beyond.errors().contains("no stage 4"), "{}", beyond.errors());
}

/// Starts a coordinator with a keeper of its own.
pub(crate) fn coordinate(folder: &RunFolder, more: &[&str]) -> (Process, String) {
    let run_file = folder.run_file();
    let fixed = ["coordinator", "--run", &run_file, "--listen", "127.0.0.1:0", "--json", "--leash"];
    let mut coordinator = Process::start("coordinator", fixed.iter().chain(more).copied());
    let invite = coordinator.hear("its invite", |event| match event {
        Event::Listening { invite, .. } => Some(invite),
        _ => None,
    });
    (coordinator, invite)
}

/// Replicas of all stages, and a feeder.
pub(crate) fn work(invite: &str) -> (Vec<Process>, Process) {
    let join = |stage| {
        let arguments = ["join", invite, "--json", "--leash", "--threads", "1"];
        Process::start(&format!("replica {stage}"), arguments)
    };
    let mut replicas: Vec<_> = (0..STAGES).map(join).collect();
    for replica in &mut replicas {
        serving(replica);
    }
    (replicas, Process::start("feeder", ["feed", invite, "--json", "--leash"]))
}

#[test]
fn a_run_of_a_coordinator_alone_leaves_a_model_behind_and_its_last_line_says_where() {
    let _turn = Swarm::turn();
    let folder = Recipe { steps: 60, ..Recipe::exact() }.write();
    let (mut coordinator, invite) = coordinate(&folder, &[]);
    let (mut replicas, mut feeder) = work(&invite);
    assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    assert_eq!(coordinator.end(), 0, "{}", coordinator.errors());
    replicas.iter_mut().for_each(|replica| assert_eq!(replica.end(), 0, "{}", replica.errors()));
    let last: Event = serde_json::from_str(coordinator.lines().last().unwrap()).unwrap();
    let Event::Kept(kept) = last else { panic!("{last:?}") };
    let checkpoints = folder.argument("run.run/checkpoints");
    assert!(kept.is_final && kept.path.starts_with(&checkpoints), "{kept:?}");
    assert!(Event::Kept(kept.clone()).to_string().contains("swarmline export"), "{kept:?}");
    assert_eq!(manifest(&kept.path).stages.len(), STAGES);
}

#[cfg(target_os = "linux")]
#[test]
fn the_keeper_of_a_coordinator_is_started_again_and_ends_with_it() {
    let _turn = Swarm::turn();
    let folder = Recipe::endless().write();
    let (mut coordinator, invite) = coordinate(&folder, &["--keep-every", "1s"]);
    let _work = work(&invite);
    let before = kept(&mut coordinator);
    let keeper = keeper_in(&folder).expect("its keeper runs");
    kill(keeper);
    coordinator.hear("that its keeper has died", |event| match event {
        Event::Incident(Incident::KeeperDied { .. }) => Some(()),
        _ => None,
    });
    assert!(kept(&mut coordinator).microbatches > before.microbatches);
    let next = keeper_in(&folder).expect("its keeper runs again");
    assert_ne!(next, keeper);
    coordinator.kill();
    let deadline = Instant::now() + PATIENCE;
    while keeper_in(&folder).is_some() {
        assert!(Instant::now() < deadline, "the keeper outlives its coordinator");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The process that keeps into the folder of a run, by its command line.
#[cfg(target_os = "linux")]
pub(crate) fn keeper_in(folder: &RunFolder) -> Option<libc::pid_t> {
    let target = folder.argument("run.run/checkpoints");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.into_iter().find_map(|process| {
        let command = std::fs::read(process.path().join("cmdline")).ok()?;
        let is_meant = command.split(|&byte| byte == 0).any(|argument| argument == target.as_bytes());
        process.file_name().to_str()?.parse().ok().filter(|_| is_meant)
    })
}

#[cfg(target_os = "linux")]
pub(crate) fn kill(process: libc::pid_t) {
    // SAFETY: the call touches no memory. The process is a child of a coordinator of this test, which has not waited for it.
    #[allow(unsafe_code, reason = "the standard library kills no process but its own children")]
    let sent = unsafe { libc::kill(process, libc::SIGKILL) };
    assert_eq!(sent, 0, "the keeper cannot be killed");
}

#[test]
fn a_stage_that_loses_its_last_replica_is_restored_from_the_keeper_and_the_loss_goes_on() {
    let mut swarm = Swarm::serve(&Recipe::endless());
    let mut feeder = swarm.start_feeder(&[]);
    let mut keeper = start_keeper(&swarm, &swarm.folder.argument("kept"), &["--every", "1s"]);
    learned(&mut feeder);
    kept(&mut keeper);
    swarm.replicas[1].interrupt();
    assert_eq!(swarm.replicas[1].end(), 0);
    swarm.replicas.remove(1);
    let mut next = swarm.start_replica("next", &[]);
    let restored = swarm.coordinator.hear("that the stage is restored", |event| match event {
        Event::Incident(incident @ Incident::StageRestored { stage: 1, .. }) => Some(incident.to_string()),
        _ => None,
    });
    assert!(restored.contains("from a keeper's checkpoint of"), "{restored}");
    assert_eq!(serving(&mut next), 1);
    let lines = next.lines().join("\n");
    assert!(lines.contains("state_taken") && !lines.contains("stage_lost"), "{lines}");
    let moment = feeder.moment();
    let loss = feeder.hear_since(moment, "that the run goes on", |event| match event {
        Event::Progress(progress) if progress.loss > 0.0 => Some(progress.loss),
        _ => None,
    });
    assert!(loss < KEPT, "{loss}: what the stage had learned is there");
}

/// Training loss that no untrained stage reaches, nats a token; 5.5 without training.
const LEARNED: f64 = 3.5;
/// The same after a step back to the newest checkpoint.
pub(crate) const KEPT: f64 = 4.5;

/// Waits until the run has learned something.
pub(crate) fn learned(feeder: &mut Process) {
    feeder.hear("that the run learns", |event| match event {
        Event::Progress(progress) if progress.loss > 0.0 && progress.loss < LEARNED => Some(()),
        _ => None,
    });
}
