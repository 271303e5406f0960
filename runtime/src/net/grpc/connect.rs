//! Connects to a coordinator, with an error that says why it cannot be reached.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use swarmline_proto::v1::coordinator_client::CoordinatorClient;
use swarmline_scheduler::PeerId;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Endpoint, Uri};

use super::{ALPN, Client, HTTP2_WINDOW, KEEP_ALIVE, KEEP_ALIVE_ANSWER_MAX, MESSAGE_BYTES_MAX};
use crate::net::address::Invite;
use crate::net::identity::Identity;
use crate::net::tls::{self, Pin, SERVER_NAME};

/// Limit of name resolution, TCP and TLS together.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Limit of a call.
const CALL_MAX: Duration = Duration::from_secs(10);

/// Reasons why a coordinator cannot be reached. Addresses are those of the invite.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// There is no TCP connection.
    #[error("cannot reach the coordinator at {address}: {cause}; is it running?")]
    Unreachable {
        /// Address of the coordinator.
        address: String,
        /// Error of the operating system.
        cause: String,
    },
    /// The coordinator did not answer in time.
    #[error(
        "cannot reach the coordinator at {address}: no answer within {waited_ms} ms; is it running, and does a \
         firewall let the port through?"
    )]
    Timeout {
        /// Address of the coordinator.
        address: String,
        /// Time waited, milliseconds.
        waited_ms: u64,
    },
    /// The listener presented another key.
    #[error(
        "the coordinator at {address} presents key {presented}, the invite says {expected}; ask for a fresh \
         invite, and do not join if the key keeps changing"
    )]
    WrongKey {
        /// Address of the coordinator.
        address: String,
        /// The key of the listener.
        presented: PeerId,
        /// The key in the invite.
        expected: PeerId,
    },
    /// The listener is not a coordinator.
    #[error(
        "the listener at {address} is not a swarmline coordinator ({cause}); check the port in the invite"
    )]
    NotACoordinator {
        /// Address of the coordinator.
        address: String,
        /// Error of TLS or HTTP/2.
        cause: String,
    },
    /// TLS could not be set up.
    #[error("{0}")]
    Tls(String),
}

/// Connects to the coordinator of `invite`. Proves `identity` and accepts only the key of the invite.
///
/// # Errors
/// If the coordinator cannot be reached, or the listener is not the coordinator. Later breaks surface as the status
/// UNAVAILABLE of a call.
pub async fn connect(invite: &Invite, identity: &Identity) -> Result<Client, ConnectError> {
    let dialler = Dialler { invite: invite.clone(), identity: identity.clone() };
    let connector = tower::service_fn(move |_: Uri| {
        let dialler = dialler.clone();
        async move { dialler.dial().await.map(TokioIo::new) }
    });
    let channel =
        endpoint(invite)?.connect_with_connector(connector).await.map_err(|error| explain(&error, invite))?;
    Ok(CoordinatorClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

/// The scheme is http because the connector adds TLS to every connection.
fn endpoint(invite: &Invite) -> Result<Endpoint, ConnectError> {
    let endpoint = Endpoint::from_shared(format!("http://{}", invite.authority())).map_err(|error| {
        ConnectError::Unreachable { address: invite.authority(), cause: error.to_string() }
    })?;
    Ok(endpoint
        .timeout(CALL_MAX)
        .initial_stream_window_size(HTTP2_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER_MAX)
        .keep_alive_while_idle(true))
}

#[derive(Clone)]
struct Dialler {
    invite: Invite,
    identity: Identity,
}

impl Dialler {
    async fn dial(self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let waited_ms = u64::try_from(CONNECT_MAX.as_millis()).unwrap_or(u64::MAX);
        let address = self.invite.authority();
        tokio::time::timeout(CONNECT_MAX, self.dial_patiently())
            .await
            .unwrap_or(Err(ConnectError::Timeout { address, waited_ms }))
    }

    async fn dial_patiently(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let address = self.invite.authority();
        let tcp = TcpStream::connect((self.invite.host.as_str(), self.invite.port))
            .await
            .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|error| ConnectError::Unreachable { address, cause: error.to_string() })?;
        let name = ServerName::try_from(SERVER_NAME)
            .map_err(|error| ConnectError::Tls(format!("{SERVER_NAME:?} is not a TLS name: {error}")))?;
        let pin = Pin::new(self.invite.peer);
        let config =
            tls::client(&self.identity, &pin, ALPN).map_err(|error| ConnectError::Tls(error.to_string()))?;
        let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        connected.map_err(|error| self.explain_tls(&pin, &error))
    }

    fn explain_tls(&self, pin: &Pin, error: &io::Error) -> ConnectError {
        let address = self.invite.authority();
        match pin.wrong_key() {
            Some(presented) => ConnectError::WrongKey { address, presented, expected: self.invite.peer },
            None => ConnectError::NotACoordinator { address, cause: error.to_string() },
        }
    }
}

/// The [`ConnectError`] of the connector, if it is in the chain.
fn explain(error: &tonic::transport::Error, invite: &Invite) -> ConnectError {
    let mut cause: &(dyn Error + 'static) = error;
    loop {
        if let Some(ours) = cause.downcast_ref::<ConnectError>() {
            return ours.clone();
        }
        match cause.source() {
            Some(source) => cause = source,
            None => break,
        }
    }
    ConnectError::NotACoordinator { address: invite.authority(), cause: cause.to_string() }
}
