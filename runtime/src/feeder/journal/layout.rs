//! The file as bytes: a preamble, then frames, numbers little endian.
//!
//! ```text
//! preamble  "SWLJ", version u32
//! frame     length u32, checksum of the payload 8 bytes, checksum of these twelve bytes 4 bytes, payload
//! ```
//!
//! A frame is what one write adds. A frame that ends early is where the writer died; anything else that does not fit its
//! checksums is damage.

/// First bytes of the file.
const MAGIC: [u8; 4] = *b"SWLJ";
/// Version of the layout and of the records.
const VERSION: u32 = 3;
/// Length of the preamble, bytes.
pub(super) const PREAMBLE_BYTES: usize = 8;
/// Length of a frame without its payload, bytes.
const HEADER_BYTES: usize = 16;
const PAYLOAD_CHECK_BYTES: usize = 8;
const HEADER_CHECK_BYTES: usize = 4;

/// What a person can do about a damaged journal.
pub(super) const REMEDY: &str = "restore a copy, or take over with `feed --succeed` and a new --journal";

/// Bytes that no journal of this release has, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// Offset of the frame in the file, bytes.
    pub(super) at: usize,
    pub(super) fault: String,
}

pub(super) fn preamble() -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

/// Appends a frame. A payload has 4 GiB at most.
pub(super) fn push_frame(file: &mut Vec<u8>, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut header = length.to_le_bytes().to_vec();
    header.extend(checksum::<PAYLOAD_CHECK_BYTES>(payload));
    header.extend(checksum::<HEADER_CHECK_BYTES>(&header));
    file.extend(header);
    file.extend(payload);
}

/// The frames of a file.
#[derive(Debug, Default)]
pub(super) struct Frames<'a> {
    /// The payloads, each with its offset in the file.
    pub(super) payloads: Vec<(usize, &'a [u8])>,
    /// Length of the whole frames, bytes: behind it the writer died.
    pub(super) whole: usize,
}

pub(super) fn read(file: &[u8]) -> Result<Frames<'_>, Damage> {
    if file.len() < PREAMBLE_BYTES && preamble().starts_with(file) {
        return Ok(Frames::default());
    }
    check_preamble(file)?;
    let (mut payloads, mut at) = (Vec::new(), PREAMBLE_BYTES);
    while let Some(payload) = frame_at(file, at)? {
        payloads.push((at + HEADER_BYTES, payload));
        at += HEADER_BYTES + payload.len();
    }
    Ok(Frames { payloads, whole: at })
}

fn check_preamble(file: &[u8]) -> Result<(), Damage> {
    let damage = |fault: String| Err(Damage { at: 0, fault });
    let (magic, version) = (file.first_chunk(), file.get(4..).and_then(|rest| rest.first_chunk()));
    match (magic, version.map(|bytes| u32::from_le_bytes(*bytes))) {
        (Some(&MAGIC), Some(VERSION)) => Ok(()),
        (Some(&MAGIC), Some(version)) => damage(format!(
            "it has version {version} of the layout, this release reads {VERSION}; resume with the release that wrote it"
        )),
        _ => damage("it is no journal of a feeder; name another file with --journal".to_owned()),
    }
}

/// The payload of the frame that begins at `at`; `None` if the writer died before its end.
fn frame_at(file: &[u8], at: usize) -> Result<Option<&[u8]>, Damage> {
    let rest = &file[at..];
    let Some((header, rest)) = rest.split_at_checked(HEADER_BYTES) else { return Ok(None) };
    let damage = |part: &str| {
        Err(Damage { at, fault: format!("the {part} of a record does not fit its checksum; {REMEDY}") })
    };
    let (fields, header_check) = header.split_at(HEADER_BYTES - HEADER_CHECK_BYTES);
    if checksum::<HEADER_CHECK_BYTES>(fields) != header_check {
        // A file system may have grown the file before it wrote the bytes.
        let unwritten = header.iter().chain(rest).all(|&byte| byte == 0);
        return if unwritten { Ok(None) } else { damage("length") };
    }
    let (length, payload_check) = fields.split_at(4);
    let length = length.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
    let Some((payload, behind)) = rest.split_at_checked(length) else { return Ok(None) };
    if checksum::<PAYLOAD_CHECK_BYTES>(payload) == payload_check {
        return Ok(Some(payload));
    }
    // Of the last frame some bytes may not have reached the disk before the power was cut.
    if behind.is_empty() { Ok(None) } else { damage("content") }
}

fn checksum<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut first = [0; N];
    first.copy_from_slice(&blake3::hash(bytes).as_bytes()[..N]);
    first
}
