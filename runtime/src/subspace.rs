//! The column space of constrained layers and the frozen anchor beside it.
//!
//! Source: "Protocol Models / Subspace Networks" (arXiv 2506.01260), in the form without projections: the
//! trained parameters are the coordinates `A` of `W = U A`, and the stream is kept as coordinates `Z`.

use swarmline_kernels::{Backend, LinearShape, PackedFormat, RoundingKey, Write, random};

use crate::config::{Run, Stream};
use crate::hashing;

/// Basis `U^T[k,d]` (orthonormal rows) and anchor `E0` of a run, both drawn from its seed.
#[derive(Debug)]
pub struct Subspace<B: Backend> {
    basis: B::Tensor,
    digest: blake3::Hash,
    seed: u64,
    scale: f32,
    rows: usize,
    width: usize,
    rank: usize,
}

impl<B: Backend> Subspace<B> {
    /// The subspace of a run, on a device.
    ///
    /// # Errors
    /// If the device has no memory for the basis.
    pub fn new(backend: &mut B, run: &Run) -> swarmline_kernels::Result<Self> {
        let (width, rank) = (run.model.hidden_size, run.boundary.rank);
        let rows = random::orthonormal_rows(seed_for("basis", run.seed), rank, width);
        let mut basis = backend.zeros(rows.len())?;
        backend.upload(&mut basis, &rows)?;
        Ok(Self {
            basis,
            digest: hashing::digest(&rows),
            seed: seed_for("anchor", run.seed),
            scale: run.boundary.anchor_scale,
            rows: run.tokens_per_microbatch(),
            width,
            rank,
        })
    }

    /// Digest of the basis as little-endian f32, with which replicas detect different random generators before they
    /// exchange codes.
    #[must_use]
    pub fn basis_digest(&self) -> blake3::Hash {
        self.digest
    }

    /// `anchor[N,d] = E0[ids]`
    ///
    /// # Errors
    /// If the device fails; likewise below.
    pub fn anchor(
        &self,
        backend: &mut B,
        anchor: &mut B::Tensor,
        ids: &B::Ids,
    ) -> swarmline_kernels::Result<()> {
        backend.anchor(anchor, ids, self.seed, self.width, self.scale)
    }

    /// `x[N,d] = anchor[N,d] + z[N,k] U^T`
    pub(crate) fn lift(
        &self,
        backend: &mut B,
        x: &mut B::Tensor,
        z: &B::Tensor,
        anchor: &B::Tensor,
    ) -> swarmline_kernels::Result<()> {
        backend.reconstruct(x, z, &self.basis, anchor, self.rows, self.width, self.rank)
    }

    /// `dz[N,k] (= | +=) dx[N,d] U`: the backward pass of [`Subspace::lift`].
    pub(crate) fn lift_backward(
        &self,
        backend: &mut B,
        dz: &mut B::Tensor,
        dx: &B::Tensor,
        write: Write,
    ) -> swarmline_kernels::Result<()> {
        backend.project(dz, dx, &self.basis, self.rows, self.width, self.rank, write)
    }

    /// `E0 + a[V,k] U^T`, `[V,d]`: the embedding of the whole vocabulary in its dense form, on the host.
    pub(crate) fn lift_embedding(&self, backend: &mut B, a: &[f32]) -> swarmline_kernels::Result<Vec<f32>> {
        let vocab = a.len() / self.rank;
        let ids: Vec<u32> = (0..vocab as u32).collect();
        let ids = backend.ids(&ids, vocab)?;
        let mut anchor = backend.zeros(vocab * self.width)?;
        self.anchor(backend, &mut anchor, &ids)?;
        let z = uploaded(backend, a)?;
        let mut lifted = backend.zeros(vocab * self.width)?;
        backend.reconstruct(&mut lifted, &z, &self.basis, &anchor, vocab, self.width, self.rank)?;
        downloaded(backend, &lifted, vocab * self.width)
    }

    /// `U a[k,in]`, `[d,in]`: a writer to the stream in its dense form, on the host.
    pub(crate) fn lift_writer(&self, backend: &mut B, a: &[f32]) -> swarmline_kernels::Result<Vec<f32>> {
        let inputs = a.len() / self.rank;
        let basis = downloaded(backend, &self.basis, self.rank * self.width)?;
        let columns = (0..self.width).flat_map(|column| basis.iter().skip(column).step_by(self.width));
        let columns: Vec<f32> = columns.copied().collect();
        let (u, a) = (uploaded(backend, &columns)?, uploaded(backend, a)?);
        let mut lifted = backend.zeros(self.width * inputs)?;
        let shape = LinearShape { rows: self.width, inputs, outputs: self.rank };
        backend.linear_backward_input(&mut lifted, &u, &a, shape, Write::Set)?;
        downloaded(backend, &lifted, self.width * inputs)
    }

    /// [`Subspace::lift`] of the packed `z` in `bytes`, which is never in memory as a whole.
    pub(crate) fn lift_packed(
        &self,
        backend: &mut B,
        x: &mut B::Tensor,
        bytes: &[u8],
        anchor: &B::Tensor,
        format: PackedFormat,
        key: RoundingKey,
    ) -> swarmline_kernels::Result<()> {
        let (rows, width, rank) = (self.rows, self.width, self.rank);
        backend.unpack_reconstruct(x, bytes, &self.basis, anchor, rows, width, rank, format, key)
    }

    /// [`Subspace::lift_backward`] into the packed `dz`: the backward pass of [`Subspace::lift_packed`].
    pub(crate) fn lift_packed_backward(
        &self,
        backend: &mut B,
        bytes: &mut Vec<u8>,
        dx: &B::Tensor,
        format: PackedFormat,
        key: RoundingKey,
    ) -> swarmline_kernels::Result<()> {
        backend.project_pack(bytes, dx, &self.basis, self.rows, self.width, self.rank, format, key)
    }

    /// The dense form of a stream, for the norms: the stream itself, or its coordinates lifted into `buffer`.
    pub(crate) fn dense<'t>(
        this: Option<&Self>,
        backend: &mut B,
        buffer: &'t mut B::Tensor,
        stream: &'t B::Tensor,
        anchor: &B::Tensor,
        form: Stream,
    ) -> swarmline_kernels::Result<&'t B::Tensor> {
        match (form, this) {
            (Stream::Coordinates, Some(space)) => {
                space.lift(backend, buffer, stream, anchor)?;
                Ok(buffer)
            }
            (Stream::Coordinates, None) => unreachable!("constrained layers come with a subspace"),
            (Stream::Dense, _) => Ok(stream),
        }
    }
}

fn uploaded<B: Backend>(backend: &mut B, numbers: &[f32]) -> swarmline_kernels::Result<B::Tensor> {
    let mut tensor = backend.zeros(numbers.len())?;
    backend.upload(&mut tensor, numbers)?;
    Ok(tensor)
}

fn downloaded<B: Backend>(
    backend: &mut B,
    tensor: &B::Tensor,
    len: usize,
) -> swarmline_kernels::Result<Vec<f32>> {
    let mut numbers = vec![0.0; len];
    backend.download(&mut numbers, tensor)?;
    Ok(numbers)
}

/// Basis, anchor and weights use the same generator with different seeds.
fn seed_for(purpose: &str, run_seed: u64) -> u64 {
    hashing::key(&[purpose.as_bytes(), &run_seed.to_le_bytes()])
}
