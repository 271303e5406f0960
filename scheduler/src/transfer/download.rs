//! The joiner's machine: a download.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;

use crate::{Duration, Instance, PeerId, Time, WeightVersion};

use super::comparison::{COMPARED_MAX, Choice, Comparison, Source};
use super::manifest::{ChunkHash, Limits, Manifest, ManifestError};
use super::sketch::{ChunkSketch, SketchSecret, SketchSeed};
use super::{DeclineReason, StateId, TransferMessage};

/// Chunks requested and not received, at most: enough to fill a link while the next request travels.
pub const CHUNKS_IN_FLIGHT_MAX: usize = 8;
/// A donor that sends nothing for this long is asked again, or left. A chunk over the slowest useful link takes less.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Times a silent donor is asked again for the missing chunks: frames get lost when a connection breaks.
pub const RETRIES_MAX: u32 = 1;
/// Wait after every donor was tried in vain, before they are asked again: a donor's table may not list the joiner yet.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Wait before donors that sent false bytes are asked again, if there are no others: their fault may be over.
pub const PARDON_AFTER: Duration = Duration::from_secs(60);

/// An event of a download.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// Replicas that serve the stage, the preferred first. They replace the former list.
    Donors(Vec<Instance>),
    /// A message arrived from an authenticated peer; chunks come as [`Event::Chunk`].
    Received {
        /// The donor.
        from: Instance,
        /// The message.
        message: TransferMessage,
    },
    /// A chunk arrived from an authenticated peer.
    Chunk {
        /// The donor.
        from: Instance,
        /// Number of the copy.
        state: StateId,
        /// Number of the chunk.
        chunk: u32,
        /// Its length, bytes.
        bytes: u64,
        /// Digest of its bytes, computed here.
        hash: ChunkHash,
        /// Its projections under [`Download::sketch_seed`], computed here; `None` without a seed.
        sketch: Option<ChunkSketch>,
        /// The bytes.
        payload: P,
    },
    /// The reply to [`Action::Import`]: whether the state fits the stage. If not, nothing has changed.
    Imported(bool),
    /// The connection to a peer is gone, or a message to it could not be delivered.
    PeerLost(Instance),
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// An action that a download asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Send the message.
    Send {
        /// The donor.
        to: PeerId,
        /// The message.
        message: TransferMessage,
    },
    /// Make room for a state of this length, which is within the limits, and drop all bytes stored before.
    Begin {
        /// Length of the state, bytes.
        bytes: u64,
    },
    /// Store verified bytes of the state.
    Store {
        /// Offset in the state, bytes.
        offset: u64,
        /// The bytes.
        payload: P,
    },
    /// Take over the state, which is complete. Reply: [`Event::Imported`].
    Import {
        /// The replica that the header of the state comes from.
        donor: Instance,
        /// Optimizer steps that the header must say: the donor has named them before.
        version: WeightVersion,
    },
    /// A note for people.
    Counted(Note),
}

/// A failure of a donor; the download goes on with the next donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A chunk differs from the donor's own manifest or sketch. The donor is never asked again.
    Wrong(Instance),
    /// A manifest describes no state of this run. The donor is never asked again.
    Unusable(Instance, ManifestError),
    /// A state arrived that does not fit the stage. The donor is never asked again.
    Unfit(Instance),
    /// A donor sent nothing for too long.
    Silent(Instance),
    /// A donor was lost, or left the list.
    Lost(Instance),
    /// A donor declined.
    Declined(Instance, DeclineReason),
    /// The copy of a donor is older than was asked for. The donor is asked again.
    TooOld(Instance),
    /// No donor is left to ask; they are asked again after [`ASK_AGAIN_AFTER`], or [`PARDON_AFTER`].
    NoDonor,
}

/// The reason for a timeout of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The donor has been silent for too long.
    DonorSilent,
    /// Every donor was tried; they are asked again.
    AskAgain,
}

#[derive(Debug)]
enum Phase {
    /// No donor to ask: until the time given, or until the list changes.
    Waiting(Option<Time>),
    Comparing(Comparison),
    Fetching(Fetch),
    /// The state is complete, and the executor takes it over. Its header is from this donor.
    Importing(Instance),
    Complete,
}

/// A donor and the number of its copy.
type Copy = (Instance, StateId);

/// A state on its way.
#[derive(Debug)]
struct Fetch {
    choice: Choice,
    /// The first chunk not requested.
    next: u32,
    /// Chunks requested and not received; at most [`CHUNKS_IN_FLIGHT_MAX`].
    in_flight: BTreeSet<u32>,
}

impl Fetch {
    fn source(&self, chunk: u32) -> Option<&Source> {
        let copies = &self.choice.copies;
        self.choice.by_chunk.get(chunk as usize).and_then(|&of| copies.get(of))
    }

    /// The copies that chunks come from.
    fn used(&self) -> Vec<Copy> {
        let used: BTreeSet<usize> = self.choice.by_chunk.iter().copied().collect();
        let copies = used.into_iter().filter_map(|of| self.choice.copies.get(of));
        copies.map(|copy| (copy.donor, copy.state)).collect()
    }

    fn chunks(&self) -> u32 {
        self.choice.copies.first().map_or(0, |copy| copy.manifest.chunks())
    }

    fn request(&self, chunk: u32) -> Option<(PeerId, TransferMessage)> {
        let source = self.source(chunk)?;
        Some((source.donor.peer, TransferMessage::ChunkRequest { state: source.state, chunk }))
    }
}

/// One joiner's download of the state of its stage.
#[derive(Debug)]
pub struct Download<P> {
    limits: Limits,
    secret: SketchSecret,
    /// Copies of a state before this time are not taken.
    not_before: Option<Time>,
    /// Comparisons whose projections were drawn.
    comparisons: u64,
    donors: Vec<Instance>,
    /// Donors asked since the last wait.
    tried: BTreeSet<Instance>,
    /// Donors that sent a wrong chunk, manifest or state. Bounded: only members of `donors` are added, and instances
    /// that left the list are dropped.
    blamed: BTreeSet<Instance>,
    phase: Phase,
    /// The time at which the donor counts as silent.
    deadline: Time,
    retries: u32,
    /// Breaks a rule for a test: every chunk is stored without a check of its digest.
    trusts_chunks: bool,
    actions: VecDeque<Action<P>>,
}

impl<P: Debug> Download<P> {
    /// A download that knows no donor. No other process may know the secret.
    #[must_use]
    pub fn new(limits: Limits, secret: SketchSecret) -> Self {
        Self {
            limits,
            secret,
            not_before: None,
            comparisons: 0,
            donors: Vec::new(),
            tried: BTreeSet::new(),
            blamed: BTreeSet::new(),
            phase: Phase::Waiting(None),
            deadline: Time(0),
            retries: 0,
            trusts_chunks: false,
            actions: VecDeque::new(),
        }
    }

    /// Sets the time before which no state was the one to take.
    pub(crate) fn not_before(self, time: Time) -> Self {
        Self { not_before: Some(time), ..self }
    }

    /// Sets whether digests of chunks go unchecked, for tests.
    pub(crate) fn trusting_chunks(self, trusts_chunks: bool) -> Self {
        Self { trusts_chunks, ..self }
    }

    /// Takes one event; drain [`Download::poll_action`] before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        match event {
            Event::Donors(donors) => self.on_donors(now, donors),
            Event::Received { from, message } => self.on_message(now, from, message),
            Event::Chunk { from, state, chunk, bytes, hash, sketch, payload } => {
                let found = Found { bytes, hash, sketch };
                self.on_chunk(now, (from, state, chunk), &found, payload);
            }
            Event::Imported(fits) => self.on_imported(now, fits),
            Event::PeerLost(instance) => {
                if self.is_asked(instance) {
                    self.leave(now, instance, Note::Lost(instance));
                }
            }
            Event::Timeout => self.on_timeout(now),
        }
    }

    /// Takes the oldest action that is not yet done; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// Whether a state is being taken over.
    #[must_use]
    pub fn is_importing(&self) -> bool {
        matches!(self.phase, Phase::Importing(_))
    }

    /// The latest time for the next call of [`Download::handle`], with [`Event::Timeout`], and the reason.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        match &self.phase {
            Phase::Waiting(until) => until.map(|until| (until, Reason::AskAgain)),
            Phase::Comparing(_) | Phase::Fetching(_) => Some((self.deadline, Reason::DonorSilent)),
            Phase::Importing(_) | Phase::Complete => None,
        }
    }

    /// The seed of the projections that a chunk is compared by when it arrives; `None` while the state comes from the
    /// only donor.
    #[must_use]
    pub fn sketch_seed(&self) -> Option<SketchSeed> {
        if let Phase::Fetching(fetch) = &self.phase { fetch.choice.seed } else { None }
    }

    /// Whether this chunk was requested from this donor and has not arrived.
    pub(crate) fn expects(&self, from: Instance, state: StateId, chunk: u32) -> bool {
        let Phase::Fetching(fetch) = &self.phase else { return false };
        let source = fetch.source(chunk).filter(|_| fetch.in_flight.contains(&chunk));
        source.is_some_and(|source| (source.donor, source.state) == (from, state))
    }

    /// Whether the state is taken over.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.phase, Phase::Complete)
    }

    // --- Events ---------------------------------------------------------------------------------------------

    fn on_donors(&mut self, now: Time, donors: Vec<Instance>) {
        self.donors = donors;
        self.tried.retain(|donor| self.donors.contains(donor));
        self.blamed.retain(|donor| self.donors.contains(donor));
        let gone: Vec<Instance> =
            self.asked().into_iter().filter(|donor| !self.donors.contains(donor)).collect();
        for donor in gone {
            if self.is_asked(donor) {
                self.leave(now, donor, Note::Lost(donor));
            }
        }
        // A list of donors that were all asked does not put off the end of the wait.
        if let Phase::Waiting(until) = self.phase
            && (until.is_none() || self.untried().next().is_some())
        {
            self.compare(now);
        }
    }

    fn on_message(&mut self, now: Time, from: Instance, message: TransferMessage) {
        if !self.is_asked(from) {
            return;
        }
        match message {
            TransferMessage::Offer { state, manifest, age, .. } => {
                if self.not_before.is_some_and(|earliest| now < earliest + age) {
                    self.send(from, TransferMessage::Done { state });
                    return self.leave(now, from, Note::TooOld(from));
                }
                self.on_offer(now, from, state, manifest);
            }
            TransferMessage::Sketch { state, seed, sketch } => {
                if let Phase::Comparing(comparison) = &mut self.phase {
                    comparison.sketch(from, state, seed, sketch);
                    self.go_on(now);
                }
            }
            TransferMessage::Declined(reason) => self.leave(now, from, Note::Declined(from, reason)),
            TransferMessage::Request
            | TransferMessage::SketchRequest { .. }
            | TransferMessage::ChunkRequest { .. }
            | TransferMessage::Chunk { .. }
            | TransferMessage::CopyAt { .. }
            | TransferMessage::CopyDeclined { .. }
            | TransferMessage::Done { .. } => {}
        }
    }

    fn on_offer(&mut self, now: Time, donor: Instance, state: StateId, manifest: Manifest) {
        let Phase::Comparing(comparison) = &mut self.phase else { return };
        if let Err(error) = manifest.check(&self.limits) {
            self.blamed.insert(donor);
            return self.leave(now, donor, Note::Unusable(donor, error));
        }
        if comparison.offer(donor, state, manifest) {
            self.go_on(now);
        }
    }

    fn on_chunk(
        &mut self,
        now: Time,
        (from, state, chunk): (Instance, StateId, u32),
        found: &Found,
        payload: P,
    ) {
        if !self.expects(from, state, chunk) {
            return;
        }
        let Phase::Fetching(fetch) = &mut self.phase else { return };
        let Some(source) = fetch.source(chunk) else { return };
        if !found.is_announced(source, chunk, self.trusts_chunks) {
            self.blamed.insert(from);
            return self.leave(now, from, Note::Wrong(from));
        }
        let offset = source.manifest.offset(chunk);
        fetch.in_flight.remove(&chunk);
        self.actions.push_back(Action::Store { offset, payload });
        self.hear(now);
        self.request_more();
        self.notice_completion();
    }

    fn on_timeout(&mut self, now: Time) {
        match &self.phase {
            Phase::Waiting(Some(until)) if *until <= now => {
                self.tried.clear();
                if self.are_all_blamed() {
                    self.blamed.clear();
                }
                self.compare(now);
            }
            Phase::Comparing(comparison) if self.deadline <= now => {
                if self.retries < RETRIES_MAX && !comparison.has_offers() {
                    return self.ask_again(now);
                }
                for donor in comparison.waiting().to_vec() {
                    self.leave(now, donor, Note::Silent(donor));
                }
            }
            Phase::Fetching(fetch) if self.deadline <= now => {
                let silent = fetch.in_flight.first().and_then(|&chunk| fetch.source(chunk));
                let silent = silent.map(|source| source.donor);
                match silent {
                    Some(donor) if self.retries >= RETRIES_MAX => {
                        self.leave(now, donor, Note::Silent(donor));
                    }
                    Some(_) | None => self.ask_again(now),
                }
            }
            Phase::Waiting(_)
            | Phase::Comparing(_)
            | Phase::Fetching(_)
            | Phase::Importing(_)
            | Phase::Complete => {}
        }
    }

    /// A state that does not fit has passed every digest, so the donor of its header serves a state of another kind.
    fn on_imported(&mut self, now: Time, fits: bool) {
        let Phase::Importing(donor) = self.phase else { return };
        if fits {
            self.phase = Phase::Complete;
        } else {
            self.blamed.insert(donor);
            self.leave(now, donor, Note::Unfit(donor));
        }
    }

    // --- The comparison -------------------------------------------------------------------------------------

    /// Asks the next donors for their copies.
    fn compare(&mut self, now: Time) {
        let donors: Vec<Instance> = self.untried().take(COMPARED_MAX).collect();
        if donors.is_empty() {
            self.actions.push_back(Action::Counted(Note::NoDonor));
            let wait = if self.are_all_blamed() { PARDON_AFTER } else { ASK_AGAIN_AFTER };
            self.phase = Phase::Waiting((!self.donors.is_empty()).then(|| now + wait));
            return;
        }
        self.tried.extend(&donors);
        self.phase = Phase::Comparing(Comparison::of(donors));
        self.hear(now);
        self.send_requests();
    }

    /// Draws the projections once every donor has named its copy, and begins to fetch once every donor has sent its
    /// sketch.
    fn go_on(&mut self, now: Time) {
        let Phase::Comparing(comparison) = &mut self.phase else { return };
        if comparison.needs_sketches() {
            let others = comparison.draw(self.secret.seed(self.comparisons));
            self.comparisons += 1;
            self.hear(now);
            self.let_go(others.into_iter().map(|other| (other.donor, other.state)));
            self.send_requests();
        } else if let Some(choice) = comparison.choose() {
            self.fetch(now, choice);
        }
    }

    fn fetch(&mut self, now: Time, choice: Choice) {
        let bytes = choice.copies.first().map_or(0, |copy| copy.manifest.bytes);
        let compared: Vec<Copy> = choice.copies.iter().map(|copy| (copy.donor, copy.state)).collect();
        let fetch = Fetch { choice, next: 0, in_flight: BTreeSet::new() };
        let used = fetch.used();
        self.let_go(compared.into_iter().filter(|copy| !used.contains(copy)));
        self.actions.push_back(Action::Begin { bytes });
        self.phase = Phase::Fetching(fetch);
        self.hear(now);
        self.request_more();
    }

    /// Tells donors that their copies are not needed now. They may be asked again.
    fn let_go(&mut self, copies: impl IntoIterator<Item = Copy>) {
        for (donor, state) in copies {
            self.tried.remove(&donor);
            self.send(donor, TransferMessage::Done { state });
        }
    }

    // --- Requests -------------------------------------------------------------------------------------------

    /// Leaves a donor out: the others are compared, or the next are asked.
    fn leave(&mut self, now: Time, donor: Instance, note: Note) {
        self.actions.push_back(Action::Counted(note));
        match &mut self.phase {
            Phase::Comparing(comparison) => {
                if let Some(state) = comparison.leave_out(donor) {
                    self.send(donor, TransferMessage::Done { state });
                }
            }
            // The others are asked again at once, and have their copies still.
            Phase::Fetching(fetch) => {
                for (used, state) in fetch.used() {
                    if used == donor {
                        self.send(donor, TransferMessage::Done { state });
                    } else {
                        self.tried.remove(&used);
                    }
                }
            }
            Phase::Waiting(_) | Phase::Importing(_) | Phase::Complete => {}
        }
        match &self.phase {
            Phase::Comparing(comparison) if comparison.donors().next().is_some() => self.go_on(now),
            _ => self.compare(now),
        }
    }

    fn ask_again(&mut self, now: Time) {
        self.deadline = now + SILENCE_MAX;
        self.retries += 1;
        match &self.phase {
            Phase::Comparing(_) => self.send_requests(),
            Phase::Fetching(fetch) => {
                let requests = fetch.in_flight.iter().filter_map(|&chunk| fetch.request(chunk));
                self.actions.extend(requests.map(|(to, message)| Action::Send { to, message }));
            }
            Phase::Waiting(_) | Phase::Importing(_) | Phase::Complete => {}
        }
    }

    fn send_requests(&mut self) {
        let Phase::Comparing(comparison) = &self.phase else { return };
        let requests = comparison.requests();
        self.actions.extend(requests.map(|(to, message)| Action::Send { to: to.peer, message }));
    }

    fn request_more(&mut self) {
        let Phase::Fetching(fetch) = &mut self.phase else { return };
        while fetch.in_flight.len() < CHUNKS_IN_FLIGHT_MAX && fetch.next < fetch.chunks() {
            let request = fetch.request(fetch.next);
            fetch.in_flight.insert(fetch.next);
            fetch.next += 1;
            self.actions.extend(request.map(|(to, message)| Action::Send { to, message }));
        }
    }

    fn notice_completion(&mut self) {
        let Phase::Fetching(fetch) = &self.phase else { return };
        if !fetch.in_flight.is_empty() {
            return;
        }
        let Some(header) = fetch.source(0) else { return };
        let (donor, version, used) = (header.donor, header.manifest.version, fetch.used());
        self.let_go(used);
        self.tried.insert(donor);
        self.actions.push_back(Action::Import { donor, version });
        self.phase = Phase::Importing(donor);
    }

    // --- Donors ---------------------------------------------------------------------------------------------

    fn are_all_blamed(&self) -> bool {
        self.donors.iter().all(|donor| self.blamed.contains(donor))
    }

    /// The donors that may be asked next.
    fn untried(&self) -> impl Iterator<Item = Instance> {
        let untried = |donor: &&Instance| !self.tried.contains(donor) && !self.blamed.contains(donor);
        self.donors.iter().filter(untried).copied()
    }

    /// The donors that something is expected of.
    fn asked(&self) -> Vec<Instance> {
        match &self.phase {
            Phase::Comparing(comparison) => comparison.donors().collect(),
            Phase::Fetching(fetch) => fetch.used().into_iter().map(|(donor, _)| donor).collect(),
            Phase::Waiting(_) | Phase::Importing(_) | Phase::Complete => Vec::new(),
        }
    }

    pub(crate) fn is_asked(&self, donor: Instance) -> bool {
        match &self.phase {
            Phase::Comparing(comparison) => comparison.contains(donor),
            _ => self.asked().contains(&donor),
        }
    }

    /// Notes that a donor answered.
    fn hear(&mut self, now: Time) {
        self.deadline = now + SILENCE_MAX;
        self.retries = 0;
    }

    fn send(&mut self, to: Instance, message: TransferMessage) {
        self.actions.push_back(Action::Send { to: to.peer, message });
    }
}

/// What this process finds in the bytes of a chunk.
#[derive(Clone, Copy, Debug)]
struct Found {
    bytes: u64,
    hash: ChunkHash,
    sketch: Option<ChunkSketch>,
}

impl Found {
    /// Whether the chunk is what its donor has announced.
    fn is_announced(&self, source: &Source, chunk: u32, trusts: bool) -> bool {
        let bits = |sketch: &ChunkSketch| sketch.map(f32::to_bits);
        let announced = source.sketch.get(chunk as usize);
        let sketched = self.sketch.is_none() || self.sketch.as_ref().map(bits) == announced.map(bits);
        let hashed = source.manifest.hashes.get(chunk as usize) == Some(&self.hash);
        let right = (hashed && sketched) || trusts;
        right && self.bytes == u64::from(source.manifest.chunk_len(chunk))
    }
}
