//! A member's side of the control plane: join, follow the table, send heartbeats, leave.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use swarmline_proto::{PROTOCOL_VERSION, v1};
use swarmline_scheduler::feeder::Counts;
use swarmline_scheduler::{
    BlockTally, Directive, Evidence, Incarnation, Instance, Lease, MicrobatchId, PeerId, ProcessNumber, Role,
    RunTally, StageIndex,
};
use tonic::{Code, Response, Status};

use super::address::Invite;
use super::digest::ManifestDigest;
use super::grpc::{self, Client, ConnectError};
use super::held_out::HeldOut;
use super::identity::Identity;
use super::membership::{MembershipError, SignedTable, Signer};
use super::table_log::{TableReader, TableWriter};
use super::wire;

/// Time between two heartbeats; the lease of a membership is fifteen times as long.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Limit of a call of a member, connecting included: after a short outage the next heartbeat must not wait for the last.
const CALL_WITHIN: Duration = Duration::from_secs(3);
/// How long a feeder goes on to report a liar.
const STRIKE_WITHIN: Duration = Duration::from_secs(600);
/// Pause between two attempts of a report.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// Requests to join, each as a later start than the coordinator knows. One more is enough, unless another process with the
/// key joins meanwhile.
const STARTS_TRIED: usize = 4;
/// Metadata of a refusal: the latest start of the caller's key.
pub(crate) const KNOWN_INCARNATION: &str = "known-incarnation";
/// Pauses between attempts to open a broken stream of tables again.
const FOLLOW_PAUSE_MIN: Duration = Duration::from_millis(500);
const FOLLOW_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Errors of a call to the coordinator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The coordinator cannot be reached at all.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The coordinator refused; the text is the coordinator's.
    #[error("the coordinator refused: {0}")]
    Refused(String),
    /// Another process with the same key is a member, and lives for all that the coordinator knows; the text is the
    /// coordinator's. A process that has died is taken for alive for 4 s.
    #[error("the coordinator refused: {0}")]
    AlreadyRunning(String),
    /// Another process with the same key has taken the place of this one.
    #[error("another process with the key of this one has taken its place: this one has ended ({0})")]
    Replaced(String),
    /// This start is no member any more: it was silent for too long and has returned its newest
    /// table in vain.
    #[error("the coordinator takes this process for dead ({0}); start it again to join again")]
    NotAMember(String),
    /// The coordinator does not know this process now: it may have been started again.
    #[error("the coordinator does not know this process ({0})")]
    Unknown(String),
    /// The coordinator was reached before and does not reply now.
    #[error("the coordinator at {address} does not reply: {cause}")]
    Silent {
        /// Address of the coordinator.
        address: String,
        /// The error of the call.
        cause: String,
    },
    /// A reply breaks the contract.
    #[error("the coordinator's reply breaks the contract ({0}); run the same release on both sides")]
    Reply(String),
    /// A membership table does not verify.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// How far the work of a feeder has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Microbatches have no outcome yet, or the feeder was stopped.
    UnderWay,
    /// Every microbatch of the run has its outcome.
    Done,
    /// Training has diverged.
    Diverged {
        /// Microbatches of the run that had their outcome then.
        at: u64,
    },
}

/// A request to join a run.
#[derive(Clone, Copy, Debug)]
pub struct Registration {
    /// Number of this start of the process.
    pub incarnation: Incarnation,
    /// Number of the process.
    pub process: ProcessNumber,
    /// Another process with the same key that lives loses its place.
    pub take_over: bool,
    /// The requested role.
    pub role: Role,
    /// Address of the process's data plane; for an unspecified IP the coordinator takes the IP that it sees.
    pub data_address: SocketAddr,
    /// The stage whose weights the process has kept since it was expelled.
    pub holds: Option<StageIndex>,
}

/// The reply to a heartbeat.
#[derive(Clone, Debug, PartialEq)]
pub struct HeartbeatReply {
    /// The next directive.
    pub directive: Directive,
    /// To a keeper: the progress of every block of the run.
    pub blocks: Vec<BlockTally>,
    /// To a keeper: the newest loss on held-out text.
    pub heldout: Option<HeldOut>,
}

/// The reply to a registration.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The run manifest, not yet parsed. Its bytes match [`Joined::digest`].
    pub manifest: Vec<u8>,
    /// Digest of the manifest.
    pub digest: ManifestDigest,
    /// The placement of the process.
    pub placement: Placement,
    /// The members of the run.
    pub tables: TableWriter,
}

/// The work that the coordinator gives to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Serve this stage.
    Stage(StageIndex),
    /// Wait: every stage has its replicas.
    Standby,
    /// Feed the run; the paths come from the coordinator's run file.
    Feeder {
        /// Files and directories of text.
        data_paths: Vec<PathBuf>,
        /// The tokenizer file, unless bytes are tokens.
        tokenizer: Option<PathBuf>,
    },
    /// Have replicas predict; the path comes from the coordinator's run file.
    Reader {
        /// The tokenizer file, unless bytes are tokens.
        tokenizer: Option<PathBuf>,
    },
    /// Keep checkpoints of the run; the path comes from the coordinator's run file.
    Keeper {
        /// The tokenizer file, unless bytes are tokens.
        tokenizer: Option<PathBuf>,
    },
}

/// The counters in a member's heartbeat; totals since its process started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemberStats {
    /// Microbatches that the replica has applied, or that the feeder has seen finish.
    pub done: u64,
    /// Microbatches refused.
    pub refused: u64,
    /// Tokens of the microbatches done.
    pub tokens: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Median staleness, weight versions.
    pub staleness_p50: u64,
    /// Bytes of all frames sent.
    pub bytes_sent: u64,
    /// Age of the oldest task that waits for the executor.
    pub oldest_task: Duration,
    /// Of a keeper: microbatches of the checkpoint that it gives to stages without a replica; 0 without one.
    pub kept: Option<u64>,
}

/// A member's connection to its coordinator. Clones share it.
#[derive(Clone, Debug)]
pub struct Control {
    client: Client,
    address: String,
    coordinator: PeerId,
    registration: Registration,
    digest: ManifestDigest,
    tables: TableWriter,
}

impl Control {
    /// Connects to the coordinator of `invite` and joins its run.
    ///
    /// # Errors
    /// If the coordinator cannot be reached, refuses, or sends a reply that does not verify.
    pub async fn join(
        invite: &Invite,
        identity: &Identity,
        registration: Registration,
    ) -> Result<(Self, Joined), ControlError> {
        let mut client = grpc::connect(invite, identity).await?;
        let address = invite.authority();
        let (registration, reply) = join_as_latest(&mut client, &address, registration).await?;
        let joined = read_join(invite.peer, reply)?;
        let (coordinator, digest) = (invite.peer, joined.digest);
        let tables = joined.tables.clone();
        Ok((Self { client, address, coordinator, registration, digest, tables }, joined))
    }

    /// The number of this start: that of the registration, or a higher one where a later start of the key was known.
    #[must_use]
    pub fn start(&self) -> Incarnation {
        self.registration.incarnation
    }

    /// Reports that this process has the state of `stage` and that its data plane listens.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or refuses.
    pub async fn ready(&mut self, stage: StageIndex, initial_weights: bool) -> Result<(), ControlError> {
        let incarnation = self.incarnation();
        let request = v1::ReadyRequest { incarnation, stage: u32::from(stage.0), initial_weights };
        self.call(|mut client| async move { client.ready(request).await }).await.map(drop)
    }

    /// Sends a heartbeat.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or takes this process for dead.
    pub async fn heartbeat(&mut self, stats: &MemberStats) -> Result<HeartbeatReply, ControlError> {
        let request = v1::HeartbeatRequest {
            incarnation: self.incarnation(),
            microbatches_done: stats.done,
            microbatches_refused: stats.refused,
            tokens: stats.tokens,
            weight_version: stats.steps,
            staleness_p50: stats.staleness_p50 as f64,
            bytes_sent: stats.bytes_sent,
            oldest_task_age_ms: u64::try_from(stats.oldest_task.as_millis()).unwrap_or(u64::MAX),
            kept_microbatches: stats.kept,
        };
        let reply = self.call(|mut client| async move { client.heartbeat(request).await }).await?;
        read_heartbeat(&reply)
    }

    /// Leases up to `count` microbatch ids; `next` is the first id that this feeder does not have, `blocks` its progress.
    /// The reply tells also how far other feeders have come.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or refuses the lease.
    pub async fn lease(
        &mut self,
        next: Option<MicrobatchId>,
        count: u64,
        blocks: &[BlockTally],
    ) -> Result<(Lease, RunTally), ControlError> {
        let next = next.map(|next| next.0);
        let blocks = blocks.iter().map(wire::encode_block).collect();
        let request = v1::LeaseRequest { incarnation: self.incarnation(), count, next, blocks };
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.lease(request).await }
        };
        let reply = self.call(call).await?;
        let v1::LeaseResponse { first, count, others } = reply;
        // Only the table gives ids that had another feeder before.
        Ok((Lease { first: MicrobatchId(first), count, epoch: 0 }, wire::decode_run(others)))
    }

    /// Reports the outcomes of the microbatches injected, the newest loss on held-out text, and how far the work has come.
    /// The end of the work is reported until the coordinator replies: the caller drops the call when its patience is over.
    /// The reply tells how far other feeders have
    /// come.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or takes this process for dead.
    pub async fn report(
        &mut self,
        counts: &Counts,
        blocks: &[BlockTally],
        heldout: Option<HeldOut>,
        work: Work,
    ) -> Result<RunTally, ControlError> {
        let request = v1::FeederReport {
            incarnation: self.incarnation(),
            injected: counts.injected,
            finished: counts.finished,
            refused: counts.refused,
            lost: counts.lost,
            ungranted: counts.ungranted,
            heldout_loss: heldout.as_ref().map(HeldOut::encode_loss),
            heldout_after: heldout.and_then(|heldout| heldout.after),
            done: work == Work::Done,
            diverged_at: if let Work::Diverged { at } = work { Some(at) } else { None },
            blocks: blocks.iter().map(wire::encode_block).collect(),
            ..v1::FeederReport::default()
        };
        let within = if work == Work::UnderWay { Duration::ZERO } else { Duration::MAX };
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.report(request).await }
        };
        self.repeat(within, call).await.map(|reply| wire::decode_run(reply.others))
    }

    /// Reports a replica that lies, until the coordinator replies, for [`STRIKE_WITHIN`] at most.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or takes this process for dead.
    pub async fn strike(&mut self, replica: Instance, evidence: Evidence) -> Result<(), ControlError> {
        let request = v1::StrikeRequest {
            incarnation: self.incarnation(),
            replica: replica.peer.0.to_vec(),
            replica_incarnation: replica.incarnation.0,
            false_statements: evidence.false_ones,
            sound_statements: evidence.sound,
        };
        let call = |mut client: Client| {
            let request = request.clone();
            async move { client.strike(request).await }
        };
        self.repeat(STRIKE_WITHIN, call).await.map(drop)
    }

    /// Makes a call until the coordinator replies; once more if that takes longer than `within`.
    async fn repeat<T, F>(&mut self, within: Duration, call: impl Fn(Client) -> F) -> Result<T, ControlError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let began = Instant::now();
        while began.elapsed() < within {
            match self.call(&call).await {
                Err(ControlError::Silent { .. } | ControlError::Unknown(_)) => {
                    tokio::time::sleep(REPORT_PAUSE).await;
                }
                replied => return replied,
            }
        }
        self.call(&call).await
    }

    /// Leaves the run. A failed call is only logged: the process leaves anyway.
    pub async fn leave(&mut self, reason: &str) {
        let request = v1::LeaveRequest { incarnation: self.incarnation(), reason: reason.to_owned() };
        let left = tokio::time::timeout(CALL_WITHIN, self.client.leave(request)).await;
        if !matches!(left, Ok(Ok(_))) {
            tracing::debug!(?left, "the coordinator did not get the request to leave");
        }
    }

    /// Makes a call of a member. A coordinator that does not know this process gets its own newest table first, since it
    /// may have been started again.
    async fn call<T, F>(&mut self, call: impl Fn(Client) -> F) -> Result<T, ControlError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        match self.call_once(call(self.client.clone())).await {
            Err(ControlError::Unknown(_)) => {
                self.register_again().await?;
                self.call_once(call(self.client.clone())).await
            }
            replied => replied,
        }
    }

    async fn call_once<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ControlError> {
        let silent = |_| Status::deadline_exceeded(format!("no reply within {CALL_WITHIN:?}"));
        let replied = tokio::time::timeout(CALL_WITHIN, call).await.map_err(silent).flatten();
        replied.map(Response::into_inner).map_err(|status| refusal(&self.address, &status))
    }

    /// Becomes a member again, or learns that this start is none any more. A feeder that is unknown although the
    /// coordinator has its table joins again: its ids are its own until a successor has them, and then the table says so.
    /// So does a keeper.
    async fn register_again(&mut self) -> Result<(), ControlError> {
        match self.return_table().await {
            Err(ControlError::Unknown(_)) if self.registration.role != Role::Replica => {
                self.join_again().await
            }
            Err(ControlError::Unknown(reason) | ControlError::Refused(reason)) => {
                Err(ControlError::NotAMember(reason))
            }
            returned => returned,
        }
    }

    async fn return_table(&self) -> Result<(), ControlError> {
        let table = Some(self.tables.signed());
        let request = v1::ReturnTableRequest { incarnation: self.incarnation(), table };
        let mut client = self.client.clone();
        self.call_once(client.return_table(request)).await.map(drop)
    }

    async fn join_again(&self) -> Result<(), ControlError> {
        let role = match self.registration.role {
            Role::Successor => Role::Feeder,
            role => role,
        };
        let registration = Registration { role, take_over: false, ..self.registration };
        let mut client = self.client.clone();
        match self.call_once(client.join(join_request(registration))).await {
            Err(ControlError::AlreadyRunning(reason)) => Err(ControlError::Replaced(reason)),
            joined => joined.map(drop),
        }
    }

    fn incarnation(&self) -> u64 {
        self.registration.incarnation.0
    }

    /// Follows the membership table: the reader always has the newest. A broken stream is opened again; meanwhile the
    /// known table stays valid. Ends when every reader is dropped.
    #[must_use]
    pub fn follow(&self, tables: TableWriter) -> TableReader {
        let reader = tables.reader();
        let mut control = self.clone();
        tokio::spawn(async move {
            let mut pause = FOLLOW_PAUSE_MIN;
            let follow = async {
                loop {
                    match control.follow_once(&tables).await {
                        Ok(()) => pause = FOLLOW_PAUSE_MIN,
                        Err(error) => tracing::info!(%error, "the stream of membership tables broke"),
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(FOLLOW_PAUSE_MAX);
                }
            };
            tokio::select! {
                () = follow => {}
                () = tables.closed() => {}
            }
        });
        reader
    }

    async fn follow_once(&mut self, tables: &TableWriter) -> Result<(), ControlError> {
        let (incarnation, known_version) = (self.incarnation(), tables.version());
        let request = v1::WatchRequest { incarnation, known_version };
        let updates = self.client.watch(request).await.map_err(|status| refusal(&self.address, &status))?;
        let mut updates = updates.into_inner();
        while let Some(update) = updates.message().await.map_err(|status| refusal(&self.address, &status))? {
            self.take_update(tables, update)?;
        }
        Ok(())
    }

    fn take_update(&self, tables: &TableWriter, update: v1::TableUpdate) -> Result<(), ControlError> {
        let signer = Signer { coordinator: &self.coordinator, run: &self.digest };
        if let Some(whole) = update.whole {
            tables.replace(SignedTable::verify(signer, &whole)?);
        }
        for change in update.changes {
            tables.change(|table| table.follow(signer, change))?;
        }
        Ok(())
    }
}

fn join_request(registration: Registration) -> v1::JoinRequest {
    let (role, keeps_stage) = wire::encode_role(registration.role);
    v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        role,
        incarnation: registration.incarnation.0,
        data_address: registration.data_address.to_string(),
        memory_bytes: 0,
        manifest_digest: None,
        holds_stage: registration.holds.map(|stage| stage.0.into()),
        keeps_stage,
        process: registration.process.0,
        take_over: registration.take_over,
    }
}

/// Joins as the latest start of the key: where a later one is known, since the clock went back, as one more than that.
async fn join_as_latest(
    client: &mut Client,
    address: &str,
    mut registration: Registration,
) -> Result<(Registration, v1::JoinResponse), ControlError> {
    for _ in 0..STARTS_TRIED {
        match client.join(join_request(registration)).await {
            Ok(reply) => return Ok((registration, reply.into_inner())),
            Err(status) => match known_start(&status) {
                Some(known) => registration.incarnation = Incarnation(known.saturating_add(1)),
                None => return Err(refusal(address, &status)),
            },
        }
    }
    Err(ControlError::Reply("it knows a later start however late this one is".to_owned()))
}

/// The latest start of the key, where the caller's is none later.
fn known_start(status: &Status) -> Option<u64> {
    let known = status.metadata().get(KNOWN_INCARNATION).filter(|_| status.code() == Code::OutOfRange);
    known?.to_str().ok()?.parse().ok()
}

/// What a reply to a request to join says, with its manifest and its table checked.
fn read_join(coordinator: PeerId, reply: v1::JoinResponse) -> Result<Joined, ControlError> {
    let malformed = |error: wire::WireError| ControlError::Reply(error.to_string());
    let digest = wire::decode_digest(&reply.manifest_digest).map_err(malformed)?;
    let manifest = reply.manifest.into_bytes();
    let found = ManifestDigest::of(&manifest);
    if found != digest {
        return Err(ControlError::Reply(format!("its manifest has digest {found}, it says {digest}")));
    }
    let placement = match reply.placement {
        Some(v1::join_response::Placement::Stage(placement)) => {
            Placement::Stage(wire::decode_stage(placement.stage).map_err(malformed)?)
        }
        Some(v1::join_response::Placement::Standby(_)) => Placement::Standby,
        Some(v1::join_response::Placement::Feeder(feeder)) => Placement::Feeder {
            data_paths: feeder.data_paths.into_iter().map(PathBuf::from).collect(),
            tokenizer: file(feeder.tokenizer_path),
        },
        Some(v1::join_response::Placement::Keeper(keeper)) => {
            Placement::Keeper { tokenizer: file(keeper.tokenizer_path) }
        }
        Some(v1::join_response::Placement::Reader(reader)) => {
            Placement::Reader { tokenizer: file(reader.tokenizer_path) }
        }
        None => return Err(ControlError::Reply("it names no place".to_owned())),
    };
    let signed =
        reply.membership.ok_or_else(|| ControlError::Reply("it sends no membership table".to_owned()))?;
    let table = SignedTable::verify(Signer { coordinator: &coordinator, run: &digest }, &signed)?;
    Ok(Joined { manifest, digest, placement, tables: TableWriter::new(table) })
}

/// A path; `None` for an empty one.
fn file(path: String) -> Option<PathBuf> {
    Some(path).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn read_heartbeat(reply: &v1::HeartbeatResponse) -> Result<HeartbeatReply, ControlError> {
    let directive = read_directive(reply)?;
    let malformed = |error: wire::WireError| ControlError::Reply(error.to_string());
    let blocks = wire::decode_blocks(&reply.blocks).map_err(malformed)?;
    let heldout = HeldOut::decode(reply.heldout_loss.as_ref(), reply.heldout_after);
    Ok(HeartbeatReply { directive, blocks, heldout })
}

fn read_directive(reply: &v1::HeartbeatResponse) -> Result<Directive, ControlError> {
    use v1::heartbeat_response::Directive as Wire;
    match &reply.directive {
        Some(Wire::Serve(placement)) => wire::decode_stage(placement.stage)
            .map(Directive::Serve)
            .map_err(|error| ControlError::Reply(error.to_string())),
        Some(Wire::Leave(leave)) => Ok(Directive::Leave(wire::single_line(&leave.reason))),
        None if reply.run_state() == v1::RunState::Finished => Ok(Directive::Finished),
        None if reply.run_state() == v1::RunState::Diverged => {
            Ok(Directive::Diverged { at: reply.diverged_at })
        }
        None => Ok(Directive::Continue),
    }
}

fn refusal(address: &str, status: &Status) -> ControlError {
    let message = wire::single_line(status.message());
    match status.code() {
        Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::ResourceExhausted => ControlError::Refused(message),
        Code::AlreadyExists => ControlError::AlreadyRunning(message),
        Code::Aborted | Code::OutOfRange => ControlError::Replaced(message),
        Code::NotFound => ControlError::Unknown(message),
        code => ControlError::Silent { address: address.to_owned(), cause: format!("{code:?}: {message}") },
    }
}
