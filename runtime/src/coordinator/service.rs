//! The gRPC service: requests become events of the machine, and its replies become responses.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;

use chrono::DateTime;
use swarmline_proto::{PROTOCOL_VERSION, v1};
use swarmline_scheduler::coordinator::{Event, FeederReport, Join, JoinRefusal, Reply as MachineReply};
use swarmline_scheduler::stage::Progress;
use swarmline_scheduler::{
    Duration, Evidence, Incarnation, Instance, MemberState, MicrobatchId, PeerId, ProcessNumber,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request as Call, Response, Status};

use super::{Published, Reply, Request};
use crate::net::control::KNOWN_INCARNATION;
use crate::net::grpc::Caller;
use crate::net::held_out::HeldOut;
use crate::net::membership::{SignedTable, Signer};
use crate::net::wire;
use crate::report::Totals;

/// The service that peers call.
#[derive(Debug)]
pub(super) struct Service {
    published: Published,
    coordinator: PeerId,
    requests: mpsc::Sender<Request>,
}

impl Service {
    pub(super) fn new(published: Published, coordinator: PeerId, requests: mpsc::Sender<Request>) -> Self {
        Self { published, coordinator, requests }
    }

    async fn ask(&self, event: Event) -> Result<Reply, Status> {
        let (reply, replied) = oneshot::channel();
        let gone = |()| Status::unavailable("the coordinator is stopping");
        self.requests.send(Request { event, reply }).await.map_err(|_| gone(()))?;
        replied.await.map_err(|_| gone(()))
    }

    /// Sends `event` to the loop; returns the state of the member.
    async fn ask_member(&self, event: Event) -> Result<MemberState, Status> {
        member(&self.ask(event).await?)
    }

    fn joined(&self, state: MemberState) -> v1::JoinResponse {
        use v1::join_response::Placement;
        let placement = match state {
            MemberState::Loading(stage) | MemberState::Serving(stage) => {
                Placement::Stage(v1::StagePlacement { stage: stage.0.into() })
            }
            MemberState::Standby => Placement::Standby(v1::StandbyPlacement {}),
            MemberState::Feeding => Placement::Feeder(v1::FeederPlacement {
                data_paths: self.published.data_paths.clone(),
                tokenizer_path: self.published.tokenizer_path.clone(),
            }),
            MemberState::Reading => Placement::Reader(v1::ReaderPlacement {
                tokenizer_path: self.published.tokenizer_path.clone(),
            }),
            MemberState::Keeping(_) => Placement::Keeper(v1::KeeperPlacement {
                tokenizer_path: self.published.tokenizer_path.clone(),
            }),
        };
        v1::JoinResponse {
            manifest: self.published.manifest.clone(),
            manifest_digest: self.published.digest.0.to_vec(),
            placement: Some(placement),
            membership: Some(self.published.table.signed()),
        }
    }
}

#[tonic::async_trait]
impl v1::coordinator_server::Coordinator for Service {
    async fn join(&self, call: Call<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let caller = Caller::of(&call)?;
        let request = call.into_inner();
        self.check_version(request.protocol_version)?;
        self.check_digest(request.manifest_digest.as_deref())?;
        let claimed = wire::decode_address(&request.data_address).map_err(invalid)?;
        let address = proven(claimed, caller.address.ip())?;
        let join = Join {
            from: caller.instance(request.incarnation),
            process: ProcessNumber(request.process),
            takes_over: request.take_over,
            role: wire::decode_role(request.role, request.keeps_stage).map_err(invalid)?,
            address,
            holds: request.holds_stage.map(wire::decode_stage).transpose().map_err(invalid)?,
        };
        match self.ask(Event::Join(join)).await?.reply {
            MachineReply::Joined(state) => Ok(Response::new(self.joined(state))),
            MachineReply::JoinRefused(refusal) => Err(join_refused(refusal)),
            _ => Err(not_a_member()),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::TableUpdate, Status>> + Send>>;

    async fn watch(&self, call: Call<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Caller::of(&call)?;
        let mut reader = self.published.table.from(call.get_ref().known_version);
        let versions = WatchStream::new(reader.versions());
        Ok(Response::new(Box::pin(versions.filter_map(move |_| reader.read_message().map(Ok)))))
    }

    async fn ready(&self, call: Call<v1::ReadyRequest>) -> Result<Response<v1::ReadyResponse>, Status> {
        let request = call.get_ref();
        let from = Caller::of(&call)?.instance(request.incarnation);
        let stage = wire::decode_stage(request.stage);
        let stage = stage.map_err(invalid)?;
        self.ask_member(Event::Ready { from, stage, initial: request.initial_weights }).await?;
        Ok(Response::new(v1::ReadyResponse {}))
    }

    async fn heartbeat(
        &self,
        call: Call<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let request = call.get_ref();
        let from = Caller::of(&call)?.instance(request.incarnation);
        let replied = self.ask(heartbeat(from, request)).await?;
        let mut blocks = Vec::new();
        let state = match replied {
            Reply { reply: MachineReply::Progress(ref tallies), .. } => {
                blocks = tallies.iter().map(wire::encode_block).collect();
                None
            }
            // A process that was silent when the run ended hears of the end all the same.
            Reply { reply: MachineReply::Unknown, finished: true, .. } => None,
            ref replied => Some(member(replied)?),
        };
        let directive = match state {
            Some(MemberState::Loading(stage)) => {
                let placement = v1::StagePlacement { stage: stage.0.into() };
                Some(v1::heartbeat_response::Directive::Serve(placement))
            }
            Some(_) | None => None,
        };
        let run_state = match replied {
            Reply { diverged: Some(_), .. } => v1::RunState::Diverged,
            Reply { finished: true, .. } => v1::RunState::Finished,
            Reply { .. } => v1::RunState::Running,
        };
        let (run_state, diverged_at) = (run_state.into(), replied.diverged.unwrap_or(0));
        let heldout = *self.published.heldout.borrow();
        Ok(Response::new(v1::HeartbeatResponse {
            run_state,
            directive,
            diverged_at,
            blocks,
            heldout_loss: heldout.as_ref().map(HeldOut::encode_loss),
            heldout_after: heldout.and_then(|heldout| heldout.after),
        }))
    }

    async fn return_table(
        &self,
        call: Call<v1::ReturnTableRequest>,
    ) -> Result<Response<v1::ReturnTableResponse>, Status> {
        let from = Caller::of(&call)?.instance(call.get_ref().incarnation);
        let signed = call.into_inner().table.unwrap_or_default();
        let signer = Signer { coordinator: &self.coordinator, run: &self.published.digest };
        let table = SignedTable::verify(signer, &signed).map_err(invalid)?.table().membership();
        self.ask_member(Event::TableReturned { from, table: Box::new(table) }).await?;
        Ok(Response::new(v1::ReturnTableResponse {}))
    }

    async fn lease(&self, call: Call<v1::LeaseRequest>) -> Result<Response<v1::LeaseResponse>, Status> {
        let request = call.get_ref();
        let from = Caller::of(&call)?.instance(request.incarnation);
        let (next, count) = (request.next.map(MicrobatchId), request.count);
        let tallies = wire::decode_blocks(&request.blocks).map_err(invalid)?;
        match self.ask(Event::LeaseRequest { from, next, count, tallies }).await?.reply {
            MachineReply::Leased { lease, others } => Ok(Response::new(v1::LeaseResponse {
                first: lease.first.0,
                count: lease.count,
                others: Some(wire::encode_run(others)),
            })),
            MachineReply::Unknown => Err(unknown()),
            MachineReply::LeaseRefused(refusal) => Err(Status::failed_precondition(refusal.to_string())),
            _ => Err(not_a_member()),
        }
    }

    async fn report(&self, call: Call<v1::FeederReport>) -> Result<Response<v1::ReportResponse>, Status> {
        let caller = Caller::of(&call)?;
        let report = call.into_inner();
        let from = caller.instance(report.incarnation);
        let progress = FeederReport {
            tallies: wire::decode_blocks(&report.blocks).map_err(invalid)?,
            done: report.done,
            diverged: report.diverged_at,
        };
        let others = match self.ask(Event::FeederReport { from, report: progress }).await?.reply {
            MachineReply::Reported { others } => others,
            MachineReply::Unknown => return Err(unknown()),
            _ => return Err(not_a_member()),
        };
        if let Some(heldout) = HeldOut::decode(report.heldout_loss.as_ref(), report.heldout_after) {
            self.published.heldout.send_replace(Some(heldout));
        }
        if report.done || report.diverged_at.is_some() {
            let v1::FeederReport { injected, finished, refused, lost, ungranted, .. } = report;
            let totals = Totals { injected, finished, refused, lost, ungranted };
            let _ = self.published.totals.send(totals).await;
        }
        Ok(Response::new(v1::ReportResponse { others: Some(wire::encode_run(others)) }))
    }

    async fn strike(&self, call: Call<v1::StrikeRequest>) -> Result<Response<v1::StrikeResponse>, Status> {
        let request = call.get_ref();
        let from = Caller::of(&call)?.instance(request.incarnation);
        let replica = wire::decode_peer(&request.replica);
        let replica = replica.map_err(invalid)?;
        let replica = Instance::new(replica, Incarnation(request.replica_incarnation));
        let (false_ones, sound) = (request.false_statements, request.sound_statements);
        let evidence = Evidence { false_ones, sound };
        self.ask_member(Event::Strike { from, replica, evidence }).await?;
        Ok(Response::new(v1::StrikeResponse {}))
    }

    async fn leave(&self, call: Call<v1::LeaveRequest>) -> Result<Response<v1::LeaveResponse>, Status> {
        let from = Caller::of(&call)?.instance(call.get_ref().incarnation);
        self.ask(Event::Leave { from }).await?;
        Ok(Response::new(v1::LeaveResponse {}))
    }
}

impl Service {
    fn check_version(&self, theirs: u32) -> Result<(), Status> {
        if theirs == PROTOCOL_VERSION {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "you speak protocol version {theirs}, this coordinator {PROTOCOL_VERSION}; run the same release"
        )))
    }

    fn check_digest(&self, theirs: Option<&[u8]>) -> Result<(), Status> {
        let Some(theirs) = theirs else { return Ok(()) };
        let theirs = wire::decode_digest(theirs).map_err(invalid)?;
        if theirs == self.published.digest {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "you know the manifest {theirs}, this run has {}; ask its coordinator for a fresh invite",
            self.published.digest
        )))
    }
}

impl Caller {
    fn instance(self, incarnation: u64) -> Instance {
        Instance::new(self.peer, Incarnation(incarnation))
    }
}

/// The address to publish for a caller at `caller`, which has proven by its connection that it receives there. Every
/// member sends to a published address, so a caller must not name the address of another machine. A caller on the
/// coordinator's own machine is trusted to know the address of that machine.
fn proven(claimed: SocketAddr, caller: IpAddr) -> Result<SocketAddr, Status> {
    let (ip, caller) = (claimed.ip().to_canonical(), caller.to_canonical());
    if ip.is_unspecified() {
        return Ok(SocketAddr::new(caller, claimed.port()));
    }
    if ip == caller || caller.is_loopback() {
        return Ok(claimed);
    }
    Err(Status::invalid_argument(format!(
        "your data plane is said to be at {claimed}, but you call from {caller}, and no other address is proven to be \
         yours; listen on 0.0.0.0 or on {caller}"
    )))
}

fn invalid(error: impl std::error::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

fn heartbeat(from: Instance, request: &v1::HeartbeatRequest) -> Event {
    if let Some(kept) = request.kept_microbatches {
        return Event::KeeperHeartbeat { from, kept };
    }
    let progress = Progress {
        done: request.microbatches_done,
        refused: request.microbatches_refused,
        queued: 0,
        oldest: Duration::from_millis(request.oldest_task_age_ms),
    };
    Event::Heartbeat { from, progress }
}

/// The state of the member that called.
fn member(replied: &Reply) -> Result<MemberState, Status> {
    match replied.reply {
        MachineReply::Noted(state) => Ok(state),
        MachineReply::Unknown => Err(unknown()),
        _ => Err(not_a_member()),
    }
}

fn join_refused(refusal: JoinRefusal) -> Status {
    match refusal {
        JoinRefusal::AlreadyRuns { key, address, since } => Status::already_exists(format!(
            "a process with your key {key} is already running at {address} since {}; end it, use another key \
             (--identity FILE), or give its place to this one with --take-over",
            date(since)
        )),
        JoinRefusal::Former { known, .. } => {
            let mut status = Status::out_of_range(refusal.to_string());
            status.metadata_mut().insert(KNOWN_INCARNATION, known.0.into());
            status
        }
        refusal => Status::permission_denied(refusal.to_string()),
    }
}

/// The date of a start, by the clock of its machine: the number counts nanoseconds since 1970.
fn date(start: Incarnation) -> String {
    let date = DateTime::from_timestamp_nanos(i64::try_from(start.0).unwrap_or(i64::MAX));
    date.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn not_a_member() -> Status {
    Status::aborted("another process with your key has joined in its place")
}

fn unknown() -> Status {
    Status::not_found(
        "no heartbeat came from this process for too long, or this coordinator was started again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_told_as_a_date() {
        assert_eq!(date(Incarnation(1_000_000_000 * 86_400)), "1970-01-02 00:00:00 UTC");
        assert!(date(Incarnation(u64::MAX)).ends_with("UTC"), "a made-up number is no fault");
    }

    #[test]
    fn a_caller_cannot_name_the_address_of_another_machine() {
        let address = |claimed: &str, caller: &str| {
            let proven = proven(claimed.parse().unwrap(), caller.parse().unwrap());
            proven.map(|address| address.to_string()).map_err(|status| status.message().to_owned())
        };
        assert_eq!(address("0.0.0.0:7000", "203.0.113.5"), Ok("203.0.113.5:7000".to_owned()));
        assert_eq!(address("203.0.113.5:7000", "::ffff:203.0.113.5"), Ok("203.0.113.5:7000".to_owned()));
        assert_eq!(address("192.0.2.1:7000", "127.0.0.1"), Ok("192.0.2.1:7000".to_owned()));
        for victim in ["192.0.2.1:7000", "127.0.0.1:7000", "[2001:db8::1]:7000"] {
            let refused = address(victim, "203.0.113.5").unwrap_err();
            assert!(refused.contains(victim) && refused.contains("listen on 0.0.0.0"), "{refused}");
        }
    }
}
