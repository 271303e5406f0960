//! A record of every parameter value that has been in this process.

use std::collections::BTreeMap;

/// Limit of the digests per name; further values are only counted. Otherwise a replica that averages for weeks would
/// fill its memory. A leak shows in the first value of a foreign name.
const DIGESTS_PER_NAME_MAX: usize = 64;

/// Limit of the names; beyond it values are counted as [`ParameterLog::unnamed`]. It is far above any shard's number
/// of parameters, so only forged files reach it.
const NAMES_MAX: usize = 65_536;

/// Every parameter value that has been in this process, by name and digest: initial values, downloads, checkpoints,
/// and values that were read and then refused.
///
/// Audits read the log: a process never gets parameters of a stage that it does not serve.
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
    /// Notes a value of parameter `name`, with the digest of its bytes.
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

    /// Names of all parameters noted, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arrivals.keys().map(String::as_str)
    }

    /// Distinct digests of the values of `name`, oldest first, at most 64.
    #[must_use]
    pub fn digests(&self, name: &str) -> &[blake3::Hash] {
        self.arrivals.get(name).map_or(&[], |arrivals| &arrivals.digests)
    }

    /// Number of values of `name`.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.arrivals.get(name).map_or(0, |arrivals| arrivals.count)
    }

    /// Number of values under names beyond the limit.
    #[must_use]
    pub fn unnamed(&self) -> u64 {
        self.unnamed
    }
}
