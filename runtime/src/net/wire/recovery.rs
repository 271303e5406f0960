//! Recovery reports: replies to a feeder that takes over a range of ids.

use swarmline_proto::v1;
use swarmline_proto::v1::recovery_report::item;
use swarmline_scheduler::recovery_report::{Item, Possession, RECOVERY_ITEMS_MAX, RecoveryReport};
use swarmline_scheduler::{MicrobatchId, StageIndex};

use super::ranges::{decode_ranges, encode_range};
use super::{WireError, check_count, decode_stage, out_of_range};

pub(super) fn encode(report: &RecoveryReport) -> v1::RecoveryReport {
    v1::RecoveryReport {
        first: report.first.0,
        epoch: report.epoch,
        from: report.from.0,
        next: report.next.map(|next| next.0),
        stage: report.stage.0.into(),
        ended: report.ended.iter().map(encode_range).collect(),
        items: report.items.iter().map(encode_item).collect(),
    }
}

pub(super) fn decode(report: v1::RecoveryReport) -> Result<RecoveryReport, WireError> {
    check_count(&report.items, RECOVERY_ITEMS_MAX, "the number of items", "at most 64")?;
    Ok(RecoveryReport {
        first: MicrobatchId(report.first),
        epoch: report.epoch,
        from: MicrobatchId(report.from),
        next: report.next.map(MicrobatchId),
        stage: decode_stage(report.stage)?,
        ended: decode_ranges(report.ended)?,
        items: report.items.into_iter().map(decode_item).collect::<Result<_, _>>()?,
    })
}

fn encode_item(item: &Item) -> v1::recovery_report::Item {
    let possession = match item.possession {
        Possession::Gone => item::Possession::Gone,
        Possession::Held => item::Possession::Held,
        Possession::Returned => item::Possession::Returned,
    };
    v1::recovery_report::Item {
        microbatch: item.microbatch.0,
        granted: item.granted,
        possession: possession.into(),
        may_have_been_granted: item.may_have_been_granted.iter().map(|stage| stage.0.into()).collect(),
    }
}

fn decode_item(item: v1::recovery_report::Item) -> Result<Item, WireError> {
    let may_have_been_granted: Vec<StageIndex> =
        item.may_have_been_granted.into_iter().map(decode_stage).collect::<Result<_, _>>()?;
    Ok(Item {
        microbatch: MicrobatchId(item.microbatch),
        granted: item.granted,
        possession: decode_possession(item.possession)?,
        may_have_been_granted,
    })
}

fn decode_possession(possession: i32) -> Result<Possession, WireError> {
    match item::Possession::try_from(possession) {
        Ok(item::Possession::Gone) => Ok(Possession::Gone),
        Ok(item::Possession::Held) => Ok(Possession::Held),
        Ok(item::Possession::Returned) => Ok(Possession::Returned),
        Ok(item::Possession::Unspecified) | Err(_) => {
            Err(out_of_range("possession", possession, "a known possession"))
        }
    }
}
