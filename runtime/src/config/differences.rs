//! The fields in which two manifests differ, for a run that is to go on with another run file.

use std::fmt;

use super::Manifest;
use super::fields::{Field, SECTIONS};
use super::suggest::join;

/// The shared field that may change while a run goes on, and its section: the coordinator alone reads it.
const MAY_CHANGE: &[(&str, &str)] = &[("policy", "feed")];
/// The fields that may change besides where a run goes on from a checkpoint: they say how the layers are cut and how
/// microbatches flow, not what is learned from them.
const MAY_CHANGE_AT_CHECKPOINT: &[(&str, &str)] = &[
    ("pipeline", "stages"),
    ("pipeline", "layers_per_stage"),
    ("pipeline", "max_in_flight"),
    ("pipeline", "initial_in_flight"),
    ("pipeline", "activation_checkpointing"),
    ("pipeline", "router"),
    ("averaging", "interval"),
    ("averaging", "fragments"),
];

/// A field that has another value than the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its path in the run file.
    pub field: String,
    /// Its value in the run that goes on, in TOML.
    pub running: String,
    /// Its value in the run file.
    pub given: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, running, given } = self;
        write!(f, "{field} is {running} in the run and {given} in the file")
    }
}

/// The fields of `given` that a run with the manifest `running` cannot go on with.
#[must_use]
pub fn fixed_differences(running: &Manifest, given: &Manifest) -> Vec<Difference> {
    differences(running, given, MAY_CHANGE)
}

/// The fields of `given` that a run cannot go on with from a checkpoint of a run with the manifest `checkpoint`.
#[must_use]
pub fn differences_at_checkpoint(checkpoint: &Manifest, given: &Manifest) -> Vec<Difference> {
    differences(checkpoint, given, &[MAY_CHANGE, MAY_CHANGE_AT_CHECKPOINT].concat())
}

fn differences(running: &Manifest, given: &Manifest, may_change: &[(&str, &str)]) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut compare = |field: String, running: String, given: String| {
        if running != given {
            found.push(Difference { field, running, given });
        }
    };
    for section in SECTIONS {
        let is_fixed = |field: &&Field| field.shared && !may_change.contains(&(section.name, field.name));
        for field in section.fields.iter().filter(is_fixed) {
            let [running, given] = [running, given].map(|manifest| (field.value)(manifest.run()));
            compare(join(section.name, field.name), running, given);
        }
    }
    let [running, given] = [running, given].map(|manifest| short(manifest.tokenizer_digest()));
    compare("the digest of data.tokenizer".to_owned(), running, given);
    found
}

fn short(digest: [u8; 32]) -> String {
    blake3::Hash::from_bytes(digest).to_hex()[..12].to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Run;
    use super::*;

    fn manifest(more: &str) -> Manifest {
        let text = format!("[data]\npaths = [\"text\"]\n{more}");
        Manifest::of(&Run::parse(&text, "run.toml", Path::new("")).unwrap(), Path::new("")).unwrap()
    }

    #[test]
    fn a_checkpoint_fits_a_run_of_another_cut_and_of_no_other_length() {
        let changed = |more: &str| {
            let differences = differences_at_checkpoint(&manifest(""), &manifest(more));
            differences.into_iter().map(|difference| difference.field).collect::<Vec<_>>()
        };
        assert_eq!(changed("[pipeline]\nstages = 2"), [""; 0]);
        assert_eq!(changed("[pipeline]\nreplicas = 2"), ["pipeline.replicas"], "the run is twice as long");
        assert_eq!(
            changed("[optimizer]\nsteps = 7\nwarmup_steps = 0"),
            ["optimizer.warmup_steps", "optimizer.steps"]
        );
    }

    #[test]
    fn a_run_goes_on_with_other_feeders_and_with_no_other_promise_to_its_members() {
        let changed = |more: &str| {
            let differences = fixed_differences(&manifest(""), &manifest(more));
            differences.into_iter().map(|difference| difference.field).collect::<Vec<_>>()
        };
        assert_eq!(changed("[policy]\nfeed = \"members\""), [""; 0]);
        assert_eq!(changed("[policy]\nweights = \"split\""), ["policy.weights"]);
        assert_eq!(
            changed("[optimizer]\nsteps = 7\nwarmup_steps = 0"),
            ["optimizer.warmup_steps", "optimizer.steps"]
        );
    }
}
