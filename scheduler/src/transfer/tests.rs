//! Downloads from honest, lossy, dying and lying donors. A failure names its seed; the seed reproduces the run.

use std::collections::BTreeMap;

use super::download::Note;
use super::*;
use crate::sim::queue::{EventQueue, Next};
use crate::{Duration, Incarnation, Instance, PeerId, Rng, Time, WeightVersion};

const SEEDS: u64 = 300;
const STEPS_MAX: u64 = 100_000;
const CHUNK_BYTES: u32 = 100;
const LIMITS: Limits = Limits { bytes_max: 5_000, chunk_bytes_max: CHUNK_BYTES };

/// Bytes of a chunk in simulation: its donor, the copy, and its number.
type Bytes = (u8, StateId, u32);

fn instance(index: u8) -> Instance {
    Instance::new(PeerId([index; 32]), Incarnation(1))
}

fn hash(bytes: Bytes) -> ChunkHash {
    let mut hash = [bytes.0; 32];
    hash[..8].copy_from_slice(&bytes.1.0.to_be_bytes());
    hash[8..12].copy_from_slice(&bytes.2.to_be_bytes());
    hash
}

fn manifest(donor: u8, state: StateId, bytes: u64) -> Manifest {
    let chunks = u32::try_from(bytes.div_ceil(u64::from(CHUNK_BYTES))).unwrap();
    let hashes = (0..chunks).map(|chunk| hash((donor, state, chunk))).collect();
    Manifest { version: WeightVersion(u64::from(donor)), bytes, chunk_bytes: CHUNK_BYTES, hashes }
}

/// Projections of a chunk of one number. Honest donors have nearly the same number.
fn sketch((donor, _, chunk): Bytes, seed: SketchSeed, is_own: bool) -> ChunkSketch {
    let number = if is_own { 1_000.0 } else { f32::from(donor) / 100.0 + chunk as f32 };
    let mut rng = Rng::new(seed.0 ^ u64::from(chunk));
    std::array::from_fn(|_| if rng.chance(1, 2) { number } else { -number })
}

/// A download and its faults.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    seed: u64,
    /// Donors 1, 2, ...; the joiner is 0.
    donors: u8,
    lost_per_mille: u64,
    /// Chunks that donor 1 falsifies.
    lies_per_mille: u64,
    /// Donors 1 to this one have a state of their own.
    impostors: u8,
    /// Impostors say that their state has the projections of an honest one.
    borrows: bool,
    /// Time between two deaths of donors, in order; `None` if no donor dies.
    kill_every: Option<Duration>,
    chunks: u64,
}

#[derive(Debug)]
enum Delivery {
    ToJoiner(DownloadEvent<Bytes>),
    ToDonor(u8, UploadEvent),
    Kill(u8),
}

#[derive(Debug)]
struct World {
    scenario: Scenario,
    rng: Rng,
    /// Alarms of the joiner, 0, and of the donors.
    queue: EventQueue<Delivery, u8>,
    joiner: Download<Bytes>,
    donors: BTreeMap<u8, Upload>,
    stored: BTreeMap<u64, Bytes>,
    imported: Option<Instance>,
    notes: Vec<Note>,
    copies: i32,
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let mut world = Self {
            scenario,
            rng: Rng::new(scenario.seed),
            queue: EventQueue::new(),
            joiner: Download::new(LIMITS, SketchSecret([9; 32])),
            donors: (1..=scenario.donors).map(|donor| (donor, Upload::new())).collect(),
            stored: BTreeMap::new(),
            imported: None,
            notes: Vec::new(),
            copies: 0,
        };
        let donors = (1..=scenario.donors).map(instance).collect();
        world.send(Delivery::ToJoiner(DownloadEvent::Donors(donors)));
        for donor in 1..=scenario.donors {
            let joiners = UploadEvent::Joiners(vec![instance(0)]);
            world.queue.schedule(Time(0), Delivery::ToDonor(donor, joiners));
            if let Some(every) = scenario.kill_every.filter(|_| donor < scenario.donors) {
                world.queue.schedule(Time(0) + every * u32::from(donor), Delivery::Kill(donor));
            }
        }
        world
    }

    fn run(&mut self, until: Option<Time>) {
        while until.is_none_or(|until| self.queue.now() < until)
            && let Some(next) = self.queue.pop()
        {
            assert!(self.queue.steps() < STEPS_MAX, "seed {}: not over", self.scenario.seed);
            match next {
                Next::Event(Delivery::ToJoiner(event)) => self.at_joiner(event),
                Next::Event(Delivery::ToDonor(donor, event)) => self.at_donor(donor, event),
                Next::Event(Delivery::Kill(donor)) => {
                    self.donors.remove(&donor);
                    self.queue.set_alarm(donor, None);
                    self.send(Delivery::ToJoiner(DownloadEvent::PeerLost(instance(donor))));
                }
                Next::Alarm(0) => self.at_joiner(DownloadEvent::Timeout),
                Next::Alarm(donor) => self.at_donor(donor, UploadEvent::Timeout),
            }
        }
    }

    fn at_joiner(&mut self, mut event: DownloadEvent<Bytes>) {
        if let DownloadEvent::Chunk { from, payload, sketch: found, .. } = &mut event {
            let is_own = from.peer.0[0] <= self.scenario.impostors;
            *found = self.joiner.sketch_seed().map(|seed| sketch(*payload, seed, is_own));
        }
        self.joiner.handle(self.queue.now(), event);
        while let Some(action) = self.joiner.poll_action() {
            assert_eq!(self.imported, None, "nothing after the end");
            match action {
                DownloadAction::Send { to, message } => {
                    let event = UploadEvent::Received { from: instance(0), message };
                    self.carry(Delivery::ToDonor(to.0[0], event));
                }
                DownloadAction::Begin { bytes } => {
                    assert!(bytes <= LIMITS.bytes_max);
                    self.stored.clear();
                }
                DownloadAction::Store { offset, payload } => {
                    let before = self.stored.insert(offset, payload);
                    assert_eq!(before, None, "seed {}: stored twice", self.scenario.seed);
                }
                DownloadAction::Import { donor, .. } => {
                    self.imported = Some(donor);
                    self.joiner.handle(self.queue.now(), DownloadEvent::Imported(true));
                    assert!(self.joiner.is_complete());
                }
                DownloadAction::Counted(note) => self.notes.push(note),
            }
        }
        self.queue.set_alarm(0, self.joiner.poll_timeout().map(|(at, _)| at));
    }

    fn at_donor(&mut self, donor: u8, event: UploadEvent) {
        let Some(upload) = self.donors.get_mut(&donor) else { return };
        upload.handle(self.queue.now(), event);
        let actions: Vec<_> = std::iter::from_fn(|| upload.poll_action()).collect();
        self.queue.set_alarm(donor, upload.poll_timeout().map(|(at, _)| at));
        for action in actions {
            match action {
                UploadAction::Export { state } => {
                    self.copies += 1;
                    let bytes = self.scenario.chunks * u64::from(CHUNK_BYTES) - 7;
                    let manifest = Some(manifest(donor, state, bytes));
                    self.send(Delivery::ToDonor(donor, UploadEvent::Exported { state, manifest }));
                }
                UploadAction::Send { message, .. } => {
                    let event = DownloadEvent::Received { from: instance(donor), message };
                    self.carry(Delivery::ToJoiner(event));
                }
                UploadAction::SendChunk { state, chunk, bytes, .. } => {
                    self.carry_chunk(donor, state, chunk, bytes);
                }
                UploadAction::Sketch { to, state, seed } => {
                    let is_own = donor <= self.scenario.impostors && !self.scenario.borrows;
                    let chunks = u32::try_from(self.scenario.chunks).unwrap();
                    let sketch =
                        (0..chunks).map(|chunk| sketch((donor, state, chunk), seed, is_own)).collect();
                    let event = UploadEvent::Sketched { to, state, seed, sketch };
                    self.send(Delivery::ToDonor(donor, event));
                }
                UploadAction::Release { .. } => self.copies -= 1,
                UploadAction::Counted(_) => {}
            }
        }
    }

    fn carry_chunk(&mut self, donor: u8, state: StateId, chunk: u32, bytes: u32) {
        let lies = donor == 1 && self.rng.chance(self.scenario.lies_per_mille, 1_000);
        let payload = if lies { (donor, state, chunk ^ 1) } else { (donor, state, chunk) };
        let (from, hash, bytes) = (instance(donor), hash(payload), u64::from(bytes));
        let event = DownloadEvent::Chunk { from, state, chunk, bytes, hash, sketch: None, payload };
        self.carry(Delivery::ToJoiner(event));
    }

    fn carry(&mut self, delivery: Delivery) {
        if !self.rng.chance(self.scenario.lost_per_mille, 1_000) {
            self.send(delivery);
        }
    }

    fn send(&mut self, delivery: Delivery) {
        let delay = Duration::from_nanos(self.rng.below(300_000_000));
        self.queue.schedule_in(delay, delivery);
    }
}

fn play(scenario: Scenario) -> World {
    println!("{scenario:?}");
    let mut world = World::new(scenario);
    world.run(None);
    world
}

/// Runs a scenario, and checks that the joiner ends with all of one copy.
fn check(scenario: Scenario) -> World {
    let world = play(scenario);
    let seed = scenario.seed;
    let donor = world.imported.unwrap_or_else(|| panic!("seed {seed}: {:?}", world.notes));
    assert_eq!(world.stored.len() as u64, scenario.chunks, "seed {seed}");
    let copies: std::collections::BTreeSet<_> =
        world.stored.values().map(|(donor, state, _)| (*donor, *state)).collect();
    assert_eq!(copies.len(), 1, "seed {seed}: one copy, not a mixture");
    assert_eq!(copies.first().map(|(donor, _)| instance(*donor)), Some(donor), "seed {seed}");
    for (&offset, &(_, _, chunk)) in &world.stored {
        assert_eq!(
            offset,
            u64::from(chunk) * u64::from(CHUNK_BYTES),
            "seed {seed}: every chunk at its place"
        );
    }
    world
}

fn calm(seed: u64) -> Scenario {
    Scenario {
        seed,
        donors: 3,
        lost_per_mille: 0,
        lies_per_mille: 0,
        impostors: 0,
        borrows: false,
        kill_every: None,
        chunks: 1 + seed % 40,
    }
}

#[test]
fn a_calm_download_takes_everything_from_the_first_donor() {
    for seed in 0..SEEDS {
        let world = check(calm(seed));
        assert_eq!((world.imported, world.notes.len()), (Some(instance(1)), 0), "seed {seed}");
        assert_eq!(world.copies, 0, "seed {seed}: the copy is dropped");
    }
}

#[test]
fn a_liar_is_blamed_and_the_next_donor_gives() {
    let mut blamed = 0;
    for seed in 0..SEEDS {
        let world = check(Scenario { lies_per_mille: 200, ..calm(seed) });
        let wrong = world.notes.iter().filter(|note| **note == Note::Wrong(instance(1))).count();
        // A request may overtake the news that an earlier copy is not needed.
        let declined = |note: &&Note| matches!(note, Note::Declined(..) | Note::NoDonor);
        let declined = world.notes.iter().filter(declined).count();
        assert!(wrong <= 1 && wrong + declined == world.notes.len(), "seed {seed}: {:?}", world.notes);
        blamed += wrong;
    }
    assert!(blamed > 100, "{blamed}");
}

#[test]
fn donors_that_die_are_followed_by_the_next() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let kill_every = Some(Duration::from_millis(200 + 5 * seed));
        let world = check(Scenario { kill_every, ..calm(seed) });
        lost += world.notes.iter().filter(|note| matches!(note, Note::Lost(_))).count();
    }
    assert!(lost > 100, "{lost}");
}

#[test]
fn requests_for_lost_chunks_are_repeated() {
    let mut silent = 0;
    for seed in 0..SEEDS {
        let world = check(Scenario { lost_per_mille: 120, ..calm(seed) });
        silent += world.notes.len();
    }
    assert!(silent > 10, "{silent}");
}

#[test]
fn only_liars_give_nothing() {
    let mut world = World::new(Scenario { donors: 1, lies_per_mille: 1_000, ..calm(3) });
    world.run(Some(Time(0) + PARDON_AFTER * 5));
    assert_eq!(world.imported, None);
    let (turns, rest) = world.notes.as_chunks::<2>();
    assert!(turns.iter().all(|turn| turn == &[Note::Wrong(instance(1)), Note::NoDonor]) && rest.is_empty());
    assert_eq!(turns.len(), 5, "it is asked once a minute");
}

// --- Donors with a state of their own -----------------------------------------------------------------------

/// The donors that the state came from.
fn sources(world: &World) -> Vec<u8> {
    let donors: std::collections::BTreeSet<u8> = world.stored.values().map(|(donor, ..)| *donor).collect();
    donors.into_iter().collect()
}

#[test]
fn a_donor_with_a_state_of_its_own_gives_nothing_while_more_than_half_are_honest() {
    for seed in 0..SEEDS {
        for (donors, impostors) in [(3, 1), (4, 1), (5, 2), (9, 2)] {
            let world = check(Scenario { donors, impostors, ..calm(seed) });
            assert_eq!(sources(&world), [impostors + 1], "seed {seed}: {donors} donors");
            assert_eq!((world.notes.len(), world.copies), (0, 0), "seed {seed}");
        }
    }
}

#[test]
fn a_donor_that_shows_the_sketch_of_another_state_is_blamed_with_its_first_chunk() {
    for seed in 0..SEEDS {
        let world = check(Scenario { impostors: 1, borrows: true, ..calm(seed) });
        assert_eq!((sources(&world).contains(&1), world.notes[0]), (false, Note::Wrong(instance(1))));
    }
}

#[test]
fn impostors_that_die_or_lose_messages_give_nothing_either() {
    for seed in 0..SEEDS {
        let world = play(Scenario { donors: 5, impostors: 1, lost_per_mille: 30, ..calm(seed) });
        let asked = world.notes.iter().filter(|note| matches!(note, Note::Silent(_))).count();
        assert!(asked > 1 || !sources(&world).contains(&1), "seed {seed}: {:?}", world.notes);
    }
}

/// No rule can tell which of two donors that differ is honest.
#[test]
fn of_two_donors_that_differ_the_first_is_believed() {
    let world = check(Scenario { donors: 2, impostors: 1, ..calm(1) });
    assert_eq!(world.imported, Some(instance(1)));
    let world = play(Scenario { donors: 1, impostors: 1, ..calm(1) });
    assert_eq!(world.imported, Some(instance(1)));
}

#[test]
fn a_joiner_gets_two_sketches_of_a_copy_at_most() {
    let mut donor = Upload::new();
    upload_actions(&mut donor, 0, UploadEvent::Joiners(vec![instance(1), instance(2)]));
    exports(&mut donor, 0, 1);
    let (state, seed) = (StateId(1), SketchSeed(4));
    let ask = |from| said(from, TransferMessage::SketchRequest { state, seed });
    let sketches = (0..100).filter(|_| {
        let said = upload_actions(&mut donor, 1, ask(1));
        said.contains(&UploadAction::Sketch { to: instance(1), state, seed })
    });
    assert_eq!(sketches.count(), SKETCHES_MAX as usize);
    let declined = upload_actions(&mut donor, 1, ask(2));
    assert!(declined.contains(&UploadAction::Counted(upload::Note::Declined(instance(2)))), "no session");
}

// --- Single cases -------------------------------------------------------------------------------------------

#[test]
fn a_manifest_beyond_the_limits_reserves_nothing() {
    let good = manifest(1, StateId(1), 450);
    let check = |change: fn(&mut Manifest), expected: ManifestError| {
        let mut manifest = good.clone();
        change(&mut manifest);
        assert_eq!(manifest.check(&LIMITS), Err(expected));
        let mut joiner = Download::<Bytes>::new(LIMITS, SketchSecret::default());
        joiner.handle(Time(0), DownloadEvent::Donors(vec![instance(1)]));
        let message =
            TransferMessage::Offer { state: StateId(1), manifest, age: Duration::ZERO, clock: None };
        joiner.handle(Time(0), DownloadEvent::Received { from: instance(1), message });
        let actions: Vec<_> = std::iter::from_fn(|| joiner.poll_action()).collect();
        assert!(!actions.iter().any(|action| matches!(action, DownloadAction::Begin { .. })), "{actions:?}");
        let blamed = DownloadAction::Counted(Note::Unusable(instance(1), expected));
        assert!(actions.contains(&blamed), "{actions:?}");
    };
    assert_eq!(good.check(&LIMITS), Ok(()));
    assert_eq!((good.chunks(), good.chunk_len(4), good.chunk_len(5)), (5, 50, 0));
    check(|m| m.bytes = 0, ManifestError::Empty);
    check(|m| m.chunk_bytes = 0, ManifestError::Empty);
    check(|m| m.bytes = u64::MAX, ManifestError::TooLong { bytes: u64::MAX, allowed: 5_000 });
    check(|m| m.chunk_bytes = 101, ManifestError::ChunkTooLong { bytes: 101, allowed: 100 });
    check(|m| m.hashes.truncate(4), ManifestError::Hashes { expected: 5, found: 4 });
    check(|m| m.bytes = 501, ManifestError::Hashes { expected: 6, found: 5 });
}

#[test]
fn the_only_donor_is_asked_again_a_minute_after_it_sent_false_bytes() {
    let mut joiner = Download::<Bytes>::new(LIMITS, SketchSecret::default());
    let mut requests = |at: Time, event| {
        joiner.handle(at, event);
        let actions: Vec<_> = std::iter::from_fn(|| joiner.poll_action()).collect();
        let is_request = |action: &DownloadAction<_>| {
            matches!(action, DownloadAction::Send { message: TransferMessage::Request, .. })
        };
        (actions.iter().any(is_request), joiner.poll_timeout().map(|(at, _)| at))
    };
    let begin = Time(0);
    assert!(requests(begin, DownloadEvent::Donors(vec![instance(1)])).0);
    let manifest = Manifest { bytes: 0, ..manifest(1, StateId(1), 450) };
    let message = TransferMessage::Offer { state: StateId(1), manifest, age: Duration::ZERO, clock: None };
    let blamed = requests(begin, DownloadEvent::Received { from: instance(1), message });
    assert_eq!(blamed, (false, Some(begin + PARDON_AFTER)));
    assert!(!requests(begin + ASK_AGAIN_AFTER, DownloadEvent::Donors(vec![instance(1)])).0);
    assert!(requests(begin + PARDON_AFTER, DownloadEvent::Timeout).0);
}

fn upload_actions(upload: &mut Upload, at: u64, event: UploadEvent) -> Vec<UploadAction> {
    upload.handle(Time(at * 1_000_000_000), event);
    std::iter::from_fn(|| upload.poll_action()).collect()
}

fn said(from: u8, message: TransferMessage) -> UploadEvent {
    UploadEvent::Received { from: instance(from), message }
}

#[test]
fn a_donor_copies_once_for_all_joiners_that_ask_and_declines_the_rest() {
    let mut donor = Upload::new();
    let listed = (1..=9).map(instance).collect();
    assert_eq!(upload_actions(&mut donor, 0, UploadEvent::Joiners(listed)), []);
    let state = StateId(1);
    assert_eq!(
        upload_actions(&mut donor, 0, said(1, TransferMessage::Request)),
        [UploadAction::Export { state }]
    );
    for joiner in 2..=4 {
        assert_eq!(upload_actions(&mut donor, 0, said(joiner, TransferMessage::Request)), []);
    }
    for stranger in [5, 200] {
        let declined = upload_actions(&mut donor, 0, said(stranger, TransferMessage::Request));
        assert!(declined.contains(&UploadAction::Counted(upload::Note::Declined(instance(stranger)))));
    }
    let exported = UploadEvent::Exported { state, manifest: Some(manifest(0, state, 450)) };
    assert_eq!(upload_actions(&mut donor, 1, exported).len(), 4, "an offer each");
    let chunk = upload_actions(&mut donor, 1, said(3, TransferMessage::ChunkRequest { state, chunk: 4 }));
    let to = instance(3).peer;
    assert_eq!(chunk, [UploadAction::SendChunk { to, state, chunk: 4, offset: 400, bytes: 50 }]);
    for (from, state, chunk) in [(3, state, 5), (3, StateId(9), 0), (9, state, 0), (3, state, u32::MAX)] {
        let declined =
            upload_actions(&mut donor, 1, said(from, TransferMessage::ChunkRequest { state, chunk }));
        assert!(declined.contains(&UploadAction::Counted(upload::Note::Declined(instance(from)))));
    }
    for joiner in 1..=3 {
        upload_actions(&mut donor, 2, said(joiner, TransferMessage::Done { state }));
    }
    upload_actions(&mut donor, 3, UploadEvent::PeerLost(instance(4)));
    assert_eq!(donor.sessions(), 0);
    let (at, _) = donor.poll_timeout().expect("the copy is kept for further joiners");
    let expired = upload_actions(&mut donor, at.0 / 1_000_000_000, UploadEvent::Timeout);
    assert_eq!((expired, donor.poll_timeout()), (vec![UploadAction::Release { state }], None));
}

#[test]
fn a_keeper_gets_the_state_before_the_first_gradients_at_the_clock_that_it_has_named() {
    let mut donor = Upload::new();
    upload_actions(&mut donor, 0, UploadEvent::Joiners((1..=3).map(instance).collect()));
    let (fresh, agreed) = (StateId(1), StateId(2));
    let copy_at = |clock| TransferMessage::CopyAt { clock };
    let declines = |from: u8, clock| {
        [UploadAction::Send {
            to: instance(from).peer,
            message: TransferMessage::CopyDeclined { clock, is_late: clock == 7 },
        }]
    };
    assert_eq!(upload_actions(&mut donor, 0, UploadEvent::Begins { clock: 7 }), []);
    assert_eq!(upload_actions(&mut donor, 0, said(1, copy_at(7))), declines(1, 7), "gone past");
    assert_eq!(upload_actions(&mut donor, 0, said(1, copy_at(12))), []);
    assert_eq!(upload_actions(&mut donor, 0, said(1, copy_at(10))), [], "it may name another");
    assert_eq!(upload_actions(&mut donor, 0, said(2, copy_at(11))), declines(2, 11), "another keeper waits");
    assert_eq!(
        upload_actions(&mut donor, 1, said(3, TransferMessage::Request)),
        [UploadAction::Export { state: fresh }],
        "joiners are served meanwhile"
    );
    assert_eq!(upload_actions(&mut donor, 2, UploadEvent::Begins { clock: 9 }), []);
    assert_eq!(
        upload_actions(&mut donor, 2, UploadEvent::Begins { clock: 11 }),
        [UploadAction::Export { state: agreed }]
    );
    let exported = |state| UploadEvent::Exported { state, manifest: Some(manifest(0, state, 450)) };
    assert_eq!(upload_actions(&mut donor, 2, exported(fresh)).len(), 1, "an offer to the joiner");
    assert_eq!(upload_actions(&mut donor, 3, exported(agreed)), [], "the keeper has not asked yet");
    assert_eq!(upload_actions(&mut donor, 80, said(1, copy_at(10))), [], "keeps it");
    let offered = upload_actions(&mut donor, 100, said(1, TransferMessage::Request));
    let [.., UploadAction::Send { message: TransferMessage::Offer { state, .. }, .. }] = &offered[..] else {
        panic!("{offered:?}")
    };
    assert_eq!(*state, agreed);
    let released = upload_actions(&mut donor, 101, said(1, TransferMessage::Done { state: agreed }));
    assert!(released.contains(&UploadAction::Release { state: agreed }), "{released:?}");
    assert_eq!(upload_actions(&mut donor, 102, said(2, copy_at(50))), []);
    assert_eq!(upload_actions(&mut donor, 103, UploadEvent::Begins { clock: 50 }).len(), 1);
    upload_actions(&mut donor, 103, UploadEvent::PeerLost(instance(2)));
    upload_actions(&mut donor, 103, exported(StateId(3)));
    assert_eq!(upload_actions(&mut donor, 104, said(1, copy_at(60))), declines(1, 60), "copies cost time");
}

#[test]
fn a_clock_that_does_not_come_and_a_keeper_that_is_gone_keep_no_copy() {
    let mut donor = Upload::new();
    upload_actions(&mut donor, 0, UploadEvent::Joiners(vec![instance(1), instance(2)]));
    let copy_at = TransferMessage::CopyAt { clock: u64::MAX };
    upload_actions(&mut donor, 0, said(1, copy_at.clone()));
    upload_actions(&mut donor, 50, said(1, copy_at));
    upload_actions(&mut donor, AWAITED_MAX.as_secs(), UploadEvent::Timeout);
    assert!(!donor.awaits_clock());
    upload_actions(&mut donor, 61, said(2, TransferMessage::CopyAt { clock: 5 }));
    let state = StateId(1);
    assert_eq!(
        upload_actions(&mut donor, 61, UploadEvent::Begins { clock: 5 }),
        [UploadAction::Export { state }]
    );
    assert_eq!(
        upload_actions(&mut donor, 62, UploadEvent::PeerLost(instance(2))),
        [UploadAction::Counted(upload::Note::Abandoned(instance(2)))],
        "the copy is under way"
    );
    let exported = UploadEvent::Exported { state, manifest: Some(manifest(0, state, 450)) };
    assert_eq!(upload_actions(&mut donor, 63, exported), [UploadAction::Release { state }]);
}

#[test]
fn a_silent_joiner_is_forgotten_and_an_old_copy_replaced() {
    let mut donor = Upload::new();
    upload_actions(&mut donor, 0, UploadEvent::Joiners(vec![instance(1)]));
    upload_actions(&mut donor, 0, said(1, TransferMessage::Request));
    let (first, second) = (StateId(1), StateId(2));
    let exported = UploadEvent::Exported { state: first, manifest: Some(manifest(0, first, 450)) };
    upload_actions(&mut donor, 0, exported);
    let again = upload_actions(&mut donor, 60, said(1, TransferMessage::Request));
    assert_eq!(again, [UploadAction::Release { state: first }, UploadAction::Export { state: second }]);
    let exported = UploadEvent::Exported { state: second, manifest: Some(manifest(0, second, 450)) };
    upload_actions(&mut donor, 60, exported);
    let (at, _) = donor.poll_timeout().unwrap();
    donor.handle(at, UploadEvent::Timeout);
    let actions: Vec<_> = std::iter::from_fn(|| donor.poll_action()).collect();
    assert_eq!(actions.last(), Some(&UploadAction::Release { state: second }));
}

/// Requests, and takes the offer.
fn exports(donor: &mut Upload, at: u64, from: u8) -> usize {
    let said = upload_actions(donor, at, said(from, TransferMessage::Request));
    let states = said.into_iter().filter_map(|action| match action {
        UploadAction::Export { state } => Some(state),
        _ => None,
    });
    let states: Vec<_> = states.collect();
    for &state in &states {
        let manifest = Some(manifest(0, state, 450));
        upload_actions(donor, at, UploadEvent::Exported { state, manifest });
    }
    states.len()
}

#[test]
fn a_donor_copies_its_state_every_ten_seconds_at_most_however_joiners_ask() {
    let mut donor = Upload::new();
    upload_actions(&mut donor, 0, UploadEvent::Joiners(vec![instance(1), instance(2)]));
    let mut copies = 0;
    for second in 0..600 {
        for joiner in [1, 2] {
            copies += exports(&mut donor, second, joiner);
            let state = StateId(copies as u64);
            upload_actions(&mut donor, second, said(joiner, TransferMessage::Done { state }));
        }
    }
    assert_eq!(copies, 60);
}

#[test]
fn an_old_copy_goes_to_no_further_joiner_while_others_still_download_it() {
    let mut donor = Upload::new();
    upload_actions(&mut donor, 0, UploadEvent::Joiners((1..=3).map(instance).collect()));
    assert_eq!(exports(&mut donor, 0, 1), 1);
    let state = StateId(1);
    for second in 1..70 {
        let ask = said(1, TransferMessage::ChunkRequest { state, chunk: 0 });
        if second % 30 == 0 {
            upload_actions(&mut donor, second, ask);
        }
    }
    let late = upload_actions(&mut donor, 70, said(2, TransferMessage::Request));
    assert!(late.contains(&UploadAction::Counted(upload::Note::Declined(instance(2)))), "{late:?}");
    upload_actions(&mut donor, 71, said(1, TransferMessage::Done { state }));
    assert_eq!(exports(&mut donor, 72, 2), 1, "a fresh copy");
}

#[test]
fn a_joiner_gets_a_copy_twice_at_most_and_only_at_a_pace() {
    let mut donor = Upload::new();
    upload_actions(&mut donor, 0, UploadEvent::Joiners(vec![instance(1)]));
    exports(&mut donor, 0, 1);
    let state = StateId(1);
    let ask = || said(1, TransferMessage::ChunkRequest { state, chunk: 0 });
    let sent = (0..100).filter(|_| {
        let said = upload_actions(&mut donor, 1, ask());
        upload_actions(&mut donor, 1, said_request());
        said.iter().any(|action| matches!(action, UploadAction::SendChunk { .. }))
    });
    assert_eq!(sent.count() as u64, 5 * SENDINGS_MAX);
    // A joiner that asks for a chunk now and then holds no session for ever.
    let mut slow = Upload::new();
    upload_actions(&mut slow, 0, UploadEvent::Joiners(vec![instance(1)]));
    exports(&mut slow, 0, 1);
    for second in [30, 60, 89] {
        upload_actions(&mut slow, second, ask());
    }
    upload_actions(&mut slow, 90, UploadEvent::Timeout);
    assert_eq!(slow.sessions(), 0);
}

fn said_request() -> UploadEvent {
    said(1, TransferMessage::Request)
}

#[test]
fn a_joiner_asks_its_donors_again_however_often_the_table_changes() {
    let mut joiner: Download<Bytes> = Download::new(LIMITS, SketchSecret([9; 32]));
    let at = |milliseconds| Time(0) + Duration::from_millis(milliseconds);
    let mut asked = 0;
    for milliseconds in (0..5_000).step_by(500) {
        let donors = DownloadEvent::Donors(vec![instance(1)]);
        joiner.handle(at(milliseconds), donors);
        if joiner.poll_timeout().is_some_and(|(until, _)| until <= at(milliseconds)) {
            joiner.handle(at(milliseconds), DownloadEvent::Timeout);
        }
        while let Some(action) = joiner.poll_action() {
            if matches!(action, DownloadAction::Send { message: TransferMessage::Request, .. }) {
                asked += 1;
                let message = TransferMessage::Declined(DeclineReason::Busy);
                joiner.handle(at(milliseconds), DownloadEvent::Received { from: instance(1), message });
            }
        }
    }
    assert!(asked >= 4, "asked {asked} times in 5 s");
}
