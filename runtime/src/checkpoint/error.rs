//! The faults of checkpoints. Each names the file, the cause and the remedy.

/// A checkpoint, or one of its files, cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {fault}")]
pub struct CheckpointError {
    /// The file, folder or target: a path or a URL.
    pub file: String,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a file of a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The target is no place for checkpoints.
    #[error("{0}; a target is a folder, s3://BUCKET/PATH or gs://BUCKET/PATH")]
    Target(String),
    /// The system, or the server of the bucket, refuses or fails.
    #[error(
        "cannot {action} it: {cause}; check path, free space and permissions, and for a bucket its region and the \
         credentials in the environment (AWS_..., GOOGLE_...)"
    )]
    Access {
        /// The attempted action, e.g. `write`.
        action: &'static str,
        /// The error of the system or the server.
        cause: String,
    },
    /// Another keeper writes into the folder.
    #[error("another keeper writes here; stop it, or give each keeper a folder of its own")]
    Locked,
    /// The system, or the server of the bucket, does not reply.
    #[error("no reply within {seconds} s; check the address, the network, and the server of the bucket")]
    Silent {
        /// How long the reply was awaited.
        seconds: u64,
    },
    /// There is no such file.
    #[error("the file is missing; restore it, or remove its folder to use the checkpoint before")]
    Missing,
    /// The bytes are not those that were written.
    #[error(
        "the file has the digest {found}, and its manifest says {named}; restore it, or remove its folder to use the \
         checkpoint before"
    )]
    Damaged {
        /// BLAKE3 that the manifest names, hexadecimal.
        named: String,
        /// BLAKE3 of the bytes, hexadecimal.
        found: String,
    },
    /// The file does not have its length.
    #[error(
        "the file has {found} bytes, and its manifest says {named}; restore it, or remove its folder to use the \
         checkpoint before"
    )]
    Length {
        /// Bytes that the manifest names.
        named: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The manifest cannot be read.
    #[error("the manifest is malformed: {0}; remove its folder to use the checkpoint before")]
    Malformed(String),
    /// A later version of this program has written the checkpoint.
    #[error("it has format {theirs}, and this program reads up to {ours}; update swarmline")]
    Newer {
        /// Format of the checkpoint.
        theirs: u32,
        /// Newest format that this program reads.
        ours: u32,
    },
    /// The checkpoint is of another run.
    #[error(
        "it is of run {name} with manifest {theirs}, not {ours}; take the run file that the checkpoint was made with, \
         or another target"
    )]
    OtherRun {
        /// Name of its run.
        name: String,
        /// Digest of its run, hexadecimal.
        theirs: String,
        /// Digest of the run that was asked for, hexadecimal.
        ours: String,
    },
    /// The checkpoint does not have this stage.
    #[error(
        "it has no state of stage {stage}, only of {has:?}; use the target of the keeper of that stage too"
    )]
    NoStage {
        /// The stage.
        stage: u16,
        /// Its stages.
        has: Vec<u16>,
    },
    /// The states do not fit the stages of the run.
    #[error("its states do not fit the stages of the run: {0}; name another checkpoint")]
    Unfit(String),
    /// The checkpoint does not have all stages, so no run goes on from it.
    #[error(
        "it has no state of stage {stage}, only of {has:?}, and a run goes on from all stages; name another one"
    )]
    StageMissing {
        /// The first stage that it lacks.
        stage: u16,
        /// Its stages.
        has: Vec<u16>,
    },
    /// A checkpoint has no manifest.
    #[error(
        "the checkpoint is not complete: its manifest, which is written last, is missing; name the folder above for the newest complete one"
    )]
    Incomplete,
    /// No checkpoint is complete.
    #[error("there is no complete checkpoint; name the target of `swarmline keep`")]
    Empty,
}

impl CheckpointError {
    pub(crate) fn new(file: impl Into<String>, fault: Fault) -> Self {
        Self { file: file.into(), fault }
    }

    /// Whether another keeper writes there.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self.fault, Fault::Locked)
    }
}
