//! Logs that are cut, foreign, refused and interrupted at each write.

use std::net::SocketAddr;
use std::sync::Mutex;

use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use swarmline_scheduler::coordinator::{Action, Config, Event, FeederReport, Join};
use swarmline_scheduler::{
    Block, BlockTally, Coordinator, Duration, Incarnation, Instance, MicrobatchId, PeerId, ProcessNumber,
    Role, Time,
};
use tempfile::TempDir;

use super::*;

/// Facts of a small run, by the commits in which they become durable.
fn commits() -> Vec<Vec<Fact>> {
    let mut run = Coordinator::new(Config::new(2));
    let from = |index| Instance::new(PeerId([index; 32]), Incarnation(3));
    let address = SocketAddr::from(([127, 0, 0, 1], 4_000));
    let (process, takes_over, holds) = (ProcessNumber(3), false, None);
    let join =
        |index, role| Event::Join(Join { from: from(index), process, takes_over, role, address, holds });
    let next = |index| Some(MicrobatchId(Block(0).first().0 + index));
    let lease = |next, count| Event::LeaseRequest { from: from(3), next, count, tallies: Vec::new() };
    let report = |injected| {
        let tally = BlockTally { block: Block(0), leased: 20, injected, settled: injected / 2 };
        let report = FeederReport { tallies: vec![tally], ..FeederReport::default() };
        Event::FeederReport { from: from(3), report }
    };
    let events = [
        join(1, Role::Replica),
        join(2, Role::Replica),
        join(3, Role::Feeder),
        lease(None, 8),
        lease(next(8), 12),
        report(9),
        Event::Leave { from: from(2) },
        report(20),
        Event::Timeout,
    ];
    let mut commits = Vec::new();
    for (second, event) in events.into_iter().enumerate() {
        run.handle(Time::default() + Duration::from_secs(second as u64), event);
        while let Some(action) = run.poll_action() {
            if let Action::Log(facts) = action {
                commits.push(facts);
            }
        }
    }
    assert!(commits.len() > 5, "{commits:?}");
    commits
}

fn head() -> Head {
    Head { peer: [7; 32], manifest: b"seed = 1".to_vec(), origin: None }
}

/// The facts after each of the commits, before the first one too.
fn states(commits: &[Vec<Fact>]) -> Vec<Facts> {
    let upto = |count: usize| commits[..count].iter().flatten().cloned().collect();
    (0..=commits.len()).map(upto).collect()
}

fn folder() -> (TempDir, RunFolder) {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::open(dir.path().join("a.run")).unwrap();
    (dir, folder)
}

async fn written(folder: &RunFolder) {
    let (mut log, found) = Log::open(folder).unwrap();
    assert!(found.is_none(), "a log that begins says nothing");
    log.begin(&head()).unwrap();
    for facts in commits() {
        log.commit(facts).await.unwrap();
    }
}

#[tokio::test]
async fn a_later_start_finds_what_was_committed() {
    let (_dir, folder) = folder();
    written(&folder).await;
    let (_log, found) = Log::open(&folder).unwrap();
    let found = found.unwrap();
    assert_eq!((found.head, found.is_complete), (head(), true));
    assert_eq!(Some(&found.facts), states(&commits()).last());
}

#[tokio::test]
async fn two_processes_do_not_write_one_log() {
    let (_dir, folder) = folder();
    let (_log, _) = Log::open(&folder).unwrap();
    let error = Log::open(&folder).unwrap_err();
    assert!(error.to_string().contains("another coordinator of this run is running"), "{error}");
}

#[tokio::test]
async fn a_log_that_fell_behind_says_so_to_a_later_start() {
    let (_dir, folder) = folder();
    written(&folder).await;
    let (log, _) = Log::open(&folder).unwrap();
    log.mark(false);
    drop(log);
    let (log, found) = Log::open(&folder).unwrap();
    assert!(!found.unwrap().is_complete);
    log.mark(true);
    drop(log);
    assert!(Log::open(&folder).unwrap().1.unwrap().is_complete);
}

#[tokio::test]
async fn a_log_of_a_newer_program_is_refused() {
    let (_dir, folder) = folder();
    let (log, _) = Log::open(&folder).unwrap();
    log.begin(&head()).unwrap();
    let writing = log.database.as_ref().unwrap().begin_write().unwrap();
    writing.open_table(HEAD).unwrap().insert("format", 2_u64.to_be_bytes().as_slice()).unwrap();
    writing.commit().unwrap();
    drop(log);
    let error = Log::open(&folder).unwrap_err();
    assert!(matches!(error.fault, LogFault::Newer { theirs: 2 }), "{error}");
    assert!(error.to_string().contains("update swarmline"), "{error}");
}

#[tokio::test]
async fn a_foreign_or_cut_file_is_refused_and_left_alone() {
    let (_dir, folder) = folder();
    written(&folder).await;
    let whole = std::fs::read(folder.log()).unwrap();
    let cut = whole[..whole.len() / 3].to_vec();
    for bytes in [Vec::new(), b"a text of a person".repeat(400), cut] {
        std::fs::write(folder.log(), &bytes).unwrap();
        let error = Log::open(&folder).unwrap_err();
        assert!(matches!(error.fault, LogFault::Damaged(_)), "{} bytes: {error}", bytes.len());
        assert!(error.to_string().contains("move it away and start again"), "{error}");
        assert_eq!(std::fs::read(folder.log()).unwrap(), bytes);
    }
}

/// A disk that dies at a write: what it has of the writes since the last sync is drawn.
#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    operations: usize,
    dies_at: Option<usize>,
    /// It is full: every write fails, until it is not.
    is_full: bool,
}

#[derive(Debug)]
struct SharedDisk(Arc<Mutex<Disk>>);

impl Disk {
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.dies_at {
            _ if self.is_full => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Some(at) if at < self.operations => Err(io::Error::other("the power is off")),
            _ => Ok(()),
        }
    }

    /// The bytes after the power came back: a prefix of what was not synced, and half of the write after it.
    fn after_power_loss(&self, kept: usize) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for (index, (offset, data)) in self.unsynced.iter().take(kept + 1).enumerate() {
            let data = if index == kept { &data[..data.len() / 2] } else { &data[..] };
            let end = offset + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(data);
        }
        bytes
    }
}

impl StorageBackend for SharedDisk {
    fn len(&self) -> io::Result<u64> {
        let disk = self.0.lock().unwrap();
        Ok(disk.after_power_loss(usize::MAX - 1).len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock().unwrap().after_power_loss(usize::MAX - 1);
        out.copy_from_slice(&bytes[offset as usize..offset as usize + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.operate()?;
        let mut bytes = disk.after_power_loss(usize::MAX - 1);
        bytes.resize(len as usize, 0);
        disk.bytes = bytes;
        disk.unsynced.clear();
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.operate()?;
        disk.bytes = disk.after_power_loss(usize::MAX - 1);
        disk.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.operate()?;
        disk.unsynced.push((offset as usize, data.to_vec()));
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_a_full_disk_refused_is_written_when_there_is_room() {
    let (_dir, folder) = folder();
    let disk = Arc::new(Mutex::new(Disk::default()));
    let (mut log, _) = Log::open(&folder).unwrap();
    let shared = disk.clone();
    log.open = Arc::new(move || Builder::new().create_with_backend(SharedDisk(shared.clone())));
    log.database = Some((log.open)().unwrap());
    log.begin(&head()).unwrap();
    let commits = commits();
    for (index, facts) in commits.iter().enumerate() {
        let is_full = (2..5).contains(&index);
        disk.lock().unwrap().is_full = is_full;
        let written = log.commit(facts.clone()).await;
        assert_eq!((written.is_err(), log.is_behind()), (is_full, is_full), "commit {index}: {written:?}");
        if let Err(error) = written {
            assert!(error.to_string().contains("free space"), "{error}");
        }
    }
    let found = read(log.database.as_ref().unwrap(), true).unwrap().unwrap();
    assert_eq!(Some(&found.facts), states(&commits).last());
}

/// Writes the commits to a disk that dies; returns how many were acknowledged, whether the head was, and the disk.
fn write_until_death(commits: &[Vec<Fact>], dies_at: Option<usize>) -> (Option<usize>, Arc<Mutex<Disk>>) {
    let disk = Arc::new(Mutex::new(Disk { dies_at, ..Disk::default() }));
    let Ok(database) = Builder::new().create_with_backend(SharedDisk(disk.clone())) else {
        return (None, disk);
    };
    if write_head(&database, &head()).is_err() {
        return (None, disk);
    }
    let is_written = |facts: &&Vec<Fact>| write_facts(&database, facts.iter()).is_ok();
    let acknowledged = commits.iter().take_while(is_written).count();
    (Some(acknowledged), disk)
}

#[test]
fn a_kill_at_any_write_loses_nothing_that_was_acknowledged() {
    let commits = commits();
    let states = states(&commits);
    let (all, disk) = write_until_death(&commits, None);
    assert_eq!(all, Some(commits.len()));
    let operations = disk.lock().unwrap().operations;
    assert!(operations > 20, "{operations} operations");
    for dies_at in 0..operations {
        let (acknowledged, disk) = write_until_death(&commits, Some(dies_at));
        let disk = disk.lock().unwrap();
        for kept in [0, disk.unsynced.len() / 2, disk.unsynced.len()] {
            let bytes = disk.after_power_loss(kept);
            check_survivor(&states, acknowledged, &bytes, dies_at);
        }
    }
}

/// A start after the death finds the facts of the last acknowledged commit, or of the one that was under way.
fn check_survivor(states: &[Facts], acknowledged: Option<usize>, bytes: &[u8], dies_at: usize) {
    let memory = InMemoryBackend::new();
    memory.set_len(bytes.len() as u64).unwrap();
    memory.write(0, bytes).unwrap();
    let found = Builder::new()
        .create_with_backend(memory)
        .map_err(|error| error.to_string())
        .and_then(|database| read(&database, true).map_err(|fault| fault.to_string()));
    let Some(acknowledged) = acknowledged else { return };
    let found = found.unwrap_or_else(|fault| panic!("dead at {dies_at}: {fault}")).expect("a head");
    let known = states[acknowledged..].iter().take(2).any(|state| *state == found.facts);
    assert!(known, "dead at {dies_at}, after {acknowledged} commits: {:?}", found.facts);
}

#[test]
fn facts_survive_as_text() {
    for fact in commits().into_iter().flatten() {
        let text = serde_json::to_string(&fact).unwrap();
        assert_eq!(serde_json::from_str::<Fact>(&text).unwrap(), fact, "{text}");
    }
}

#[tokio::test]
async fn a_log_that_takes_the_place_of_another_leaves_it_under_a_name_of_its_own() {
    let (_dir, folder) = folder();
    let origin = NotedOrigin {
        location: "kept/checkpoint-000000000480".to_owned(),
        origin: Origin { launch: 3, microbatches: 480 },
    };
    let next = Head { origin: Some(origin), ..head() };
    let facts: Vec<Fact> = commits().concat();
    assert_eq!(Log::replace(&folder, &next, &facts[..1], 4).unwrap(), None, "there was none");
    std::fs::remove_file(folder.log()).unwrap();
    written(&folder).await;
    std::fs::write(folder.next_log(), "what a start has left that died in the midst of it").unwrap();
    let (open, _) = Log::open(&folder).unwrap();
    assert!(matches!(Log::look(&folder).unwrap_err().fault, LogFault::InUse));
    drop(open);
    let before = Log::look(&folder).unwrap().unwrap();
    let aside = Log::replace(&folder, &next, &facts[..1], 5).unwrap().unwrap();
    let (_log, found) = Log::open(&folder).unwrap();
    let found = found.unwrap();
    assert_eq!((found.head, found.is_complete), (next, true));
    assert_eq!(found.facts, facts[..1].iter().cloned().collect());
    std::fs::rename(aside, folder.path().join("log.redb.copy")).unwrap();
    drop(_log);
    std::fs::rename(folder.path().join("log.redb.copy"), folder.log()).unwrap();
    let again = Log::look(&folder).unwrap().unwrap();
    assert_eq!((again.head, again.facts), (before.head, before.facts), "it can be put back");
}
