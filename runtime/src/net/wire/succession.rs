//! Messages of a feeder that takes over ids, and the successions in a membership table.

use swarmline_proto::v1;
use swarmline_proto::v1::inventory::item;
use swarmline_scheduler::recovery_report::{INVENTORY_MAX, Inventory, Item, Stock};
use swarmline_scheduler::{Lease, MicrobatchId, SUCCESSIONS_MAX, StageIndex, Succession};

use super::{WireError, decode_peer, decode_spans, decode_stage, encode_span, unknown};

pub(super) fn encode_inventory(inventory: &Inventory) -> v1::Inventory {
    v1::Inventory {
        range: inventory.range.0,
        epoch: inventory.epoch,
        from: inventory.from.0,
        next: inventory.next.map(|next| next.0),
        stage: inventory.stage.0.into(),
        ended: inventory.ended.iter().map(encode_span).collect(),
        items: inventory.items.iter().map(encode_item).collect(),
    }
}

pub(super) fn decode_inventory(inventory: v1::Inventory) -> Result<Inventory, WireError> {
    if inventory.items.len() > INVENTORY_MAX {
        return Err(unknown("the number of items", inventory.items.len() as i64, "at most 64"));
    }
    Ok(Inventory {
        range: MicrobatchId(inventory.range),
        epoch: inventory.epoch,
        from: MicrobatchId(inventory.from),
        next: inventory.next.map(MicrobatchId),
        stage: decode_stage(inventory.stage)?,
        ended: decode_spans(inventory.ended)?,
        items: inventory.items.into_iter().map(decode_item).collect::<Result<_, _>>()?,
    })
}

fn encode_item(item: &Item) -> v1::inventory::Item {
    let stock = match item.stock {
        Stock::Gone => item::Stock::Gone,
        Stock::Held => item::Stock::Held,
        Stock::Answered => item::Stock::Answered,
    };
    v1::inventory::Item {
        microbatch: item.microbatch.0,
        granted: item.granted,
        stock: stock.into(),
        doubted: item.doubted.iter().map(|stage| stage.0.into()).collect(),
    }
}

fn decode_item(item: v1::inventory::Item) -> Result<Item, WireError> {
    let stock = match item::Stock::try_from(item.stock) {
        Ok(item::Stock::Gone) => Stock::Gone,
        Ok(item::Stock::Held) => Stock::Held,
        Ok(item::Stock::Answered) => Stock::Answered,
        Ok(item::Stock::Unspecified) | Err(_) => return Err(unknown("stock", item.stock, "a known stock")),
    };
    let doubted: Vec<StageIndex> = item.doubted.into_iter().map(decode_stage).collect::<Result<_, _>>()?;
    Ok(Item { microbatch: MicrobatchId(item.microbatch), granted: item.granted, stock, doubted })
}

pub(super) fn encode_succession(succession: &Succession) -> v1::Succession {
    let Succession { lease, feeder } = succession;
    v1::Succession { first: lease.first.0, count: lease.count, epoch: lease.epoch, feeder: feeder.0.to_vec() }
}

pub(super) fn decode_successions(successions: &[v1::Succession]) -> Result<Vec<Succession>, WireError> {
    if successions.len() > SUCCESSIONS_MAX {
        return Err(unknown("the number of successions", successions.len() as i64, "at most 64"));
    }
    let decode = |one: &v1::Succession| {
        let lease = Lease { first: MicrobatchId(one.first), count: one.count, epoch: one.epoch };
        Ok(Succession { lease, feeder: decode_peer(&one.feeder)? })
    };
    successions.iter().map(decode).collect()
}
