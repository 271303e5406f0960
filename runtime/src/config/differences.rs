//! The fields in which two manifests differ, for a run that is to go on with another run file.

use std::fmt;

use super::Manifest;
use super::fields::SECTIONS;
use super::suggest::join;

/// The section that may change while a run goes on: its coordinator alone reads it.
const MAY_CHANGE: &str = "policy";

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
    let mut found = Vec::new();
    let mut compare = |field: String, running: String, given: String| {
        if running != given {
            found.push(Difference { field, running, given });
        }
    };
    for section in SECTIONS.iter().filter(|section| section.name != MAY_CHANGE) {
        for field in section.fields.iter().filter(|field| field.shared) {
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
