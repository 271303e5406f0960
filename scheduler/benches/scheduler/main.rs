//! The cost of a decision in swarms of 64 to 10,000 peers: of a microbatch and of a change of the table at the feeder and
//! at a replica, of a second of heartbeats at a replica, of a heartbeat at the coordinator.
//!
//! The machines are those that production runs. A flat line over the sizes is the aim; a logarithm is the limit. A
//! machine is built when it is measured: a filter builds no other. Figures are the time of a core (`cpu_time.rs`).

mod coordinator;
mod cpu_time;
mod feeder;
mod replica;
mod swarm;

use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use swarmline_scheduler::coordinator::Config;

use coordinator::Members;
use cpu_time::CpuTime;
use feeder::Injection;
use replica::Serving;
use swarm::PEERS;

fn feeder(c: &mut Criterion<CpuTime>) {
    for (averaging, name) in
        [(false, "microbatch at the feeder"), (true, "microbatch at the feeder, averaging")]
    {
        let mut group = c.benchmark_group(name);
        for peers in PEERS {
            let mut injection = None;
            group.bench_function(BenchmarkId::from_parameter(peers), |b| {
                let injection = injection.get_or_insert_with(|| Injection::new(peers, averaging));
                b.iter(|| injection.microbatch());
            });
        }
        group.finish();
    }
}

fn replica_microbatch(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("microbatch at a replica");
    for peers in PEERS {
        let mut serving = None;
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            let serving = serving.get_or_insert_with(|| Serving::new(peers));
            b.iter(|| serving.microbatch());
        });
    }
    group.finish();
}

fn replica_heartbeats(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("second of heartbeats at a replica");
    for peers in PEERS {
        let mut serving = None;
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            let serving = serving.get_or_insert_with(|| Serving::new(peers));
            b.iter(|| serving.second_of_heartbeats());
        });
    }
    group.finish();
}

fn replica_table(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("change of the table at a replica");
    for peers in PEERS {
        let mut followed = None;
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            let (serving, changes) = followed.get_or_insert_with(|| Serving::with_changes(peers));
            b.iter_batched(|| changes.next(), |change| serving.change(change), BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn feeder_table(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("change of the table at the feeder");
    for peers in PEERS {
        let mut followed = None;
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            let (injection, changes) = followed.get_or_insert_with(|| Injection::with_changes(peers));
            b.iter_batched(|| changes.next(), |change| injection.change(change), BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn coordinator(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("heartbeat at the coordinator");
    for peers in PEERS {
        let mut members = None;
        group.bench_function(BenchmarkId::from_parameter(peers), |b| {
            let members = members.get_or_insert_with(|| Members::new(Config::new(swarm::STAGES), peers));
            b.iter(|| members.heartbeat());
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = feeder, replica_microbatch, replica_heartbeats, replica_table, feeder_table, coordinator
}
criterion_main!(benches);
