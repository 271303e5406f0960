//! Limits on the sizes of a run.
//!
//! The limits keep every product of sizes far from overflow, and bound the memory that a manifest from a stranger can
//! make a peer allocate. They are wide: a run that reaches a limit is a mistake or an attack.

/// Bytes of a run file; thousands of data paths fit.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;
/// Bytes of a manifest. It names no paths.
pub const MANIFEST_BYTES_MAX: usize = 1 << 16;
/// Bytes of a run's name.
pub const NAME_BYTES_MAX: usize = 128;
/// Width of the residual stream.
pub const HIDDEN_SIZE_MAX: usize = 1 << 16;
/// Transformer layers.
pub const LAYERS_MAX: usize = 1024;
/// Width of the feed-forward layer.
pub const INTERMEDIATE_SIZE_MAX: usize = 1 << 18;
/// Tokens of a sequence.
pub const POSITIONS_MAX: usize = 1 << 17;
/// Entries of a vocabulary.
pub const VOCAB_SIZE_MAX: usize = 1 << 20;
/// Sequences of a microbatch.
pub const SEQUENCES_MAX: usize = 1 << 16;
/// Tokens of a microbatch.
pub const MICROBATCH_TOKENS_MAX: usize = 1 << 22;
/// Bytes of one boundary frame, before packing: hidden size x tokens x 4.
pub const BOUNDARY_BYTES_MAX: u64 = 1 << 32;
/// Parameters of one stage.
pub const STAGE_PARAMETERS_MAX: u64 = 1 << 38;
/// Replicas of one stage.
pub const REPLICAS_MAX: usize = 1 << 12;
/// Microbatches in flight.
pub const IN_FLIGHT_MAX: usize = 1 << 16;
/// Microbatches of one optimizer step.
pub const ACCUMULATION_STEPS_MAX: usize = 1 << 16;
/// Optimizer steps of a run.
pub const STEPS_MAX: u64 = 1 << 40;
/// Microbatches of one evaluation.
pub const HELDOUT_MICROBATCHES_MAX: usize = 1 << 16;
/// Finished microbatches between two averaging rounds.
pub const AVERAGING_INTERVAL_MAX: u64 = 1 << 40;
/// Fragments of averaging.
pub const AVERAGING_FRAGMENTS_MAX: u64 = 1 << 12;
/// Bytes of a part of an averaging round, weights and moments together. A longer fragment is cut into more parts.
pub const AVERAGING_PART_BYTES_MAX: usize = 1 << 20;
/// Bytes of a chunk of a stage's state on its way to a joining replica.
pub const STATE_CHUNK_BYTES_MAX: usize = 1 << 20;
/// Chunks of a stage's state; with chunks of full length, 32 GiB.
pub const STATE_CHUNKS_MAX: usize = 1 << 15;
/// Keys that may feed a run.
pub const FEEDERS_MAX: usize = 256;
/// Learning rate.
pub const LEARNING_RATE_MAX: f32 = 10.0;
/// File name endings.
pub const EXTENSIONS_MAX: usize = 64;
