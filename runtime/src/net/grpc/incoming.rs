//! Incoming TCP connections, with TLS set up before the server gets them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::{ALPN, Caller, Phase};
use crate::net::identity::Identity;
use crate::net::tls::{self, TlsError};
use crate::net::trust::Trust;

/// Limit of the open connections; further connections wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 2048;
/// Limit of the connections that wait for the server.
const ACCEPTED_MAX: usize = 16;
/// Longest TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Pause after a failed accept, which usually lacks file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections with a proven key, whichever key. Dropping the stream stops accepting.
pub(super) fn accept(
    listener: TcpListener,
    identity: &Identity,
    phase: watch::Receiver<Phase>,
) -> Result<impl Stream<Item = io::Result<CallerStream>> + use<>, TlsError> {
    let config = tls::server(identity, Trust::anyone(), ALPN)?;
    let (accepted, stream) = mpsc::channel(ACCEPTED_MAX);
    tokio::spawn(accept_all(listener, TlsAcceptor::from(Arc::new(config)), accepted, phase));
    Ok(ReceiverStream::new(stream))
}

async fn accept_all(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    accepted: mpsc::Sender<io::Result<CallerStream>>,
    phase: watch::Receiver<Phase>,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let (tcp, address) = tokio::select! {
            tcp = listener.accept() => match tcp {
                Ok(tcp) => tcp,
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = accepted.closed() => return,
        };
        let acceptor = acceptor.clone();
        let accepted = accepted.clone();
        let end = end_of(phase.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_MAX, secure(&acceptor, tcp, address)).await {
                // Fails only if the server has ended.
                Ok(Ok((tls, caller))) => {
                    let stream =
                        CallerStream { tls, caller, end: Box::pin(end), ended: false, _permit: permit };
                    drop(accepted.send(Ok(stream)).await);
                }
                Ok(Err(error)) => tracing::debug!(from = %address, "a TLS handshake failed: {error}"),
                Err(_) => tracing::debug!(from = %address, "a TLS handshake took too long"),
            }
        });
    }
}

async fn secure(
    acceptor: &TlsAcceptor,
    tcp: TcpStream,
    address: SocketAddr,
) -> io::Result<(TlsStream<TcpStream>, Caller)> {
    // Calls are small, and Nagle's algorithm would delay them.
    tcp.set_nodelay(true)?;
    let tls = acceptor.accept(tcp).await?;
    let presented = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = presented
        .and_then(tls::presented_key)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no raw public key"))?;
    Ok((tls, Caller { peer, address }))
}

/// Completes when the server has ended or its sender is dropped.
async fn end_of(mut phase: watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase == Phase::Ended).await;
}

/// A TLS connection with its caller's key. It breaks when the server ends, or the server's tasks would wait for the
/// caller.
pub(super) struct CallerStream {
    tls: TlsStream<TcpStream>,
    caller: Caller,
    end: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

impl Connected for CallerStream {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for CallerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A future must not be polled after its end.
        self.ended = self.ended || self.end.as_mut().poll(cx).is_ready();
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for CallerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
