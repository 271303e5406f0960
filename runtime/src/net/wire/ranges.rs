//! Ranges of acknowledged ids.

use swarmline_proto::v1;
use swarmline_scheduler::{ACK_BITMAP_BYTES_MAX, ACK_RANGES_MAX, AckRange};

use super::{WireError, check_count};

pub(super) fn encode_range(range: &AckRange) -> v1::AckRange {
    v1::AckRange { first: range.first, watermark: range.watermark, bitmap: range.bitmap.clone() }
}

pub(super) fn decode_ranges(ranges: Vec<v1::AckRange>) -> Result<Vec<AckRange>, WireError> {
    check_count(&ranges, ACK_RANGES_MAX, "the number of ranges", "at most 16")?;
    let decode = |range: v1::AckRange| {
        check_count(&range.bitmap, ACK_BITMAP_BYTES_MAX, "the length of a bitmap", "at most 1024 bytes")?;
        Ok(AckRange { first: range.first, watermark: range.watermark, bitmap: range.bitmap })
    };
    ranges.into_iter().map(decode).collect()
}
