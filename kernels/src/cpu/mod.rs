//! The CPU backend: the specification of every operation.
//!
//! Results are functions of inputs and shapes: work is cut into blocks by shape, and sums over blocks are
//! combined in order, so the number of threads does not show. Loops are compiled for several instruction sets
//! and chosen at run time; elementary functions are our own, so they agree between machines.

mod aligned;
mod attention;
mod boundary;
#[cfg(test)]
mod check;
mod columns;
mod cross_entropy;
mod embedding;
#[cfg(test)]
mod golden;
mod head;
mod isa;
mod lanes;
mod linear;
mod math;
mod packing;
pub(crate) mod probe;
mod product;
mod rmsnorm;
mod rope;
mod scratch;
mod small_product;
mod swiglu;
mod threads;
mod update;
mod view;

use crate::{
    AdamStep, AttentionShape, Backend, HeadGradients, LinearShape, PackedFormat, Profile, Result,
    RoundingKey, Write, backend::check_ids,
};
use isa::Isa;
use packing::Packer;
use product::Products;
use scratch::Scratch;
use threads::Threads;

/// The backend of the processor.
#[derive(Debug)]
pub struct Cpu {
    threads: Threads,
    products: Products,
    scratch: Scratch,
    rope: Option<rope::Table>,
    tensor_bytes: usize,
}

impl Cpu {
    /// A CPU backend on `threads` threads, in [`Profile::Repro`]; 0 counts as 1. One thread is the caller's, more are a
    /// pool. The number changes the speed, never the results.
    ///
    /// The environment variable `SWARMLINE_ISA`, read once, limits all operations to an instruction set: `scalar`,
    /// `avx2` or `avx512`. Without it, or for a set that the processor lacks, operations use the best set of the
    /// processor. The set changes the speed, never the results under [`Profile::Repro`].
    ///
    /// # Errors
    ///
    /// [`Error::Device`](crate::Error::Device) if the operating system refuses the threads or `SWARMLINE_ISA` names no
    /// such set.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_profile(threads, Profile::default())
    }

    /// A CPU backend in `profile`, if the processor can; [`Cpu::profile`] is the profile that runs.
    ///
    /// # Errors
    ///
    /// As [`Cpu::new`].
    pub fn with_profile(threads: usize, profile: Profile) -> Result<Self> {
        Self::on(threads, Isa::allowed()?, profile)
    }

    /// A backend on the instruction set `isa`.
    fn on(threads: usize, isa: Isa, profile: Profile) -> Result<Self> {
        Ok(Self {
            threads: Threads::new(threads, isa)?,
            products: Products::new(isa, profile),
            scratch: Scratch::default(),
            rope: None,
            tensor_bytes: 0,
        })
    }

    /// The profile that runs: [`Profile::Repro`] also in place of [`Profile::Fast`] if the processor does not multiply
    /// bf16 or `SWARMLINE_ISA` forbids it.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.products.profile()
    }

    /// Bytes of all tensors that this backend has made so far, which is the peak of a caller that makes its tensors
    /// once, as a shard does. Scratch of single operations is not counted.
    #[must_use]
    pub fn tensor_bytes(&self) -> usize {
        self.tensor_bytes
    }

    /// Threads that share an operation, at least 1.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.count()
    }
}

/// A flat buffer of f32 in main memory.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuTensor(Vec<f32>);

impl CpuTensor {
    /// The numbers.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// The numbers, mutable.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl From<Vec<f32>> for CpuTensor {
    fn from(numbers: Vec<f32>) -> Self {
        Self(numbers)
    }
}

/// Token ids that were checked against a vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuIds(Vec<u32>);

impl CpuIds {
    /// The ids.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }
}

impl Backend for Cpu {
    type Tensor = CpuTensor;
    type Ids = CpuIds;

    fn zeros(&mut self, len: usize) -> Result<CpuTensor> {
        self.tensor_bytes += len * size_of::<f32>();
        Ok(CpuTensor(vec![0.0; len]))
    }

    fn len(&self, tensor: &CpuTensor) -> usize {
        tensor.0.len()
    }

    fn upload(&mut self, dst: &mut CpuTensor, src: &[f32]) -> Result<()> {
        dst.0[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn download(&mut self, dst: &mut [f32], src: &CpuTensor) -> Result<()> {
        dst.copy_from_slice(&src.0[..dst.len()]);
        Ok(())
    }

    fn ids(&mut self, ids: &[u32], vocab: usize) -> Result<CpuIds> {
        check_ids(ids, vocab)?;
        Ok(CpuIds(ids.to_vec()))
    }

    fn fill(&mut self, x: &mut CpuTensor, value: f32, len: usize) -> Result<()> {
        x.0[..len].fill(value);
        Ok(())
    }

    fn copy(&mut self, y: &mut CpuTensor, x: &CpuTensor, len: usize) -> Result<()> {
        y.0[..len].copy_from_slice(&x.0[..len]);
        Ok(())
    }

    fn add_scaled(&mut self, y: &mut CpuTensor, x: &CpuTensor, alpha: f32, len: usize) -> Result<()> {
        update::add_scaled(&self.threads, &mut y.0[..len], &x.0[..len], alpha);
        Ok(())
    }

    fn sum_squares(&mut self, x: &CpuTensor, len: usize) -> Result<f64> {
        Ok(update::sum_squares(&self.threads, &x.0[..len]))
    }

    fn linear(
        &mut self,
        y: &mut CpuTensor,
        x: &CpuTensor,
        w: &CpuTensor,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        linear::forward(&mut self.products, &self.threads, &mut y.0, &x.0, &w.0, shape, write);
        Ok(())
    }

    fn linear_backward_input(
        &mut self,
        dx: &mut CpuTensor,
        dy: &CpuTensor,
        w: &CpuTensor,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        linear::backward_input(&mut self.products, &self.threads, &mut dx.0, &dy.0, &w.0, shape, write);
        Ok(())
    }

    fn linear_backward_weight(
        &mut self,
        dw: &mut CpuTensor,
        dy: &CpuTensor,
        x: &CpuTensor,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        linear::backward_weight(&mut self.products, &self.threads, &mut dw.0, &dy.0, &x.0, shape, write);
        Ok(())
    }

    fn rmsnorm(
        &mut self,
        y: &mut CpuTensor,
        rstd: &mut CpuTensor,
        x: &CpuTensor,
        gain: &CpuTensor,
        rows: usize,
        width: usize,
        epsilon: f32,
    ) -> Result<()> {
        let len = rows * width;
        let (y, rstd) = (&mut y.0[..len], &mut rstd.0[..rows]);
        rmsnorm::forward(&self.threads, y, rstd, &x.0[..len], &gain.0[..width], epsilon);
        Ok(())
    }

    fn rmsnorm_apply(
        &mut self,
        y: &mut CpuTensor,
        x: &CpuTensor,
        gain: &CpuTensor,
        rstd: &CpuTensor,
        rows: usize,
        width: usize,
    ) -> Result<()> {
        let len = rows * width;
        let y = &mut y.0[..len];
        rmsnorm::apply(&self.threads, y, &x.0[..len], &gain.0[..width], &rstd.0[..rows]);
        Ok(())
    }

    fn rmsnorm_backward(
        &mut self,
        dx: &mut CpuTensor,
        dgain: &mut CpuTensor,
        dy: &CpuTensor,
        x: &CpuTensor,
        gain: &CpuTensor,
        rstd: &CpuTensor,
        rows: usize,
        width: usize,
        write: Write,
    ) -> Result<()> {
        let len = rows * width;
        let (dx, dgain) = (&mut dx.0[..len], &mut dgain.0[..width]);
        let (dy, x, gain, rstd) = (&dy.0[..len], &x.0[..len], &gain.0[..width], &rstd.0[..rows]);
        rmsnorm::backward(&self.threads, &self.scratch, dx, dgain, dy, x, gain, rstd, write);
        Ok(())
    }

    fn attention(
        &mut self,
        out: &mut CpuTensor,
        lse: &mut CpuTensor,
        q: &CpuTensor,
        k: &CpuTensor,
        v: &CpuTensor,
        shape: AttentionShape,
    ) -> Result<()> {
        let [queries, keys, sums] = shape.lens();
        let (out, lse) = (&mut out.0[..queries], &mut lse.0[..sums]);
        let (q, k, v) = (&q.0[..queries], &k.0[..keys], &v.0[..keys]);
        let table = rope::Table::of(&mut self.rope, shape);
        attention::forward(&self.threads, &self.scratch, out, lse, q, k, v, table, shape);
        Ok(())
    }

    fn attention_backward(
        &mut self,
        dq: &mut CpuTensor,
        dk: &mut CpuTensor,
        dv: &mut CpuTensor,
        dout: &CpuTensor,
        q: &CpuTensor,
        k: &CpuTensor,
        v: &CpuTensor,
        out: &CpuTensor,
        lse: &CpuTensor,
        shape: AttentionShape,
    ) -> Result<()> {
        let [queries, keys, sums] = shape.lens();
        let (dq, dk, dv) = (&mut dq.0[..queries], &mut dk.0[..keys], &mut dv.0[..keys]);
        let (q, k, v) = (&q.0[..queries], &k.0[..keys], &v.0[..keys]);
        let (dout, out, lse) = (&dout.0[..queries], &out.0[..queries], &lse.0[..sums]);
        let table = rope::Table::of(&mut self.rope, shape);
        attention::backward(&self.threads, &self.scratch, dq, dk, dv, dout, q, k, v, out, lse, table, shape);
        Ok(())
    }

    fn swiglu(&mut self, h: &mut CpuTensor, gate: &CpuTensor, up: &CpuTensor, len: usize) -> Result<()> {
        swiglu::forward(&self.threads, &mut h.0[..len], &gate.0[..len], &up.0[..len]);
        Ok(())
    }

    fn swiglu_backward(
        &mut self,
        dgate: &mut CpuTensor,
        dup: &mut CpuTensor,
        dh: &CpuTensor,
        gate: &CpuTensor,
        up: &CpuTensor,
        len: usize,
    ) -> Result<()> {
        let (dgate, dup) = (&mut dgate.0[..len], &mut dup.0[..len]);
        swiglu::backward(&self.threads, dgate, dup, &dh.0[..len], &gate.0[..len], &up.0[..len]);
        Ok(())
    }

    fn embedding(
        &mut self,
        x: &mut CpuTensor,
        ids: &CpuIds,
        table: &CpuTensor,
        width: usize,
        write: Write,
    ) -> Result<()> {
        let x = &mut x.0[..ids.0.len() * width];
        embedding::gather(&self.threads, x, &ids.0, &table.0, width, write);
        Ok(())
    }

    fn embedding_backward(
        &mut self,
        dtable: &mut CpuTensor,
        dx: &CpuTensor,
        ids: &CpuIds,
        width: usize,
    ) -> Result<()> {
        let dx = &dx.0[..ids.0.len() * width];
        embedding::scatter(&self.threads, &mut dtable.0, dx, &ids.0, width);
        Ok(())
    }

    fn cross_entropy(
        &mut self,
        losses: &mut CpuTensor,
        logits: &mut CpuTensor,
        targets: &CpuIds,
        vocab: usize,
        scale: f32,
    ) -> Result<()> {
        let rows = targets.0.len();
        let (losses, logits) = (&mut losses.0[..rows], &mut logits.0[..rows * vocab]);
        cross_entropy::forward_backward(&self.threads, losses, logits, &targets.0, vocab, scale);
        Ok(())
    }

    fn head(
        &mut self,
        losses: &mut CpuTensor,
        gradients: Option<HeadGradients<'_, CpuTensor>>,
        logits: &mut CpuTensor,
        x: &CpuTensor,
        w: &CpuTensor,
        targets: &CpuIds,
        shape: LinearShape,
    ) -> Result<()> {
        let losses = &mut losses.0[..shape.rows];
        let gradients = gradients.map(|HeadGradients { dx, dw, scale }| head::Gradients {
            dx: &mut dx.0,
            dw: &mut dw.0,
            scale,
        });
        let targets = &targets.0[..shape.rows];
        let (products, logits) = (&mut self.products, &mut logits.0);
        head::forward_backward(
            products,
            &self.threads,
            losses,
            gradients,
            logits,
            &x.0,
            &w.0,
            targets,
            shape,
        );
        Ok(())
    }

    fn head_logits(&self, shape: LinearShape) -> usize {
        head::logits_len(shape)
    }

    fn anchor(&mut self, x: &mut CpuTensor, ids: &CpuIds, seed: u64, width: usize, scale: f32) -> Result<()> {
        let x = &mut x.0[..ids.0.len() * width];
        boundary::anchor(&self.threads, x, &ids.0, seed, width, scale);
        Ok(())
    }

    fn project(
        &mut self,
        z: &mut CpuTensor,
        x: &CpuTensor,
        basis: &CpuTensor,
        rows: usize,
        width: usize,
        code: usize,
        write: Write,
    ) -> Result<()> {
        boundary::project(
            &mut self.products,
            &self.threads,
            &mut z.0,
            &x.0,
            &basis.0,
            rows,
            width,
            code,
            write,
        );
        Ok(())
    }

    fn reconstruct(
        &mut self,
        x: &mut CpuTensor,
        z: &CpuTensor,
        basis: &CpuTensor,
        anchor: &CpuTensor,
        rows: usize,
        width: usize,
        code: usize,
    ) -> Result<()> {
        boundary::reconstruct(
            &mut self.products,
            &self.threads,
            &mut x.0,
            &z.0,
            &basis.0,
            &anchor.0,
            rows,
            width,
            code,
        );
        Ok(())
    }

    fn pack(
        &mut self,
        bytes: &mut Vec<u8>,
        x: &CpuTensor,
        rows: usize,
        width: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        resize_packed(bytes, rows, width, format);
        let packer = Packer::new(&self.threads, &self.scratch, width, format, key);
        packer.pack(bytes, &x.0[..rows * width], 0);
        Ok(packer.check()?)
    }

    fn unpack(
        &mut self,
        x: &mut CpuTensor,
        bytes: &[u8],
        rows: usize,
        width: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        format.check_len(bytes, rows, width)?;
        let packer = Packer::new(&self.threads, &self.scratch, width, format, key);
        packer.unpack(&mut x.0[..rows * width], bytes, 0);
        Ok(packer.check()?)
    }

    fn project_pack(
        &mut self,
        bytes: &mut Vec<u8>,
        x: &CpuTensor,
        basis: &CpuTensor,
        rows: usize,
        width: usize,
        code: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        let Self { threads, products, scratch, .. } = self;
        resize_packed(bytes, rows, code, format);
        let packer = Packer::new(threads, scratch, code, format, key);
        boundary::project_pack(products, threads, scratch, &packer, bytes, &x.0, &basis.0, rows, width, code);
        Ok(packer.check()?)
    }

    fn unpack_reconstruct(
        &mut self,
        x: &mut CpuTensor,
        bytes: &[u8],
        basis: &CpuTensor,
        anchor: &CpuTensor,
        rows: usize,
        width: usize,
        code: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        format.check_len(bytes, rows, code)?;
        let Self { threads, products, scratch, .. } = self;
        let packer = Packer::new(threads, scratch, code, format, key);
        let (x, anchor) = (&mut x.0[..rows * width], &anchor.0[..rows * width]);
        boundary::unpack_reconstruct(
            products, threads, scratch, &packer, x, bytes, &basis.0, anchor, rows, width, code,
        );
        Ok(packer.check()?)
    }

    fn adam_update(
        &mut self,
        w: &mut CpuTensor,
        m: &mut CpuTensor,
        v: &mut CpuTensor,
        g: &CpuTensor,
        len: usize,
        step: AdamStep,
    ) -> Result<()> {
        let (w, m, v) = (&mut w.0[..len], &mut m.0[..len], &mut v.0[..len]);
        update::adam(&self.threads, w, m, v, &g.0[..len], step);
        Ok(())
    }
}

/// Gives `bytes` the length of a packed tensor; packing writes all of them.
fn resize_packed(bytes: &mut Vec<u8>, rows: usize, width: usize, format: PackedFormat) {
    // No format is longer than its numbers and two bytes a row: the length of numbers in memory fits.
    bytes.resize(format.packed_len(rows, width).unwrap_or_default(), 0);
}
