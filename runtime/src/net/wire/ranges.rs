//! Ranges of acknowledged ids.

use swarmline_proto::v1;
use swarmline_scheduler::{ACK_OPEN_MAX, ACK_RANGES_MAX, AckRange};

use super::{WireError, check_count};

pub(super) fn encode_range(range: &AckRange) -> v1::AckRange {
    let before = std::iter::once(range.first).chain(range.open.iter().copied());
    let open = range.open.iter().zip(before).map(|(id, before)| id.saturating_sub(before)).collect();
    v1::AckRange { first: range.first, end: range.end, open }
}

pub(super) fn decode_ranges(ranges: Vec<v1::AckRange>) -> Result<Vec<AckRange>, WireError> {
    check_count(&ranges, ACK_RANGES_MAX, "the number of ranges", "at most 16")?;
    ranges.into_iter().map(decode_range).collect()
}

fn decode_range(range: v1::AckRange) -> Result<AckRange, WireError> {
    let v1::AckRange { first, end, open: distances } = range;
    check_count(&distances, ACK_OPEN_MAX, "the number of open ids of a range", "at most 65536")?;
    let mut open = Vec::with_capacity(distances.len());
    for distance in distances {
        let before = open.last().copied().unwrap_or(first);
        let ascends = distance > 0 || open.is_empty();
        let id = before.checked_add(distance).filter(|&id| id < end && ascends);
        open.push(id.ok_or_else(|| WireError::Range {
            field: "the distance of an open id",
            value: distance.to_string(),
            allowed: "ascending ids below the end",
        })?);
    }
    Ok(AckRange { first, end, open })
}
