//! Tests of the book: what feeders ask for, and what they get.

use super::*;
use crate::{Member, MemberState, PeerId};

fn feeder(key: u8) -> Instance {
    start(key, 1)
}

fn start(key: u8, incarnation: u64) -> Instance {
    Instance::new(PeerId([key; 32]), Incarnation(incarnation))
}

fn id(block: u32, index: u64) -> MicrobatchId {
    MicrobatchId(Block(block).first().0 + index)
}

fn leased(block: u32, index: u64, count: u64) -> Result<Lease, LeaseRefusal> {
    Ok(Lease { first: id(block, index), count, epoch: 0 })
}

fn tally(block: u32, injected: u64, settled: u64) -> BlockTally {
    BlockTally { block: Block(block), leased: injected, injected, settled }
}

fn open(book: &LeaseBook) -> usize {
    book.ranges().iter().filter(|range| range.is_open()).count()
}

fn table(book: &LeaseBook, members: &[Instance]) -> Membership {
    let member =
        |&instance| Member { instance, state: MemberState::Feeding, address: ([127, 0, 0, 1], 1).into() };
    Membership {
        members: members.iter().map(member).collect(),
        leases: book.ranges(),
        ..Membership::default()
    }
}

#[test]
fn each_feeder_gets_ids_of_its_own_block_and_all_together_the_whole_run() {
    let mut book = LeaseBook::new(40);
    let (a, b) = (feeder(1), feeder(2));
    assert_eq!(book.lease(a, None, 10, 1), leased(0, 0, 10));
    assert_eq!(book.lease(b, None, 10, 2), leased(1, 0, 10));
    assert_eq!(book.lease(a, Some(id(0, 10)), 100, 2), leased(0, 10, 10), "half of what is left");
    assert_eq!(book.lease(b, Some(id(1, 10)), 100, 1), leased(1, 10, 10));
    assert_eq!(book.lease(b, Some(id(1, 20)), 100, 1), leased(1, 20, 0));
    assert_eq!(book.lease(a, Some(id(0, 20)), 0, 1), Err(LeaseRefusal::Empty));
    assert_eq!(book.ranges().iter().map(|range| range.feeder).collect::<Vec<_>>(), [a.peer, b.peer]);
    book.report(a, &[tally(0, 20, 20), tally(1, 20, 20)]);
    assert_eq!((book.is_over(), book.others(b, &[])), (false, RunTally { injected: 20, settled: 20 }));
    book.report(b, &[tally(1, 20, 20)]);
    assert!(book.is_over());
}

#[test]
fn a_long_run_of_two_feeders_takes_no_more_room_than_a_short_one() {
    let mut book = LeaseBook::new(u64::MAX);
    let mut next = [None, None];
    for turn in 0..200_000 {
        let (index, holder) = (turn % 2, feeder((turn % 2) as u8));
        let lease = book.lease(holder, next[index], 1_024, 2).unwrap();
        assert_eq!(lease.count, 1_024);
        next[index] = Some(MicrobatchId(lease.ids().end));
    }
    assert_eq!(book.entries.len(), 2);
}

#[test]
fn a_repeated_request_gets_the_same_ids_and_an_old_one_none() {
    let mut book = LeaseBook::new(100);
    let a = feeder(1);
    assert_eq!(book.lease(a, None, 10, 1), leased(0, 0, 10));
    assert_eq!(book.lease(a, None, 10, 1), leased(0, 0, 10));
    assert_eq!(book.lease(a, Some(id(0, 10)), 10, 1), leased(0, 10, 10));
    assert_eq!(book.lease(a, Some(id(0, 10)), 10, 1), leased(0, 10, 10));
    assert_eq!(book.lease(a, None, 10, 1), leased(0, 0, 0));
    assert_eq!(book.lease(a, Some(id(0, 20)), 100, 1), leased(0, 20, 80));
    assert_eq!(
        book.lease(a, Some(id(0, 50)), 100, 1),
        leased(0, 50, 50),
        "of the latest lease it has a part"
    );
}

#[test]
fn a_feeder_that_claims_ids_that_it_was_not_given_takes_none_from_the_others() {
    for liar in [start(1, 1), start(1, 2)] {
        let mut book = LeaseBook::new(100);
        let b = feeder(2);
        book.lease(start(1, 1), None, 10, 1).unwrap();
        book.lease(b, None, 10, 2).unwrap();
        for claimed in [99, 100, Block::IDS - 1] {
            book.lease(liar, Some(id(0, claimed)), 1, 2).unwrap();
        }
        book.report(liar, &[tally(0, u64::MAX, u64::MAX)]);
        assert_eq!(book.progress(), RunTally { injected: 13, settled: 13 });
        assert!(!book.is_over());
        assert_eq!(book.lease(b, Some(id(1, 10)), 100, 1), leased(1, 10, 77), "all the rest of the run");
    }
}

#[test]
fn a_feeder_that_claims_ids_of_a_restored_block_gets_no_more_than_is_free() {
    let mut before = LeaseBook::new(100);
    let [liar, b] = [1, 2].map(feeder);
    before.lease(liar, None, 10, 1).unwrap();
    before.lease(b, None, 10, 2).unwrap();
    let mut book = LeaseBook::new(100);
    book.restore(&table(&before, &[liar, b]));
    book.lease(liar, Some(id(0, Block::IDS - 1)), 1, 2).unwrap();
    book.report(liar, &[tally(0, u64::MAX, u64::MAX)]);
    assert_eq!(book.progress().settled, 80, "the reserve of the other feeder is its own");
}

#[test]
fn a_feeder_whose_ids_are_not_its_own_learns_so_and_opens_one_block_however_often_it_asks() {
    let mut book = LeaseBook::new(1_000_000);
    let [former, heir, newcomer] = [1, 2, 3].map(feeder);
    book.lease(former, None, 10, 1).unwrap();
    book.succeed(heir, |holder| holder == former);
    assert_eq!(book.lease(former, Some(id(0, 10)), 5, 1), leased(1, 0, 5), "its ids went to another feeder");
    let ask_again = |book: &mut LeaseBook| {
        for turn in 0..LEASES_MAX as u32 {
            let foreign = id([0, 9, 10 + turn][turn as usize % 3], 10);
            let lease = book.lease(start(1, u64::from(turn % 4)), Some(foreign), 5, 1).unwrap();
            assert_eq!((lease.first.block(), lease.count), (Block(1), 0), "in a block that is not its own");
        }
    };
    ask_again(&mut book);
    book.report(former, &[tally(1, 5, 5)]);
    book.close_settled(former);
    ask_again(&mut book);
    assert_eq!((book.ranges().len(), open(&book)), (2, 1));
    assert_eq!(book.lease(newcomer, None, 5, 1), leased(2, 0, 5), "blocks are left for others");
}

#[test]
fn a_feeder_settles_no_more_than_it_was_given() {
    let mut book = LeaseBook::new(100);
    let (liar, b) = (feeder(1), feeder(2));
    book.lease(liar, None, 10, 1).unwrap();
    book.lease(b, None, 10, 2).unwrap();
    book.report(liar, &[tally(0, u64::MAX, u64::MAX), tally(1, u64::MAX, u64::MAX)]);
    assert_eq!(book.progress(), RunTally { injected: 10, settled: 10 });
    assert_eq!(book.lease(b, Some(id(1, 10)), 100, 1), leased(1, 10, 80), "the rest of the run is left");

    let mut restarted = LeaseBook::new(100);
    restarted.restore(&table(&book, &[liar, b]));
    restarted.report(liar, &[tally(0, u64::MAX, u64::MAX)]);
    assert!(restarted.progress().settled <= 100);
}

#[test]
fn a_feeder_that_resumes_gives_back_what_it_does_not_have() {
    let mut book = LeaseBook::new(30);
    book.lease(feeder(1), None, 20, 1).unwrap();
    book.report(start(1, 2), &[tally(0, 8, 3)]);
    assert_eq!(book.others(start(1, 2), &[tally(0, 8, 3)]), RunTally::default());
    assert_eq!(book.lease(start(1, 2), Some(id(0, 8)), 100, 1), leased(0, 8, 22));
}

#[test]
fn a_feeder_that_resumes_and_needs_no_ids_ends_the_run() {
    let mut book = LeaseBook::new(10);
    book.lease(feeder(1), None, 10, 1).unwrap();
    book.report(start(1, 2), &[tally(0, 10, 10)]);
    assert!(book.is_over());
    book.close_settled(start(1, 2));
    assert_eq!(open(&book), 0);
}

#[test]
fn a_start_without_a_journal_hears_of_the_blocks_of_the_starts_before_it() {
    let mut book = LeaseBook::new(30);
    book.lease(feeder(1), None, 20, 1).unwrap();
    book.report(feeder(1), &[tally(0, 6, 6)]);
    book.close_settled(feeder(1));
    assert_eq!(book.lease(start(1, 2), None, 100, 1), leased(1, 0, 24));
    book.report(start(1, 2), &[tally(1, 24, 24)]);
    assert_eq!(book.others(start(1, 2), &[tally(1, 24, 24)]), RunTally { injected: 6, settled: 6 });
}

#[test]
fn a_feeder_that_has_left_keeps_no_ids_from_the_run() {
    let mut book = LeaseBook::new(30);
    let (a, b) = (feeder(1), feeder(2));
    book.lease(a, None, 20, 1).unwrap();
    book.report(a, &[tally(0, 6, 5)]);
    book.close_settled(a);
    assert_eq!(open(&book), 1, "an id is open");
    book.report(a, &[tally(0, 6, 6)]);
    book.close_settled(a);
    assert_eq!(open(&book), 0);
    assert_eq!(book.lease(b, None, 100, 1), leased(1, 0, 24));
    book.report(b, &[tally(1, 24, 24)]);
    assert!(book.is_over());
    assert_eq!(book.lease(start(1, 2), Some(id(0, 6)), 5, 1), leased(0, 6, 0), "it may come back");
    assert_eq!(open(&book), 2);
}

#[test]
fn a_successor_gets_the_blocks_of_the_gone_and_says_how_many_ids_were_injected() {
    let mut book = LeaseBook::new(40);
    let [dead, alive, successor] = [1, 2, 3].map(feeder);
    book.lease(dead, None, 10, 1).unwrap();
    book.lease(alive, None, 10, 1).unwrap();
    book.report(dead, &[tally(0, 9, 6)]);
    assert!(book.succeed(successor, |holder| holder != alive));
    assert!(!book.succeed(successor, |holder| holder == dead));
    let lease = Lease { first: MicrobatchId(0), count: 10, epoch: 1 };
    let tally_then = BlockTally { leased: 10, ..tally(0, 9, 6) };
    assert_eq!(book.ranges()[0], LeasedRange { lease, feeder: successor.peer, tally: tally_then });
    assert_eq!(book.others(alive, &[]), RunTally { injected: 9, settled: 6 });
    book.report(dead, &[tally(0, 10, 10)]);
    book.report(successor, &[tally(0, 8, 7)]);
    assert_eq!(book.others(alive, &[]), RunTally { injected: 8, settled: 7 });
    assert_eq!(book.lease(successor, None, 100, 1), leased(2, 0, 22), "two ids were never injected");
    assert!(book.succeed(dead, |holder| holder == successor), "a successor can die too");
    assert_eq!(book.ranges().iter().map(|range| range.lease.epoch).collect::<Vec<_>>(), [2, 0, 1]);
}

#[test]
fn a_start_without_a_journal_takes_over_what_its_former_start_left() {
    let mut book = LeaseBook::new(40);
    book.lease(feeder(1), None, 10, 1).unwrap();
    assert_eq!(book.lease(start(1, 2), None, 10, 1), leased(1, 0, 10));
    let epochs: Vec<_> = book.ranges().iter().map(|range| range.lease.epoch).collect();
    assert_eq!(epochs, [1, 0]);
}

#[test]
fn a_book_that_is_restored_gives_out_no_id_twice_and_knows_how_far_the_run_has_come() {
    let mut before = LeaseBook::new(100);
    let [gone, dead, alive, mute] = [1, 2, 3, 4].map(feeder);
    for holder in [gone, dead, alive, mute] {
        before.lease(holder, None, 10, 1).unwrap();
    }
    before.report(gone, &[tally(0, 8, 8)]);
    before.close_settled(gone);
    before.report(dead, &[tally(1, 7, 5)]);
    let old = table(&before, &[dead, alive, mute]);
    before.lease(alive, Some(id(2, 10)), 10, 1).unwrap();

    let mut book = LeaseBook::new(100);
    book.restore(&old);
    assert_eq!(book.ranges(), old.leases);
    assert_eq!(book.progress(), RunTally { injected: 15, settled: 13 });
    assert_eq!(book.lease(alive, Some(id(2, 20)), 10, 1), leased(2, 20, 10));
    assert_eq!(book.lease(mute, None, 10, 1), leased(3, 0, 10), "it had no reply");
    assert_eq!(book.lease(feeder(5), None, 10, 1), leased(4 + BLOCKS_SKIPPED, 0, 10));
    book.report(alive, &[BlockTally { leased: 30, ..tally(2, 25, 20) }]);
    let reserve_of_dead = 20;
    let left = 100 - 8 - reserve_of_dead - 30 - 10 - 10;
    assert_eq!(book.lease(feeder(5), Some(id(4 + BLOCKS_SKIPPED, 10)), 99, 1).unwrap().count, left);
    assert!(book.succeed(alive, |holder| holder.peer == dead.peer));
    assert_eq!(
        book.ranges()[1].lease.count,
        100,
        "it may have had more than the table knew, but not than the run has"
    );
    assert_eq!(book.lease(start(1, 2), Some(id(0, 8)), 5, 1), leased(0, 8, 0), "it may come back");
}

#[test]
fn ids_given_out_since_the_table_are_given_out_to_no_other_feeder() {
    let mut before = LeaseBook::new(40);
    let [a, b] = [1, 2].map(feeder);
    before.lease(a, None, 10, 1).unwrap();
    let old = table(&before, &[a, b]);
    assert!(before.take_changed());
    before.lease(a, Some(id(0, 10)), 10, 1).unwrap();
    assert!(!before.take_changed(), "the reserve suffices");

    let mut book = LeaseBook::new(40);
    book.restore(&old);
    let given = book.lease(b, None, 100, 1).unwrap();
    assert_eq!(given.count, 20, "whether or not the other feeder has reported");
    let first = given.first.0 + 20;
    assert_eq!(book.lease(a, Some(id(0, 20)), 100, 1), leased(0, 20, 0));
    book.report(a, &[tally(0, 20, 20)]);
    assert_eq!(book.lease(b, Some(MicrobatchId(first)), 100, 1).unwrap().count, 0);

    before.lease(a, Some(id(0, 20)), 1, 1).unwrap();
    assert!(before.take_changed(), "a greater reserve comes with a table");
}

#[test]
fn of_two_tables_the_newer_counts_whichever_comes_first() {
    let mut before = LeaseBook::new(100);
    let (a, b) = (feeder(1), feeder(2));
    before.lease(a, None, 10, 1).unwrap();
    let old = table(&before, &[a]);
    before.report(a, &[tally(0, 6, 5)]);
    before.succeed(b, |holder| holder == a);
    let new = table(&before, &[b]);
    for tables in [[&old, &new], [&new, &old]] {
        let mut book = LeaseBook::new(100);
        tables.into_iter().for_each(|table| book.restore(table));
        assert_eq!(book.ranges(), new.leases);
        assert!(book.find_holder(|holder| holder == b).is_some());
    }
}

#[test]
fn absurd_reports_overflow_nothing() {
    let mut book = LeaseBook::new(u64::MAX);
    let a = feeder(1);
    book.lease(a, None, 1, 1).unwrap();
    book.report(a, &[tally(0, u64::MAX, u64::MAX), tally(9, 1, 1)]);
    assert_eq!(book.progress().settled, 1);
    assert_eq!(book.lease(a, Some(MicrobatchId(u64::MAX)), 5, 1), leased(0, 1, 0), "it has a block");
}

/// The book of a run that goes on at a checkpoint, at which a feeder had five ids in flight.
fn at_checkpoint() -> LeaseBook {
    let cursor = BlockTally { block: Block(0), leased: 60, injected: 45, settled: 40 };
    LeaseBook::at(100, &[cursor])
}

#[test]
fn a_block_of_a_checkpoint_goes_on_behind_what_had_its_outcome_and_its_ids_are_given_out_once() {
    let mut book = at_checkpoint();
    assert_eq!((open(&book), book.progress()), (0, RunTally { injected: 40, settled: 40 }));
    assert!(book.ranges()[0].is_vacant());
    let (a, b) = (feeder(1), feeder(2));
    assert_eq!(book.lease(a, None, 10, 1), leased(0, 40, 10));
    assert_eq!(book.ranges()[0].lease.first, id(0, 40), "no id before is any feeder's");
    assert_eq!(book.lease(b, None, 10, 2), leased(1, 0, 10), "the next feeder has a block of its own");
    assert_eq!(book.lease(a, Some(id(0, 50)), 60, 1), leased(0, 50, 40));
    book.report(a, &[tally(0, 90, 90)]);
    book.report(b, &[tally(1, 10, 10)]);
    assert!(book.is_over());
}

#[test]
fn a_block_of_a_checkpoint_that_changes_hands_and_is_restored_keeps_its_beginning() {
    let mut book = at_checkpoint();
    let (a, b) = (feeder(1), feeder(2));
    book.lease(a, None, 10, 1).unwrap();
    let mut restored = LeaseBook::of_later_start(100, 7);
    restored.restore(&table(&book, &[a]));
    assert_eq!(restored.lease(a, Some(id(0, 50)), 10, 1), leased(0, 50, 10));
    for book in [&mut book, &mut restored] {
        assert!(book.succeed(b, |holder| holder == a));
        assert_eq!(book.ranges()[0].lease.first, id(0, 40));
    }
    assert_eq!(book.ranges()[0].lease, Lease { first: id(0, 40), count: 10, epoch: 1 });
    assert_eq!(restored.ranges()[0].lease, Lease { first: id(0, 40), count: 20, epoch: 1 });
    let mut again = LeaseBook::of_later_start(100, 8);
    again.restore(&table(&restored, &[b]));
    assert_eq!(again.ranges()[0].lease, Lease { first: id(0, 40), count: 20, epoch: 1 });
}

#[test]
fn a_feeder_that_asks_for_no_block_of_a_checkpoint_gets_none() {
    let mut book = at_checkpoint();
    assert_ne!(
        book.lease(feeder(1), Some(id(0, 45)), 10, 1),
        leased(0, 45, 10),
        "its ids are of a launch before"
    );
}
