//! Weights out of a shard and into another, and the log of values.

use std::collections::BTreeMap;

use super::{FIRST, cpu, stage, tiny, tokens};
use crate::config::{Kind, Packing};
use crate::model::{ParameterLog, Shard, Snapshot, SnapshotError};

fn snapshot_of(stage_index: u16) -> Snapshot {
    let bytes = stage(&tiny(Kind::Subspace, Packing::F32), stage_index).snapshot(BTreeMap::new()).unwrap();
    Snapshot::read(&bytes, &mut ParameterLog::default()).unwrap()
}

fn restore_error(snapshot: &Snapshot) -> SnapshotError {
    let mut shard = stage(&tiny(Kind::Subspace, Packing::F32), 1);
    let before = shard.digests().unwrap();
    let error = shard.restore(&snapshot.write().unwrap()).unwrap_err();
    assert_eq!(shard.digests().unwrap(), before, "a refused snapshot changes nothing");
    error
}

#[test]
fn a_restored_shard_is_the_shard() {
    let run = tiny(Kind::Subspace, Packing::F32);
    let mut enlarged = stage(&run, 0);
    let metadata =
        BTreeMap::from([("version".to_owned(), "9".to_owned()), ("run".to_owned(), "tiny".to_owned())]);
    let bytes = enlarged.snapshot(metadata.clone()).unwrap();
    assert_eq!(bytes, enlarged.snapshot(metadata.clone()).unwrap());

    let mut fresh = Shard::new(cpu(), &run, 0..2, 1).unwrap();
    assert_ne!(fresh.digests().unwrap(), enlarged.digests().unwrap());
    assert_eq!(fresh.restore(&bytes).unwrap(), metadata);
    assert_eq!(fresh.digests().unwrap(), enlarged.digests().unwrap());
    let tokens = tokens(&run, FIRST);
    assert_eq!(fresh.evaluate(FIRST, &tokens, &[]).unwrap(), enlarged.evaluate(FIRST, &tokens, &[]).unwrap());
}

#[test]
fn refusals_name_the_parameter() {
    let mut foreign = snapshot_of(1);
    foreign.tensors.extend(snapshot_of(0).tensors.into_iter().filter(|tensor| tensor.name == "embed"));
    assert!(matches!(restore_error(&foreign), SnapshotError::Foreign { name } if name == "embed"));

    assert!(matches!(restore_error(&snapshot_of(0)), SnapshotError::Foreign { name } if name == "embed"));

    let mut missing = snapshot_of(1);
    missing.tensors.retain(|tensor| tensor.name != "layers.2.ffn.up");
    assert!(matches!(restore_error(&missing), SnapshotError::Missing { name } if name == "layers.2.ffn.up"));

    let mut reshaped = snapshot_of(1);
    reshaped.tensors[1].shape.reverse();
    reshaped.tensors[1].shape.push(1);
    let name_of_reshaped = reshaped.tensors[1].name.clone();
    assert!(
        matches!(restore_error(&reshaped), SnapshotError::Shape { name, .. } if name == name_of_reshaped)
    );

    let mut poisoned = snapshot_of(1);
    poisoned.tensors[0].values[3] = f32::NAN;
    assert!(
        matches!(restore_error(&poisoned), SnapshotError::NonFinite { name } if name == "layers.2.attention_norm")
    );
}

#[test]
fn broken_files_are_errors() {
    let bytes = snapshot_of(1).write().unwrap();
    let mut shard = stage(&tiny(Kind::Subspace, Packing::F32), 1);
    for len in [0, 7, 8, 9, 100, bytes.len() - 1] {
        assert!(matches!(shard.restore(&bytes[..len]), Err(SnapshotError::Malformed(_))), "{len} bytes");
    }
    let mut longest = bytes.clone();
    longest[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(shard.restore(&longest), Err(SnapshotError::Malformed(_))));
}

#[test]
fn the_log_knows_what_came_in_even_if_it_was_refused() {
    let run = tiny(Kind::Subspace, Packing::F32);
    let mut shard = Shard::new(cpu(), &run, 2..3, 1).unwrap();
    let own: Vec<String> = shard.params().iter().map(|parameter| parameter.name.clone()).collect();
    for (name, digest) in shard.digests().unwrap() {
        assert_eq!(shard.parameter_log().digests(&name), [digest]);
    }
    assert!(shard.parameter_log().names().all(|name| own.iter().any(|own| own == name)));

    let mut donor = Shard::new(cpu(), &run, 0..2, 1).unwrap();
    shard.restore(&donor.snapshot(BTreeMap::new()).unwrap()).unwrap_err();
    for (name, digest) in donor.digests().unwrap() {
        assert_eq!(shard.parameter_log().digests(&name), [digest], "{name}");
    }
    shard.upload("head", &[1.0]).unwrap_err();
    assert_eq!(shard.parameter_log().count("head"), 1);
}
