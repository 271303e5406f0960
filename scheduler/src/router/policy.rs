//! The routing policies by name.

use std::fmt;
use std::str::FromStr;

use crate::router::{IwrrConfig, LeastOutstandingConfig, Router, RouterFactory, UniformConfig};

/// A routing policy with its default settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// To the replica that returns a microbatch soonest: [`LeastOutstanding`](crate::router::LeastOutstanding).
    #[default]
    LeastOutstanding,
    /// In turn, by response time: [`Iwrr`](crate::router::Iwrr).
    Iwrr,
    /// By chance alone: [`Uniform`](crate::router::Uniform).
    Uniform,
}

/// A name that no policy has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no routing policy `{0}`; choose least-outstanding, iwrr or uniform")]
pub struct UnknownPolicy(pub String);

impl Policy {
    /// All of them, the default first.
    pub const ALL: [Self; 3] = [Self::LeastOutstanding, Self::Iwrr, Self::Uniform];

    /// Its name in a run file and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LeastOutstanding => "least-outstanding",
            Self::Iwrr => "iwrr",
            Self::Uniform => "uniform",
        }
    }
}

impl RouterFactory for Policy {
    fn build(&self, seed: u64) -> Box<dyn Router> {
        match self {
            Self::LeastOutstanding => LeastOutstandingConfig::default().build(seed),
            Self::Iwrr => IwrrConfig.build(seed),
            Self::Uniform => UniformConfig.build(seed),
        }
    }
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        let named = Self::ALL.into_iter().find(|policy| policy.name() == name);
        named.ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_and_a_wrong_one_names_the_right_ones() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        let refused = "fastest".parse::<Policy>().unwrap_err().to_string();
        assert!(refused.contains("`fastest`"));
        assert!(Policy::ALL.iter().all(|policy| refused.contains(policy.name())), "{refused}");
    }
}
