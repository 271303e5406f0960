//! Names, units and values in a recorder.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString,
};

use super::*;

/// A recorder that keeps all records.
#[derive(Debug, Default)]
struct Memory {
    described: Mutex<BTreeMap<String, Option<Unit>>>,
    values: Arc<Mutex<BTreeMap<String, f64>>>,
}

struct Cell {
    key: String,
    values: Arc<Mutex<BTreeMap<String, f64>>>,
}

impl Cell {
    fn update(&self, change: impl FnOnce(f64) -> f64) {
        let mut values = self.values.lock().unwrap();
        let value = values.entry(self.key.clone()).or_default();
        *value = change(*value);
    }
}

impl CounterFn for Cell {
    fn increment(&self, value: u64) {
        self.update(|before| before + value as f64);
    }

    fn absolute(&self, value: u64) {
        self.update(|before| before.max(value as f64));
    }
}

impl GaugeFn for Cell {
    fn increment(&self, value: f64) {
        self.update(|before| before + value);
    }

    fn decrement(&self, value: f64) {
        self.update(|before| before - value);
    }

    fn set(&self, value: f64) {
        self.update(|_| value);
    }
}

impl Memory {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let key = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::new(Cell { key, values: Arc::clone(&self.values) })
    }

    fn describe(&self, name: &KeyName, unit: Option<Unit>, description: &SharedString) {
        assert!(description.ends_with('.'), "{description}");
        self.described.lock().unwrap().insert(name.as_str().to_owned(), unit);
    }

    /// Names without labels.
    fn recorded(&self) -> BTreeSet<String> {
        let values = self.values.lock().unwrap();
        values.keys().filter_map(|key| key.split('{').next()).map(str::to_owned).collect()
    }

    fn value(&self, key: &str) -> Option<f64> {
        self.values.lock().unwrap().get(key).copied()
    }
}

impl Recorder for Memory {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        assert!(name.as_str().ends_with("_total"), "{}", name.as_str());
        self.describe(&name, unit, &description);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(&name, unit, &description);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, _: SharedString) {
        panic!("there is no histogram, but {}", name.as_str());
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn every_metric_that_is_recorded_is_described_and_named_like_the_others() {
    let memory = Memory::default();
    metrics::with_local_recorder(&memory, || {
        describe_all();
        record_member(&MemberStats { bytes_sent: 9, ..MemberStats::default() });
        let mut counts = stage::Counts::default();
        (counts.applied, counts.late) = (7, 2);
        record_stage(StageIndex(3), &counts);
        record_averaging(StageIndex(3), &averaging::Counts::default());
        record_feeder(&feeder::Counts::default());
        count_download(&DownloadNote::NoDonor);
        count_download(&DownloadNote::NoDonor);
        let peer = swarmline_scheduler::PeerId([1; 32]);
        let joiner = swarmline_scheduler::Instance::new(peer, swarmline_scheduler::Incarnation(1));
        count_upload(&UploadNote::Served(joiner));
    });
    let described: BTreeSet<String> = memory.described.lock().unwrap().keys().cloned().collect();
    assert_eq!(memory.recorded(), described);
    assert!(described.iter().all(|name| name.starts_with("swarmline_")), "{described:?}");
    assert_eq!(memory.value("swarmline_microbatches_total{stage=3,outcome=applied}"), Some(7.0));
    assert_eq!(memory.value("swarmline_messages_ignored_total{stage=3,reason=late}"), Some(2.0));
    assert_eq!(memory.value("swarmline_state_downloads_failed_total{fault=no_donor}"), Some(2.0));
    assert_eq!(memory.value("swarmline_sent_bytes_total{}"), Some(9.0));
}
