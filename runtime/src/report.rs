//! Reports of a process, for people or for programs.
//!
//! Every command reports [`Event`]s. A [`Reporter`] prints each as a line of prose or, with `--json`, as a line of
//! JSON; `swarmline demo` reads the JSON of the processes that it starts. A program that embeds swarmline gets the
//! events from [`Reporter::to`].

mod event;
mod incident;
mod line_queue;
mod rate_limit;
mod reporter;
mod text;

pub use event::{
    Event, ExportReport, FeederReport, GenerateReport, KeepingReport, KeptReport, ProgressReport,
    ReplicaReport, Totals,
};
pub use incident::Incident;
pub use reporter::{Audience, Reporter};

pub(crate) use rate_limit::RateLimit;
