//! Swarms of hundreds and of ten thousand replicas: they lose nothing, and a microbatch takes as many events in the one as
//! in the other.

use super::*;

const STAGES: u16 = 8;

/// Five seconds of work for `replicas` a stage. Every second one of them dies, and comes back.
fn wide(replicas: u16) -> Scenario {
    let all = u64::from(STAGES) * u64::from(replicas);
    let in_flight = u32::try_from(all).unwrap();
    let mut scenario = Scenario::new(1, STAGES, replicas, 2 * all, Admission::Asynchronous(in_flight));
    scenario.service_times = vec![Duration::from_millis(100)];
    scenario.router = Policy::LeastOutstanding;
    scenario.lease_count = 2 * all;
    scenario.status_after = Duration::from_secs(20);
    scenario.steps_max = 1_000_000_000;
    scenario.faults = (4..8)
        .map(|second| {
            let replica = usize::try_from(second * 131 % all).unwrap();
            let back_after = Some(Duration::from_secs(3));
            (Duration::from_secs(second), Fault::Crash { replica, loud: true, back_after })
        })
        .collect();
    scenario
}

/// Plays a swarm and prints what it cost. The wall time is printed, not tested.
#[allow(clippy::disallowed_types, clippy::disallowed_methods)]
fn play(replicas: u16) {
    let began = std::time::Instant::now();
    let scenario = wide(replicas);
    let (total, members) = (scenario.total, scenario.members());
    let (world, report) = check(scenario);
    let wall = began.elapsed().as_secs_f64();
    let per = |count: u64| wall * 1e6 / f64::from(u32::try_from(count).unwrap());
    println!(
        "{members} replicas: {total} microbatches and {} tables in {:.0} s, played in {wall:.1} s: {:.2} us an event, \
         {:.0} us a microbatch with the heartbeats of its time",
        world.tables(),
        report.time.as_secs_f64(),
        per(report.steps),
        per(total),
    );
    assert_eq!((report.counts.finished, report.counts.lost), (total, 0));
    assert!(
        report.paths.contains_key("restarted before it was missed") && world.tables() < 60,
        "{}",
        world.tables()
    );
}

#[test]
fn a_swarm_of_hundreds_loses_nothing() {
    play(32);
}

/// `cargo test --release -p swarmline-scheduler --lib -- --ignored --nocapture ten_thousand`
///
/// 256 replicas play their 22 s in 2.2 s of a core. Ten thousand have forty times the replicas, and each has three times
/// the neighbours: after 8.6 minutes of a core and at 6.7 GB, the most so far, no rule was broken and the end not reached.
#[test]
#[ignore = "takes minutes and gigabytes; prints figures"]
fn a_swarm_of_ten_thousand_loses_nothing() {
    play(1_250);
}
