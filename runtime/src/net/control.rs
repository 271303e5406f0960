//! A member's side of the control plane: enter, follow the table, give signs of life, leave.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use swarmline_proto::{PROTOCOL_VERSION, v1};
use swarmline_scheduler::{Incarnation, Lease, Membership, MicrobatchId, PeerId, Role, StageIndex};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::address::Invite;
use super::digest::ManifestDigest;
use super::grpc::{self, Client, ConnectError};
use super::identity::Identity;
use super::membership::{self, MembershipError};
use super::wire;

/// Signs of life come this often; the coordinator's patience is five times that.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// Pauses between attempts to follow the table again after the stream broke.
const FOLLOW_PAUSE_MIN: Duration = Duration::from_millis(500);
const FOLLOW_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Why a member cannot deal with its coordinator.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be reached at all.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It said no; the text is its own.
    #[error("{0}")]
    Refused(String),
    /// It takes this process for dead, or has never heard of it.
    #[error("the coordinator takes this process for gone ({0}); start it again to join anew")]
    NotAMember(String),
    /// It was reached before and does not answer now.
    #[error("the coordinator at {address} does not answer: {cause}")]
    Silent {
        /// Where it was.
        address: String,
        /// What the call said.
        cause: String,
    },
    /// Its answer breaks the contract.
    #[error("the coordinator's answer makes no sense ({0}); run the same release on both sides")]
    Answer(String),
    /// Its membership table does not verify.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// Who asks to enter, and as what.
#[derive(Clone, Copy, Debug)]
pub struct Applicant {
    /// Which start of this process.
    pub incarnation: Incarnation,
    /// What for.
    pub role: Role,
    /// Where its data plane listens; an unspecified IP stands for the one the coordinator sees.
    pub data_address: SocketAddr,
}

/// What an applicant is told.
#[derive(Clone, Debug)]
pub struct Entrance {
    /// The run manifest, not yet parsed; its digest is checked.
    pub manifest: Vec<u8>,
    /// The digest.
    pub digest: ManifestDigest,
    /// What to do.
    pub placement: Placement,
    /// Who takes part.
    pub membership: Membership,
}

/// What the coordinator wants of a newcomer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Serve this stage.
    Stage(StageIndex),
    /// Every stage is served: wait.
    Standby,
    /// Feed the run; the paths are the coordinator's.
    Feeder {
        /// Files and directories of text.
        data_paths: Vec<PathBuf>,
        /// The tokenizer file, unless bytes are tokens.
        tokenizer: Option<PathBuf>,
    },
}

/// What a member counts, as its heartbeat says it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Vitals {
    /// Microbatches this peer finished its part of.
    pub done: u64,
    /// Microbatches this peer refused.
    pub refused: u64,
    /// Tokens of the microbatches done.
    pub tokens: u64,
    /// Optimizer steps.
    pub updates: u64,
    /// Median staleness, weight versions.
    pub staleness_p50: u64,
    /// Bytes of all frames sent.
    pub bytes_sent: u64,
    /// Age of the oldest task that waits for the executor.
    pub oldest_task: Duration,
}

/// What the coordinator wants now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Directive {
    /// Go on.
    Continue,
    /// Serve this stage: a standby is needed.
    Serve(StageIndex),
    /// The run is over: leave.
    Finished,
    /// Finish what is in flight, then leave; for people, why.
    Leave(String),
}

/// What a feeder reports; totals since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FeederTotals {
    /// Microbatches sent to stage 0.
    pub injected: u64,
    /// Finished.
    pub finished: u64,
    /// Refused.
    pub refused: u64,
    /// Given up.
    pub lost: u64,
    /// Stages of finished microbatches nobody was granted.
    pub ungranted: u64,
    /// Nothing is left to inject and nothing in flight.
    pub done: bool,
}

/// A member's line to its coordinator. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Control {
    client: Client,
    address: String,
    coordinator: PeerId,
    incarnation: Incarnation,
    digest: ManifestDigest,
}

impl Control {
    /// Connects to the coordinator of `invite` and asks to take part.
    ///
    /// # Errors
    /// If it cannot be reached, says no, or answers with something that does not verify.
    pub async fn enter(
        invite: &Invite,
        identity: &Identity,
        applicant: Applicant,
    ) -> Result<(Self, Entrance), ControlError> {
        let mut client = grpc::connect(invite, identity).await?;
        let request = v1::JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            role: wire::encode_role(applicant.role),
            incarnation: applicant.incarnation.0,
            data_address: applicant.data_address.to_string(),
            memory_bytes: 0,
            manifest_digest: None,
        };
        let address = invite.authority();
        let answer = client.join(request).await.map_err(|status| refusal(&address, &status))?.into_inner();
        let entrance = read_entrance(invite.peer, answer)?;
        let (coordinator, digest) = (invite.peer, entrance.digest);
        Ok((Self { client, address, coordinator, incarnation: applicant.incarnation, digest }, entrance))
    }

    /// Says that the shard of `stage` is built and the data plane listens.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or has another idea.
    pub async fn ready(&mut self, stage: StageIndex) -> Result<(), ControlError> {
        let request = v1::ReadyRequest { incarnation: self.incarnation.0, stage: u32::from(stage.0) };
        self.client.ready(request).await.map(drop).map_err(|status| refusal(&self.address, &status))
    }

    /// Gives a sign of life and hears what the coordinator wants.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or takes this process for gone.
    pub async fn heartbeat(&mut self, vitals: &Vitals) -> Result<Directive, ControlError> {
        let request = v1::HeartbeatRequest {
            incarnation: self.incarnation.0,
            microbatches_done: vitals.done,
            microbatches_refused: vitals.refused,
            tokens: vitals.tokens,
            weight_version: vitals.updates,
            staleness_p50: vitals.staleness_p50 as f64,
            bytes_sent: vitals.bytes_sent,
            oldest_task_age_ms: u64::try_from(vitals.oldest_task.as_millis()).unwrap_or(u64::MAX),
        };
        let answer =
            self.client.heartbeat(request).await.map_err(|status| refusal(&self.address, &status))?;
        read_directive(&answer.into_inner())
    }

    /// Leases up to `count` microbatch ids.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or leases nothing.
    pub async fn lease(&mut self, count: u64) -> Result<Lease, ControlError> {
        let request = v1::LeaseRequest { incarnation: self.incarnation.0, count };
        let answer = self.client.lease(request).await.map_err(|status| refusal(&self.address, &status))?;
        let answer = answer.into_inner();
        Ok(Lease { first: MicrobatchId(answer.first), count: answer.count, epoch: answer.epoch })
    }

    /// Tells what became of the microbatches injected.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or takes this process for gone.
    pub async fn report(&mut self, totals: &FeederTotals) -> Result<(), ControlError> {
        let request = v1::FeederReport {
            incarnation: self.incarnation.0,
            injected: totals.injected,
            finished: totals.finished,
            refused: totals.refused,
            lost: totals.lost,
            ungranted: totals.ungranted,
            done: totals.done,
            ..v1::FeederReport::default()
        };
        self.client.report(request).await.map(drop).map_err(|status| refusal(&self.address, &status))
    }

    /// Leaves in an orderly way. That it fails changes nothing for who leaves.
    pub async fn leave(&mut self, reason: &str) {
        let request = v1::LeaveRequest { incarnation: self.incarnation.0, reason: reason.to_owned() };
        if let Err(status) = self.client.leave(request).await {
            tracing::debug!(%status, "the coordinator did not hear the farewell");
        }
    }

    /// Follows the membership table: the receiver always has the newest one. A broken stream is opened again; the
    /// table known stays valid meanwhile. Ends when the receiver is dropped.
    #[must_use]
    pub fn follow(&self, known: Membership) -> (watch::Receiver<Membership>, JoinHandle<()>) {
        let (newest, receiver) = watch::channel(known);
        let mut control = self.clone();
        let task = tokio::spawn(async move {
            let mut pause = FOLLOW_PAUSE_MIN;
            while !newest.is_closed() {
                match control.follow_once(&newest).await {
                    Ok(()) => pause = FOLLOW_PAUSE_MIN,
                    Err(error) => tracing::info!(%error, "the stream of membership tables broke"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(FOLLOW_PAUSE_MAX);
            }
        });
        (receiver, task)
    }

    async fn follow_once(&mut self, newest: &watch::Sender<Membership>) -> Result<(), ControlError> {
        let request = v1::WatchRequest { incarnation: self.incarnation.0 };
        let tables = self.client.watch(request).await.map_err(|status| refusal(&self.address, &status))?;
        let mut tables = tables.into_inner();
        while let Some(signed) = tables.message().await.map_err(|status| refusal(&self.address, &status))? {
            let table = membership::verify(&self.coordinator, &self.digest, &signed)?;
            newest.send_if_modified(|known| {
                let newer = table.version > known.version;
                if newer {
                    *known = table;
                }
                newer
            });
        }
        Ok(())
    }
}

fn read_entrance(coordinator: PeerId, answer: v1::JoinResponse) -> Result<Entrance, ControlError> {
    let nonsense = |error: wire::WireError| ControlError::Answer(error.to_string());
    let digest = wire::decode_digest(&answer.manifest_digest).map_err(nonsense)?;
    let manifest = answer.manifest.into_bytes();
    let found = ManifestDigest::of(&manifest);
    if found != digest {
        return Err(ControlError::Answer(format!("its manifest has digest {found}, it says {digest}")));
    }
    let placement = match answer.placement {
        Some(v1::join_response::Placement::Stage(placement)) => {
            Placement::Stage(wire::decode_stage(placement.stage).map_err(nonsense)?)
        }
        Some(v1::join_response::Placement::Standby(_)) => Placement::Standby,
        Some(v1::join_response::Placement::Feeder(feeder)) => Placement::Feeder {
            data_paths: feeder.data_paths.into_iter().map(PathBuf::from).collect(),
            tokenizer: Some(feeder.tokenizer_path).filter(|path| !path.is_empty()).map(PathBuf::from),
        },
        None => return Err(ControlError::Answer("it says nothing about what to do".to_owned())),
    };
    let signed =
        answer.membership.ok_or_else(|| ControlError::Answer("it sends no membership table".to_owned()))?;
    let membership = membership::verify(&coordinator, &digest, &signed)?;
    Ok(Entrance { manifest, digest, placement, membership })
}

fn read_directive(answer: &v1::HeartbeatResponse) -> Result<Directive, ControlError> {
    use v1::heartbeat_response::Directive as Wire;
    match &answer.directive {
        Some(Wire::Serve(placement)) => wire::decode_stage(placement.stage)
            .map(Directive::Serve)
            .map_err(|error| ControlError::Answer(error.to_string())),
        Some(Wire::Leave(leave)) => Ok(Directive::Leave(wire::single_line(&leave.reason))),
        None if answer.run_state() == v1::RunState::Finished => Ok(Directive::Finished),
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
        Code::Aborted | Code::NotFound => ControlError::NotAMember(message),
        code => ControlError::Silent { address: address.to_owned(), cause: format!("{code:?}: {message}") },
    }
}
