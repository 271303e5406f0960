//! The manifest of a checkpoint, `manifest.json`.

use serde::{Deserialize, Serialize};

use super::error::Fault;
use crate::config;

/// Newest format that this program reads, and the one that it writes.
pub const FORMAT: u32 = 1;

/// Contents of a checkpoint, and where the run stood.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of these fields; a reader refuses a newer one.
    pub format: u32,
    /// Name of the run, for people.
    pub run_name: String,
    /// BLAKE3 of `run`, hexadecimal: the digest that all members of the run share.
    pub run_digest: String,
    /// The run file with every default filled in, as members get it: without data paths and the keys that may join.
    pub run: String,
    /// The launch of the run that it was made in; later launches have higher numbers.
    pub launch: u64,
    /// Microbatches of the run that come before the states. Where `is_agreed`, a state holds what its donor has learned
    /// from these and no others; some that were on their way through the swarm may be missing. Otherwise they had their
    /// outcome when the first state was asked for, and a state may be newer by what was applied until it was copied.
    pub microbatches: u64,
    /// The states, ascending by stage. Not every stage, if its keeper keeps one stage only.
    pub stages: Vec<StageFile>,
    /// How far the feeders were, ascending by block; counted when `microbatches` was.
    pub cursor: Vec<BlockCursor>,
    /// The tokenizer; absent if bytes are tokens, or if its file was out of the keeper's reach.
    pub tokenizer: Option<TokenizerFile>,
    /// Newest loss on held-out text, nats a token; absent if none was measured.
    pub heldout_loss: Option<f64>,
    /// Microbatches of the run that had their outcome when that loss was measured: a feeder measures at the start and the end
    /// of its work. Absent if none was measured, or in a checkpoint of an earlier version.
    #[serde(default)]
    pub heldout_after: Option<u64>,
    /// The run was over: these are its final states.
    pub is_final: bool,
    /// Every stage was told beforehand to copy its state at `microbatches`.
    #[serde(default)]
    pub is_agreed: bool,
}

/// The file with the state of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageFile {
    /// The stage, from 0.
    pub stage: u16,
    /// Name of the file in the folder of the checkpoint.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its BLAKE3, hexadecimal.
    pub blake3: String,
    /// Optimizer steps of the replica that the state comes from.
    pub steps: u64,
}

/// How far the feeder of a block of 2^40 ids was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCursor {
    /// Number of the block.
    pub block: u32,
    /// Ids given out to its feeder.
    pub leased: u64,
    /// Ids injected.
    pub injected: u64,
    /// Ids that had their outcome.
    pub settled: u64,
}

/// The tokenizer of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerFile {
    /// Name of the file in the folder of the checkpoint.
    pub file: String,
    /// Its BLAKE3, hexadecimal.
    pub blake3: String,
}

impl Manifest {
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, Fault> {
        serde_json::to_vec_pretty(self).map_err(|error| Fault::Malformed(error.to_string()))
    }

    /// Reads a manifest. Of a newer one nothing but the format can be relied on.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Fault> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let malformed = |error: serde_json::Error| Fault::Malformed(error.to_string());
        let Head { format } = serde_json::from_slice(bytes).map_err(malformed)?;
        if format > FORMAT {
            return Err(Fault::Newer { theirs: format, ours: FORMAT });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks what the other files of the folder say nothing about.
    fn check(&self) -> Result<(), Fault> {
        let digest = blake3::hash(self.run.as_bytes()).to_hex();
        if *digest != *self.run_digest {
            return Err(Fault::Damaged { named: self.run_digest.clone(), found: digest.to_string() });
        }
        let files = self.stages.iter().map(|stage| &stage.file);
        for file in files.chain(self.tokenizer.iter().map(|tokenizer| &tokenizer.file)) {
            if file.is_empty() || file.contains(['/', '\\']) || file.starts_with('.') {
                return Err(Fault::Malformed(format!("{file:?} is no name of a file")));
            }
        }
        if !self.stages.is_sorted_by(|one, next| one.stage < next.stage) {
            return Err(Fault::Malformed("its stages are not in order".to_owned()));
        }
        if !self.cursor.is_sorted_by(|one, next| one.block < next.block) {
            return Err(Fault::Malformed("its blocks are not in order".to_owned()));
        }
        let settled = self.cursor.iter().fold(0_u64, |sum, block| sum.saturating_add(block.settled));
        if settled != self.microbatches {
            return Err(Fault::Malformed("its blocks have not come as far as it has".to_owned()));
        }
        Ok(())
    }

    /// The run, without data paths and as if any peer may join.
    ///
    /// # Errors
    /// If it breaks a rule of this version of the program.
    pub fn run(&self) -> Result<config::Run, config::ConfigError> {
        Ok(config::Manifest::from_bytes(self.run.as_bytes())?.run().clone())
    }

    /// Of two manifests the later has the greater.
    pub(super) fn age(&self) -> (u64, u64) {
        (self.launch, self.microbatches)
    }

    /// Whether the run was that with this digest.
    pub(super) fn check_run(&self, ours: &str) -> Result<(), Fault> {
        if self.run_digest == ours {
            return Ok(());
        }
        let (name, theirs) = (self.run_name.clone(), self.run_digest.clone());
        Err(Fault::OtherRun { name, theirs, ours: ours.to_owned() })
    }
}
