//! The operations that every device offers.

use crate::error::{Error, Result};
use crate::packing::{PackedFormat, RoundingKey};

/// Whether an operation overwrites its output or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `out = ...`
    Set,
    /// `out += ...`
    Add,
}

/// Sizes of `y[rows, outputs] = x[rows, inputs] w[outputs, inputs]^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Width of `x`.
    pub inputs: usize,
    /// Width of `y`.
    pub outputs: usize,
}

/// Sizes of causal grouped-query attention over `batch` independent sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Sequences `B`; there are `N = B * T` rows.
    pub batch: usize,
    /// Tokens `T` of a sequence.
    pub tokens: usize,
    /// Query heads `h`.
    pub heads: usize,
    /// Key-value heads `g`; divides `heads`.
    pub kv_heads: usize,
    /// Width `e` of a head, even.
    pub head_width: usize,
    /// Base of the rotary embedding.
    pub theta: f32,
}

impl AttentionShape {
    /// Lengths of the queries, of the keys and of the log-sum-exps.
    ///
    /// # Panics
    ///
    /// If `head_width` is odd or `kv_heads` does not divide `heads`.
    #[must_use]
    pub fn lens(self) -> [usize; 3] {
        let Self { batch, tokens, heads, kv_heads, head_width, .. } = self;
        assert!(head_width.is_multiple_of(2), "rotation turns pairs: heads cannot be {head_width} wide");
        assert!(
            kv_heads > 0 && heads % kv_heads == 0,
            "{heads} heads cannot share {kv_heads} key-value heads"
        );
        let rows = batch * tokens;
        [rows * heads * head_width, rows * kv_heads * head_width, rows * heads]
    }
}

/// Refuses an id outside the vocabulary, for [`Backend::ids`].
pub(crate) fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        Some(&id) => Err(Error::TokenOutOfRange { id, vocab }),
        None => Ok(()),
    }
}

/// Scalars of one Adam-family update; [`Backend::adam_update`] has the equations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// `1 - beta2^t`.
    pub bias_correction2: f32,
    /// Added to the denominator.
    pub epsilon: f32,
    /// Factor on the gradient, applied first (averaging, clipping).
    pub gradient_scale: f32,
    /// Learning rate times weight decay; 0 for parameters that do not decay.
    pub decay: f32,
    /// Coefficient of `g / den`; 0 for AdamW.
    pub gradient_rate: f32,
    /// Coefficient of `m / den`.
    pub momentum_rate: f32,
}

/// Outputs of [`Backend::head`]: the gradients of `scale * sum(losses)`.
#[derive(Debug)]
pub struct HeadGradients<'a, T> {
    /// Gradient by `x[N,d]`, `=`.
    pub dx: &'a mut T,
    /// Gradient by `w[V,d]`, `+=`.
    pub dw: &'a mut T,
    /// Factor on every loss.
    pub scale: f32,
}

/// A device that holds tensors and computes on them.
///
/// Tensors are flat f32 buffers; the shape is an argument of the operation. A tensor may be longer than the
/// operation needs (buffers are reused between microbatches); the operation then works on its beginning.
/// A shorter tensor is a programming error and panics. No operation allocates in proportion to `T x T`.
///
/// Every operation returns an [`Error`] if the device fails; operations that refuse a number or a length say so.
pub trait Backend: 'static {
    /// A flat buffer of f32 on the device.
    type Tensor: std::fmt::Debug + 'static;
    /// Token ids on the device.
    type Ids: std::fmt::Debug + 'static;

    // ---- memory -------------------------------------------------------------------------------------------

    /// A new tensor of `len` zeros.
    fn zeros(&mut self, len: usize) -> Result<Self::Tensor>;
    /// Number of f32 in `tensor`.
    fn len(&self, tensor: &Self::Tensor) -> usize;
    /// `dst[..src.len()] = src`, host to device.
    fn upload(&mut self, dst: &mut Self::Tensor, src: &[f32]) -> Result<()>;
    /// `dst = src[..dst.len()]`, device to host.
    fn download(&mut self, dst: &mut [f32], src: &Self::Tensor) -> Result<()>;
    /// Token ids for the operations that look up rows. An id from `vocab` on is [`Error::TokenOutOfRange`].
    fn ids(&mut self, ids: &[u32], vocab: usize) -> Result<Self::Ids>;

    // ---- elementwise over the first `len` numbers -----------------------------------------------------------

    /// `x = value`
    fn fill(&mut self, x: &mut Self::Tensor, value: f32, len: usize) -> Result<()>;
    /// `y = x`
    fn copy(&mut self, y: &mut Self::Tensor, x: &Self::Tensor, len: usize) -> Result<()>;
    /// `y += alpha x`
    fn add_scaled(&mut self, y: &mut Self::Tensor, x: &Self::Tensor, alpha: f32, len: usize) -> Result<()>;
    /// Sum of squares, accumulated in f64 in a fixed order. Not finite if any number is not.
    fn sum_squares(&mut self, x: &Self::Tensor, len: usize) -> Result<f64>;

    // ---- products -------------------------------------------------------------------------------------------

    /// `y[N,O] (= | +=) x[N,I] w[O,I]^T`
    fn linear(
        &mut self,
        y: &mut Self::Tensor,
        x: &Self::Tensor,
        w: &Self::Tensor,
        shape: LinearShape,
        write: Write,
    ) -> Result<()>;
    /// `dx[N,I] (= | +=) dy[N,O] w[O,I]`
    fn linear_backward_input(
        &mut self,
        dx: &mut Self::Tensor,
        dy: &Self::Tensor,
        w: &Self::Tensor,
        shape: LinearShape,
        write: Write,
    ) -> Result<()>;
    /// `dw[O,I] (= | +=) dy[N,O]^T x[N,I]`
    fn linear_backward_weight(
        &mut self,
        dw: &mut Self::Tensor,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        shape: LinearShape,
        write: Write,
    ) -> Result<()>;

    // ---- layers ---------------------------------------------------------------------------------------------

    /// `y[N,d] = x * rstd * gain[d]`, `rstd[N] = 1 / sqrt(mean(x^2) + epsilon)` (RMSNorm, arXiv 1910.07467)
    fn rmsnorm(
        &mut self,
        y: &mut Self::Tensor,
        rstd: &mut Self::Tensor,
        x: &Self::Tensor,
        gain: &Self::Tensor,
        rows: usize,
        width: usize,
        epsilon: f32,
    ) -> Result<()>;
    /// `y[N,d] = x * rstd[N] * gain[d]` with an `rstd` that [`Backend::rmsnorm`] computed before.
    fn rmsnorm_apply(
        &mut self,
        y: &mut Self::Tensor,
        x: &Self::Tensor,
        gain: &Self::Tensor,
        rstd: &Self::Tensor,
        rows: usize,
        width: usize,
    ) -> Result<()>;
    /// `dx[N,d] (= | +=)`, `dgain[d] +=`, from `dy[N,d]` and the tensors of the forward pass.
    fn rmsnorm_backward(
        &mut self,
        dx: &mut Self::Tensor,
        dgain: &mut Self::Tensor,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        gain: &Self::Tensor,
        rstd: &Self::Tensor,
        rows: usize,
        width: usize,
        write: Write,
    ) -> Result<()>;
    /// `out[N, h*e] = softmax(r(q) r(k)^T / sqrt(e)) v` per head, causal; `lse[N, h]` = log-sum-exp of the scores.
    /// `q[N, h*e]`, `k[N, g*e]`, `v[N, g*e]`; query head `i` reads key-value head `i / (h/g)`.
    ///
    /// `r` rotates a head by the index of its row in its sequence, the position: half-split pairs `(i, i + e/2)`, angle
    /// `position * theta^(-2i/e)` (RoPE, arXiv 2104.09864).
    fn attention(
        &mut self,
        out: &mut Self::Tensor,
        lse: &mut Self::Tensor,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
        shape: AttentionShape,
    ) -> Result<()>;
    /// `dq =`, `dk =`, `dv =`, from `dout` and the tensors of the forward pass; `dq` and `dk` are gradients by `q` and
    /// `k` before their rotation.
    fn attention_backward(
        &mut self,
        dq: &mut Self::Tensor,
        dk: &mut Self::Tensor,
        dv: &mut Self::Tensor,
        dout: &Self::Tensor,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
        out: &Self::Tensor,
        lse: &Self::Tensor,
        shape: AttentionShape,
    ) -> Result<()>;
    /// `h = silu(gate) * up` over `len` numbers (SwiGLU, arXiv 2002.05202)
    fn swiglu(
        &mut self,
        h: &mut Self::Tensor,
        gate: &Self::Tensor,
        up: &Self::Tensor,
        len: usize,
    ) -> Result<()>;
    /// `dgate =`, `dup =` over `len` numbers
    fn swiglu_backward(
        &mut self,
        dgate: &mut Self::Tensor,
        dup: &mut Self::Tensor,
        dh: &Self::Tensor,
        gate: &Self::Tensor,
        up: &Self::Tensor,
        len: usize,
    ) -> Result<()>;
    /// `x[N,w] (= | +=) table[ids]`, `table[V,w]`
    fn embedding(
        &mut self,
        x: &mut Self::Tensor,
        ids: &Self::Ids,
        table: &Self::Tensor,
        width: usize,
        write: Write,
    ) -> Result<()>;
    /// `dtable[ids] += dx[N,w]`
    fn embedding_backward(
        &mut self,
        dtable: &mut Self::Tensor,
        dx: &Self::Tensor,
        ids: &Self::Ids,
        width: usize,
    ) -> Result<()>;
    /// Turns `logits[N,V]` in place into `scale * dL/dlogits` and writes `losses[N] =` cross-entropy in nats.
    fn cross_entropy(
        &mut self,
        losses: &mut Self::Tensor,
        logits: &mut Self::Tensor,
        targets: &Self::Ids,
        vocab: usize,
        scale: f32,
    ) -> Result<()>;

    /// `losses[N] =` the cross-entropy, in nats, of `softmax(x[N,d] w[V,d]^T)`, and the `gradients`, if any.
    /// `shape` has `N` rows, `d` inputs and `V` outputs.
    ///
    /// `logits` is scratch of [`Backend::head_logits`] numbers. This default makes all logits at once; blocks of rows
    /// need less memory.
    fn head(
        &mut self,
        losses: &mut Self::Tensor,
        gradients: Option<HeadGradients<'_, Self::Tensor>>,
        logits: &mut Self::Tensor,
        x: &Self::Tensor,
        w: &Self::Tensor,
        targets: &Self::Ids,
        shape: LinearShape,
    ) -> Result<()> {
        self.linear(logits, x, w, shape, Write::Set)?;
        let scale = gradients.as_ref().map_or(1.0, |gradients| gradients.scale);
        self.cross_entropy(losses, logits, targets, shape.outputs, scale)?;
        let Some(HeadGradients { dx, dw, .. }) = gradients else { return Ok(()) };
        self.linear_backward_input(dx, logits, w, shape, Write::Set)?;
        self.linear_backward_weight(dw, logits, x, shape, Write::Add)
    }

    /// Length of the scratch of [`Backend::head`].
    fn head_logits(&self, shape: LinearShape) -> usize {
        shape.rows * shape.outputs
    }

    // ---- boundary -------------------------------------------------------------------------------------------

    /// `x[N,d] = scale * E0[ids]`: the frozen random row of each token, near-normal with unit variance, made
    /// from the counter-based generator keyed by (`seed`, token id); bit-equal on every backend.
    fn anchor(
        &mut self,
        x: &mut Self::Tensor,
        ids: &Self::Ids,
        seed: u64,
        width: usize,
        scale: f32,
    ) -> Result<()>;
    /// `z[N,k] (= | +=) x[N,d] basis[k,d]^T`: coordinates of `x` in the column space; rows of `basis` are
    /// orthonormal.
    fn project(
        &mut self,
        z: &mut Self::Tensor,
        x: &Self::Tensor,
        basis: &Self::Tensor,
        rows: usize,
        width: usize,
        code: usize,
        write: Write,
    ) -> Result<()>;
    /// `x[N,d] = anchor[N,d] + z[N,k] basis[k,d]`
    fn reconstruct(
        &mut self,
        x: &mut Self::Tensor,
        z: &Self::Tensor,
        basis: &Self::Tensor,
        anchor: &Self::Tensor,
        rows: usize,
        width: usize,
        code: usize,
    ) -> Result<()>;
    /// Packs `x[rows,width]` into `bytes` (cleared first). A number that is not finite or overflows the format is
    /// [`PackingError::NonFinite`](crate::PackingError::NonFinite).
    fn pack(
        &mut self,
        bytes: &mut Vec<u8>,
        x: &Self::Tensor,
        rows: usize,
        width: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()>;
    /// `x[rows,width] =` the numbers in `bytes`. A wrong length or a number that is not finite is
    /// [`Error::Packing`].
    fn unpack(
        &mut self,
        x: &mut Self::Tensor,
        bytes: &[u8],
        rows: usize,
        width: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()>;
    /// [`Backend::project`] and [`Backend::pack`] in one pass: `bytes` (cleared first) are the packed coordinates
    /// `x[N,d] basis[k,d]^T`, which are never in memory all together. Bytes and errors equal those of two passes.
    fn project_pack(
        &mut self,
        bytes: &mut Vec<u8>,
        x: &Self::Tensor,
        basis: &Self::Tensor,
        rows: usize,
        width: usize,
        code: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()>;
    /// [`Backend::unpack`] and [`Backend::reconstruct`] in one pass: `x[N,d] = anchor[N,d] + z[N,k] basis[k,d]`,
    /// where `bytes` are the packed `z`. Bits and errors equal those of two passes; after an error `x` is undefined.
    fn unpack_reconstruct(
        &mut self,
        x: &mut Self::Tensor,
        bytes: &[u8],
        basis: &Self::Tensor,
        anchor: &Self::Tensor,
        rows: usize,
        width: usize,
        code: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()>;

    // ---- optimizer ------------------------------------------------------------------------------------------

    /// One pass over the first `len` numbers:
    ///
    /// ```text
    /// g' = gradient_scale g;  m <- beta1 m + (1-beta1) g';  v <- beta2 v + (1-beta2) g'^2
    /// den = sqrt(v / bias_correction2) + epsilon
    /// w <- (1 - decay) w - gradient_rate g'/den - momentum_rate m/den
    /// ```
    ///
    /// AdamW: `gradient_rate = 0`, `momentum_rate = eta / (1 - beta1^t)`. NAdamW sets both.
    fn adam_update(
        &mut self,
        w: &mut Self::Tensor,
        m: &mut Self::Tensor,
        v: &mut Self::Tensor,
        g: &Self::Tensor,
        len: usize,
        step: AdamStep,
    ) -> Result<()>;
}
