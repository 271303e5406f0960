//! A real server and real clients on the loopback interface.

use std::pin::Pin;
use std::time::Duration;

use swarmline_proto::v1;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Response};

use super::*;
use crate::net::address::Invite;

/// Limit of each step of a test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A coordinator that replies to `join` with the caller's key.
struct Echo;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Coordinator for Echo {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::TableUpdate, Status>> + Send>>;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Answer<v1::JoinResponse> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(v1::JoinResponse { manifest: caller.peer.to_string(), ..Default::default() }))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Answer<Self::WatchStream> {
        let first = tokio_stream::once(Ok(v1::TableUpdate::default()));
        Ok(Response::new(Box::pin(first.chain(tokio_stream::pending()))))
    }

    async fn ready(&self, _: Request<v1::ReadyRequest>) -> Answer<v1::ReadyResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn heartbeat(&self, _: Request<v1::HeartbeatRequest>) -> Answer<v1::HeartbeatResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn lease(&self, _: Request<v1::LeaseRequest>) -> Answer<v1::LeaseResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn report(&self, _: Request<v1::FeederReport>) -> Answer<v1::ReportResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn return_table(&self, _: Request<v1::ReturnTableRequest>) -> Answer<v1::ReturnTableResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn strike(&self, _: Request<v1::StrikeRequest>) -> Answer<v1::StrikeResponse> {
        Ok(Response::new(Default::default()))
    }

    async fn leave(&self, _: Request<v1::LeaveRequest>) -> Answer<v1::LeaveResponse> {
        Ok(Response::new(Default::default()))
    }
}

struct Running {
    invite: Invite,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

async fn start(trust: Trust) -> Running {
    let identity = Identity::from_seed([1; 32]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let invite = Invite { peer: identity.peer(), host: "127.0.0.1".into(), port };
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let shutdown = async { drop(stopped.await) };
        serve(listener, &identity, trust, Echo, shutdown).await
    });
    Running { invite, stop, task }
}

async fn soon<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step).await.expect("a step of the test took too long")
}

#[tokio::test]
async fn the_server_knows_who_calls() {
    let running = start(Trust::anyone()).await;
    let caller = Identity::from_seed([2; 32]);
    let mut client = soon(connect(&running.invite, &caller)).await.unwrap();
    let answer = soon(client.join(v1::JoinRequest::default())).await.unwrap().into_inner();
    assert_eq!(answer.manifest, caller.peer().to_string());

    let mut stream = soon(client.watch(v1::WatchRequest::default())).await.unwrap().into_inner();
    assert!(soon(stream.message()).await.unwrap().is_some());
    running.stop.send(()).unwrap();
    soon(running.task).await.unwrap().unwrap();
    soon(stream.message()).await.unwrap_err();
}

#[tokio::test]
async fn a_key_outside_the_policy_is_told_so() {
    let (friend, stranger) = (Identity::from_seed([2; 32]), Identity::from_seed([3; 32]));
    let trust = Trust::keys([friend.peer()]);
    let running = start(trust.clone()).await;
    let mut client = soon(connect(&running.invite, &stranger)).await.unwrap();
    let status = soon(client.join(v1::JoinRequest::default())).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains(&stranger.peer().to_string()), "{status}");

    trust.set_keys([stranger.peer()]);
    soon(client.join(v1::JoinRequest::default())).await.unwrap();
}

#[tokio::test]
async fn another_key_than_the_invited_one_is_named() {
    let running = start(Trust::anyone()).await;
    let mut invite = running.invite.clone();
    let presented = invite.peer;
    invite.peer = Identity::from_seed([9; 32]).peer();
    let error = soon(connect(&invite, &Identity::from_seed([2; 32]))).await.unwrap_err();
    let address = invite.authority();
    assert_eq!(error, ConnectError::WrongKey { address, presented, expected: invite.peer });
}

#[tokio::test]
async fn an_absent_coordinator_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let identity = Identity::from_seed([2; 32]);
    let invite = Invite { peer: identity.peer(), host: "127.0.0.1".into(), port };
    let message = soon(connect(&invite, &identity)).await.unwrap_err().to_string();
    assert!(message.starts_with(&format!("cannot reach the coordinator at 127.0.0.1:{port}: ")), "{message}");
    assert!(message.ends_with("is it running?"), "{message}");
}

#[tokio::test]
async fn a_listener_that_speaks_no_tls_is_no_coordinator() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let web = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut tcp, _) = listener.accept().await.unwrap();
        let _ = tcp.read(&mut [0; 64]).await;
        let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let identity = Identity::from_seed([2; 32]);
    let invite = Invite { peer: identity.peer(), host: "127.0.0.1".into(), port };
    let error = soon(connect(&invite, &identity)).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotACoordinator { .. }), "{error}");
    soon(web).await.unwrap();
}

#[tokio::test]
async fn garbage_does_not_stop_the_server() {
    use tokio::io::AsyncWriteExt;
    let running = start(Trust::anyone()).await;
    let mut tcp = tokio::net::TcpStream::connect(running.invite.authority()).await.unwrap();
    tcp.write_all(&[0xFF; 4096]).await.unwrap();
    drop(tcp);
    let caller = Identity::from_seed([2; 32]);
    let mut client = soon(connect(&running.invite, &caller)).await.unwrap();
    soon(client.join(v1::JoinRequest::default())).await.unwrap();
}
