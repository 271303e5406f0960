//! The CUDA backend.
//!
//! This backend computes the functions that the CPU backend specifies, on one device, in the order of one stream.
//! Kernels are compiled for the device when the backend is made, and kept on disk. A build of this crate needs no part
//! of CUDA; a machine without CUDA gets an error instead of a backend.
//!
//! Two profiles: the fast one multiplies in bf16 on tensor cores; the reproducible one repeats the bits of the CPU.

mod attention;
mod boundary;
mod cache;
mod compile;
mod launch;
mod libraries;
mod memory;
mod module;
mod probe;
mod products;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};

use crate::{
    AdamStep, AttentionShape, Backend, LinearShape, PackedFormat, Profile, Result, RoundingKey, Write,
    backend::check_ids,
};
use attention::Attention;
use boundary::Boundary;
use cache::Cache;
use launch::{Kernels, Launch, adds, int};
use memory::{Buffer, device_error};
use products::Products;

pub(crate) use probe::report;

/// Numbers of one partial sum of squares: part of the specification.
const SQUARES_BLOCK: usize = 16_384;
/// Rows of one partial gradient of a gain: part of the specification.
const GAIN_ROWS: usize = 64;

/// The backend of one CUDA device. Its operations run in the order of one stream.
#[derive(Debug)]
pub struct Cuda {
    kernels: Kernels,
    products: Products,
    attention: Attention,
    boundary: Boundary,
    partial_squares: Buffer<f64>,
    sum: Buffer<f64>,
    partial_rows: Buffer<f32>,
    stream: Arc<CudaStream>,
}

/// A flat buffer of f32 on a CUDA device.
#[derive(Debug)]
pub struct CudaTensor(Buffer<f32>);

/// Token ids on a CUDA device that were checked against a vocabulary.
#[derive(Debug)]
pub struct CudaIds {
    ids: Buffer<u32>,
    /// Bound of the ids: every id is below.
    bound: usize,
}

impl Cuda {
    /// The device with this ordinal in [`Profile::Fast`].
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`](crate::Error::Unavailable) if the device is missing or cannot be used, another error if
    /// it fails.
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::with_profile(ordinal, Profile::Fast)
    }

    /// The device with this ordinal in `profile`.
    ///
    /// # Errors
    ///
    /// As [`Cuda::new`].
    pub fn with_profile(ordinal: usize, profile: Profile) -> Result<Self> {
        let report = report();
        report.usable(ordinal)?;
        let context = CudaContext::new(ordinal).map_err(|error| libraries::refused(&error))?;
        // SAFETY: every buffer is used on one stream, except those of the boundary, which orders its two itself.
        unsafe { context.disable_event_tracking() };
        memory::keep_freed_memory(&context)?;
        let module = module::load(&context, report.devices[ordinal].capability, &Cache::of_user())?;
        let stream = context.new_stream().map_err(device_error)?;
        Ok(Self {
            kernels: Kernels::new(&module, Arc::clone(&stream)).map_err(device_error)?,
            products: Products::new(&stream, profile)?,
            attention: Attention::new(&stream, profile)?,
            boundary: Boundary::new(&stream)?,
            partial_squares: Buffer::zeros(&stream, 0)?,
            sum: Buffer::zeros(&stream, 1)?,
            partial_rows: Buffer::zeros(&stream, 0)?,
            stream,
        })
    }
}

impl Backend for Cuda {
    type Tensor = CudaTensor;
    type Ids = CudaIds;

    fn zeros(&mut self, len: usize) -> Result<CudaTensor> {
        Ok(CudaTensor(Buffer::zeros(&self.stream, len)?))
    }

    fn len(&self, tensor: &CudaTensor) -> usize {
        tensor.0.len()
    }

    fn upload(&mut self, dst: &mut CudaTensor, src: &[f32]) -> Result<()> {
        dst.0.upload(&self.stream, src)
    }

    fn download(&mut self, dst: &mut [f32], src: &CudaTensor) -> Result<()> {
        src.0.download(&self.stream, dst)
    }

    fn ids(&mut self, ids: &[u32], vocab: usize) -> Result<CudaIds> {
        check_ids(ids, vocab)?;
        let mut buffer = Buffer::zeros(&self.stream, ids.len())?;
        buffer.upload(&self.stream, ids)?;
        let bound = ids.iter().max().map_or(0, |&id| id as usize + 1);
        Ok(CudaIds { ids: buffer, bound })
    }

    fn fill(&mut self, x: &mut CudaTensor, value: f32, len: usize) -> Result<()> {
        self.kernels.swl_fill(Launch::each(len, 256), x.0.output(len), value, int(len)?)
    }

    fn copy(&mut self, y: &mut CudaTensor, x: &CudaTensor, len: usize) -> Result<()> {
        self.kernels.swl_copy(Launch::each(len, 256), y.0.output(len), x.0.input(len), int(len)?)
    }

    fn add_scaled(&mut self, y: &mut CudaTensor, x: &CudaTensor, alpha: f32, len: usize) -> Result<()> {
        let (y, x) = (y.0.output(len), x.0.input(len));
        self.kernels.swl_add_scaled(Launch::each(len, 256), y, x, alpha, int(len)?)
    }

    fn sum_squares(&mut self, x: &CudaTensor, len: usize) -> Result<f64> {
        let partials = len.div_ceil(SQUARES_BLOCK);
        self.partial_squares.grow(&self.stream, partials)?;
        let partial = self.partial_squares.output(partials);
        let halves = Launch::row(partials.div_ceil(16), 256);
        self.kernels.swl_sum_squares_partial(halves, partial, x.0.input(len), int(len)?)?;
        let partial = self.partial_squares.input(partials);
        self.kernels.swl_sum_in_order(Launch::row(1, 1), self.sum.output(1), partial, int(partials)?)?;
        let mut sum = [0.0];
        self.sum.download(&self.stream, &mut sum)?;
        Ok(sum[0])
    }

    fn linear(
        &mut self,
        y: &mut CudaTensor,
        x: &CudaTensor,
        w: &CudaTensor,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        self.products.linear(&self.kernels, &mut y.0, &x.0, &w.0, shape, write)
    }

    fn linear_backward_input(
        &mut self,
        dx: &mut CudaTensor,
        dy: &CudaTensor,
        w: &CudaTensor,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        self.products.backward_input(&self.kernels, &mut dx.0, &dy.0, &w.0, shape, write)
    }

    fn linear_backward_weight(
        &mut self,
        dw: &mut CudaTensor,
        dy: &CudaTensor,
        x: &CudaTensor,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        self.products.backward_weight(&self.kernels, &mut dw.0, &dy.0, &x.0, shape, write)
    }

    fn rmsnorm(
        &mut self,
        y: &mut CudaTensor,
        rstd: &mut CudaTensor,
        x: &CudaTensor,
        gain: &CudaTensor,
        rows: usize,
        width: usize,
        epsilon: f32,
    ) -> Result<()> {
        let len = rows * width;
        let (y, rstd, x, gain) = (y.0.output(len), rstd.0.output(rows), x.0.input(len), gain.0.input(width));
        let halves = Launch::row(rows.div_ceil(8), 128);
        self.kernels.swl_rmsnorm(halves, y, rstd, x, gain, int(rows)?, int(width)?, epsilon)
    }

    fn rmsnorm_apply(
        &mut self,
        y: &mut CudaTensor,
        x: &CudaTensor,
        gain: &CudaTensor,
        rstd: &CudaTensor,
        rows: usize,
        width: usize,
    ) -> Result<()> {
        let len = rows * width;
        let (y, x, gain, rstd) = (y.0.output(len), x.0.input(len), gain.0.input(width), rstd.0.input(rows));
        self.kernels.swl_rmsnorm_apply(Launch::each(len, 256), y, x, gain, rstd, int(rows)?, int(width)?)
    }

    fn rmsnorm_backward(
        &mut self,
        dx: &mut CudaTensor,
        dgain: &mut CudaTensor,
        dy: &CudaTensor,
        x: &CudaTensor,
        gain: &CudaTensor,
        rstd: &CudaTensor,
        rows: usize,
        width: usize,
        write: Write,
    ) -> Result<()> {
        let len = rows * width;
        let (dx, dgain) = (dx.0.output(len), dgain.0.output(width));
        let (dy, x, gain, rstd) = (dy.0.input(len), x.0.input(len), gain.0.input(width), rstd.0.input(rows));
        let (row_count, columns) = (int(rows)?, int(width)?);
        let halves = Launch::row(rows.div_ceil(8), 128);
        self.kernels.swl_rmsnorm_backward(halves, dx, dy, x, gain, rstd, row_count, columns, adds(write))?;
        let partials = rows.div_ceil(GAIN_ROWS);
        self.partial_rows.grow(&self.stream, partials * width)?;
        let partial = self.partial_rows.output(partials * width);
        let grid = Launch::grid([width.div_ceil(128), partials, 1], 128);
        self.kernels.swl_rmsnorm_gain_partial(grid, partial, dy, x, rstd, row_count, columns)?;
        let partial = self.partial_rows.input(partials * width);
        self.kernels.swl_rmsnorm_gain(Launch::each(width, 128), dgain, partial, int(partials)?, columns)
    }

    fn attention(
        &mut self,
        out: &mut CudaTensor,
        lse: &mut CudaTensor,
        q: &CudaTensor,
        k: &CudaTensor,
        v: &CudaTensor,
        shape: AttentionShape,
    ) -> Result<()> {
        self.attention.forward(&self.kernels, &mut out.0, &mut lse.0, [&q.0, &k.0, &v.0], shape)
    }

    fn attention_backward(
        &mut self,
        dq: &mut CudaTensor,
        dk: &mut CudaTensor,
        dv: &mut CudaTensor,
        dout: &CudaTensor,
        q: &CudaTensor,
        k: &CudaTensor,
        v: &CudaTensor,
        out: &CudaTensor,
        lse: &CudaTensor,
        shape: AttentionShape,
    ) -> Result<()> {
        let (gradients, factors) = ([&mut dq.0, &mut dk.0, &mut dv.0], [&q.0, &k.0, &v.0]);
        self.attention.backward(&self.kernels, gradients, &dout.0, factors, &out.0, &lse.0, shape)
    }

    fn swiglu(&mut self, h: &mut CudaTensor, gate: &CudaTensor, up: &CudaTensor, len: usize) -> Result<()> {
        let (h, gate, up) = (h.0.output(len), gate.0.input(len), up.0.input(len));
        self.kernels.swl_swiglu(Launch::each(len, 256), h, gate, up, int(len)?)
    }

    fn swiglu_backward(
        &mut self,
        dgate: &mut CudaTensor,
        dup: &mut CudaTensor,
        dh: &CudaTensor,
        gate: &CudaTensor,
        up: &CudaTensor,
        len: usize,
    ) -> Result<()> {
        let (dgate, dup) = (dgate.0.output(len), dup.0.output(len));
        let (dh, gate, up) = (dh.0.input(len), gate.0.input(len), up.0.input(len));
        self.kernels.swl_swiglu_backward(Launch::each(len, 256), dgate, dup, dh, gate, up, int(len)?)
    }

    fn embedding(
        &mut self,
        x: &mut CudaTensor,
        ids: &CudaIds,
        table: &CudaTensor,
        width: usize,
        write: Write,
    ) -> Result<()> {
        let rows = ids.ids.len();
        let (x, table) = (x.0.output(rows * width), table.0.input(ids.bound * width));
        let (launch, ids) = (Launch::each(rows * width, 256), ids.ids.input(rows));
        self.kernels.swl_embedding(launch, x, ids, table, int(rows)?, int(width)?, adds(write))
    }

    fn embedding_backward(
        &mut self,
        dtable: &mut CudaTensor,
        dx: &CudaTensor,
        ids: &CudaIds,
        width: usize,
    ) -> Result<()> {
        let rows = ids.ids.len();
        let (dtable, dx) = (dtable.0.output(ids.bound * width), dx.0.input(rows * width));
        let (launch, ids) = (Launch::row(ids.bound, 128), ids.ids.input(rows));
        self.kernels.swl_embedding_backward(launch, dtable, dx, ids, int(rows)?, int(width)?)
    }

    fn cross_entropy(
        &mut self,
        losses: &mut CudaTensor,
        logits: &mut CudaTensor,
        targets: &CudaIds,
        vocab: usize,
        scale: f32,
    ) -> Result<()> {
        assert!(targets.bound <= vocab, "a target of a vocabulary of more than {vocab}");
        let rows = targets.ids.len();
        let (losses, logits) = (losses.0.output(rows), logits.0.output(rows * vocab));
        let targets = targets.ids.input(rows);
        self.kernels.swl_cross_entropy(Launch::row(rows, 256), losses, logits, targets, int(vocab)?, scale)
    }

    fn anchor(
        &mut self,
        x: &mut CudaTensor,
        ids: &CudaIds,
        seed: u64,
        width: usize,
        scale: f32,
    ) -> Result<()> {
        let rows = ids.ids.len();
        let counters = width.div_ceil(32) * 16;
        let launch = Launch::grid([rows, counters.div_ceil(128), 1], 128);
        let (x, ids) = (x.0.output(rows * width), ids.ids.input(rows));
        self.kernels.swl_anchor(launch, x, ids, seed, int(width)?, scale)
    }

    fn project(
        &mut self,
        z: &mut CudaTensor,
        x: &CudaTensor,
        basis: &CudaTensor,
        rows: usize,
        width: usize,
        code: usize,
        write: Write,
    ) -> Result<()> {
        products::project(&self.kernels, &mut z.0, &x.0, &basis.0, [rows, width, code], write)
    }

    fn reconstruct(
        &mut self,
        x: &mut CudaTensor,
        z: &CudaTensor,
        basis: &CudaTensor,
        anchor: &CudaTensor,
        rows: usize,
        width: usize,
        code: usize,
    ) -> Result<()> {
        self.copy(x, anchor, rows * width)?;
        products::expand(&self.kernels, &mut x.0, &z.0, &basis.0, [rows, width, code])
    }

    fn pack(
        &mut self,
        bytes: &mut Vec<u8>,
        x: &CudaTensor,
        rows: usize,
        width: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        self.boundary.pack(&self.kernels, bytes, &x.0, [rows, width], format, key)
    }

    fn unpack(
        &mut self,
        x: &mut CudaTensor,
        bytes: &[u8],
        rows: usize,
        width: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        self.boundary.unpack(&self.kernels, &mut x.0, bytes, [rows, width], format, key)
    }

    fn project_pack(
        &mut self,
        bytes: &mut Vec<u8>,
        x: &CudaTensor,
        basis: &CudaTensor,
        rows: usize,
        width: usize,
        code: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        let sizes = [rows, width, code];
        self.boundary.project_pack(&self.kernels, bytes, &x.0, &basis.0, sizes, format, key)
    }

    fn unpack_reconstruct(
        &mut self,
        x: &mut CudaTensor,
        bytes: &[u8],
        basis: &CudaTensor,
        anchor: &CudaTensor,
        rows: usize,
        width: usize,
        code: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        let (x, basis, anchor, sizes) = (&mut x.0, &basis.0, &anchor.0, [rows, width, code]);
        self.boundary.unpack_reconstruct(&self.kernels, x, bytes, basis, anchor, sizes, format, key)
    }

    fn adam_update(
        &mut self,
        w: &mut CudaTensor,
        m: &mut CudaTensor,
        v: &mut CudaTensor,
        g: &CudaTensor,
        len: usize,
        step: AdamStep,
    ) -> Result<()> {
        let (w, m, v, g) = (w.0.output(len), m.0.output(len), v.0.output(len), g.0.input(len));
        self.kernels.swl_adam_update(
            Launch::each(len, 256),
            w,
            m,
            v,
            g,
            int(len)?,
            step.beta1,
            step.beta2,
            step.bias_correction2,
            step.epsilon,
            step.gradient_scale,
            step.decay,
            step.gradient_rate,
            step.momentum_rate,
        )
    }
}
