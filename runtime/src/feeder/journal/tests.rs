//! Journals that are cut, damaged, foreign and long.

use std::time::Instant;

use proptest::prelude::*;
use swarmline_scheduler::feeder::{Continued, Outcome, TakenOver};
use swarmline_scheduler::{
    Hop, Incarnation, Instance, Lease, Loss, MicrobatchId, PeerId, Refusal, StageIndex,
};

use super::*;

const LAUNCH: Launch =
    Launch { manifest: ManifestDigest([3; 32]), number: 77, before: None, corpus: [5; 32] };
const SCHEDULE: Option<AveragingSchedule> = Some(AveragingSchedule { interval: 10, fragments: 3 });

fn hop(stage: u16, key: u8) -> Hop {
    Hop::replica(StageIndex(stage), Instance::new(PeerId([key; 32]), Incarnation(1_764_000_000_000_000_000)))
}

fn leased(first: u64, count: u64) -> Record {
    Record::Leased(Lease { first: MicrobatchId(first), count, epoch: 0 })
}

fn finished(id: u64) -> Record {
    let outcome = Outcome::Finished { loss: Loss { sum: 0.1, tokens: 3 } };
    Record::Ended { microbatch: MicrobatchId(id), outcome }
}

fn refused(id: u64) -> Record {
    let outcome = Outcome::Refused { by: hop(1, 9), reason: Refusal::Malformed("no shape".to_owned()) };
    Record::Ended { microbatch: MicrobatchId(id), outcome }
}

fn taken_over() -> Record {
    Record::TakenOver(TakenOver {
        lease: Lease { first: MicrobatchId(1 << 40), count: 32, epoch: 1 },
        ended: 5,
        end: MicrobatchId((1 << 40) + 16),
        continued: vec![Continued {
            microbatch: MicrobatchId((1 << 40) + 6),
            to: hop(0, 7),
            grants: vec![hop(1, 8)],
        }],
        abandoned: vec![MicrobatchId((1 << 40) + 7)],
    })
}

fn records() -> Vec<Record> {
    let microbatch = MicrobatchId(4);
    vec![
        leased(0, 8),
        Record::Sent { microbatch, to: hop(0, 7) },
        Record::Granted { microbatch, to: hop(1, 8) },
        Record::RoundCalled { stage: StageIndex(1) },
        Record::Lost { replica: hop(1, 8), contributions: 2 },
        taken_over(),
        finished(4),
        refused(5),
        Record::Trained { milliseconds: 61_000 },
    ]
}

fn open(path: &Path) -> (Journal, Snapshot) {
    Journal::open(Some(path), LAUNCH, SCHEDULE).unwrap()
}

fn folded(records: &[Record]) -> Snapshot {
    Snapshot::of(records, SCHEDULE)
}

/// Writes each group with one commit.
fn written(folder: &Path, groups: &[Vec<Record>]) -> PathBuf {
    let path = folder.join("journal");
    let (mut journal, before) = open(&path);
    assert!(before.is_empty());
    for group in groups {
        group.iter().for_each(|record| journal.write(record));
        journal.commit().unwrap();
    }
    path
}

fn any_record() -> impl Strategy<Value = Record> {
    let id = || (0_u64..1 << 41).prop_map(MicrobatchId);
    let replica = || (0_u16..9, 0_u8..20).prop_map(|(stage, key)| hop(stage, key));
    prop_oneof![
        (0_u64..1 << 41, 1_u64..1 << 20).prop_map(|(first, count)| leased(first, count)),
        (id(), replica()).prop_map(|(microbatch, to)| Record::Sent { microbatch, to }),
        (id(), replica()).prop_map(|(microbatch, to)| Record::Granted { microbatch, to }),
        (id(), replica()).prop_map(|(microbatch, from)| Record::Withdrawn { microbatch, from }),
        (0_u64..1 << 41).prop_map(finished),
        (0_u64..1 << 41).prop_map(refused),
        Just(taken_over()),
        (0_u16..9).prop_map(|stage| Record::RoundCalled { stage: StageIndex(stage) }),
        (0_u64..1 << 41).prop_map(|milliseconds| Record::Trained { milliseconds }),
        (replica(), 1_u64..99).prop_map(|(replica, contributions)| Record::Lost { replica, contributions }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_journal_cut_at_any_byte_gives_a_prefix_of_its_groups(
        groups in prop::collection::vec(prop::collection::vec(any_record(), 1..6), 0..6)
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), &groups);
        let whole = std::fs::read(&path).unwrap();
        let prefixes: Vec<Vec<Record>> = (0..=groups.len()).map(|some| groups[..some].concat()).collect();
        let mut longest = 0;
        for cut in 0..=whole.len() {
            let contents = Contents::read(&whole[..cut], LAUNCH).unwrap();
            let groups = prefixes.iter().rposition(|prefix| *prefix == contents.records);
            prop_assert!(groups >= Some(longest), "cut at {cut}");
            longest = groups.unwrap_or_default();
            prop_assert!(contents.whole <= cut);
        }
        prop_assert_eq!(longest, groups.len());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_reserve_memory(
        bytes in prop::collection::vec(any::<u8>(), 0..200), tag in 0_u8..11
    ) {
        let _ = layout::read(&bytes);
        let _ = Decoder::default().records(&bytes);
        let _ = Decoder::default().records(&[&[tag], &bytes[..]].concat());
        let mut file = layout::preamble().to_vec();
        layout::push_frame(&mut file, &opening(&LAUNCH));
        layout::push_frame(&mut file, &[&[tag], &bytes[..]].concat());
        let _ = Contents::read(&file, LAUNCH);
    }

    #[test]
    fn a_flipped_bit_before_the_last_frame_is_noticed(at in 0_usize..4_000, bit in 0_u8..8) {
        let folder = tempfile::tempdir().unwrap();
        let groups: Vec<Vec<Record>> = records().into_iter().map(|record| vec![record]).collect();
        let path = written(folder.path(), &groups);
        let mut bytes = std::fs::read(&path).unwrap();
        let mut last = Vec::new();
        layout::push_frame(&mut last, &{ let mut one = Encoder::default(); one.record(&refused(5)); one.take() });
        let at = at % (bytes.len() - last.len() - 40);
        bytes[at] ^= 1 << bit;
        prop_assert!(Contents::read(&bytes, LAUNCH).is_err());
    }
}

#[test]
fn what_was_written_is_read_again_and_continued() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), &[records()]);
    let (mut journal, read) = open(&path);
    assert_eq!(read, folded(&records()));
    assert_eq!(read.totals.tokens, 3);
    let sent = Record::Sent { microbatch: MicrobatchId(6), to: hop(0, 7) };
    journal.write(&sent);
    journal.commit().unwrap();
    assert_eq!(open(&path).1, folded(&[records(), vec![sent]].concat()));
}

#[test]
fn a_write_in_which_the_feeder_died_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let groups: Vec<Vec<Record>> = records().into_iter().map(|record| vec![record]).collect();
    let path = written(folder.path(), &groups);
    let whole = std::fs::read(&path).unwrap();
    let one_less = [&whole[..whole.len() - 20], &[0; 500]].concat();
    for torn in [&whole[..whole.len() - 1], &whole[..whole.len() - 20], &one_less[..whole.len()]] {
        std::fs::write(&path, torn).unwrap();
        let (mut journal, read) = open(&path);
        assert_eq!(read, folded(&records()[..records().len() - 1]));
        journal.write(records().last().unwrap());
        journal.commit().unwrap();
        assert_eq!(open(&path).1, folded(&records()));
    }
    std::fs::write(&path, [&whole[..], &[0; 64]].concat()).unwrap();
    assert_eq!(open(&path).1, folded(&records()), "the file grew before its bytes were written");
}

#[test]
fn foreign_newer_and_damaged_journals_are_refused_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let groups: Vec<Vec<Record>> = records().into_iter().map(|record| vec![record]).collect();
    let path = written(folder.path(), &groups);
    let whole = std::fs::read(&path).unwrap();
    let refused = |bytes: &[u8], launch: Launch| {
        std::fs::write(&path, bytes).unwrap();
        Journal::open(Some(&path), launch, SCHEDULE).unwrap_err().to_string()
    };
    let other_run = Launch { manifest: ManifestDigest([4; 32]), ..LAUNCH };
    let error = refused(&whole, other_run);
    assert!(error.contains(&LAUNCH.manifest.to_string()) && error.contains("--journal"), "{error}");
    let error = refused(&whole, Launch { corpus: [6; 32], ..LAUNCH });
    assert!(error.contains(&"05".repeat(32)) && error.contains(&"06".repeat(32)), "both digests: {error}");
    let error = refused(&whole, Launch { number: 78, ..LAUNCH });
    assert!(error.contains("earlier launch") && error.contains("--journal"), "{error}");
    let mut newer = whole.clone();
    newer[4] = 9;
    let error = refused(&newer, LAUNCH);
    assert!(error.contains("version 9") && error.contains("release that wrote it"), "{error}");
    let mut damaged = whole.clone();
    damaged[120] ^= 1;
    let error = refused(&damaged, LAUNCH);
    assert!(error.contains("byte ") && error.contains("--succeed"), "{error}");
    let mut unknown = layout::preamble().to_vec();
    layout::push_frame(&mut unknown, &opening(&LAUNCH));
    layout::push_frame(&mut unknown, &[0xEE]);
    let error = refused(&unknown, LAUNCH);
    assert!(error.contains("unknown kind") && error.contains("--succeed"), "{error}");
    let error = refused(b"{\"run\":\"of an older release\"}\n", LAUNCH);
    assert!(error.contains("no journal") && error.contains("--journal"), "{error}");
}

#[test]
fn a_file_left_from_a_replacement_that_failed_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), &[records()]);
    let whole = std::fs::read(&path).unwrap();
    for half in [0, 3, 20, whole.len() - 1] {
        std::fs::write(successor(&path), &whole[..half]).unwrap();
        assert_eq!(open(&path).1, folded(&records()));
        assert!(!successor(&path).exists());
    }
}

#[test]
fn a_journal_overwrites_no_file_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), &[records()]);
    let other = Launch { number: 78, ..LAUNCH };
    drop(Journal::open(Some(&successor(&path)), other, SCHEDULE).unwrap());
    let theirs = std::fs::read(successor(&path)).unwrap();
    let error = Journal::open(Some(&path), LAUNCH, SCHEDULE).unwrap_err().to_string();
    assert!(error.contains("journal.next") && error.contains("--journal"), "{error}");
    assert_eq!(std::fs::read(successor(&path)).unwrap(), theirs);
}

#[test]
fn a_snapshot_is_read_as_it_was_written() {
    let snapshot = folded(&records());
    let mut encoder = Encoder::default();
    encoder.snapshot(&snapshot);
    let read = Decoder::default().records(&encoder.take()).unwrap();
    assert_eq!(read, [Record::Snapshot(Box::new(snapshot))]);
}

/// The records of one microbatch of eight stages.
fn life(id: u64) -> Vec<Record> {
    let microbatch = MicrobatchId(id);
    let sent = Record::Sent { microbatch, to: hop(0, (id % 8) as u8) };
    let granted = (0..8).map(|stage| Record::Granted { microbatch, to: hop(stage, (id % 8) as u8) });
    [sent].into_iter().chain(granted).chain([finished(id)]).collect()
}

/// Long runs are resumed as fast as short ones. The commits of this test are rare: a sync takes a millisecond or so.
#[test]
fn a_journal_stays_short_however_long_the_run_is() {
    const RUN: u64 = 5 * OUTCOMES_PER_FILE;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let (mut journal, _) = open(&path);
    let mut longest = 0;
    for id in 0..RUN {
        if id % 1_024 == 0 {
            journal.write(&leased(id, 1_024));
        }
        life(id).iter().for_each(|record| journal.write(record));
        if id % 512 == 0 {
            journal.commit().unwrap();
            longest = longest.max(std::fs::metadata(&path).unwrap().len());
        }
    }
    journal.commit().unwrap();
    let began = Instant::now();
    let read = open(&path).1;
    println!("{longest} bytes at most, read in {:?}", began.elapsed());
    assert!(longest < 8 << 20, "{longest} bytes");
    assert_eq!(read.totals.tokens, 3 * RUN);
    let records = Contents::read(&std::fs::read(&path).unwrap(), LAUNCH).unwrap().records;
    assert!(
        matches!(records[0], Record::Snapshot(_)) && records.len() < 11 * OUTCOMES_PER_FILE as usize + 40
    );
}

#[test]
fn a_commit_that_the_disk_refuses_may_be_repeated_and_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let (mut journal, _) = open(&path);
    journal.write(&leased(0, 8));
    journal.commit().unwrap();
    let writer = journal.writer.as_mut().unwrap();
    let whole = std::mem::replace(&mut writer.file, File::open(&path).unwrap());
    for id in [1, 2] {
        journal.write(&finished(id));
        journal.commit().unwrap_err();
    }
    // Half of a frame has reached the disk.
    journal.writer.as_mut().unwrap().file = whole;
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"half").unwrap();
    journal.commit().unwrap();
    drop(journal);
    assert_eq!(open(&path).1, folded(&[leased(0, 8), finished(1), finished(2)]));
}

/// `cargo test --release -p swarmline --lib cost_of_the_journal -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn cost_of_the_journal() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let path = folder.path().join("journal");
    let (mut journal, _) = open(&path);
    for (count, group) in [(2_000_u64, 1), (2_000, 8), (1_000_000, 512)] {
        let (before, began) = (std::fs::metadata(&path).unwrap().len(), Instant::now());
        for id in 0..count {
            life(id).iter().for_each(|record| journal.write(record));
            if id % group == 0 {
                journal.commit().unwrap();
            }
        }
        journal.commit().unwrap();
        let bytes = std::fs::metadata(&path).unwrap().len().saturating_sub(before) / count;
        println!("{group} a commit: {:?} a microbatch, {bytes} bytes", began.elapsed() / count as u32);
    }
    drop(journal);
    let began = Instant::now();
    drop(open(&path));
    let bytes = std::fs::metadata(&path).unwrap().len();
    println!("restart: {:?} for {bytes} bytes", began.elapsed());
}

#[test]
fn a_journal_of_the_launch_before_a_checkpoint_is_put_aside_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    drop(open(&path));
    let later = Launch { number: 78, before: Some(77), ..LAUNCH };
    for other in [Launch { before: None, ..later }, Launch { before: Some(76), ..later }, LAUNCH] {
        assert_eq!(Journal::put_aside(&path, other).unwrap(), None);
    }
    let aside = Journal::put_aside(&path, Launch { corpus: [6; 32], ..later }).unwrap().expect("put aside");
    assert!(aside.exists() && !path.exists());
    assert_eq!(Journal::put_aside(&path, later).unwrap(), None, "there is none any more");
    let (_, before) = Journal::open(Some(&path), later, SCHEDULE).unwrap();
    assert!(before.is_empty());
    assert_eq!(Journal::put_aside(&path, later).unwrap(), None, "it is of this launch");
}
