use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::TempDir;

use super::*;

const RUN: &str = "name = \"small\"\n";

const LAUNCH: u64 = 7;

/// What a keeper knows about the run after so many microbatches.
fn about(microbatches: u64) -> Manifest {
    Manifest {
        format: FORMAT,
        run_name: "small".to_owned(),
        run_digest: digest(),
        run: RUN.to_owned(),
        launch: LAUNCH,
        microbatches,
        stages: Vec::new(),
        cursor: vec![BlockCursor { block: 0, leased: 64, injected: 40, settled: microbatches }],
        tokenizer: None,
        heldout_loss: Some(2.5),
        heldout_after: Some(30),
        is_final: false,
        is_agreed: false,
    }
}

fn digest() -> String {
    blake3::hash(RUN.as_bytes()).to_string()
}

fn state(stage: u16, microbatches: u64) -> Bytes {
    [u8::try_from(stage).unwrap(), u8::try_from(microbatches % 251).unwrap()].repeat(500).into()
}

/// A checkpoint of two stages with a tokenizer.
async fn write(store: &Store, microbatches: u64) -> Checkpoint {
    let mut writer = store.begin(microbatches);
    for stage in [1, 0] {
        writer.stage(stage, 7 + u64::from(stage), state(stage, microbatches)).await.unwrap();
    }
    writer.tokenizer(Bytes::from_static(b"{}")).await.unwrap();
    writer.complete(about(microbatches)).await.unwrap()
}

fn target() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("run").to_str().unwrap()).unwrap();
    (folder, store)
}

fn file(store: &Store, microbatches: u64, beginning: &str) -> PathBuf {
    let folder = Path::new(store.name()).join(format!("checkpoint-{microbatches:012}"));
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_meant = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(beginning);
    names.into_iter().find(is_meant).unwrap()
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[700] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_checkpoint_is_read_as_it_was_written() {
    let (_folder, store) = target();
    write(&store, 40).await;
    let (checkpoint, broken) = store.newest(&digest()).await.unwrap();
    assert!(broken.is_empty());
    assert_eq!(checkpoint.read_stage(1).await.unwrap(), state(1, 40));
    assert_eq!(checkpoint.read_tokenizer().await.unwrap(), Some(Bytes::from_static(b"{}")));
    let manifest = checkpoint.manifest();
    assert_eq!(
        manifest.stages.iter().map(|file| (file.stage, file.steps)).collect::<Vec<_>>(),
        [(0, 7), (1, 8)]
    );
    assert_eq!((manifest.microbatches, &manifest.cursor), (40, &about(40).cursor));
    assert!(checkpoint.location().ends_with("checkpoint-000000000040"));
}

#[tokio::test]
async fn a_checkpoint_without_a_manifest_is_none() {
    let (_folder, store) = target();
    write(&store, 40).await;
    let mut unfinished = store.begin(80);
    unfinished.stage(0, 9, state(0, 80)).await.unwrap();
    assert_eq!(store.newest(&digest()).await.unwrap().0.manifest().microbatches, 40);
    let found = store.checkpoints().await.unwrap();
    assert_eq!((found.checkpoints.len(), found.broken.len()), (1, 0));
}

#[tokio::test]
async fn a_broken_checkpoint_is_named_and_the_one_before_is_taken() {
    let (_folder, store) = target();
    for microbatches in [40, 80, 120, 160] {
        write(&store, microbatches).await;
    }
    flip(&file(&store, 160, "stage-001"));
    std::fs::remove_file(file(&store, 120, "stage-000")).unwrap();
    std::fs::write(file(&store, 80, "tokenizer"), "{ }").unwrap();
    let (checkpoint, broken) = store.newest(&digest()).await.unwrap();
    assert_eq!(checkpoint.manifest().microbatches, 40);
    let texts: Vec<String> = broken.iter().map(ToString::to_string).collect();
    assert!(texts[0].contains("160/stage-001-") && texts[0].contains("digest"), "{texts:?}");
    assert!(texts[1].contains("120/stage-000-") && texts[1].contains("missing"), "{texts:?}");
    assert!(texts[2].contains("080/tokenizer.json"), "{texts:?}");
    assert!(texts.iter().all(|text| text.contains("use the checkpoint before")), "{texts:?}");
}

#[tokio::test]
async fn a_manifest_that_cannot_be_used_says_why() {
    let (_folder, store) = target();
    write(&store, 40).await;
    let path = file(&store, 40, "manifest");
    let written = std::fs::read_to_string(&path).unwrap();
    for (from, to, expected) in [
        ("\"format\": 1", "\"format\": 2", "format 2, and this program reads up to 1; update swarmline"),
        ("\"microbatches\"", "\"micro\"", "malformed"),
        ("small\\\"", "other\\\"", "digest"),
        ("\"tokenizer.json\"", "\"../secret\"", "is no name of a file"),
    ] {
        assert!(written.contains(from));
        std::fs::write(&path, written.replace(from, to)).unwrap();
        let text = store.newest(&digest()).await.unwrap_err().to_string();
        assert!(text.contains("manifest.json") && text.contains(expected), "{text}");
    }
    std::fs::write(&path, written).unwrap();
    let text = store.newest("00ff").await.unwrap_err().to_string();
    assert!(text.contains("of run small") && text.contains("not 00ff"), "{text}");
}

#[tokio::test]
async fn a_stage_that_was_not_kept_is_named() {
    let (_folder, store) = target();
    let checkpoint = write(&store, 40).await;
    let text = checkpoint.read_stage(2).await.unwrap_err().to_string();
    assert!(text.contains("no state of stage 2, only of [0, 1]"), "{text}");
}

#[tokio::test]
async fn older_checkpoints_go_when_a_newer_one_is_complete() {
    let (_folder, store) = target();
    let kept = async || {
        let found = store.checkpoints().await.unwrap();
        found.checkpoints.iter().map(|checkpoint| checkpoint.manifest().microbatches).collect::<Vec<_>>()
    };
    store.begin(20).stage(0, 1, state(0, 20)).await.unwrap();
    store.prune(1, LAUNCH).await.unwrap();
    assert!(file(&store, 20, "stage-000").exists(), "no checkpoint is complete yet");
    for microbatches in [40, 80, 120] {
        write(&store, microbatches).await;
    }
    let mut unfinished = store.begin(160);
    unfinished.stage(0, 9, state(0, 160)).await.unwrap();
    store.prune(2, LAUNCH).await.unwrap();
    assert_eq!(kept().await, [120, 80]);
    assert!(!Path::new(store.name()).join("checkpoint-000000000020").exists());
    assert!(file(&store, 160, "stage-000").exists(), "it may be under way");
}

#[tokio::test]
async fn a_later_launch_is_newer_and_prunes_no_checkpoint_of_an_earlier_one() {
    let (_folder, store) = target();
    for microbatches in [100, 200] {
        write(&store, microbatches).await;
    }
    for microbatches in [10, 20, 30] {
        let mut writer = store.begin(microbatches);
        writer.complete(Manifest { launch: LAUNCH + 1, ..about(microbatches) }).await.unwrap();
    }
    store.prune(1, LAUNCH + 1).await.unwrap();
    let found = store.checkpoints().await.unwrap().checkpoints;
    let kept: Vec<u64> = found.iter().map(|checkpoint| checkpoint.manifest().microbatches).collect();
    assert_eq!(kept, [30, 200, 100]);
}

#[tokio::test]
async fn two_writers_of_one_folder_mix_nothing() {
    let (_folder, store) = target();
    let (mut one, mut other) = (store.begin(40), store.begin(40));
    one.stage(0, 1, state(0, 1)).await.unwrap();
    other.stage(0, 2, state(0, 2)).await.unwrap();
    other.complete(about(40)).await.unwrap();
    let read = async || store.newest(&digest()).await.unwrap().0.read_stage(0).await.unwrap();
    assert_eq!(read().await, state(0, 2));
    one.complete(about(40)).await.unwrap();
    assert_eq!(read().await, state(0, 1));
}

#[tokio::test]
async fn a_file_longer_than_a_part_is_written_whole() {
    let (_folder, store) = target();
    let long = Bytes::from(vec![5; (32 << 20) + 3]);
    let mut writer = store.begin(1);
    writer.stage(0, 1, long.clone()).await.unwrap();
    let checkpoint = writer.complete(about(1)).await.unwrap();
    assert_eq!(checkpoint.read_stage(0).await.unwrap(), long);
}

#[tokio::test]
async fn a_target_that_cannot_hold_checkpoints_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let inside = file.join("run");
    for (target, expected) in
        [(inside.to_str().unwrap(), "cannot create"), ("ftp://host/x", "s3://BUCKET/PATH")]
    {
        let text = Store::open(target).unwrap_err().to_string();
        assert!(text.contains(target) && text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn one_keeper_has_a_folder_and_removes_what_a_killed_one_left() {
    let (_folder, store) = target();
    write(&store, 40).await;
    let mut unfinished = store.begin(80);
    unfinished.stage(0, 9, state(0, 80)).await.unwrap();
    let folder = Path::new(store.name()).join("checkpoint-000000000080");
    // A name that the client of the store gives to a file before it is whole.
    std::fs::write(folder.join("stage-001.safetensors#1"), "torn").unwrap();
    let lock = store.lock().await.unwrap();
    assert!(!folder.exists());
    assert_eq!(store.newest(&digest()).await.unwrap().0.manifest().microbatches, 40);
    let refused = store.lock().await.unwrap_err();
    assert!(matches!(refused.fault, Fault::Locked), "{refused}");
    drop(lock);
    store.lock().await.unwrap();
}

#[tokio::test]
async fn a_target_that_takes_files_has_none_of_the_trial_left() {
    let (_folder, store) = target();
    store.try_write().await.unwrap();
    assert_eq!(std::fs::read_dir(store.name()).unwrap().count(), 0);
}

#[tokio::test]
async fn keepers_that_try_a_new_folder_at_once_do_not_disturb_each_other() {
    const ROUNDS: usize = 20;
    for _ in 0..ROUNDS {
        let folder = TempDir::new().unwrap();
        let target = folder.path().join("kept").to_str().unwrap().to_owned();
        let mut keepers = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let store = Store::open(&target).unwrap();
            keepers.spawn(async move { store.try_write().await });
        }
        for tried in keepers.join_all().await {
            tried.unwrap();
        }
    }
}
