//! Sizes that follow from a run.

use swarmline_scheduler::StageIndex;

use super::{Kind, Packing, Run};

/// Bytes of the scale each packed row carries in the quantized packings.
const SCALE_BYTES: u64 = 2;
/// Bytes of a token id on the wire.
const TOKEN_BYTES: u64 = 4;

impl Run {
    /// All stages, first to last.
    pub fn stages(&self) -> impl Iterator<Item = StageIndex> + use<> {
        (0..=self.last_stage().0).map(StageIndex)
    }

    /// Parameters that one replica of `stage` trains.
    ///
    /// Embedding (first stage), attention, feed-forward and norms of its layers, final norm and untied head (last
    /// stage). With boundary `subspace`, the matrices that write to the stream before the last stage have `rank`
    /// rows in place of `hidden_size`. The frozen basis and anchors are not counted: they are made from the seed.
    #[must_use]
    pub fn stage_parameters(&self, stage: StageIndex) -> u64 {
        let width = self.model.hidden_size as u64;
        let vocab = self.model.vocab_size as u64;
        let is_last = stage == self.last_stage();
        let confined = self.boundary.kind == Kind::Subspace && !is_last;
        let written = if confined { self.boundary.rank as u64 } else { width };

        let layers = self.layers_of(stage).len() as u64 * self.layer_parameters(written);
        let embedding = if stage.0 == 0 { vocab * written } else { 0 };
        let head = if is_last { width + vocab * width } else { 0 };
        embedding + layers + head
    }

    /// Parameters of one layer whose writers to the stream have `written` rows.
    fn layer_parameters(&self, written: u64) -> u64 {
        let width = self.model.hidden_size as u64;
        let ffn = self.model.intermediate_size as u64;
        let kv_width = width / self.model.num_attention_heads as u64 * self.model.num_key_value_heads as u64;
        let attention = width * width + 2 * width * kv_width + width * written;
        let feed_forward = 2 * width * ffn + ffn * written;
        attention + feed_forward + 2 * width
    }

    /// Parameters of the whole model, all stages together.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.stages().map(|stage| self.stage_parameters(stage)).sum()
    }

    /// Numbers per token that cross a cut: `hidden_size`, `rank` or 0.
    #[must_use]
    pub fn boundary_width(&self) -> usize {
        match self.boundary.kind {
            Kind::Identity => self.model.hidden_size,
            Kind::Subspace => self.boundary.rank,
            Kind::None => 0,
        }
    }

    /// Bytes of the packed numbers of one microbatch at one cut, in one direction.
    ///
    /// Backward sends as many as forward; forward adds [`Run::token_bytes`]. Headers of the transport are not
    /// counted.
    #[must_use]
    pub fn boundary_bytes(&self) -> u64 {
        let width = self.boundary_width() as u64;
        if width == 0 {
            return 0;
        }
        let row = match self.boundary.packing {
            Packing::F32 => 4 * width,
            Packing::Bf16 => 2 * width,
            Packing::Q8 => width + SCALE_BYTES,
            Packing::Q4 => width.div_ceil(2) + SCALE_BYTES,
        };
        self.tokens_per_microbatch() as u64 * row
    }

    /// Bytes of the same microbatch without compression: the stream itself in 4 bytes a number.
    #[must_use]
    pub fn uncompressed_bytes(&self) -> u64 {
        self.tokens_per_microbatch() as u64 * self.model.hidden_size as u64 * 4
    }

    /// Bytes of the token ids that travel forward with a microbatch: `T + 1` a sequence, 4 bytes each.
    #[must_use]
    pub fn token_bytes(&self) -> u64 {
        self.batch.sequences as u64 * (self.model.max_position_embeddings as u64 + 1) * TOKEN_BYTES
    }
}
