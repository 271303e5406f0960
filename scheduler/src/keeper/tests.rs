//! A keeper among donors that serve, die and fall silent, and before a target that takes its files or does not.

use std::collections::BTreeMap;

use super::*;
use crate::fixtures::{a, b, feeder, member};
use crate::transfer::{
    DeclineReason, DownloadNote, Manifest, PARDON_AFTER, STATE_AGE_MAX, StateId, Upload, UploadAction,
    UploadEvent,
};
use crate::{Block, Hop, Incarnation, Member, MemberState, Membership, PeerId};

const STAGES: u16 = 2;
const CHUNK_BYTES: u32 = 100;
const CHUNKS: u32 = 4;
const SECOND: Duration = Duration::from_secs(1);
const LIMITS: Limits = Limits { bytes_max: 10_000, chunk_bytes_max: CHUNK_BYTES };

/// The bytes of a chunk: its number, under the steps of the state.
type Bytes = (u64, u32);

fn me() -> Instance {
    Instance::new(PeerId([250; 32]), Incarnation(1))
}

fn digest(chunk: &Bytes) -> (u64, ChunkHash) {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&chunk.0.to_be_bytes());
    hash[8..12].copy_from_slice(&chunk.1.to_be_bytes());
    (u64::from(CHUNK_BYTES), hash)
}

fn manifest(steps: u64) -> Manifest {
    let hashes = (0..CHUNKS).map(|chunk| digest(&(steps, chunk)).1).collect();
    let bytes = u64::from(CHUNK_BYTES * CHUNKS);
    Manifest { version: WeightVersion(steps), bytes, chunk_bytes: CHUNK_BYTES, hashes }
}

/// A complete checkpoint: its watermark, whether it is final, and the steps of each stage.
type Kept = (u64, bool, Vec<(u16, u64)>);

/// A keeper, the replicas that it takes states from, and its target.
struct Harness {
    keeper: Keeper<Bytes>,
    /// Each with the steps of its copy.
    donors: BTreeMap<PeerId, (Hop, Upload, u64)>,
    now: Time,
    version: u64,
    /// Optimizer steps of every replica.
    steps: u64,
    /// The target takes no file.
    is_full: bool,
    /// States of this many steps do not fit their stage.
    unfit: Option<u64>,
    /// The keeper's requests get no reply.
    is_cut_off: bool,
    /// A feeder is a member.
    is_fed: bool,
    open: Vec<(u16, u64)>,
    kept: Vec<Kept>,
    watermark: Watermark,
    writes: u32,
    notes: Vec<Note>,
    end: Option<End>,
    /// The checkpoint cannot be read.
    is_torn: bool,
    /// What the keeper has said to the joiner, and the chunks that it has sent.
    said: Vec<TransferMessage>,
    given: Vec<(PeerId, u32)>,
}

impl Harness {
    fn new(interval: Interval) -> Self {
        let config = Config {
            stages: (0..STAGES).map(|stage| (StageIndex(stage), LIMITS)).collect(),
            interval,
            gradient_accumulation_steps: 1,
            newest: None,
            digest,
            sketch: |_, _, _| ChunkSketch::default(),
            secret: SketchSecret([7; 32]),
        };
        let mut harness = Self {
            keeper: Keeper::new(Time(0), config),
            donors: BTreeMap::new(),
            now: Time(0),
            version: 0,
            steps: 0,
            is_full: false,
            unfit: None,
            is_cut_off: false,
            is_fed: false,
            open: Vec::new(),
            kept: Vec::new(),
            watermark: Watermark::default(),
            writes: 0,
            notes: Vec::new(),
            end: None,
            is_torn: false,
            said: Vec::new(),
            given: Vec::new(),
        };
        harness.serve(&[a(0), a(1)]);
        harness
    }

    /// These replicas serve from now on, and no others.
    fn serve(&mut self, hops: &[Hop]) {
        self.publish(hops, &[]);
    }

    /// These replicas serve from now on, and these load.
    fn publish(&mut self, hops: &[Hop], loading: &[Hop]) {
        self.donors.retain(|_, (hop, ..)| hops.contains(hop));
        for &hop in hops {
            let mut upload = Upload::new();
            upload.handle(self.now, UploadEvent::Joiners(vec![me()]));
            self.donors.entry(hop.peer()).or_insert((hop, upload, 0));
        }
        self.version += 1;
        let address = ([127, 0, 0, 1], 4_000).into();
        let own = Member { instance: me(), state: MemberState::Keeping(None), address };
        let mut members: Vec<Member> = hops.iter().copied().map(member).chain([own]).collect();
        let loading = loading
            .iter()
            .map(|&hop| Member { state: MemberState::Loading(hop.stage.unwrap()), ..member(hop) });
        members.extend(loading);
        members.extend(self.is_fed.then(|| member(feeder())));
        members.sort_by_key(|member| member.instance.peer);
        let table = Membership { version: self.version, members, ..Membership::default() };
        self.hear(Event::Membership(table.into()));
    }

    fn progress(&mut self, settled: u64, finished: bool) {
        self.steps = settled;
        let block = BlockTally { leased: settled, injected: settled, settled, ..BlockTally::new(Block(0)) };
        self.hear(Event::Progress { blocks: vec![block], finished });
    }

    /// The donors begin the gradients of the microbatch that so many come before.
    fn begin_gradients(&mut self, clock: u64) {
        self.steps = clock;
        for hop in self.donors.values().map(|&(hop, ..)| hop).collect::<Vec<_>>() {
            self.hear_at_donor(hop, UploadEvent::Begins { clock });
        }
    }

    fn hear_at_donor(&mut self, donor: Hop, event: UploadEvent) {
        let replies = self.at_donor(donor.peer(), event);
        replies.into_iter().for_each(|reply| self.hear(reply));
    }

    fn hear(&mut self, event: Event<Bytes>) {
        self.keeper.handle(self.now, event);
        while let Some(action) = self.keeper.poll_action() {
            let events = self.act(action);
            events.into_iter().for_each(|event| self.hear(event));
        }
    }

    /// Lets the time pass, with the alarms of all machines.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            let next = self.keeper.poll_timeout().filter(|&at| at <= until);
            self.now = next.unwrap_or(until).max(self.now + Duration::from_millis(1)).min(until);
            for (_, upload, _) in self.donors.values_mut() {
                upload.handle(self.now, UploadEvent::Timeout);
                while upload.poll_action().is_some() {}
            }
            self.hear(Event::Timeout);
        }
    }

    fn act(&mut self, action: Action<Bytes>) -> Vec<Event<Bytes>> {
        match action {
            Action::Open(watermark) => {
                self.open.clear();
                self.watermark = watermark;
            }
            Action::Send { to, envelope } => {
                let Message::Transfer(message) = envelope.message else { panic!("{envelope:?}") };
                if to == joiner().peer() {
                    self.said.push(message);
                    return Vec::new();
                }
                return self.ask(to, message);
            }
            Action::Write { stage, version } => {
                self.writes += 1;
                if self.unfit == Some(version.0) {
                    return vec![Event::Written(Written::Unfit)];
                }
                if self.is_full {
                    return vec![Event::Written(Written::Failed)];
                }
                self.open.push((stage.0, version.0));
                return vec![Event::Written(Written::Done)];
            }
            Action::Complete if self.is_full => return vec![Event::Written(Written::Failed)],
            Action::Complete => {
                let stages = std::mem::take(&mut self.open);
                self.kept.push((self.watermark.microbatches, self.watermark.is_final, stages));
                return vec![Event::Written(Written::Done)];
            }
            Action::Counted(note) => self.notes.push(note),
            Action::End(end) => self.end = Some(end),
            Action::Export(given) => {
                let manifest = (!self.is_torn).then(|| manifest(self.keeper.kept()));
                return vec![Event::Exported { given, manifest }];
            }
            Action::SendChunk { to, chunk, .. } => self.given.push((to, chunk)),
            Action::Begin { .. }
            | Action::Store { .. }
            | Action::GiveUp
            | Action::Sketch { .. }
            | Action::Release(_) => {}
        }
        Vec::new()
    }

    /// The replies of a donor to a message.
    fn ask(&mut self, to: PeerId, message: TransferMessage) -> Vec<Event<Bytes>> {
        if self.is_cut_off {
            return Vec::new();
        }
        self.at_donor(to, UploadEvent::Received { from: me(), message })
    }

    fn at_donor(&mut self, to: PeerId, event: UploadEvent) -> Vec<Event<Bytes>> {
        let Some((hop, upload, copied)) = self.donors.get_mut(&to) else { return Vec::new() };
        upload.handle(self.now, event);
        let mut replies = Vec::new();
        while let Some(action) = upload.poll_action() {
            let (message, payload) = match action {
                UploadAction::Export { state } => {
                    *copied = self.steps;
                    let manifest = Some(manifest(*copied));
                    upload.handle(self.now, UploadEvent::Exported { state, manifest });
                    continue;
                }
                UploadAction::Sketch { to, state, seed } => {
                    let sketch = vec![ChunkSketch::default(); CHUNKS as usize];
                    upload.handle(self.now, UploadEvent::Sketched { to, state, seed, sketch });
                    continue;
                }
                UploadAction::Send { message, .. } => (message, Bytes::default()),
                UploadAction::SendChunk { state, chunk, .. } => {
                    (TransferMessage::Chunk { state, chunk }, (*copied, chunk))
                }
                UploadAction::Release { .. } | UploadAction::Counted(_) => continue,
            };
            let envelope = Envelope::with_payload(Message::Transfer(message), payload);
            replies.push(Event::Received { from: hop.instance, envelope });
        }
        replies
    }
}

/// A replica that wants the state of stage 1.
fn joiner() -> Hop {
    b(1)
}

fn request(harness: &mut Harness, message: TransferMessage) {
    let envelope = Message::Transfer(message).into();
    harness.hear(Event::Received { from: joiner().instance, envelope });
}

fn both(steps: u64) -> Vec<(u16, u64)> {
    (0..STAGES).map(|stage| (stage, steps)).collect()
}

#[test]
fn takes_stage_after_stage_when_a_checkpoint_is_due_and_comes_back_for_the_next() {
    let mut harness = Harness::new(Interval::Microbatches(100));
    harness.progress(99, false);
    assert!(harness.kept.is_empty());
    harness.progress(120, false);
    harness.wait(15 * SECOND);
    harness.progress(219, false);
    assert_eq!(harness.kept, [(120, false, both(120))]);
    harness.progress(220, false);
    assert_eq!(harness.kept.last(), Some(&(220, false, both(220))), "donors give a copy to each checkpoint");
}

/// A keeper of a run that one feeder feeds, which finishes ten microbatches a second.
fn fed() -> Harness {
    let mut harness = Harness::new(Interval::Microbatches(100));
    harness.is_fed = true;
    harness.serve(&[a(0), a(1)]);
    for settled in [80, 90, 100] {
        harness.progress(settled, false);
        harness.wait(SECOND);
    }
    harness
}

#[test]
fn all_stages_copy_their_states_at_a_clock_that_is_named_ahead() {
    let mut harness = fed();
    assert_eq!(harness.kept, [], "the run has not reached the clock");
    for clock in 101..=140 {
        harness.begin_gradients(clock);
    }
    harness.progress(120, false);
    assert_eq!(harness.kept, []);
    harness.progress(140, false);
    assert_eq!(harness.kept, [(128, false, both(128))], "both stages, though the run has gone further");
    assert_eq!(harness.watermark.blocks[0].settled, 128);
    assert!(harness.watermark.is_agreed);
}

#[test]
fn a_copy_of_another_moment_is_not_taken_and_another_clock_is_named() {
    let mut harness = fed();
    for clock in 101..=130 {
        harness.begin_gradients(clock);
    }
    harness.is_full = true;
    harness.progress(140, false);
    harness.hear_at_donor(a(1), UploadEvent::PeerLost(me()));
    harness.is_full = false;
    harness.wait(WRITE_PAUSE_MIN);
    assert_eq!((harness.writes, harness.kept.len()), (2, 0), "one of two stages is written");
    harness.wait(STATE_AGE_MAX);
    harness.progress(150, false);
    let named = harness.keeper.agreement().map(|agreement| agreement.clock).unwrap();
    for clock in 141..=named {
        harness.begin_gradients(clock);
    }
    harness.progress(named, false);
    assert_eq!(harness.kept, [(named, false, both(named))]);
}

#[test]
fn a_replica_that_came_after_the_clock_was_named_is_not_asked() {
    let mut harness = fed();
    harness.serve(&[a(0), b(0), a(1), b(1)]);
    for clock in 101..=140 {
        harness.begin_gradients(clock);
    }
    harness.progress(140, false);
    assert_eq!(harness.kept, [(128, false, both(128))]);
    assert!(harness.watermark.is_agreed);
}

#[test]
fn a_keeper_waits_until_donors_may_copy_once_more() {
    let mut harness = Harness::new(Interval::Microbatches(1));
    harness.is_fed = true;
    harness.serve(&[a(0), a(1)]);
    let mut clocks = Vec::new();
    for second in 0..60 {
        for clock in 10 * second..10 * (second + 1) {
            harness.begin_gradients(clock);
        }
        harness.progress(10 * (second + 1), false);
        harness.wait(SECOND);
    }
    clocks.extend(harness.kept.iter().map(|(clock, ..)| *clock));
    assert!(clocks.len() >= 4, "{clocks:?}");
    let exact = |kept: &Kept| kept.2 == both(kept.0);
    assert!(harness.kept.iter().all(exact), "{:?}", harness.kept);
}

#[test]
fn the_first_reply_of_a_coordinator_which_does_not_know_the_keeper_yet_is_no_progress() {
    let mut harness = fed();
    harness.hear(Event::Progress { blocks: Vec::new(), finished: false });
    harness.begin_gradients(128);
    harness.progress(130, false);
    assert_eq!(harness.kept, [(128, false, both(128))]);
}

#[test]
fn a_donor_that_has_gone_past_the_clock_has_a_later_one_named() {
    let mut harness = Harness::new(Interval::Microbatches(100));
    harness.is_fed = true;
    harness.serve(&[a(0), a(1)]);
    harness.begin_gradients(140);
    for settled in [80, 90, 100] {
        harness.progress(settled, false);
        harness.wait(SECOND);
    }
    harness.wait(NAMED_AGAIN_AFTER);
    harness.progress(140, false);
    assert_eq!(harness.kept, []);
    for clock in 141..=180 {
        harness.begin_gradients(clock);
    }
    harness.progress(180, false);
    let clock = harness.watermark.microbatches;
    assert_eq!(harness.kept, [(clock, false, both(clock))]);
    assert!(harness.watermark.is_agreed && clock > 141, "{clock}");
}

#[test]
fn a_clock_that_the_run_does_not_reach_is_given_up() {
    for (is_fed, waited) in [(true, REACHED_WITHIN), (false, SECOND)] {
        let mut harness = fed();
        harness.is_fed = is_fed;
        harness.serve(&[a(0), a(1)]);
        harness.wait(waited);
        harness.progress(105, false);
        assert_eq!(harness.kept, [(105, false, both(105))], "fed: {is_fed}");
        assert!(!harness.watermark.is_agreed);
    }
}

#[test]
fn no_state_of_a_checkpoint_is_older_than_its_watermark() {
    let mut harness = Harness::new(Interval::Microbatches(100));
    harness.progress(100, false);
    harness.wait(3 * SECOND);
    harness.progress(205, false);
    assert_eq!(harness.kept.len(), 1, "the copies of the donors are three seconds old");
    assert!(harness.notes.contains(&Note::Download(StageIndex(0), DownloadNote::TooOld(a(0).instance))));
    harness.wait(15 * SECOND);
    assert_eq!(harness.kept.last(), Some(&(205, false, both(205))));
}

#[test]
fn a_donor_that_dies_is_replaced_by_another_of_its_stage() {
    let mut harness = Harness::new(Interval::Microbatches(100));
    harness.is_cut_off = true;
    harness.progress(100, false);
    harness.is_cut_off = false;
    harness.hear(Event::PeerLost(a(0).instance));
    assert!(harness.kept.is_empty());
    harness.serve(&[b(0), a(1)]);
    assert_eq!(harness.kept, [(100, false, both(100))]);
}

#[test]
fn a_stage_that_gives_no_state_ends_the_attempt_and_a_later_one_succeeds() {
    let mut harness = Harness::new(Interval::Microbatches(100));
    harness.serve(&[a(0)]);
    harness.progress(100, false);
    assert_eq!(harness.notes, [], "no attempt begins while a stage has no replica");
    harness.serve(&[a(0), a(1)]);
    harness.is_cut_off = true;
    harness.progress(100, false);
    harness.wait(STALLED_AFTER);
    assert!(harness.notes.contains(&Note::Stalled(StageIndex(0))));
    harness.is_cut_off = false;
    harness.progress(150, false);
    assert!(harness.kept.is_empty(), "not at once");
    harness.wait(ATTEMPT_AGAIN_AFTER);
    harness.progress(160, false);
    assert_eq!(harness.kept, [(160, false, both(160))]);
}

#[test]
fn a_target_that_is_full_is_tried_again_with_longer_pauses() {
    let mut harness = Harness::new(Interval::Microbatches(100));
    harness.is_full = true;
    harness.progress(100, false);
    harness.wait(30 * SECOND);
    assert_eq!(harness.writes, 5, "at once, and after 2, 6, 14 and 30 seconds");
    harness.is_full = false;
    harness.wait(WRITE_PAUSE_MAX);
    assert_eq!(harness.kept.len(), 1);
}

#[test]
fn a_state_that_does_not_fit_is_not_written_and_another_donor_is_asked() {
    let mut harness = Harness::new(Interval::Microbatches(100));
    harness.serve(&[a(0), b(0), a(1)]);
    harness.unfit = Some(100);
    harness.progress(100, false);
    assert!(harness.kept.is_empty());
    harness.unfit = None;
    harness.wait(PARDON_AFTER + 15 * SECOND);
    assert_eq!(harness.kept.len(), 1);
    assert!(harness.notes.iter().any(|note| matches!(note, Note::Download(_, DownloadNote::Unfit(_)))));
}

#[test]
fn the_final_states_are_taken_in_place_of_a_checkpoint_under_way() {
    let mut harness = Harness::new(Interval::Microbatches(100));
    harness.is_full = true;
    harness.progress(100, false);
    harness.wait(SECOND);
    harness.is_full = false;
    harness.progress(130, true);
    harness.wait(15 * SECOND);
    assert_eq!(
        (harness.kept.as_slice(), harness.end),
        ([(130, true, both(130))].as_slice(), Some(End::Finished))
    );
}

#[test]
fn a_keeper_ends_if_the_final_states_cannot_be_had() {
    let mut untaken = Harness::new(Interval::Microbatches(100));
    untaken.serve(&[a(0)]);
    untaken.progress(130, true);
    untaken.wait(STALLED_AFTER);
    assert_eq!(untaken.end, Some(End::Untaken(StageIndex(1))));

    let mut unwritten = Harness::new(Interval::Microbatches(100));
    unwritten.is_full = true;
    unwritten.progress(130, true);
    unwritten.wait(FINAL_WRITES_WITHIN + WRITE_PAUSE_MAX);
    assert_eq!(unwritten.end, Some(End::Unwritten));
}

#[test]
fn a_keeper_that_is_stopped_ends_at_once() {
    let mut harness = Harness::new(Interval::Time(SECOND));
    harness.hear(Event::Stop);
    assert_eq!(harness.end, Some(End::Stopped));
    harness.progress(100, true);
    assert!(harness.kept.is_empty());
}

#[test]
fn chunks_that_nothing_asked_for_are_ignored() {
    let mut harness = Harness::new(Interval::Microbatches(100));
    let chunk = Message::Transfer(TransferMessage::Chunk { state: StateId(1), chunk: 0 });
    let envelope = Envelope::with_payload(chunk, (0, 0));
    harness.hear(Event::Received { from: a(0).instance, envelope });
    assert_eq!((harness.writes, harness.notes.len()), (0, 0));
}

#[test]
fn a_stage_that_lost_its_last_replica_gets_the_state_of_the_newest_checkpoint() {
    let mut harness = Harness::new(Interval::Microbatches(100));
    harness.publish(&[a(0)], &[joiner()]);
    request(&mut harness, TransferMessage::Request);
    assert_eq!(harness.said, [TransferMessage::Declined(DeclineReason::Busy)], "there is no checkpoint yet");
    harness.publish(&[a(0), a(1)], &[]);
    harness.progress(100, false);
    assert_eq!(harness.keeper.kept(), 100);
    harness.publish(&[a(0)], &[joiner()]);
    request(&mut harness, TransferMessage::Request);
    let offer = harness.said.last().unwrap().clone();
    let TransferMessage::Offer { state, manifest: offered, .. } = offer else { panic!("{offer:?}") };
    assert_eq!(offered, manifest(100));
    request(&mut harness, TransferMessage::ChunkRequest { state, chunk: 3 });
    assert_eq!(harness.given, [(joiner().peer(), 3)]);
}

#[test]
fn a_keeper_gives_nothing_for_a_stage_that_a_replica_serves_and_nothing_that_it_cannot_read() {
    let mut harness = Harness::new(Interval::Microbatches(100));
    harness.progress(100, false);
    harness.publish(&[a(0), a(1)], &[joiner()]);
    request(&mut harness, TransferMessage::Request);
    assert_eq!(harness.said, [TransferMessage::Declined(DeclineReason::NotEntitled)]);
    harness.is_torn = true;
    harness.publish(&[a(0)], &[joiner()]);
    request(&mut harness, TransferMessage::Request);
    assert_eq!(harness.said.last(), Some(&TransferMessage::Declined(DeclineReason::Busy)));
    assert_eq!(harness.keeper.kept(), 0, "it says that it gives no state any more");
}
