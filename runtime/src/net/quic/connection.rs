//! A connection: handshake, registration, receiving.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Incoming, RecvStream};
use rustls::pki_types::CertificateDer;
use swarmline_scheduler::{Instance, PeerId};
use tokio::task::JoinSet;

use super::handshake::{self, HandshakeError};
use super::receive::{self, ArrivalReports, ReceiveError};
use super::{HANDSHAKES_MAX, NetEvent, Shared, code, tuning};
use crate::net::tls;

/// Longest time from the first packet to the end of the handshake.
pub(super) const HANDSHAKE_MAX: Duration = Duration::from_secs(3);
/// Malformed frames that a connection survives: a bug of one kind of message is reported, a flood is cut off.
const MALFORMED_MAX: usize = 8;

/// Accepts connections until the endpoint closes.
pub(super) async fn accept(shared: Arc<Shared>) {
    // Above the limit of connections one is recycled. Those that are closing, and handshakes, count here too.
    let open_max = shared.settings.connections_max.saturating_mul(2).saturating_add(HANDSHAKES_MAX);
    while let Some(incoming) = shared.endpoint.accept().await {
        let permit = Arc::clone(&shared.handshakes).try_acquire_owned();
        match permit {
            Ok(permit) if shared.endpoint.open_connections() < open_max => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let admitted = admit(&shared, incoming).await;
                    drop(permit);
                    if let Some((connection, instance)) = admitted {
                        serve(shared, connection, instance).await;
                    }
                });
            }
            _ => {
                tracing::warn!(from = %incoming.remote_address(), "too many connections; this peer is refused");
                incoming.refuse();
            }
        }
    }
}

/// Starts to receive from a connection that this process dialled.
pub(super) fn spawn_serve(shared: &Arc<Shared>, connection: &Connection, instance: Instance) {
    tokio::spawn(serve(Arc::clone(shared), connection.clone(), instance));
}

/// Enters a connection into the table of peers; closes it if there is no room.
pub(super) async fn register(shared: &Shared, connection: &Connection, instance: Instance) -> bool {
    let Ok(permit) = shared.events.reserve().await else { return false };
    let room = shared.peers.connected(instance, connection, permit);
    if !room {
        connection.close(code::REJECTED, b"no room for more peers");
    }
    room
}

async fn admit(shared: &Shared, incoming: Incoming) -> Option<(Connection, Instance)> {
    let from = incoming.remote_address();
    let (connection, instance) = match tokio::time::timeout(HANDSHAKE_MAX, welcome(shared, incoming)).await {
        Ok(Ok(admitted)) => admitted,
        Ok(Err(error)) => {
            tracing::warn!(%from, "a peer could not connect: {error}");
            return None;
        }
        Err(_) => {
            tracing::debug!(%from, "a handshake took too long");
            return None;
        }
    };
    register(shared, &connection, instance).await.then_some((connection, instance))
}

async fn welcome(shared: &Shared, incoming: Incoming) -> Result<(Connection, Instance), HandshakeError> {
    let connection = incoming.accept()?.await?;
    let peer =
        proven_peer(&connection).ok_or_else(|| HandshakeError::Malformed("no raw public key".to_owned()))?;
    match handshake::answer(&connection, &shared.handshake).await {
        Ok(incarnation) => Ok((connection, Instance::new(peer, incarnation))),
        Err(error) => {
            connection.close(code::REJECTED, b"handshake failed");
            Err(error)
        }
    }
}

fn proven_peer(connection: &Connection) -> Option<PeerId> {
    let presented = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::presented_key(presented.first()?)
}

/// Receives frames until the connection ends.
async fn serve(shared: Arc<Shared>, connection: Connection, instance: Instance) {
    let mut readers = JoinSet::new();
    let reports = Arc::new(ArrivalReports::new(instance, shared.events.clone()));
    let readers_max = tuning::streams(&shared.settings) as usize;
    let mut malformed = 0;
    let end = loop {
        tokio::select! {
            // A frame that waits for room among the events has freed its stream already.
            accepted = connection.accept_uni(), if readers.len() < readers_max => match accepted {
                Ok(stream) if shared.trust.admits(&instance.peer) => {
                    shared.peers.heard(&instance.peer);
                    readers.spawn(receive(Arc::clone(&shared), stream, instance, Arc::clone(&reports)));
                }
                Ok(_) => connection.close(code::UNTRUSTED, b"the key is not trusted any longer"),
                Err(end) => break end,
            },
            Some(verdict) = readers.join_next() => {
                malformed += usize::from(matches!(verdict, Ok(Verdict::Malformed)));
                if malformed > MALFORMED_MAX {
                    connection.close(code::MALFORMED, b"too many malformed frames");
                }
            }
        }
    };
    // Frames that have arrived in full are still delivered.
    while readers.join_next().await.is_some() {}
    if let Ok(permit) = shared.events.reserve().await {
        shared.peers.disconnected(instance.peer, &connection, &end, permit);
    }
}

enum Verdict {
    Fine,
    Malformed,
}

async fn receive(
    shared: Arc<Shared>,
    mut stream: RecvStream,
    from: Instance,
    reports: Arc<ArrivalReports>,
) -> Verdict {
    let frame = receive::read_frame(&mut stream, &shared.settings.limits, &reports).await;
    let (event, verdict) = match frame {
        Ok(envelope) => (NetEvent::Received { from, envelope }, Verdict::Fine),
        Err(ReceiveError::Malformed(error)) => {
            // Fails only if the stream has ended.
            let _ = stream.stop(code::MALFORMED);
            (NetEvent::Malformed { from: from.peer, error }, Verdict::Malformed)
        }
        Err(ReceiveError::Lost) => return Verdict::Fine,
    };
    // Fails only if the reader is gone.
    let _ = shared.events.send(event).await;
    verdict
}
