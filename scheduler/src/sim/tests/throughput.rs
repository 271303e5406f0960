//! Throughput as a share of the capacity bound, in swarms of many sizes and on long links.

use super::check;
use crate::router::Policy;
use crate::sim::{Links, Report, Scenario, World};
use crate::{Admission, Duration, Time};

const SERVICE: Duration = Duration::from_millis(40);

/// Replicas of equal speed on links up to `delay_max`.
fn scenario(stages: u16, replicas: u16, admission: Admission, delay_max: Duration) -> Scenario {
    let mut scenario = Scenario::new(5, stages, replicas, 10_000_000, admission)
        .with_service_times(vec![SERVICE])
        .with_links(Links::with_delay(delay_max))
        .with_router(Policy::LeastOutstanding);
    scenario.slots = vec![128];
    scenario.lease_count = 1 << 20;
    scenario.status_after = Duration::from_secs(30);
    scenario.steps_max = 1 << 30;
    scenario
}

/// The throughput from `warm` to `until` as a share of what the replicas could compute, and the window at the end.
fn share_of_bound(scenario: Scenario, warm: Duration, until: Duration) -> (f64, u64) {
    let bound = f64::from(scenario.replicas) / (3.0 * SERVICE.as_secs_f64());
    let mut world = World::new(scenario).unwrap();
    let finished_at = |world: &mut World, end: Duration| {
        while world.now() < Time(0) + end {
            world.step().unwrap_or_else(|violation| panic!("{violation}"));
        }
        let counts = world.feeders[0].machine.as_ref().unwrap().counts();
        (counts.finished, counts.in_flight)
    };
    let (before, _) = finished_at(&mut world, warm);
    let (after, in_flight) = finished_at(&mut world, until);
    let finished = f64::from(u32::try_from(after - before).unwrap());
    (finished / (until - warm).as_secs_f64() / bound, in_flight)
}

const START: u32 = 16;

/// From a window that suits a few replicas to one that suits many, although links are long.
#[test]
fn the_window_grows_with_the_swarm() {
    let (long, minute) = (Duration::from_millis(150), Duration::from_secs(60));
    let share = |admission| share_of_bound(scenario(4, 6, admission, long), 2 * minute, 3 * minute);
    let (fixed, _) = share(Admission::Asynchronous(START));
    let (grown, in_flight) = share(Admission::Adaptive { start: START, max: 1_024 });
    println!(
        "4 stages of 6 replicas: {fixed:.2} of the bound with {START}, {grown:.2} with {in_flight} in flight"
    );
    assert!(fixed < 0.5 && grown > 0.8, "{fixed:.2} {grown:.2}");
    assert!(in_flight < 300, "{in_flight} make gradients stale and raise nothing");
}

/// The table of ARCHITECTURE.md: 8 stages, links of no length to links up to 300 ms.
#[test]
#[ignore = "takes a quarter of an hour; prints a table"]
fn shares_of_the_bound_by_width_and_distance() {
    let minute = Duration::from_secs(60);
    for delay in [0, 150, 300].map(Duration::from_millis) {
        for (name, admission) in [
            ("fixed at 64", Admission::Asynchronous(64)),
            ("grown from 64", Admission::Adaptive { start: 64, max: 4_096 }),
        ] {
            print!("| {} ms, {name} |", delay.as_millis());
            for replicas in [2, 4, 8, 16, 24] {
                let scenario = scenario(8, replicas, admission, delay);
                let (share, in_flight) = share_of_bound(scenario, 3 * minute, 4 * minute);
                print!(" {share:.2} ({in_flight}) |");
            }
            println!();
        }
    }
}

/// Two regions, 150 ms from each other, with half of the replicas each.
fn two_regions(router: Policy, window: u32) -> Report {
    let mut scenario = scenario(4, 6, Admission::Asynchronous(window), Duration::from_millis(10));
    let members = scenario.members();
    for (a, b) in (0..members).flat_map(|a| (a + 1..members).map(move |b| (a, b))) {
        if (a < members / 2) != (b < members / 2) {
            scenario.links.distances.insert((a, b), Duration::from_millis(150));
        }
    }
    scenario.total = 3_000;
    check(scenario.with_router(router)).1
}

#[test]
fn the_near_come_before_the_far_and_the_far_work_too() {
    let light = [Policy::LeastOutstanding, Policy::Uniform].map(|router| two_regions(router, 6).throughput());
    let full = two_regions(Policy::LeastOutstanding, 200);
    let share = full.account.share_of_bound();
    println!(
        "{:.2} and {:.2} a second at light load; {share:.2} of the bound at full load",
        light[0], light[1]
    );
    assert!(light[0] > 1.15 * light[1], "{light:?}");
    assert!(share > 0.75, "{share:.2}");
}
