use super::*;

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
fn an_evaluation_without_a_finite_loss_says_that_training_has_diverged() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path());
    // No run file can say so.
    options.run.model.rms_norm_eps = f32::NAN;
    let error = train_silently(&options).unwrap_err();
    assert!(matches!(error, Error::Train(TrainError::Diverged { done: 0 })), "{error:?}");
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
