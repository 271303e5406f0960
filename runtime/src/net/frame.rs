//! An envelope as bytes: `[magic and version u32][header length u32][header][token ids][payload]`, numbers big endian.
//!
//! The header is protobuf and announces the length of token ids and payload, which follow unencoded. The receiver
//! compares each announced length with the limit of the message before it reserves memory.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use swarmline_proto::v1;
use swarmline_scheduler::prediction::PredictionMessage;
use swarmline_scheduler::transfer::{ChunkHash, ChunkSketch, Manifest, SKETCH_NUMBERS, TransferMessage};
use swarmline_scheduler::{Envelope, Message};

use super::wire::{self, WireError};
use crate::config::limits as run_limits;

/// `SWL` and version 2 of the frame layout.
const MAGIC: u32 = 0x5357_4C02;
/// The bits of [`MAGIC`] that hold the version.
const VERSION_MASK: u32 = 0xFF;
/// Bytes before the header.
pub(super) const PREAMBLE_BYTES: usize = 8;

/// Limit of a payload between replicas of a stage, bytes. Fragments are cut into parts and states into chunks below it.
/// The digests of a state's chunks are one payload.
pub const BULK_BYTES_MAX: usize = 1 << 20;
/// Bulk frames in flight to one peer: a few chunks of a state, a part of a round, and its mean.
pub(super) const BULK_FRAMES: usize = 10;

const _: () = assert!(run_limits::AVERAGING_PART_BYTES_MAX <= BULK_BYTES_MAX);
const _: () = assert!(run_limits::STATE_CHUNK_BYTES_MAX <= BULK_BYTES_MAX);
const _: () = assert!(run_limits::STATE_CHUNKS_MAX * HASH_BYTES <= BULK_BYTES_MAX);
/// Bytes of the digest of a chunk.
const HASH_BYTES: usize = size_of::<ChunkHash>();
/// Length of the projections of a chunk.
const SKETCH_BYTES: usize = SKETCH_NUMBERS * size_of::<f32>();

/// Limits of the parts of a frame, bytes. They follow from the run manifest, so all peers have the same limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// The header: a hop of a route takes about 50 bytes, lists of ids and ranges up to 28 KiB.
    pub header_bytes_max: usize,
    /// The token ids of one microbatch.
    pub ids_bytes_max: usize,
    /// A packed activation or gradient.
    pub activation_bytes_max: usize,
    /// The logits behind one token.
    pub logits_bytes_max: usize,
}

impl FrameLimits {
    /// The longest frame of a microbatch, bytes.
    #[must_use]
    pub fn frame_bytes_max(&self) -> usize {
        let payload_bytes_max = self.activation_bytes_max.max(self.logits_bytes_max);
        [self.header_bytes_max, self.ids_bytes_max, payload_bytes_max]
            .into_iter()
            .fold(PREAMBLE_BYTES, usize::saturating_add)
    }
}

/// A part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The first eight bytes.
    Preamble,
    /// The protobuf header.
    Header,
    /// The token ids.
    Ids,
    /// The packed activation or gradient.
    Activation,
    /// A packed activation, or logits.
    Prediction,
    /// A contribution or mean of an averaging round.
    Numbers,
    /// A chunk of a state.
    Chunk,
    /// The digests of the chunks of a state.
    Hashes,
    /// The projections of the chunks of a state.
    Sketch,
    /// The empty payload of a message without one.
    Nothing,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preamble => "preamble",
            Self::Header => "header",
            Self::Ids => "token ids",
            Self::Activation => "activation or gradient",
            Self::Prediction => "activation or logits",
            Self::Numbers => "contribution or mean",
            Self::Chunk => "chunk",
            Self::Hashes => "digests",
            Self::Sketch => "projections",
            Self::Nothing => "payload of a message without one",
        })
    }
}

/// Reasons why bytes are not a frame of this run, or why an envelope does not fit into a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are not those of a frame.
    #[error("not a swarmline frame: it begins with {found:#010x}")]
    Magic {
        /// The first four bytes.
        found: u32,
    },
    /// The frame has another version of the layout.
    #[error("frame layout version {theirs}, this peer speaks {ours}; run the same release on both sides")]
    Version {
        /// Version of the frame.
        theirs: u32,
        /// Version of this code.
        ours: u32,
    },
    /// A part is longer than the run allows.
    #[error("the {part} is announced with {announced} bytes, the run allows {allowed}")]
    TooLong {
        /// The part.
        part: Part,
        /// Announced length, bytes.
        announced: u64,
        /// Allowed length, bytes.
        allowed: u64,
    },
    /// The frame ends too early.
    #[error("the frame ends inside the {part}: {announced} bytes announced, {received} received")]
    Truncated {
        /// The part.
        part: Part,
        /// Announced length, bytes.
        announced: usize,
        /// Received length, bytes.
        received: usize,
    },
    /// The frame goes on after its end.
    #[error("the frame goes on after the {announced} bytes it announced")]
    Trailing {
        /// Length of the whole frame as announced, bytes.
        announced: usize,
    },
    /// A header that breaks the contract.
    #[error("malformed header: {0}")]
    Header(#[from] WireError),
    /// The frame did not arrive in time.
    #[error("the {part} did not arrive within {waited_ms} ms")]
    Late {
        /// The part.
        part: Part,
        /// Time waited, milliseconds.
        waited_ms: u64,
    },
}

impl FrameError {
    /// The part that is wrong; `None` if the error is not about a part.
    #[must_use]
    pub fn part(&self) -> Option<Part> {
        match self {
            Self::TooLong { part, .. } | Self::Truncated { part, .. } | Self::Late { part, .. } => {
                Some(*part)
            }
            _ => None,
        }
    }
}

/// An envelope ready for the wire, in pieces so that payloads are not copied.
#[derive(Clone, Debug)]
pub struct Encoded {
    pieces: [Bytes; 3],
}

impl Encoded {
    /// Preamble with header, token ids, payload; the latter two may be empty.
    pub(super) fn into_pieces(self) -> [Bytes; 3] {
        self.pieces
    }

    /// Length of the frame, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// The whole frame in one piece, copied.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

/// Turns an envelope into a frame.
///
/// # Errors
/// [`FrameError::TooLong`] if a receiver with the same limits would refuse it.
pub fn encode(envelope: &Envelope<Bytes>, limits: &FrameLimits) -> Result<Encoded, FrameError> {
    let Envelope { message, ids, .. } = envelope;
    let payload = payload(envelope);
    let allowed = Allowed::of(message, limits);
    check_length(Part::Ids, ids.len() as u64, allowed.ids_bytes)?;
    check_length(allowed.part, payload.len() as u64, allowed.payload_bytes)?;
    let header = v1::Frame {
        message: Some(wire::encode_message(message)),
        ids_bytes: ids.len() as u64,
        payload_bytes: payload.len() as u64,
    };
    let header_bytes = header.encoded_len();
    check_length(Part::Header, header_bytes as u64, limits.header_bytes_max)?;
    let announced = u32::try_from(header_bytes).map_err(|_| FrameError::TooLong {
        part: Part::Header,
        announced: header_bytes as u64,
        allowed: u64::from(u32::MAX),
    })?;
    let mut head = BytesMut::with_capacity(PREAMBLE_BYTES + header_bytes);
    head.put_u32(MAGIC);
    head.put_u32(announced);
    head.put_slice(&header.encode_to_vec());
    Ok(Encoded { pieces: [head.freeze(), ids.clone(), payload] })
}

/// Reads a whole frame.
///
/// # Errors
/// If `frame` is not exactly one frame within `limits`.
pub fn decode(frame: &Bytes, limits: &FrameLimits) -> Result<Envelope<Bytes>, FrameError> {
    let mut rest = frame.clone();
    let preamble = take(&mut rest, Part::Preamble, PREAMBLE_BYTES)?;
    let header_bytes = decode_preamble(&preamble, limits)?;
    let announced = decode_header(&take(&mut rest, Part::Header, header_bytes)?, limits)?;
    let ids = take(&mut rest, Part::Ids, announced.ids_bytes)?;
    let payload = take(&mut rest, announced.part, announced.payload_bytes)?;
    if !rest.is_empty() {
        return Err(FrameError::Trailing { announced: frame.len() - rest.len() });
    }
    Ok(announced.fill(ids, payload))
}

/// Length of the header, checked.
pub(super) fn decode_preamble(preamble: &[u8], limits: &FrameLimits) -> Result<usize, FrameError> {
    let (magic, length) = preamble
        .first_chunk::<4>()
        .zip(preamble.get(4..).and_then(|rest| rest.first_chunk::<4>()))
        .map(|(magic, length)| (u32::from_be_bytes(*magic), u32::from_be_bytes(*length)))
        .ok_or(FrameError::Truncated {
            part: Part::Preamble,
            announced: PREAMBLE_BYTES,
            received: preamble.len(),
        })?;
    if magic & !VERSION_MASK != MAGIC & !VERSION_MASK {
        return Err(FrameError::Magic { found: magic });
    }
    if magic != MAGIC {
        return Err(FrameError::Version { theirs: magic & VERSION_MASK, ours: MAGIC & VERSION_MASK });
    }
    check_length(Part::Header, length.into(), limits.header_bytes_max)
}

/// The message in a header, and the lengths that it announces, checked.
pub(super) fn decode_header(header: &[u8], limits: &FrameLimits) -> Result<Announced, FrameError> {
    let v1::Frame { message, ids_bytes, payload_bytes } = v1::Frame::decode(header)
        .map_err(|error| WireError::Protobuf { message: "Frame", detail: error.to_string() })?;
    let message = message.ok_or(WireError::Missing { field: "the message of the frame" })?;
    let message = wire::decode_message(message)?;
    let allowed = Allowed::of(&message, limits);
    let ids_bytes = check_length(Part::Ids, ids_bytes, allowed.ids_bytes)?;
    let payload_bytes = check_length(allowed.part, payload_bytes, allowed.payload_bytes)?;
    check_digests(&message, payload_bytes)?;
    Ok(Announced { ids_bytes, payload_bytes, part: allowed.part, message })
}

/// A message whose token ids and payload have not arrived yet.
#[derive(Debug)]
pub(super) struct Announced {
    /// Length of the token ids, within the limits.
    pub(super) ids_bytes: usize,
    /// Length of the payload, within the limits.
    pub(super) payload_bytes: usize,
    /// Kind of the payload.
    pub(super) part: Part,
    message: Message,
}

impl Announced {
    /// Length of the rest of the frame.
    pub(super) fn bytes(&self) -> usize {
        self.ids_bytes.saturating_add(self.payload_bytes)
    }

    /// The envelope of the message, with `ids` and `payload`.
    pub(super) fn fill(self, ids: Bytes, payload: Bytes) -> Envelope<Bytes> {
        match self.message {
            Message::Transfer(TransferMessage::Offer { state, manifest, age, clock }) => {
                let hashes = payload.as_chunks::<HASH_BYTES>().0.to_vec();
                let manifest = Manifest { hashes, ..manifest };
                Message::Transfer(TransferMessage::Offer { state, manifest, age, clock }).into()
            }
            Message::Transfer(TransferMessage::Sketch { state, seed, .. }) => {
                let sketch = payload.as_chunks::<SKETCH_BYTES>().0.iter().map(read_sketch).collect();
                Message::Transfer(TransferMessage::Sketch { state, seed, sketch }).into()
            }
            message => Envelope { message, ids, payload },
        }
    }
}

fn read_sketch(bytes: &[u8; SKETCH_BYTES]) -> ChunkSketch {
    let (numbers, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|place| f32::from_le_bytes(numbers[place]))
}

/// The payload of the frame: the envelope's, or the digests of an offer or the projections of a sketch, which the header
/// leaves out.
fn payload(envelope: &Envelope<Bytes>) -> Bytes {
    match &envelope.message {
        Message::Transfer(TransferMessage::Offer { manifest, .. }) => manifest.hashes.concat().into(),
        Message::Transfer(TransferMessage::Sketch { sketch, .. }) => {
            sketch.iter().flatten().flat_map(|number| number.to_le_bytes()).collect()
        }
        _ => envelope.payload.clone(),
    }
}

/// Limits of the parts that follow the header of a message.
struct Allowed {
    ids_bytes: usize,
    payload_bytes: usize,
    part: Part,
}

impl Allowed {
    fn of(message: &Message, limits: &FrameLimits) -> Self {
        let has_ids =
            matches!(message, Message::Forward { .. } | Message::Prediction(PredictionMessage::Request(_)));
        let ids_bytes = if has_ids { limits.ids_bytes_max } else { 0 };
        let (part, payload_bytes) = match message {
            Message::Forward { .. }
            | Message::Backward { .. }
            | Message::Prediction(PredictionMessage::Request(_)) => {
                (Part::Activation, limits.activation_bytes_max)
            }
            Message::Prediction(PredictionMessage::Reply(_)) => {
                (Part::Prediction, limits.activation_bytes_max.max(limits.logits_bytes_max))
            }
            Message::Averaging(message) if message.content.has_payload() => {
                (Part::Numbers, run_limits::AVERAGING_PART_BYTES_MAX)
            }
            Message::Transfer(TransferMessage::Offer { .. }) => {
                (Part::Hashes, run_limits::STATE_CHUNKS_MAX * HASH_BYTES)
            }
            Message::Transfer(TransferMessage::Sketch { .. }) => {
                (Part::Sketch, run_limits::STATE_CHUNKS_MAX * SKETCH_BYTES)
            }
            Message::Transfer(TransferMessage::Chunk { .. }) => {
                (Part::Chunk, run_limits::STATE_CHUNK_BYTES_MAX)
            }
            _ => (Part::Nothing, 0),
        };
        Self { ids_bytes, payload_bytes, part }
    }
}

/// Checks that an offer has a digest for each chunk.
fn check_digests(message: &Message, payload_bytes: usize) -> Result<(), WireError> {
    let Message::Transfer(TransferMessage::Offer { manifest, .. }) = message else { return Ok(()) };
    if u64::from(manifest.chunks()).checked_mul(HASH_BYTES as u64) == Some(payload_bytes as u64) {
        return Ok(());
    }
    Err(WireError::Range {
        field: "the length of the digests",
        value: format!("{payload_bytes} bytes"),
        allowed: "32 bytes for each chunk",
    })
}

fn check_length(part: Part, announced: u64, allowed: usize) -> Result<usize, FrameError> {
    usize::try_from(announced).ok().filter(|&announced| announced <= allowed).ok_or(FrameError::TooLong {
        part,
        announced,
        allowed: allowed as u64,
    })
}

fn take(rest: &mut Bytes, part: Part, announced: usize) -> Result<Bytes, FrameError> {
    if rest.len() < announced {
        return Err(FrameError::Truncated { part, announced, received: rest.len() });
    }
    Ok(rest.split_to(announced))
}

#[cfg(test)]
mod tests;
