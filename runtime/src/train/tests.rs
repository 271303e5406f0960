use super::*;
use crate::config::{Kind, Packing};
use crate::stage::Compute as _;

/// A run of one step on a few kilobytes of text.
fn options(folder: &Path) -> TrainOptions {
    std::fs::write(folder.join("text"), "one two three\n".repeat(400)).unwrap();
    let text = "[model]\nhidden_size = 16\nmax_position_embeddings = 16\n[optimizer]\nsteps = 1\n\
                [data]\npaths = [\"text\"]\n";
    let run = Run::parse(text, "run.toml", folder).unwrap();
    let setup = Setup::cpu(1);
    TrainOptions::new(run, folder.to_owned(), setup)
}

fn train_silently(options: &TrainOptions) -> Result<Outcome, Error> {
    train(options, &Reporter::to(|_| {}), &AtomicBool::new(false))
}

#[test]
fn a_run_ends_after_its_last_step() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(train_silently(&options(folder.path())).unwrap(), Outcome::Finished);
}

#[test]
fn after_a_refused_microbatch_the_rest_of_the_accumulation_is_stepped_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.run.pipeline.gradient_accumulation_steps = 4;
    options.run.optimizer.steps = 2;
    let corpus = Arc::new(open_corpus(&options, &AtomicBool::new(false)).unwrap().unwrap());
    let open = || swarmline_kernels::Cpu::new(1);
    let mut training = Training::new(&options, corpus, open).unwrap();
    training.report.injected = 1;
    let counters = |training: &Training<'_, _>| -> Vec<_> {
        training
            .stages
            .iter()
            .map(Engine::statistics)
            .map(|counted| (counted.steps, counted.waiting))
            .collect()
    };
    (0..6).for_each(|_| training.microbatch().unwrap());
    assert_eq!(counters(&training), vec![(1, 2); training.stages.len()]);
    training.microbatch().unwrap();
    assert_eq!(counters(&training), vec![(2, 0); training.stages.len()]);
}

#[test]
fn an_evaluation_without_a_finite_loss_says_that_training_has_diverged() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    // No run file can say so.
    options.run.model.rms_norm_eps = f32::NAN;
    let error = train_silently(&options).unwrap_err();
    assert!(matches!(error, Error::Diverged { at: 0, sign: Divergence::HeldOutLoss }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("diverged") && message.contains("optimizer.learning_rate"), "{message}");
}

#[test]
fn a_text_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.run.data.paths = vec!["nowhere".into()];
    let message = train_silently(&options).unwrap_err().to_string();
    assert!(message.contains("nowhere") && message.contains("data.paths"), "{message}");
}

/// Trains and exports; returns the folder of the exported model.
fn exported(options: &mut TrainOptions, folder: &Path) -> PathBuf {
    use crate::export::{ExportOptions, export};
    use crate::weights::SavedRun;
    options.save = Some(folder.join("saved"));
    train_silently(options).unwrap();
    let (run, to) = (options.run.clone(), folder.join("exported"));
    let saved = SavedRun::open(&folder.join("saved"), run, folder.to_owned(), 1).unwrap();
    export(saved, &ExportOptions::new(to.clone()), &Reporter::silent()).unwrap();
    to
}

/// The held-out losses of a training, in order.
fn losses(options: &TrainOptions) -> Vec<f64> {
    use std::sync::Mutex;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&heard);
    let reporter = Reporter::to(move |event| {
        if let Event::Evaluation { loss, upstream_cut: false, .. } = event {
            sink.lock().unwrap().push(*loss);
        }
    });
    train(options, &reporter, &AtomicBool::new(false)).unwrap();
    let heard = heard.lock().unwrap();
    heard.clone()
}

#[test]
fn a_run_begins_where_the_exported_model_ended() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.run.boundary.kind = Kind::Identity;
    options.run.boundary.packing = Packing::F32;
    let init_from = exported(&mut options, folder.path());
    options.save = None;
    let ended = losses(&options)[1];
    options.init_from = Some(init_from);
    assert_eq!(losses(&options)[0], ended);
}

#[test]
fn a_run_with_a_subspace_begins_with_no_dense_model() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    options.init_from = Some(exported(&mut options, folder.path()));
    let message = train_silently(&options).unwrap_err().to_string();
    assert!(message.contains("\"subspace\"") && message.contains("identity"), "{message}");
}
