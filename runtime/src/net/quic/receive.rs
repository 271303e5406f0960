//! Reads an envelope from its stream.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{ReadError, RecvStream};
use swarmline_scheduler::{Envelope, Instance};
use tokio::sync::mpsc;

use super::NetEvent;
use crate::net::frame::{self, FrameError, FrameLimits, PREAMBLE_BYTES, Part};

/// Time that a sender gets for any frame, however short.
const STALL_MAX: Duration = Duration::from_secs(10);
/// Slowest link that is served: a frame gets further time in proportion to its length.
const BYTES_PER_SECOND_MIN: u64 = 16 << 10;
/// Least pause between two reports that bytes of a connection arrive.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// Reasons why a stream gives no envelope.
#[derive(Debug)]
pub(super) enum ReceiveError {
    /// The sender broke the rules.
    Malformed(FrameError),
    /// The connection ended, or the sender gave up the frame.
    Lost,
}

/// Reports that bytes of unfinished frames arrive from one peer: while a long frame comes over a thin link they are the
/// peer's only sign of life.
#[derive(Debug)]
pub(super) struct ArrivalReports {
    from: Instance,
    events: mpsc::Sender<NetEvent>,
    reported: Mutex<Instant>,
}

impl ArrivalReports {
    pub(super) fn new(from: Instance, events: mpsc::Sender<NetEvent>) -> Self {
        Self { from, events, reported: Mutex::new(Instant::now()) }
    }

    fn bytes_arrived(&self) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.elapsed() >= REPORT_INTERVAL {
            *reported = Instant::now();
            // With a full queue the reader has other news, and the next bytes come soon.
            let _ = self.events.try_send(NetEvent::Arriving(self.from));
        }
    }
}

/// Reads the only frame of `stream`. Memory is reserved part by part, after the check of each length.
pub(super) async fn read_frame(
    stream: &mut RecvStream,
    limits: &FrameLimits,
    reports: &ArrivalReports,
) -> Result<Envelope<Bytes>, ReceiveError> {
    let preamble = read_part(stream, Part::Preamble, PREAMBLE_BYTES, reports).await?;
    let header_bytes = frame::decode_preamble(&preamble, limits)?;
    let header = read_part(stream, Part::Header, header_bytes, reports).await?;
    let announced = frame::decode_header(&header, limits)?;
    let ids = read_part(stream, Part::Ids, announced.ids_bytes, reports).await?;
    let payload = read_part(stream, announced.part, announced.payload_bytes, reports).await?;
    expect_end(stream, PREAMBLE_BYTES + header_bytes + announced.bytes()).await?;
    Ok(announced.fill(ids, payload))
}

async fn read_part(
    stream: &mut RecvStream,
    part: Part,
    announced: usize,
    reports: &ArrivalReports,
) -> Result<Bytes, ReceiveError> {
    let mut bytes = vec![0; announced];
    within(part, announced, async {
        let mut received = 0;
        while received < announced {
            match stream.read(&mut bytes[received..]).await {
                Ok(Some(more)) => received += more,
                Ok(None) => return Err(FrameError::Truncated { part, announced, received }.into()),
                Err(_) => return Err(ReceiveError::Lost),
            }
            reports.bytes_arrived();
        }
        Ok(())
    })
    .await??;
    Ok(bytes.into())
}

async fn expect_end(stream: &mut RecvStream, announced: usize) -> Result<(), ReceiveError> {
    match within(Part::Nothing, 0, stream.read_chunk(1, true)).await? {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(FrameError::Trailing { announced }.into()),
        Err(ReadError::ConnectionLost(_) | _) => Err(ReceiveError::Lost),
    }
}

async fn within<T>(part: Part, bytes: usize, read: impl Future<Output = T>) -> Result<T, ReceiveError> {
    let deadline = STALL_MAX.saturating_add(Duration::from_secs(bytes as u64 / BYTES_PER_SECOND_MIN));
    let waited_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    tokio::time::timeout(deadline, read)
        .await
        .map_err(|_| ReceiveError::Malformed(FrameError::Late { part, waited_ms }))
}

impl From<FrameError> for ReceiveError {
    fn from(error: FrameError) -> Self {
        Self::Malformed(error)
    }
}
