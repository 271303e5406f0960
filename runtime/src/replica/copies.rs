//! States between executor and network: the copy that joiners download, and the state that this replica downloads.

use std::collections::BTreeMap;

use bytes::Bytes;
use swarmline_scheduler::replica::Event;
use swarmline_scheduler::transfer::{SketchSeed, StateId};
use swarmline_scheduler::{Instance, WeightVersion};
use tokio::task::{JoinHandle, JoinSet};

use crate::error::Error;
use crate::stage::{Executor, Exported, Origin, StateCopy, StateInbox};

/// The states that a replica exports and imports.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// The scheduler has two of them made at most.
    given: BTreeMap<StateId, StateCopy>,
    exporting: JoinSet<(StateId, Option<StateCopy>)>,
    /// Projections under way; the scheduler bounds them by joiner.
    sketches: JoinSet<Event<Bytes>>,
    inbox: StateInbox,
    /// The import under way.
    importing: Option<JoinHandle<Result<(), Error>>>,
    /// Length of the latest state that arrived, bytes.
    pub(super) imported_bytes: u64,
}

impl Copies {
    // --- Exports --------------------------------------------------------------------------------------------

    pub(super) fn export(&mut self, state: StateId, executor: &Executor) {
        let exported = executor.export_state();
        self.exporting.spawn(async move { (state, copy(exported).await) });
    }

    /// Bytes of a copy; `None` after its release.
    pub(super) fn chunk(&self, state: StateId, offset: u64, bytes: u32) -> Option<Bytes> {
        Some(self.given.get(&state)?.chunk(offset, bytes))
    }

    /// Begins to compute the projections of a copy; does nothing after its release.
    pub(super) fn sketch(&mut self, to: Instance, state: StateId, seed: SketchSeed) {
        let Some(copy) = self.given.get(&state).cloned() else { return };
        self.sketches.spawn_blocking(move || Event::Sketched { to, state, seed, sketch: copy.sketch(seed) });
    }

    pub(super) fn release(&mut self, state: StateId) {
        self.given.remove(&state);
    }

    // --- Imports --------------------------------------------------------------------------------------------

    pub(super) fn begin(&mut self, bytes: u64) -> Result<(), Error> {
        self.imported_bytes = bytes;
        Ok(self.inbox.begin(bytes)?)
    }

    pub(super) fn store(&mut self, offset: u64, chunk: &[u8]) {
        self.inbox.store(offset, chunk);
    }

    pub(super) fn import(&mut self, version: WeightVersion, executor: &Executor) {
        let state = std::mem::take(&mut self.inbox).into_bytes();
        self.importing = Some(tokio::spawn(executor.import_state(state, version, Origin::Replica)));
    }

    /// Takes over the state of a keeper.
    pub(super) fn restore(&mut self, version: WeightVersion, executor: &Executor) {
        let state = std::mem::take(&mut self.inbox).into_bytes();
        self.importing = Some(tokio::spawn(executor.import_state(state, version, Origin::Keeper)));
    }

    // --- Replies of the executor ----------------------------------------------------------------------------

    /// The next export or import that completes. Cancelling the wait loses no event.
    pub(super) async fn next(&mut self) -> Result<Event<Bytes>, Error> {
        let Self { exporting, importing, sketches, .. } = self;
        let outcome = tokio::select! {
            Some(Ok(sketched)) = sketches.join_next() => return Ok(sketched),
            Some(Ok((state, copy))) = exporting.join_next() => return Ok(self.exported(state, copy)),
            outcome = finished(importing.as_mut()) => outcome,
        };
        self.imported(outcome)
    }

    fn exported(&mut self, state: StateId, copy: Option<StateCopy>) -> Event<Bytes> {
        let manifest = copy.as_ref().map(|copy| copy.manifest().clone());
        self.given.extend(copy.map(|copy| (state, copy)));
        Event::Exported { state, manifest }
    }

    fn imported(&mut self, outcome: Option<Result<(), Error>>) -> Result<Event<Bytes>, Error> {
        self.importing = None;
        match outcome.unwrap_or(Err(Error::ExecutorGone)) {
            Ok(()) => Ok(Event::Imported(true)),
            Err(Error::State(error)) => {
                tracing::warn!(%error, "the state of a donor does not fit");
                Ok(Event::Imported(false))
            }
            Err(other) => Err(other),
        }
    }
}

/// The result of a task; `None` if it panicked. Without a task it never resolves.
async fn finished<T>(task: Option<&mut JoinHandle<T>>) -> Option<T> {
    match task {
        Some(task) => task.await.ok(),
        None => std::future::pending().await,
    }
}

/// A copy with the digests of its chunks; `None` if the export fails.
async fn copy(exported: impl Future<Output = Result<Exported, Error>>) -> Option<StateCopy> {
    let exported = exported.await.inspect_err(|error| {
        tracing::warn!(%error, "no copy of the state for a joining replica");
    });
    let exported: Exported = exported.ok()?;
    tokio::task::spawn_blocking(move || {
        let version = exported.version;
        let bytes = exported.into_bytes().inspect_err(|error| tracing::warn!(%error, "no copy of the state"));
        StateCopy::new(version, bytes.ok()?.into())
    })
    .await
    .ok()?
}
