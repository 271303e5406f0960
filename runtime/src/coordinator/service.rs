//! The gRPC service: requests become events of the machine, and its replies become responses.

use std::pin::Pin;

use swarmline_proto::{PROTOCOL_VERSION, v1};
use swarmline_scheduler::coordinator::{Event, Reply as MachineReply};
use swarmline_scheduler::stage::Progress;
use swarmline_scheduler::{Duration, Incarnation, Instance, MemberState};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request as Call, Response, Status};

use super::{Published, Reply, Request};
use crate::net::grpc::Caller;
use crate::net::wire;
use crate::report::Totals;

/// The service that peers call.
#[derive(Debug)]
pub(super) struct Service {
    published: Published,
    requests: mpsc::Sender<Request>,
}

impl Service {
    pub(super) fn new(published: Published, requests: mpsc::Sender<Request>) -> Self {
        Self { published, requests }
    }

    async fn ask(&self, event: Event) -> Result<Reply, Status> {
        let (reply, replied) = oneshot::channel();
        let gone = |()| Status::unavailable("the coordinator is stopping");
        self.requests.send(Request { event, reply }).await.map_err(|_| gone(()))?;
        replied.await.map_err(|_| gone(()))
    }

    /// Sends `event` to the loop; returns the state of the member and whether the run is finished.
    async fn ask_member(&self, event: Event) -> Result<(MemberState, bool), Status> {
        match self.ask(event).await? {
            Reply { reply: MachineReply::Noted(state), finished } => Ok((state, finished)),
            Reply { .. } => Err(not_a_member()),
        }
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
        };
        v1::JoinResponse {
            manifest: self.published.manifest.clone(),
            manifest_digest: self.published.digest.0.to_vec(),
            placement: Some(placement),
            membership: Some(self.published.table.borrow().clone()),
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
        let invalid = |error: wire::WireError| Status::invalid_argument(error.to_string());
        let mut address = wire::decode_address(&request.data_address).map_err(invalid)?;
        if address.ip().is_unspecified() {
            address.set_ip(caller.address.ip());
        }
        let event = Event::Join {
            from: caller.instance(request.incarnation),
            role: wire::decode_role(request.role).map_err(invalid)?,
            address,
        };
        match self.ask(event).await?.reply {
            MachineReply::Joined(state) => Ok(Response::new(self.joined(state))),
            MachineReply::JoinRefused(refusal) => Err(Status::permission_denied(refusal.to_string())),
            _ => Err(not_a_member()),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::SignedMembership, Status>> + Send>>;

    async fn watch(&self, call: Call<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Caller::of(&call)?;
        let tables = WatchStream::new(self.published.table.clone());
        Ok(Response::new(Box::pin(tables.map(Ok))))
    }

    async fn ready(&self, call: Call<v1::ReadyRequest>) -> Result<Response<v1::ReadyResponse>, Status> {
        let request = call.get_ref();
        let from = Caller::of(&call)?.instance(request.incarnation);
        let stage = wire::decode_stage(request.stage);
        let stage = stage.map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.ask_member(Event::Ready { from, stage }).await?;
        Ok(Response::new(v1::ReadyResponse {}))
    }

    async fn heartbeat(
        &self,
        call: Call<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let request = call.get_ref();
        let from = Caller::of(&call)?.instance(request.incarnation);
        let (state, finished) = self.ask_member(heartbeat(from, request)).await?;
        let directive = match state {
            MemberState::Loading(stage) => {
                let placement = v1::StagePlacement { stage: stage.0.into() };
                Some(v1::heartbeat_response::Directive::Serve(placement))
            }
            MemberState::Serving(_) | MemberState::Standby | MemberState::Feeding => None,
        };
        let run_state = if finished { v1::RunState::Finished } else { v1::RunState::Running };
        Ok(Response::new(v1::HeartbeatResponse { run_state: run_state.into(), directive }))
    }

    async fn lease(&self, call: Call<v1::LeaseRequest>) -> Result<Response<v1::LeaseResponse>, Status> {
        let request = call.get_ref();
        let from = Caller::of(&call)?.instance(request.incarnation);
        match self.ask(Event::LeaseRequest { from, count: request.count }).await?.reply {
            MachineReply::Leased(lease) => Ok(Response::new(v1::LeaseResponse {
                first: lease.first.0,
                count: lease.count,
                epoch: lease.epoch,
            })),
            MachineReply::LeaseRefused(refusal) => Err(Status::failed_precondition(refusal.to_string())),
            _ => Err(not_a_member()),
        }
    }

    async fn report(&self, call: Call<v1::FeederReport>) -> Result<Response<v1::ReportResponse>, Status> {
        let caller = Caller::of(&call)?;
        let report = call.into_inner();
        if report.done {
            let from = caller.instance(report.incarnation);
            self.ask_member(Event::FeederDone { from }).await?;
            let v1::FeederReport { injected, finished, refused, lost, ungranted, .. } = report;
            let totals = Totals { injected, finished, refused, lost, ungranted };
            let _ = self.published.totals.send(totals).await;
        }
        Ok(Response::new(v1::ReportResponse {}))
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
        let theirs =
            wire::decode_digest(theirs).map_err(|error| Status::invalid_argument(error.to_string()))?;
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

fn heartbeat(from: Instance, request: &v1::HeartbeatRequest) -> Event {
    let progress = Progress {
        done: request.microbatches_done,
        refused: request.microbatches_refused,
        queued: 0,
        oldest: Duration::from_millis(request.oldest_task_age_ms),
    };
    Event::Heartbeat { from, progress }
}

fn not_a_member() -> Status {
    Status::aborted("no heartbeat came from this process for too long, or a newer start of it took its place")
}
