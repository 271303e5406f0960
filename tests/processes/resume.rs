//! A run goes on from a checkpoint, after everything was killed or because a person goes back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use swarmline::report::{Event, ExportReport, KeptReport};

use crate::keep::{KEPT, coordinate, kept, learned, manifest};
use crate::process::Process;
use crate::recipe::{Recipe, RunFolder};
use crate::swarm::{STAGES, Swarm, account, serving};

/// Exit codes.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 3;

/// The processes of a run, whose coordinator has a keeper of its own.
struct Kept {
    coordinator: Process,
    replicas: Vec<Process>,
    feeder: Process,
}

impl Kept {
    /// Starts a coordinator with `more`, so many replicas, and a feeder with a journal.
    fn start(folder: &RunFolder, replicas: usize, more: &[&str]) -> Self {
        let (coordinator, invite) = coordinate(folder, more);
        let replicas = join(&invite, replicas);
        Self { coordinator, replicas, feeder: feed(folder, &invite) }
    }

    fn kill(mut self) {
        self.coordinator.kill();
        self.replicas.iter_mut().chain([&mut self.feeder]).for_each(Process::kill);
    }

    /// Waits until the run is over; returns the final states.
    fn finish(mut self) -> KeptReport {
        assert_eq!(self.feeder.end(), 0, "{}", self.feeder.errors());
        assert_eq!(self.coordinator.end(), 0, "{}", self.coordinator.errors());
        self.replicas.iter_mut().for_each(|replica| assert_eq!(replica.end(), 0, "{}", replica.errors()));
        let last: Event = serde_json::from_str(self.coordinator.lines().last().unwrap()).unwrap();
        let Event::Kept(kept) = last else { panic!("{last:?}") };
        kept
    }
}

/// So many replicas, all of which serve.
fn join(invite: &str, count: usize) -> Vec<Process> {
    let start = |index: usize| {
        let arguments = ["join", invite, "--json", "--leash", "--threads", "1"];
        Process::start(&format!("replica {index}"), arguments)
    };
    let mut replicas: Vec<_> = (0..count).map(start).collect();
    for replica in &mut replicas {
        serving(replica);
    }
    replicas
}

fn feed(folder: &RunFolder, invite: &str) -> Process {
    let [key, journal] = ["feeder.key", "feeder.journal"].map(|name| folder.argument(name));
    let files = ["--identity", &key, "--journal", &journal, "--json", "--leash"];
    Process::start("feeder", ["feed", invite].into_iter().chain(files))
}

/// The news of a coordinator that goes on from a checkpoint: its microbatches, those of the log before, and where that is.
fn resumed(coordinator: &mut Process) -> (u64, Option<u64>, Option<PathBuf>) {
    coordinator.hear("that it goes on from a checkpoint", |event| match event {
        Event::ResumedAt { done, before, aside, .. } => Some((done, before, aside.map(PathBuf::from))),
        _ => None,
    })
}

fn held_out_loss(feeder: &mut Process) -> f64 {
    feeder.hear("the loss on held-out text", |event| match event {
        Event::Evaluation { loss, upstream_cut: false, .. } => Some(loss),
        _ => None,
    })
}

/// Stops the feeder and waits for a checkpoint that holds exactly what it has fed.
fn stand_still(run: &mut Kept) -> KeptReport {
    run.feeder.interrupt();
    run.feeder.end();
    let done = account(&mut run.feeder).finished;
    run.coordinator.hear("a checkpoint of the run that stands still", |event| match event {
        Event::Kept(kept) if kept.microbatches == done => Some(kept),
        _ => None,
    })
}

#[test]
fn after_everything_was_killed_a_run_goes_on_from_its_newest_checkpoint_with_another_number_of_replicas() {
    let _turn = Swarm::turn();
    let folder = Recipe { replicas: 2, ..Recipe::endless() }.write();
    let mut first = Kept::start(&folder, STAGES, &["--keep-every", "1s"]);
    learned(&mut first.feeder);
    let before = kept(&mut first.coordinator);
    first.kill();

    let mut next = Kept::start(&folder, 2 * STAGES, &["--keep-every", "1s", "--resume"]);
    let (done, progress, aside) = resumed(&mut next.coordinator);
    assert!(done >= before.microbatches && progress >= Some(done), "{done}, {progress:?}, {before:?}");
    assert!(aside.is_some_and(|aside| aside.exists()), "the log before is put aside");
    next.feeder.hear("that its journal is put aside", |event| match event {
        Event::JournalPutAside { aside, .. } => Path::new(&aside).exists().then_some(()),
        _ => None,
    });
    let loss = held_out_loss(&mut next.feeder);
    assert!(loss < KEPT, "{loss}: what the run had learned is there");
    let further = kept(&mut next.coordinator);
    assert!(further.microbatches > done, "{further:?}");
    for replica in &next.replicas {
        let lines = replica.lines().join("\n");
        assert!(lines.contains("state_taken") && !lines.contains("stage_lost"), "{lines}");
    }
    next.kill();

    let (mut again, _) = coordinate(&folder, &["--resume"]);
    again.hear("that it goes on by its log", |event| match event {
        Event::Resumed { done, .. } => (done >= further.microbatches).then_some(()),
        _ => None,
    });
    assert!(again.lines().join("\n").contains("resumed_already"), "{:?}", again.lines());
    again.kill();
}

#[test]
fn a_run_of_one_microbatch_at_a_time_that_was_killed_and_resumed_ends_with_the_weights_of_one_that_was_not() {
    let _turn = Swarm::turn();
    let recipe = Recipe { steps: 800, ..Recipe::exact() };
    let whole = manifest(&Kept::start(&recipe.write(), STAGES, &[]).finish().path);

    let folder = recipe.write();
    let mut first = Kept::start(&folder, STAGES, &["--keep-every", "1"]);
    let exact = first.coordinator.hear("a checkpoint of one clock", |event| match event {
        Event::Kept(kept) if kept.is_agreed => Some(kept),
        _ => None,
    });
    first.kill();
    let steps: Vec<_> = manifest(&exact.path).stages.iter().map(|stage| stage.steps).collect();
    assert_eq!(steps, [exact.microbatches; STAGES]);
    assert!(exact.microbatches < recipe.steps, "{exact:?}");

    let mut next = Kept::start(&folder, STAGES, &["--resume", &exact.path]);
    assert_eq!(resumed(&mut next.coordinator).0, exact.microbatches);
    let outcome = account(&mut next.feeder);
    assert_eq!(
        (outcome.finished, outcome.inherited),
        (recipe.steps - exact.microbatches, exact.microbatches)
    );
    assert_eq!((outcome.lost, outcome.ungranted), (0, 0));
    let resumed = manifest(&next.finish().path);
    assert_eq!(resumed.microbatches, recipe.steps);
    assert_eq!(resumed.stages, whole.stages, "the states are equal, byte by byte");
}

#[test]
fn a_run_goes_back_while_its_members_live_and_they_go_on_with_its_states() {
    let _turn = Swarm::turn();
    let folder = Recipe::endless().write();
    let mut run = Kept::start(&folder, STAGES, &["--keep-every", "1s"]);
    learned(&mut run.feeder);
    let path = kept(&mut run.coordinator).path;
    let moments: Vec<_> = run.replicas.iter_mut().map(Process::moment).collect();
    run.coordinator.kill();
    let (mut coordinator, invite) = coordinate(&folder, &["--keep-every", "1s", "--resume", &path]);
    resumed(&mut coordinator);
    for (replica, moment) in run.replicas.iter_mut().zip(moments) {
        replica.hear_since(moment, "the state of the checkpoint", |event| {
            matches!(event, Event::StateTaken { .. }).then_some(())
        });
        replica.hear_since(moment, "that it serves again", |event| {
            matches!(event, Event::Serving { .. }).then_some(())
        });
    }
    assert_eq!(run.feeder.end(), REFUSED);
    assert!(run.feeder.errors().contains("gone back to a checkpoint"), "{}", run.feeder.errors());
    let mut feeder = feed(&folder, &invite);
    let loss = held_out_loss(&mut feeder);
    assert!(loss < KEPT, "{loss}: what the run had learned is there");
    kept(&mut coordinator);
    coordinator.kill();
}

/// The tensors of a checkpoint, weights and moments, by name.
fn tensors(path: &str) -> BTreeMap<String, Vec<u8>> {
    let files = manifest(path)
        .stages
        .into_iter()
        .map(|stage| std::fs::read(Path::new(path).join(stage.file)).unwrap());
    let named = |file: Vec<u8>| {
        let tensors = SafeTensors::deserialize(&file).unwrap();
        tensors.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect::<Vec<_>>()
    };
    files.flat_map(named).collect()
}

#[test]
fn a_run_that_goes_on_with_its_layers_cut_otherwise_ends_with_the_same_weights() {
    let _turn = Swarm::turn();
    let recipe = Recipe { steps: 100, ..Recipe::exact() };
    let whole = tensors(&Kept::start(&recipe.write(), STAGES, &[]).finish().path);

    let folder = recipe.write();
    let mut first = Kept::start(&folder, STAGES, &["--keep-every", "1"]);
    first.feeder.hear("progress", |event| match event {
        Event::Progress(progress) => (progress.done >= 5).then_some(()),
        _ => None,
    });
    let exact = stand_still(&mut first);
    first.kill();
    let run = std::fs::read_to_string(folder.run_file()).unwrap();
    std::fs::write(folder.run_file(), run.replace("stages = 4", "layers_per_stage = [1, 3]")).unwrap();
    let mut next = Kept::start(&folder, 2, &["--resume", &exact.path]);
    assert_eq!(resumed(&mut next.coordinator).0, exact.microbatches);
    let last = next.finish().path;
    assert_eq!(manifest(&last).stages.len(), 2);
    assert!(tensors(&last) == whole, "weights and moments are equal, bit by bit");
}

/// A coordinator that ends at once.
fn refused(folder: &RunFolder, resume: &str) -> (i32, String) {
    let run_file = folder.run_file();
    let fixed = ["coordinator", "--run", &run_file, "--listen", "127.0.0.1:0", "--json", "--leash"];
    let mut coordinator = Process::start("coordinator", fixed.into_iter().chain(["--resume", resume]));
    (coordinator.end(), coordinator.errors())
}

/// A run of which a checkpoint is left, and its folder.
fn left_behind() -> (RunFolder, String) {
    let folder = Recipe::endless().write();
    let mut run = Kept::start(&folder, STAGES, &["--keep-every", "1"]);
    kept(&mut run.coordinator);
    let path = stand_still(&mut run).path;
    run.kill();
    (folder, path)
}

#[test]
fn a_checkpoint_that_cannot_be_used_is_refused_and_the_run_goes_on_without_it() {
    let _turn = Swarm::turn();
    let (folder, path) = left_behind();
    let expect = |code, resume: &str, part: &str| {
        let (found, errors) = refused(&folder, resume);
        assert_eq!(found, code, "{errors}");
        assert!(errors.contains(part), "{part}: {errors}");
    };
    let stage = PathBuf::from(&path).join(&manifest(&path).stages[1].file);
    let sound = std::fs::read(&stage).unwrap();
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    std::fs::write(&stage, flipped).unwrap();
    expect(FAILED, &path, "the file has the digest");
    std::fs::write(&stage, &sound).unwrap();

    let file = PathBuf::from(&path).join("manifest.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut lacking: serde_json::Value = serde_json::from_str(&text).unwrap();
    lacking["stages"].as_array_mut().unwrap().remove(2);
    std::fs::write(&file, lacking.to_string()).unwrap();
    expect(FAILED, &path, "it has no state of stage 2");
    std::fs::write(&file, &text).unwrap();

    expect(FAILED, &folder.argument("nowhere"), "there is no complete checkpoint");
    let run = std::fs::read_to_string(folder.run_file()).unwrap();
    std::fs::write(folder.run_file(), run.replace("rank = 8", "rank = 4")).unwrap();
    expect(USAGE, &path, "boundary.rank is 8 in the run and 4 in the file");
    std::fs::write(folder.run_file(), run).unwrap();
    assert!(!folder.file("nowhere").exists());
    let names = folder.file("run.run").read_dir().unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.contains("before")), "no log has another place: {names:?}");

    let (mut coordinator, _) = coordinate(&folder, &[]);
    coordinator.hear("that the run goes on", |event| matches!(event, Event::Resumed { .. }).then_some(()));
    coordinator.kill();
}

#[test]
fn replicas_of_a_run_that_goes_on_wait_for_the_keeper_that_a_person_starts_elsewhere() {
    let _turn = Swarm::turn();
    let (folder, path) = left_behind();
    std::fs::write(folder.file("run.run/log.redb"), "this is no log").unwrap();
    let (mut coordinator, invite) = coordinate(&folder, &["--no-keeper", "--resume", &path]);
    let command = coordinator.hear("the command that starts a keeper", |event| match event {
        Event::KeeperNeeded { command } => Some(command),
        _ => None,
    });
    assert!(command.ends_with(&format!("--resume-from {path}")), "{command}");
    let arguments = ["join", &invite, "--json", "--leash", "--threads", "1"];
    let mut replica = Process::start("replica", arguments);
    replica.hear("that it waits for a keeper", |event| {
        matches!(event, Event::AwaitsKeeper { stage: 0 }).then_some(())
    });
    let keep = |to: &str, from: &str| {
        let to = folder.argument(to);
        let arguments = ["keep", &invite, "--to", &to, "--resume-from", from, "--json", "--leash"];
        Process::start("keeper", arguments)
    };
    let target = Path::new(&path).parent().unwrap();
    let mut checkpoints: Vec<_> = target.read_dir().unwrap().flatten().map(|entry| entry.path()).collect();
    checkpoints.retain(|other| other.join("manifest.json").exists() && other != Path::new(&path));
    let mut other = keep("other", checkpoints[0].to_str().unwrap());
    assert_eq!(other.end(), USAGE);
    assert!(other.errors().contains("is another one"), "{}", other.errors());
    let _keeper = keep("kept", &path);
    assert_eq!(serving(&mut replica), 0);
    assert!(replica.lines().join("\n").contains("state_taken"), "{:?}", replica.lines());
    coordinator.kill();
}

/// Exports the model that a run of one microbatch at a time leaves; its folder, and its loss on held-out text.
fn exported(recipe: &Recipe) -> (RunFolder, String, f64) {
    let folder = recipe.write();
    let kept = Kept::start(&folder, STAGES, &[]).finish();
    let (run, to) = (folder.run_file(), folder.argument("model"));
    let mut export = Process::start("export", ["export", &kept.path, "--run", &run, "--to", &to, "--json"]);
    let report: ExportReport = export.hear("the export", |event| match event {
        Event::Exported(report) => Some(report),
        _ => None,
    });
    (folder, to, report.loss.unwrap())
}

#[test]
fn a_run_begins_with_the_weights_of_an_exported_model() {
    let _turn = Swarm::turn();
    let recipe = Recipe { steps: 60, ..Recipe::exact() };
    let (before, model, loss) = exported(&recipe);

    let folder = Recipe { steps: 1_000_000, ..recipe }.write();
    let mut run = Kept::start(&folder, STAGES, &["--init-from", &model, "--keep-every", "1s"]);
    assert_eq!(resumed(&mut run.coordinator).0, 0);
    let found = held_out_loss(&mut run.feeder);
    assert!((found - loss).abs() < 1e-4, "{found} where the model has {loss}");
    let further = kept(&mut run.coordinator);
    run.kill();
    let (mut again, _) = coordinate(&folder, &["--init-from", &model]);
    again.hear("that it goes on by its log", |event| match event {
        Event::Resumed { done, .. } => (done >= further.microbatches).then_some(()),
        _ => None,
    });
    again.kill();
    let (mut back, _) = coordinate(&folder, &["--resume"]);
    assert!(resumed(&mut back).0 >= further.microbatches, "it was not resumed before");
    back.kill();

    let refused = |folder: &RunFolder, model: &str, part: &str| {
        let run_file = folder.run_file();
        let fixed = ["coordinator", "--run", &run_file, "--listen", "127.0.0.1:0", "--init-from", model];
        let mut coordinator = Process::start("coordinator", fixed);
        assert_ne!(coordinator.end(), 0);
        assert!(coordinator.errors().contains(part), "{}", coordinator.errors());
    };
    refused(&before, &model, "has begun with other weights");
    refused(&Recipe::exact().write(), &before.argument("nowhere"), "there is no config.json");
    let confined = Recipe { boundary: "subspace", ..Recipe::exact() }.write();
    refused(&confined, &model, "its boundary is \"subspace\"");
    assert!(!confined.file("run.run/checkpoints").exists(), "nothing is begun");
}
