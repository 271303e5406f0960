//! How far a run has come, as feeders report it and the coordinator tells it.

use swarmline_proto::v1;
use swarmline_scheduler::{Block, BlockTally, LEASES_MAX, RunTally};

use super::{WireError, check_ascending, check_count, out_of_range};

/// The progress of a block as a message.
#[must_use]
pub fn encode_block(tally: &BlockTally) -> v1::BlockTally {
    let &BlockTally { block, leased, injected, settled } = tally;
    v1::BlockTally { block: block.0, leased, injected, settled }
}

/// The progress of blocks in a message.
///
/// # Errors
/// If there are too many, one has a number beyond the last block, or their numbers are not strictly ascending.
pub fn decode_blocks(blocks: &[v1::BlockTally]) -> Result<Vec<BlockTally>, WireError> {
    check_count(blocks, LEASES_MAX, "the number of blocks", "at most 4096")?;
    check_ascending(blocks, |tally| tally.block, "the number of a block")?;
    let decode = |one: &v1::BlockTally| {
        let &v1::BlockTally { block, leased, injected, settled } = one;
        if block >= Block::COUNT {
            return Err(out_of_range("the number of a block", block, "below 8388608"));
        }
        Ok(BlockTally { block: Block(block), leased, injected, settled })
    };
    blocks.iter().map(decode).collect()
}

/// The progress of a run as a message.
#[must_use]
pub fn encode_run(tally: RunTally) -> v1::RunTally {
    v1::RunTally { injected: tally.injected, settled: tally.settled }
}

/// The progress of a run in a message; a missing one is that of a run that has not begun.
#[must_use]
pub fn decode_run(tally: Option<v1::RunTally>) -> RunTally {
    let v1::RunTally { injected, settled } = tally.unwrap_or_default();
    RunTally { injected, settled }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_pass_in_order_and_within_their_numbers() {
        let tally = |block| BlockTally { block: Block(block), leased: 12, injected: 9, settled: 7 };
        let encoded = [tally(0), tally(3)].map(|one| encode_block(&one));
        assert_eq!(decode_blocks(&encoded), Ok(vec![tally(0), tally(3)]));
        assert!(decode_blocks(&[encode_block(&tally(3)), encode_block(&tally(3))]).is_err());
        assert!(decode_blocks(&[encode_block(&tally(Block::COUNT))]).is_err());
    }
}
