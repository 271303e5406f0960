//! The life of a keeper: it takes the states of the stages and has them written as checkpoints.
//!
//! When a checkpoint is due, the keeper names a clock of the run a little ahead, the **watermark**, at which donors of every
//! stage copy their states (`agreement`). When the run has reached it, the keeper takes one stage after the other: it
//! downloads the copy, as a joiner does, and has it written. When every stage is written the checkpoint is complete. Where
//! no clock can be agreed on, since several feeders feed or the run stands still, each copy is made when it is asked for. A
//! donor that dies or lies is replaced by the download. A stage that gives no state for [`STALLED_AFTER`] ends the attempt,
//! and the next one begins later: the checkpoint before stays whole. A target that takes no file is tried again, while the
//! run goes on.
//!
//! A stage that has lost its last replica gets its state back from the newest checkpoint (`giving`).
//!
//! When the run is over the keeper takes the final states; the coordinator has the replicas wait for it.

mod agreement;
mod event;
mod giving;
mod naming;
mod schedule;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt::Debug;

use crate::transfer::{
    ChunkHash, ChunkSketch, Download, DownloadAction, DownloadEvent, Limits, SketchSecret, SketchSeed,
    TransferMessage, UploadEvent,
};
use crate::{
    BlockTally, Duration, Envelope, Instance, Message, PeerTable, StageIndex, TableUpdate, Time,
    WeightVersion,
};

pub use agreement::{AHEAD, CLOCKS_MAX, KEPT_FOR, NAMED_AGAIN_AFTER, REACHED_WITHIN};
pub use event::{Action, End, Event, Given, Note, Watermark, Written};
pub use schedule::Interval;

use agreement::{Agreement, Pace, rotated};
use giving::Giving;
use schedule::Schedule;

/// A stage that gives no chunk for this long ends the attempt to take a checkpoint.
pub const STALLED_AFTER: Duration = Duration::from_secs(120);
/// Pause after an attempt that has failed.
pub const ATTEMPT_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// First pause before a file is written again that the target did not take; it doubles up to [`WRITE_PAUSE_MAX`].
pub const WRITE_PAUSE_MIN: Duration = Duration::from_secs(2);
/// Longest such pause.
pub const WRITE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A target that takes no file of the final checkpoint for this long ends the keeper. The coordinator has replicas wait
/// longer.
pub const FINAL_WRITES_WITHIN: Duration = Duration::from_secs(300);

/// Settings of a keeper.
#[derive(Clone, Debug)]
pub struct Config<P> {
    /// The stages that it keeps, ascending, with the largest states that it takes.
    pub stages: Vec<(StageIndex, Limits)>,
    /// When a checkpoint is due.
    pub interval: Interval,
    /// Contributions to one optimizer step of a replica.
    pub gradient_accumulation_steps: u64,
    /// Watermark of the newest checkpoint of this launch in the target, or of the one that the launch began at.
    pub newest: Option<u64>,
    /// Length in bytes and digest of the payload of a chunk.
    pub digest: fn(&P) -> (u64, ChunkHash),
    /// Projections of the payload of a chunk, by the number of the chunk in its state.
    pub sketch: fn(&P, u32, SketchSeed) -> ChunkSketch,
    /// The secret that donors are compared with. No other process may know it.
    pub secret: SketchSecret,
}

/// The machine of a keeper.
#[derive(Debug)]
pub struct Keeper<P> {
    config: Config<P>,
    table: PeerTable,
    schedule: Schedule,
    pace: Pace,
    /// Clocks that were named in vain for the checkpoint that is due, and those of them that came too late.
    in_vain: u32,
    too_late: u32,
    /// When the run had reached the latest clock that was agreed on: donors copy once in a while only.
    reached: Option<Time>,
    giving: Giving,
    /// Downloads begun: each draws projections from a secret of its own.
    downloads: u64,
    phase: Phase<P>,
    actions: VecDeque<Action<P>>,
}

#[derive(Debug)]
enum Phase<P> {
    /// No checkpoint is due.
    Waiting,
    /// A clock is named, and the run has not reached it.
    Agreeing(Box<Agreement>),
    Taking(Box<Taking<P>>),
    Ended,
}

/// A checkpoint under way.
#[derive(Debug)]
struct Taking<P> {
    watermark: Watermark,
    /// The clock that the donors were told; `None` if each copies its state when it is asked.
    agreement: Option<Agreement>,
    /// The stage that is being taken, by its place in the settings.
    place: usize,
    step: Step<P>,
    /// The pause after the next write that fails.
    pause: Duration,
    /// The first of the writes in a row that have failed.
    failing_since: Option<Time>,
}

#[derive(Debug)]
enum Step<P> {
    /// The state of the stage is on its way. It stalls at the time given.
    Downloading(Box<Download<P>>, Time),
    /// The state is whole, and the process writes it.
    Writing(Box<Download<P>>, WeightVersion),
    /// Every stage is written, and the process completes the checkpoint.
    Completing,
    /// A write has failed, and is repeated at this time.
    Failed(Box<Self>, Time),
}

impl<P: Clone + Default + Debug> Keeper<P> {
    /// A keeper that knows no member yet.
    #[must_use]
    pub fn new(now: Time, config: Config<P>) -> Self {
        Self {
            schedule: Schedule::new(now, config.interval, config.newest.unwrap_or(0)),
            pace: Pace::default(),
            in_vain: 0,
            too_late: 0,
            reached: None,
            giving: Giving::new(config.stages.iter().map(|&(stage, _)| stage), config.newest),
            config,
            table: PeerTable::default(),
            downloads: 0,
            phase: Phase::Waiting,
            actions: VecDeque::new(),
        }
    }

    /// Takes one event; drain [`Keeper::poll_action`] before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        if matches!(self.phase, Phase::Ended) {
            return;
        }
        match event {
            Event::Membership(update) => self.on_membership(now, update),
            Event::Received { from, envelope } => self.on_message(now, from, envelope),
            Event::PeerLost(instance) => {
                self.giving.at_all(now, &UploadEvent::PeerLost(instance), &mut self.actions);
                self.lose_told(now, instance);
                self.at_download(now, DownloadEvent::PeerLost(instance));
            }
            Event::Exported { given: Given { stage, state }, manifest } => {
                self.giving.on_exported(now, (stage, state), manifest, &mut self.actions);
            }
            Event::Sketched { to, given: Given { stage, state }, seed, sketch } => {
                let event = UploadEvent::Sketched { to, state, seed, sketch };
                self.giving.at_stage(now, stage, event, &mut self.actions);
            }
            Event::Progress { blocks, finished } => self.on_progress(now, blocks, finished),
            Event::Written(written) => self.on_written(now, written),
            Event::Stop => self.end(End::Stopped),
            Event::Timeout => self.on_timeout(now),
        }
    }

    /// Takes the oldest action that is not yet done; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// The latest time for the next call of [`Keeper::handle`], with [`Event::Timeout`]; `None` if there is nothing to
    /// wait for but the coordinator's next word.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let (giving, repeat) = (self.giving.poll_timeout(), self.agreement().and_then(Agreement::repeat_at));
        self.next_of_checkpoint().into_iter().chain(giving).chain(repeat).min()
    }

    fn next_of_checkpoint(&self) -> Option<Time> {
        let Phase::Taking(taking) = &self.phase else { return None };
        match &taking.step {
            Step::Downloading(download, stalls) => {
                let download = download.poll_timeout().map(|(at, _)| at);
                Some(download.map_or(*stalls, |at| at.min(*stalls)))
            }
            Step::Failed(_, again) => Some(*again),
            Step::Writing(..) | Step::Completing => None,
        }
    }

    /// Microbatches of the checkpoint whose states the keeper gives to stages without a replica; 0 without one, and of one
    /// that a launch began at with imported weights. The next heartbeat says so.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.giving.kept().unwrap_or(0)
    }

    /// The members in the newest table that the keeper has received.
    #[must_use]
    pub fn table(&self) -> &PeerTable {
        &self.table
    }

    // --- Events ---------------------------------------------------------------------------------------------

    fn on_membership(&mut self, now: Time, update: TableUpdate) {
        if !self.table.update(update) {
            return;
        }
        self.giving.on_table(now, &self.table, &mut self.actions);
        if let Some(stage) = self.stage_on_its_way()
            && self.table.touches(stage)
        {
            let donors = self.donors(stage);
            self.at_download(now, DownloadEvent::Donors(donors));
        }
    }

    fn on_message(&mut self, now: Time, from: Instance, envelope: Envelope<P>) {
        let Message::Transfer(message) = envelope.message else { return };
        let message = self.giving.on_message(now, &self.table, (from, message), &mut self.actions);
        let Some(message) = message else { return };
        match message {
            TransferMessage::CopyDeclined { clock, is_late } => {
                return self.on_copy_declined(now, from, clock, is_late);
            }
            TransferMessage::Offer { clock, .. } if self.is_of_another_moment(from, clock) => {
                return self.name_again(now);
            }
            _ => {}
        }
        let TransferMessage::Chunk { state, chunk } = message else {
            return self.at_download(now, DownloadEvent::Received { from, message });
        };
        let payload = envelope.payload;
        // Digests cost time: a peer must not make a keeper compute them for chunks that nothing asked for.
        if let Some(download) = self.download().filter(|download| download.expects(from, state, chunk)) {
            let (bytes, hash) = (self.config.digest)(&payload);
            let sketch = download.sketch_seed().map(|seed| (self.config.sketch)(&payload, chunk, seed));
            self.at_download(now, DownloadEvent::Chunk { from, state, chunk, bytes, hash, sketch, payload });
        }
    }

    /// The final states are worth more than the checkpoint under way, which is given up for them.
    fn on_progress(&mut self, now: Time, blocks: Vec<BlockTally>, finished: bool) {
        // To a start that it does not know yet the coordinator says nothing of the blocks.
        if blocks.is_empty() && !finished {
            return;
        }
        let watermark = Watermark::new(blocks, finished);
        self.pace.note(now, watermark.microbatches);
        match &self.phase {
            Phase::Taking(taking) if taking.watermark.is_final => {}
            _ if finished => self.begin(now, watermark, None),
            Phase::Waiting => self.agree_if_due(now, watermark),
            Phase::Agreeing(_) => self.await_clock(now, watermark),
            Phase::Taking(_) | Phase::Ended => {}
        }
    }

    fn agree_if_due(&mut self, now: Time, watermark: Watermark) {
        let is_ready = self.config.stages.iter().all(|(stage, _)| self.table.serves(*stage));
        if is_ready && self.schedule.is_due(now, watermark.microbatches) {
            self.agree(now, watermark);
        }
    }

    fn on_written(&mut self, now: Time, written: Written) {
        let Phase::Taking(taking) = &mut self.phase else { return };
        if written == Written::Failed {
            return self.on_failed_write(now);
        }
        (taking.pause, taking.failing_since) = (WRITE_PAUSE_MIN, None);
        match &mut taking.step {
            Step::Writing(..) if written == Written::Unfit => self.on_unfit(now),
            Step::Writing(..) => self.on_stage_written(now),
            Step::Completing => self.on_complete(now),
            Step::Downloading(..) | Step::Failed(..) => {}
        }
    }

    fn on_stage_written(&mut self, now: Time) {
        let Phase::Taking(taking) = &mut self.phase else { return };
        if let (Some(agreement), Some(&(stage, _))) =
            (&mut taking.agreement, self.config.stages.get(taking.place))
        {
            agreement.drop_stage(stage);
        }
        taking.place += 1;
        self.take_next(now);
    }

    fn on_timeout(&mut self, now: Time) {
        self.giving.at_all(now, &UploadEvent::Timeout, &mut self.actions);
        self.repeat_clock(now);
        let Phase::Taking(taking) = &mut self.phase else { return };
        match &taking.step {
            Step::Downloading(_, stalls) if *stalls <= now => self.give_up(now),
            Step::Downloading(..) => self.at_download(now, DownloadEvent::Timeout),
            Step::Failed(_, again) if *again <= now => self.write_again(),
            Step::Failed(..) | Step::Writing(..) | Step::Completing => {}
        }
    }

    // --- One checkpoint -------------------------------------------------------------------------------------

    fn begin(&mut self, now: Time, watermark: Watermark, agreement: Option<Agreement>) {
        (self.in_vain, self.too_late) = (0, 0);
        self.actions.push_back(Action::Open(watermark.clone()));
        let (pause, step) = (WRITE_PAUSE_MIN, Step::Completing);
        let taking = Taking { watermark, agreement, place: 0, step, pause, failing_since: None };
        self.phase = Phase::Taking(Box::new(taking));
        self.take_next(now);
    }

    /// Takes the next stage, or completes the checkpoint.
    fn take_next(&mut self, now: Time) {
        let Phase::Taking(taking) = &mut self.phase else { return };
        let Some(&(stage, limits)) = self.config.stages.get(taking.place) else {
            taking.step = Step::Completing;
            return self.actions.push_back(Action::Complete);
        };
        let secret = self.config.secret.of_download(self.downloads);
        self.downloads += 1;
        let not_before = taking.agreement.as_ref().map_or(now, |agreement| agreement.since);
        let download = Box::new(Download::new(limits, secret).not_before(not_before));
        taking.step = Step::Downloading(download, now + STALLED_AFTER);
        let donors = self.donors(stage);
        self.at_download(now, DownloadEvent::Donors(donors));
    }

    /// Passes an event to the download under way, and performs what it asks for.
    fn at_download(&mut self, now: Time, event: DownloadEvent<P>) {
        let Some((stage, download)) = self.stage_on_its_way().zip(self.download_mut()) else { return };
        download.handle(now, event);
        let actions: Vec<_> = std::iter::from_fn(|| download.poll_action()).collect();
        for action in actions {
            match action {
                DownloadAction::Send { to, message } => {
                    let envelope = Message::Transfer(message).into();
                    self.actions.push_back(Action::Send { to, envelope });
                }
                DownloadAction::Begin { bytes } => self.actions.push_back(Action::Begin { bytes }),
                DownloadAction::Store { offset, payload } => {
                    self.put_off_stall(now);
                    self.actions.push_back(Action::Store { offset, payload });
                }
                DownloadAction::Import { version, .. } => self.write(version),
                DownloadAction::Counted(note) => {
                    self.actions.push_back(Action::Counted(Note::Download(stage, note)));
                }
            }
        }
    }

    fn put_off_stall(&mut self, now: Time) {
        if let Phase::Taking(taking) = &mut self.phase
            && let Step::Downloading(_, stalls) = &mut taking.step
        {
            *stalls = now + STALLED_AFTER;
        }
    }

    fn write(&mut self, version: WeightVersion) {
        let Phase::Taking(taking) = &mut self.phase else { return };
        match std::mem::replace(&mut taking.step, Step::Completing) {
            Step::Downloading(download, _) => taking.step = Step::Writing(download, version),
            other => taking.step = other,
        }
        self.ask_to_write();
    }

    /// Asks the process for the write that the current step waits for.
    fn ask_to_write(&mut self) {
        let Phase::Taking(taking) = &self.phase else { return };
        match (&taking.step, self.config.stages.get(taking.place)) {
            (Step::Writing(_, version), Some(&(stage, _))) => {
                self.actions.push_back(Action::Write { stage, version: *version });
            }
            (Step::Completing, _) => self.actions.push_back(Action::Complete),
            _ => {}
        }
    }

    /// The bytes are no state of the stage: another donor is asked.
    fn on_unfit(&mut self, now: Time) {
        let Phase::Taking(taking) = &mut self.phase else { return };
        match std::mem::replace(&mut taking.step, Step::Completing) {
            Step::Writing(download, _) => {
                taking.step = Step::Downloading(download, now + STALLED_AFTER);
                self.at_download(now, DownloadEvent::Imported(false));
            }
            other => taking.step = other,
        }
    }

    // --- Writes that fail -----------------------------------------------------------------------------------

    fn on_failed_write(&mut self, now: Time) {
        let Phase::Taking(taking) = &mut self.phase else { return };
        if matches!(taking.step, Step::Downloading(..) | Step::Failed(..)) {
            return;
        }
        let since = *taking.failing_since.get_or_insert(now);
        if taking.watermark.is_final && now >= since + FINAL_WRITES_WITHIN {
            return self.end(End::Unwritten);
        }
        let step = std::mem::replace(&mut taking.step, Step::Completing);
        taking.step = Step::Failed(Box::new(step), now + taking.pause);
        taking.pause = (taking.pause * 2).min(WRITE_PAUSE_MAX);
    }

    fn write_again(&mut self) {
        let Phase::Taking(taking) = &mut self.phase else { return };
        match std::mem::replace(&mut taking.step, Step::Completing) {
            Step::Failed(step, _) => taking.step = *step,
            other => taking.step = other,
        }
        self.ask_to_write();
    }

    // --- The end of a checkpoint ----------------------------------------------------------------------------

    fn on_complete(&mut self, now: Time) {
        let Phase::Taking(taking) = std::mem::replace(&mut self.phase, Phase::Waiting) else { return };
        self.schedule.kept(now, taking.watermark.microbatches);
        self.giving.set_kept(taking.watermark.microbatches);
        if taking.watermark.is_final {
            self.end(End::Finished);
        }
    }

    /// The stage gives no state. At the end of the run there is no later attempt.
    fn give_up(&mut self, now: Time) {
        let Some(stage) = self.stage_on_its_way() else { return };
        let Phase::Taking(taking) = std::mem::replace(&mut self.phase, Phase::Waiting) else { return };
        self.actions.push_back(Action::GiveUp);
        if taking.watermark.is_final {
            return self.end(End::Untaken(stage));
        }
        self.actions.push_back(Action::Counted(Note::Stalled(stage)));
        self.schedule.put_off(now + ATTEMPT_AGAIN_AFTER);
    }

    fn end(&mut self, end: End) {
        self.phase = Phase::Ended;
        self.actions.push_back(Action::End(end));
    }

    // --- Lookups --------------------------------------------------------------------------------------------

    fn stage_on_its_way(&self) -> Option<StageIndex> {
        let Phase::Taking(taking) = &self.phase else { return None };
        let is_on_its_way = matches!(taking.step, Step::Downloading(..));
        self.config.stages.get(taking.place).filter(|_| is_on_its_way).map(|&(stage, _)| stage)
    }

    fn download(&self) -> Option<&Download<P>> {
        let Phase::Taking(taking) = &self.phase else { return None };
        if let Step::Downloading(download, _) = &taking.step { Some(download) } else { None }
    }

    fn download_mut(&mut self) -> Option<&mut Download<P>> {
        let Phase::Taking(taking) = &mut self.phase else { return None };
        if let Step::Downloading(download, _) = &mut taking.step { Some(download) } else { None }
    }

    fn agreement(&self) -> Option<&Agreement> {
        match &self.phase {
            Phase::Agreeing(agreement) => Some(agreement),
            Phase::Taking(taking) => taking.agreement.as_ref(),
            Phase::Waiting | Phase::Ended => None,
        }
    }

    fn agreement_mut(&mut self) -> Option<&mut Agreement> {
        match &mut self.phase {
            Phase::Agreeing(agreement) => Some(agreement),
            Phase::Taking(taking) => taking.agreement.as_mut(),
            Phase::Waiting | Phase::Ended => None,
        }
    }

    /// The replicas that serve the stage and were told of the clock; without one of these, all that serve it.
    fn donors(&self, stage: StageIndex) -> Vec<Instance> {
        let told = self.agreement().map_or(&[][..], |agreement| agreement.donors_of(stage));
        let mut donors = rotated(&self.table, stage, self.downloads);
        if donors.iter().any(|donor| told.contains(donor)) {
            donors.retain(|donor| told.contains(donor));
        }
        donors
    }
}
