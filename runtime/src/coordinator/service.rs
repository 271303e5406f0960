//! gRPC requests in, scheduler events out, answers back.

use std::pin::Pin;

use swarmline_proto::{PROTOCOL_VERSION, v1};
use swarmline_scheduler::coordinator::{Answer, Event};
use swarmline_scheduler::stage::Progress;
use swarmline_scheduler::{Duration, Incarnation, PeerId, Standing};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request as Call, Response, Status};

use super::{Published, Reply, Request};
use crate::net::grpc::Caller;
use crate::net::wire;
use crate::report::FeederReport;

/// The coordinator as its peers see it.
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
        let (answer, reply) = oneshot::channel();
        let gone = |()| Status::unavailable("the coordinator is stopping");
        self.requests.send(Request { event, answer }).await.map_err(|_| gone(()))?;
        reply.await.map_err(|_| gone(()))
    }

    /// Asks, and gives what the member is to do and whether the run is over.
    async fn ask_member(&self, event: Event) -> Result<(Standing, bool), Status> {
        match self.ask(event).await? {
            Reply { answer: Answer::Noted(standing), finished } => Ok((standing, finished)),
            Reply { .. } => Err(not_a_member()),
        }
    }

    fn entrance(&self, standing: Standing) -> v1::JoinResponse {
        use v1::join_response::Placement;
        let placement = match standing {
            Standing::Loading(stage) | Standing::Serving(stage) => {
                Placement::Stage(v1::StagePlacement { stage: stage.0.into() })
            }
            Standing::Standby => Placement::Standby(v1::StandbyPlacement {}),
            Standing::Feeding => Placement::Feeder(v1::FeederPlacement {
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
            peer: caller.peer,
            incarnation: Incarnation(request.incarnation),
            role: wire::decode_role(request.role).map_err(invalid)?,
            address,
        };
        match self.ask(event).await?.answer {
            Answer::Joined(standing) => Ok(Response::new(self.entrance(standing))),
            Answer::JoinRefused(refusal) => Err(Status::permission_denied(refusal.to_string())),
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
        let Caller { peer, .. } = Caller::of(&call)?;
        let incarnation = Incarnation(call.get_ref().incarnation);
        self.ask_member(Event::Ready { peer, incarnation }).await?;
        Ok(Response::new(v1::ReadyResponse {}))
    }

    async fn heartbeat(
        &self,
        call: Call<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let Caller { peer, .. } = Caller::of(&call)?;
        let (standing, finished) = self.ask_member(heartbeat(peer, call.get_ref())).await?;
        let directive = match standing {
            Standing::Loading(stage) => {
                let placement = v1::StagePlacement { stage: stage.0.into() };
                Some(v1::heartbeat_response::Directive::Serve(placement))
            }
            Standing::Serving(_) | Standing::Standby | Standing::Feeding => None,
        };
        let run_state = if finished { v1::RunState::Finished } else { v1::RunState::Running };
        Ok(Response::new(v1::HeartbeatResponse { run_state: run_state.into(), directive }))
    }

    async fn lease(&self, call: Call<v1::LeaseRequest>) -> Result<Response<v1::LeaseResponse>, Status> {
        let Caller { peer, .. } = Caller::of(&call)?;
        let request = call.get_ref();
        let incarnation = Incarnation(request.incarnation);
        match self.ask(Event::LeaseRequest { peer, incarnation, count: request.count }).await?.answer {
            Answer::Leased(lease) => Ok(Response::new(v1::LeaseResponse {
                first: lease.first.0,
                count: lease.count,
                epoch: lease.epoch,
            })),
            Answer::LeaseRefused(refusal) => Err(Status::failed_precondition(refusal.to_string())),
            _ => Err(not_a_member()),
        }
    }

    async fn report(&self, call: Call<v1::FeederReport>) -> Result<Response<v1::ReportResponse>, Status> {
        let Caller { peer, .. } = Caller::of(&call)?;
        let report = call.into_inner();
        let incarnation = Incarnation(report.incarnation);
        if report.done {
            self.ask_member(Event::FeederDone { peer, incarnation }).await?;
            let account = FeederReport {
                injected: report.injected,
                finished: report.finished,
                refused: report.refused,
                lost: report.lost,
                ungranted: report.ungranted,
                resent: 0,
                contributions_lost: 0,
                ..FeederReport::default()
            };
            let _ = self.published.reports.send(account).await;
        }
        Ok(Response::new(v1::ReportResponse {}))
    }

    async fn leave(&self, call: Call<v1::LeaveRequest>) -> Result<Response<v1::LeaveResponse>, Status> {
        let Caller { peer, .. } = Caller::of(&call)?;
        let incarnation = Incarnation(call.get_ref().incarnation);
        self.ask(Event::Leave { peer, incarnation }).await?;
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

fn heartbeat(peer: PeerId, request: &v1::HeartbeatRequest) -> Event {
    let progress = Progress {
        done: request.microbatches_done,
        refused: request.microbatches_refused,
        queued: 0,
        oldest: Duration::from_millis(request.oldest_task_age_ms),
    };
    Event::Heartbeat { peer, incarnation: Incarnation(request.incarnation), progress }
}

fn not_a_member() -> Status {
    Status::aborted("it has not heard from this process for too long, or a newer start of it took its place")
}
