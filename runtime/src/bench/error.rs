//! Errors of a benchmark.

/// A measurement of our own step that failed. The message says how to repeat it alone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The process that measures the step did not start, failed, or took too long.
    #[error(
        "the step of configuration {size}, {profile}, was not measured: {cause}; `swarmline bench step --config {size} \
         --profile {profile}` measures it alone"
    )]
    Step {
        /// Letter of the model.
        size: &'static str,
        /// Name of the profile.
        profile: &'static str,
        /// How the process ended.
        cause: String,
    },
    /// The process that measures the step printed no report, or one without a share of the peak.
    #[error(
        "the step of configuration {size}, {profile}, ended without a report: {cause}; is the program that runs still \
         the one that was started?"
    )]
    Report {
        /// Letter of the model.
        size: &'static str,
        /// Name of the profile.
        profile: &'static str,
        /// Why its output cannot be read.
        cause: String,
    },
    /// A stage refused a microbatch of the benchmark.
    #[error("a step of the benchmark was refused: {cause}; this is a defect, please report it")]
    Refused {
        /// The error of the stage.
        cause: String,
    },
    /// The CPU ran a profile at the start of the benchmark and refuses it now.
    #[error("profile {profile} ran at the start and does not now; start the benchmark again")]
    ProfileGone {
        /// Name of the profile.
        profile: &'static str,
    },
}
