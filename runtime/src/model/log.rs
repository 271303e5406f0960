//! A record of every parameter value that came into this process.

use std::collections::BTreeMap;

/// Digests kept per name; later arrivals are only counted. A replica that averages for weeks would fill its memory
/// otherwise, and a leak shows in the first value of a foreign name.
const DIGESTS_PER_NAME_MAX: usize = 64;

/// Names kept; beyond it arrivals are counted as [`ParameterLog::unnamed`]. Far above any shard's number of
/// parameters, so that only forged files reach it.
const NAMES_MAX: usize = 65_536;

/// Every parameter value that came into this process, by name and digest: initial values, downloads,
/// checkpoints, and values that were read and then refused.
///
/// Audits read it: no process is given parameters of a stage it does not serve.
#[derive(Clone, Debug, Default)]
pub struct ParameterLog {
    arrivals: BTreeMap<String, Arrivals>,
    unnamed: u64,
}

#[derive(Clone, Debug, Default)]
struct Arrivals {
    digests: Vec<blake3::Hash>,
    count: u64,
}

impl ParameterLog {
    /// Notes that a value of parameter `name` came in; `digest` is that of its bytes.
    pub fn record(&mut self, name: &str, digest: blake3::Hash) {
        if !self.arrivals.contains_key(name) && self.arrivals.len() >= NAMES_MAX {
            self.unnamed += 1;
            return;
        }
        let arrivals = self.arrivals.entry(name.to_owned()).or_default();
        arrivals.count += 1;
        if arrivals.digests.len() < DIGESTS_PER_NAME_MAX && !arrivals.digests.contains(&digest) {
            arrivals.digests.push(digest);
        }
    }

    /// Names of all parameters that came in, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arrivals.keys().map(String::as_str)
    }

    /// Distinct digests of the values of `name`, oldest first, at most 64.
    #[must_use]
    pub fn digests(&self, name: &str) -> &[blake3::Hash] {
        self.arrivals.get(name).map_or(&[], |arrivals| &arrivals.digests)
    }

    /// How many values of `name` came in.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.arrivals.get(name).map_or(0, |arrivals| arrivals.count)
    }

    /// How many values came in under names that the log had no room for.
    #[must_use]
    pub fn unnamed(&self) -> u64 {
        self.unnamed
    }
}
