//! Reads an envelope from its stream.

use std::time::Duration;

use bytes::Bytes;
use quinn::{ReadError, ReadExactError, RecvStream};
use swarmline_scheduler::Envelope;

use crate::net::frame::{self, FrameError, FrameLimits, PREAMBLE_BYTES, Part};

/// Time that a sender gets for any frame, however short.
const STALL_MAX: Duration = Duration::from_secs(10);
/// Slowest link that is served: a frame gets further time in proportion to its length.
const BYTES_PER_SECOND_MIN: u64 = 16 << 10;

/// Reasons why a stream gives no envelope.
#[derive(Debug)]
pub(super) enum ReceiveError {
    /// The sender broke the rules.
    Malformed(FrameError),
    /// The connection ended, or the sender gave up the frame.
    Lost,
}

/// Reads the only frame of `stream`. Memory is reserved part by part, after the check of each length.
pub(super) async fn read_frame(
    stream: &mut RecvStream,
    limits: &FrameLimits,
) -> Result<Envelope<Bytes>, ReceiveError> {
    let preamble = read_part(stream, Part::Preamble, PREAMBLE_BYTES).await?;
    let header_bytes = frame::decode_preamble(&preamble, limits)?;
    let header = read_part(stream, Part::Header, header_bytes).await?;
    let announced = frame::decode_header(&header, limits)?;
    let ids = read_part(stream, Part::Ids, announced.ids_bytes).await?;
    let payload = read_part(stream, announced.part, announced.payload_bytes).await?;
    expect_end(stream, PREAMBLE_BYTES + header_bytes + announced.bytes()).await?;
    Ok(announced.fill(ids, payload))
}

async fn read_part(stream: &mut RecvStream, part: Part, announced: usize) -> Result<Bytes, ReceiveError> {
    if announced == 0 {
        return Ok(Bytes::new());
    }
    let mut bytes = vec![0; announced];
    within(part, announced, stream.read_exact(&mut bytes)).await?.map_err(|error| match error {
        ReadExactError::FinishedEarly(received) => {
            ReceiveError::Malformed(FrameError::Truncated { part, announced, received })
        }
        ReadExactError::ReadError(_) => ReceiveError::Lost,
    })?;
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
