//! The control plane: gRPC between keys.
//!
//! HTTP/2 over TLS 1.3 with raw public keys on both sides. The TLS handshake proves the caller's key. A caller whose
//! key the run does not admit gets a readable status, not a TLS alert.

mod connect;
mod incoming;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use swarmline_proto::v1::coordinator_client::CoordinatorClient;
use swarmline_proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
use swarmline_scheduler::PeerId;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Server};
use tonic::{Request, Status};

pub use self::connect::{ConnectError, connect};

use super::identity::Identity;
use super::tls::TlsError;
use super::trust::Trust;

/// Protocol name negotiated in the TLS handshake.
const ALPN: &[u8] = b"h2";
/// Longest message, bytes, in both directions: a manifest, or a membership table of ten thousand members.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Flow-control window, bytes. With the default of 64 KiB, a long message would wait for a round trip every 64 KiB.
const HTTP2_WINDOW: u32 = 8 << 20;
/// Concurrent calls on one connection; a peer needs a handful.
const CALLS_MAX: u32 = 64;
/// Silence after which the server pings the caller.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Longest time for the reply to the ping.
const KEEP_ALIVE_ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longest wait for open calls when the server stops.
const SHUTDOWN_MAX: Duration = Duration::from_secs(1);

/// A connection with a coordinator. Clones share the connection, which reconnects after it breaks. Every call but the
/// stream of `watch` gives up after 10 s.
pub type Client = CoordinatorClient<Channel>;

/// The caller, as proven by TLS. It is in the extensions of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Key of the caller.
    pub peer: PeerId,
    /// Source address of the connection.
    pub address: SocketAddr,
}

impl Caller {
    /// The caller of `request`.
    ///
    /// # Errors
    /// If the request did not come through [`serve`].
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Self>().copied();
        caller.ok_or_else(|| Status::unauthenticated("the call did not come over TLS with a key"))
    }
}

/// Errors that end a server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP/2 server failed.
    #[error("the control plane failed: {0}; restart the coordinator, the run goes on meanwhile")]
    Transport(#[from] tonic::transport::Error),
}

/// Phase of a server. Connections break when it has ended or is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    Draining,
    Ended,
}

/// Serves `coordinator` on `listener` until `shutdown`, then waits up to 1 s for open calls. Callers that `trust` does
/// not admit get PERMISSION_DENIED.
///
/// # Errors
/// If TLS cannot be set up or the server fails.
pub async fn serve(
    listener: TcpListener,
    identity: &Identity,
    trust: Trust,
    coordinator: impl Coordinator,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (phase, mut draining) = watch::channel(Phase::Serving);
    let connections = incoming::accept(listener, identity, phase.subscribe())?;
    let service = CoordinatorServer::new(coordinator)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let admitting = InterceptedService::new(service, move |request| admit(&trust, request));
    let serving = Server::builder()
        .initial_stream_window_size(HTTP2_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .max_concurrent_streams(CALLS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_ANSWER_MAX))
        .serve_with_incoming_shutdown(admitting, connections, async move {
            // An error means that the sender is dropped, which ends the server too.
            let _ = draining.wait_for(|phase| *phase != Phase::Serving).await;
        });
    let cut_off = async {
        shutdown.await;
        phase.send_replace(Phase::Draining);
        // Calls of `watch` do not end on their own.
        tokio::time::sleep(SHUTDOWN_MAX).await;
        phase.send_replace(Phase::Ended);
    };
    tokio::select! {
        served = serving => Ok(served?),
        () = cut_off => Ok(()),
    }
}

#[allow(clippy::result_large_err, reason = "the signature is tonic's")]
fn admit(trust: &Trust, request: Request<()>) -> Result<Request<()>, Status> {
    let caller = Caller::of(&request)?;
    if trust.admits(&caller.peer) {
        return Ok(request);
    }
    Err(Status::permission_denied(format!(
        "key {} is not admitted to this run; ask the owner of the coordinator to add it to policy.join",
        caller.peer
    )))
}
