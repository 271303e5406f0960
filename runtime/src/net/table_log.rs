//! The newest table and the changes before it, shared by the task that learns of them and those that pass them on.
//!
//! A reader that was a few changes behind reads these; a reader that fell behind further, or begins, reads the whole table.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message;
use swarmline_proto::v1;
use swarmline_scheduler::{Table, TableUpdate};
use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;

use super::membership::{SignedChange, SignedTable};

/// Changes kept for readers that are behind: at one a second, those of a minute.
const CHANGES_KEPT: usize = 64;
/// Bytes of changes in one message; more are replaced by the whole table, which fits a message.
const CHANGES_BYTES_MAX: usize = 1 << 20;

/// The end that tables are put into. Clones put into the same log.
#[derive(Clone, Debug)]
pub struct TableWriter {
    log: Arc<Mutex<TableLog>>,
    newest: watch::Sender<u64>,
}

/// The end that tables are read from. A clone reads on where its original stands.
#[derive(Clone, Debug)]
pub struct TableReader {
    log: Arc<Mutex<TableLog>>,
    newest: watch::Receiver<u64>,
    /// Version of the table read last; 0 before the first.
    read: u64,
}

#[derive(Debug)]
struct TableLog {
    table: SignedTable,
    /// The latest changes, each of the table that the one before made.
    changes: VecDeque<Arc<SignedChange>>,
    /// The table as a message, once a reader has asked for it: ten thousand readers at once ask for the same.
    message: Option<Arc<v1::SignedMembership>>,
}

impl TableWriter {
    /// A log that begins with this table.
    #[must_use]
    pub fn new(table: SignedTable) -> Self {
        let (newest, _) = watch::channel(table.version());
        Self { log: Arc::new(Mutex::new(TableLog::new(table))), newest }
    }

    /// Puts in a whole table, unless it is not newer than the newest.
    pub fn replace(&self, table: SignedTable) {
        let mut log = lock(&self.log);
        if table.version() > log.table.version() {
            *log = TableLog::new(table);
        }
        self.tell(&log);
    }

    /// Changes the newest table; `change` returns what it changed.
    ///
    /// # Errors
    /// That of `change`.
    pub fn change<E>(
        &self,
        change: impl FnOnce(&mut SignedTable) -> Result<SignedChange, E>,
    ) -> Result<(), E> {
        let mut log = lock(&self.log);
        log.message = None;
        let changed = change(&mut log.table)?;
        if log.changes.len() >= CHANGES_KEPT {
            log.changes.pop_front();
        }
        log.changes.push_back(Arc::new(changed));
        self.tell(&log);
        Ok(())
    }

    /// Version of the newest table.
    #[must_use]
    pub fn version(&self) -> u64 {
        lock(&self.log).table.version()
    }

    /// The newest table, as the coordinator signed it.
    #[must_use]
    pub fn signed(&self) -> v1::SignedMembership {
        whole(&self.log)
    }

    /// The newest table.
    #[must_use]
    pub fn table(&self) -> Table {
        lock(&self.log).table.table().clone()
    }

    /// The launch of the run that the tables are for.
    #[must_use]
    pub fn launch(&self) -> u64 {
        lock(&self.log).table.table().rest().launch
    }

    /// A reader that has read nothing.
    #[must_use]
    pub fn reader(&self) -> TableReader {
        TableReader { log: self.log.clone(), newest: self.newest.subscribe(), read: 0 }
    }

    /// Waits until every reader is gone.
    pub async fn closed(&self) {
        self.newest.closed().await;
    }

    fn tell(&self, log: &TableLog) {
        let version = log.table.version();
        self.newest.send_if_modified(|known| std::mem::replace(known, version) != version);
    }
}

impl TableReader {
    /// Waits for a newer table than the one that was waited for last.
    ///
    /// # Errors
    /// If there will be none.
    pub async fn changed(&mut self) -> Result<(), RecvError> {
        self.newest.changed().await
    }

    /// A reader that has read the table with this version, and waits for the versions after it.
    #[must_use]
    pub fn from(&self, version: u64) -> Self {
        Self { read: version, ..self.clone() }
    }

    /// The changes since the last call in order, or the whole table.
    pub fn read(&mut self) -> Vec<TableUpdate> {
        self.newest.borrow_and_update();
        let log = lock(&self.log);
        match log.read_on(&mut self.read) {
            Some(changes) => {
                changes.iter().map(|signed| TableUpdate::Change(signed.change.clone())).collect()
            }
            None => vec![TableUpdate::Whole(Arc::new(log.table.table().clone()))],
        }
    }

    /// The same as one message; `None` if nothing is new.
    pub fn read_message(&mut self) -> Option<v1::TableUpdate> {
        let mut log = lock(&self.log);
        let changes = log.read_on(&mut self.read);
        let changes = changes.map(|all| all.iter().map(|signed| signed.to_message()).collect::<Vec<_>>());
        match changes.filter(|changes| bytes(changes) <= CHANGES_BYTES_MAX) {
            Some(changes) => (!changes.is_empty()).then_some(v1::TableUpdate { whole: None, changes }),
            None => {
                let message = log.message();
                drop(log);
                let whole = Some(v1::SignedMembership::clone(&message));
                Some(v1::TableUpdate { whole, changes: Vec::new() })
            }
        }
    }

    /// A channel that holds the version of the newest table.
    #[must_use]
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }

    /// The newest table.
    #[must_use]
    pub fn table(&self) -> Table {
        lock(&self.log).table.table().clone()
    }

    /// The newest table, as the coordinator signed it.
    #[must_use]
    pub fn signed(&self) -> v1::SignedMembership {
        whole(&self.log)
    }
}

impl TableLog {
    fn new(table: SignedTable) -> Self {
        Self { table, changes: VecDeque::new(), message: None }
    }

    fn message(&mut self) -> Arc<v1::SignedMembership> {
        let table = &self.table;
        self.message.get_or_insert_with(|| Arc::new(table.to_message())).clone()
    }

    /// The changes since the version `read`, which becomes the newest; `None` if they are not kept. A reader may know a newer
    /// table: of a coordinator that was started again, or from before a change that did not verify.
    fn read_on(&self, read: &mut u64) -> Option<Vec<Arc<SignedChange>>> {
        let newest = self.table.version().max(*read);
        let before = std::mem::replace(read, newest);
        if before == newest {
            return Some(Vec::new());
        }
        let first = self.changes.iter().position(|change| change.change.base == before)?;
        Some(self.changes.range(first..).cloned().collect())
    }
}

fn bytes(changes: &[v1::SignedChange]) -> usize {
    changes.iter().map(Message::encoded_len).sum()
}

/// The newest table as a message, copied while the log is free for others.
fn whole(log: &Mutex<TableLog>) -> v1::SignedMembership {
    let message = lock(log).message();
    v1::SignedMembership::clone(&message)
}

fn lock(log: &Mutex<TableLog>) -> MutexGuard<'_, TableLog> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use swarmline_scheduler::{Incarnation, Instance, Member, MemberState, Membership, PeerId};

    use super::*;
    use crate::net::Identity;
    use crate::net::digest::ManifestDigest;

    const RUN: ManifestDigest = ManifestDigest([7; 32]);

    fn table(version: u64) -> Membership {
        let peer = PeerId([u8::try_from(version).unwrap(); 32]);
        let instance = Instance::new(peer, Incarnation(version));
        let member =
            Member { instance, state: MemberState::Standby, address: "127.0.0.1:4000".parse().unwrap() };
        Membership { version, members: vec![member], ..Membership::default() }
    }

    fn publish(writer: &TableWriter, identity: &Identity, version: u64) {
        let changed = writer.change(|signed| {
            let change = signed.table().change_to(&table(version).into());
            signed.change(identity, &RUN, change)
        });
        changed.unwrap();
    }

    fn versions(updates: &[TableUpdate]) -> Vec<(bool, u64)> {
        let version = |update: &TableUpdate| match update {
            TableUpdate::Whole(table) | TableUpdate::Shared(_, table) => (true, table.rest().version),
            TableUpdate::Change(change) => (false, change.now.version),
        };
        updates.iter().map(version).collect()
    }

    #[tokio::test]
    async fn a_reader_gets_the_whole_table_first_and_then_its_changes() {
        let identity = Identity::from_seed([1; 32]);
        let writer = TableWriter::new(SignedTable::sign(&identity, &RUN, table(1)));
        let mut reader = writer.reader();
        assert_eq!(versions(&reader.read()), [(true, 1)]);
        publish(&writer, &identity, 2);
        publish(&writer, &identity, 3);
        reader.changed().await.unwrap();
        assert_eq!(versions(&reader.read()), [(false, 2), (false, 3)]);
        assert_eq!(reader.read_message(), None);
        for version in 4..5 + CHANGES_KEPT as u64 {
            publish(&writer, &identity, version);
        }
        assert_eq!(versions(&reader.read()), [(true, 4 + CHANGES_KEPT as u64)], "it fell behind");
        drop(writer);
        assert!(reader.changed().await.is_err());
    }

    #[test]
    fn a_message_for_a_version_has_the_changes_since_or_the_whole_table() {
        let identity = Identity::from_seed([1; 32]);
        let writer = TableWriter::new(SignedTable::sign(&identity, &RUN, table(5)));
        (6..9).for_each(|version| publish(&writer, &identity, version));
        let message = |version| writer.reader().from(version).read_message();
        assert_eq!(message(6).unwrap().changes.len(), 2);
        assert_eq!(message(8), None);
        for stranger in [0, 4] {
            let message = message(stranger).unwrap();
            assert!(message.whole.is_some() && message.changes.is_empty(), "version {stranger}");
        }
    }

    #[test]
    fn a_reader_of_a_coordinator_that_was_started_again_waits_for_a_newer_table_and_gets_it_whole() {
        let identity = Identity::from_seed([1; 32]);
        let writer = TableWriter::new(SignedTable::sign(&identity, &RUN, Membership::default()));
        let mut reader = writer.reader().from(7);
        assert_eq!(reader.read_message(), None);
        publish(&writer, &identity, 3);
        assert_eq!(reader.read_message(), None);
        publish(&writer, &identity, 8);
        assert_eq!(reader.read_message().unwrap().whole, Some(writer.signed()));
    }
}
