//! A run is kept in a bucket, and models are made from there, whatever happens to its server.

use std::time::Duration;

use swarmline::report::{Event, ExportReport, Incident};

use crate::bucket::{Bucket, SECRET, Temper, folders};
use crate::keep::kept;
use crate::process::Process;
use crate::recipe::Recipe;
use crate::swarm::Swarm;

const FAILED: i32 = 1;
const TARGET: &str = "s3://bucket/runs/one";

/// Starts a keeper that writes into the bucket once a second, without a wait.
fn start_keeper(swarm: &Swarm, bucket: &Bucket, secret: &str) -> Process {
    let arguments =
        ["keep", &swarm.invite, "--to", TARGET, "--every", "1s", "--keep", "2", "--json", "--leash"];
    Process::start_in(&bucket.environment(secret), "keeper", arguments)
}

/// Exports from the bucket; the loss of the exported model and the one that the checkpoint states.
fn export(swarm: &Swarm, bucket: &Bucket, from: &str, to: &str) -> (f64, f64) {
    let (run, to) = (swarm.folder.run_file(), swarm.folder.argument(to));
    let arguments = ["export", from, "--run", &run, "--to", &to, "--json"];
    let mut export = Process::start_in(&bucket.environment(SECRET), "export", arguments);
    let report: ExportReport = export.hear("the export", |event| match event {
        Event::Exported(report) => Some(report),
        _ => None,
    });
    (report.loss.unwrap(), report.loss_of_run.unwrap())
}

#[test]
fn a_run_is_kept_in_a_bucket_and_exported_from_there() {
    let bucket = Bucket::start();
    let mut swarm = Swarm::serve(&Recipe { steps: 60, ..Recipe::exact() });
    let mut keeper = start_keeper(&swarm, &bucket, SECRET);
    keeper.hear("that it keeps", |event| matches!(event, Event::Keeping(_)).then_some(()));
    let mut feeder = swarm.start_feeder(&[]);
    assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    let last = keeper.hear("the final states", |event| match event {
        Event::Kept(kept) if kept.is_final => Some(kept),
        _ => None,
    });
    assert_eq!(keeper.end(), 0, "{}", keeper.errors());
    swarm.end();
    assert_eq!((last.path.as_str(), last.microbatches), (&*format!("{TARGET}/checkpoint-000000000060"), 60));
    for (from, to) in [(TARGET, "newest"), (last.path.as_str(), "named")] {
        let (found, of_run) = export(&swarm, &bucket, from, to);
        assert!((found - of_run).abs() < 1e-5, "{found} where the run has {of_run}");
    }
    let mut nowhere = Process::start_in(
        &bucket.environment(SECRET),
        "export",
        ["export", "s3://bucket/runs/two", "--to", &swarm.folder.argument("none")],
    );
    assert_eq!(nowhere.end(), FAILED);
    assert!(nowhere.errors().contains("there is no complete checkpoint"), "{}", nowhere.errors());
}

#[test]
fn a_bucket_that_is_read_only_or_refuses_the_credentials_is_refused_at_once() {
    let bucket = Bucket::start();
    let swarm = Swarm::coordinate(&Recipe::endless());
    bucket.becomes(Temper::ReadOnly);
    let mut read_only = start_keeper(&swarm, &bucket, SECRET);
    assert_eq!(read_only.end(), FAILED);
    bucket.becomes(Temper::Willing);
    let mut stranger = start_keeper(&swarm, &bucket, "another-secret");
    assert_eq!(stranger.end(), FAILED);
    for errors in [read_only.errors(), stranger.errors()] {
        assert!(errors.contains(TARGET) && errors.contains("credentials in the environment"), "{errors}");
        assert!(!errors.contains("secret"), "{errors}");
    }
}

#[test]
fn a_run_goes_on_while_its_bucket_is_read_only_or_slow() {
    let bucket = Bucket::start();
    let swarm = Swarm::serve(&Recipe::endless());
    let mut feeder = swarm.start_feeder(&[]);
    let mut keeper = start_keeper(&swarm, &bucket, SECRET);
    let before = kept(&mut keeper);

    bucket.becomes(Temper::ReadOnly);
    let moment = keeper.moment();
    let fault = keeper.hear_since(moment, "that it cannot write", |event| match event {
        Event::Incident(incident @ Incident::NotKept { .. }) => Some(incident.to_string()),
        _ => None,
    });
    assert!(fault.contains("tried again, and the run goes on"), "{fault}");
    trains_on(&mut feeder);

    bucket.becomes(Temper::Slow(Duration::from_secs(1)));
    let after = kept(&mut keeper);
    assert!(after.microbatches > before.microbatches);
    trains_on(&mut feeder);

    bucket.becomes(Temper::Willing);
    for _ in 0..2 {
        kept(&mut keeper);
    }
    let complete = folders(&bucket.folder("runs/one"))
        .into_iter()
        .filter(|name| bucket.folder(&format!("runs/one/{name}/manifest.json")).exists());
    assert!(complete.count() <= 3, "the two newest are kept, and one may be new");
}

/// Waits until further microbatches are done.
fn trains_on(feeder: &mut Process) {
    let moment = feeder.moment();
    feeder.hear_since(moment, "that the run goes on", |event| match event {
        Event::Progress(progress) if progress.loss > 0.0 => Some(()),
        _ => None,
    });
}
