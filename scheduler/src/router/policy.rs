//! The routing policies by name.

use strum::{IntoStaticStr, VariantArray};

use crate::router::{IwrrConfig, LeastOutstandingConfig, Router, RouterFactory, UniformConfig};

/// A routing policy with its default settings. Its name, also in a run file, is that of the variant in kebab case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum Policy {
    /// The replica that returns a microbatch soonest: [`LeastOutstanding`](crate::router::LeastOutstanding).
    #[default]
    LeastOutstanding,
    /// Replicas in turn, by response time: [`Iwrr`](crate::router::Iwrr).
    Iwrr,
    /// A random replica: [`Uniform`](crate::router::Uniform).
    Uniform,
}

impl Policy {
    /// All policies, the default first.
    pub const ALL: &'static [Self] = Self::VARIANTS;
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
