//! Counts duplicates in the applied logs of all replicas, including the killed replica's.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cli::failure::Failure;

/// Name of a replica's applied log, without its number.
pub(super) const APPLIED_LOG: &str = "applied-";

/// The sum of all applied logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Audit {
    /// Times a stage's gradients of a microbatch were applied after the first time.
    pub(super) duplicates: u64,
}

/// Reads every applied log in `folder`.
pub(super) fn of_applied_logs(folder: &Path) -> Result<Audit, Failure> {
    let mut applied: BTreeMap<String, u64> = BTreeMap::new();
    let cannot = |error| Failure::failed(format!("cannot read the applied logs of the replicas: {error}"));
    for entry in std::fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(APPLIED_LOG)) {
            let text = std::fs::read_to_string(&path).map_err(cannot)?;
            text.lines().for_each(|line| *applied.entry(line.to_owned()).or_default() += 1);
        }
    }
    Ok(Audit { duplicates: applied.values().map(|times| times - 1).sum() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_microbatch_that_two_replicas_applied_is_counted_twice() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("applied-0", "0 1\n0 2\n1 2\n");
        write("applied-1", "0 3\n0 2\n0 1\n");
        write("run.toml", "0 1\n");
        let audit = of_applied_logs(folder.path()).unwrap();
        assert_eq!(audit, Audit { duplicates: 2 });
    }
}
