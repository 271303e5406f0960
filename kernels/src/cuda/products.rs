//! Matrix products: on tensor cores in bf16 with f32 sums, or in f32 with the bits of the CPU.
//!
//! All are brought into one form, `c[m,n] (= | +=) a[m,k] b[n,k]^T`. For tensor cores the factors are rounded to bf16
//! and transposed where need be on the way into scratch. cuBLASLt multiplies them if it can be loaded and takes the
//! shape, else a kernel of this crate does.

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::CudaStream;

use super::launch::{Kernels, Launch, adds, int};
use super::libraries;
use super::memory::{Buffer, In, Out};
use crate::{Error, LinearShape, Profile, Result, Write};

/// Bytes of scratch for cuBLASLt: its vendor's advice for large devices.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Side of the square of the result that a block of this crate's kernels makes.
const TILE: usize = 64;

/// Multiplies matrices on one device and keeps its scratch.
#[derive(Debug)]
pub(super) struct Products {
    profile: Profile,
    stream: Arc<CudaStream>,
    blas: Option<Blas>,
    left: Buffer<u16>,
    right: Buffer<u16>,
}

/// A factor `f[rows, columns]` in memory, and whether the product needs it or its transpose.
#[derive(Clone, Copy, Debug)]
struct Factor<'a> {
    numbers: In<'a, f32>,
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl Factor<'_> {
    /// Rows and columns as the product needs them.
    fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }

    /// Numbers from one row to the next and from one column to the next.
    fn strides(&self) -> (usize, usize) {
        if self.transposed { (1, self.columns) } else { (self.columns, 1) }
    }
}

impl Products {
    pub(super) fn new(stream: &Arc<CudaStream>, profile: Profile) -> Result<Self> {
        let blas = match profile {
            Profile::Fast if libraries::has_blas() => Blas::new(stream)?,
            Profile::Fast | Profile::Repro => None,
        };
        let (left, right) = (Buffer::zeros(stream, 0)?, Buffer::zeros(stream, 0)?);
        Ok(Self { profile, stream: Arc::clone(stream), blas, left, right })
    }

    /// `y[N,O] (= | +=) x[N,I] w[O,I]^T`
    pub(super) fn linear(
        &mut self,
        kernels: &Kernels,
        y: &mut Buffer<f32>,
        x: &Buffer<f32>,
        w: &Buffer<f32>,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        let LinearShape { rows, inputs, outputs } = shape;
        let x = Factor { numbers: x.input(rows * inputs), rows, columns: inputs, transposed: false };
        let w =
            Factor { numbers: w.input(outputs * inputs), rows: outputs, columns: inputs, transposed: false };
        self.multiply(kernels, y.output(rows * outputs), x, w, write)
    }

    /// `dx[N,I] (= | +=) dy[N,O] w[O,I]`
    pub(super) fn backward_input(
        &mut self,
        kernels: &Kernels,
        dx: &mut Buffer<f32>,
        dy: &Buffer<f32>,
        w: &Buffer<f32>,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        let LinearShape { rows, inputs, outputs } = shape;
        let dy = Factor { numbers: dy.input(rows * outputs), rows, columns: outputs, transposed: false };
        let w =
            Factor { numbers: w.input(outputs * inputs), rows: outputs, columns: inputs, transposed: true };
        self.multiply(kernels, dx.output(rows * inputs), dy, w, write)
    }

    /// `dw[O,I] (= | +=) dy[N,O]^T x[N,I]`
    pub(super) fn backward_weight(
        &mut self,
        kernels: &Kernels,
        dw: &mut Buffer<f32>,
        dy: &Buffer<f32>,
        x: &Buffer<f32>,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        let LinearShape { rows, inputs, outputs } = shape;
        let dy = Factor { numbers: dy.input(rows * outputs), rows, columns: outputs, transposed: true };
        let x = Factor { numbers: x.input(rows * inputs), rows, columns: inputs, transposed: true };
        self.multiply(kernels, dw.output(outputs * inputs), dy, x, write)
    }

    /// `c[m,n] (= | +=) a[m,k] b[n,k]^T`
    fn multiply(
        &mut self,
        kernels: &Kernels,
        c: Out<'_, f32>,
        a: Factor<'_>,
        b: Factor<'_>,
        write: Write,
    ) -> Result<()> {
        if self.profile == Profile::Repro {
            return exact(kernels, c, a, b, write);
        }
        let ((m, k), (n, _)) = (a.shape(), b.shape());
        if m * n == 0 {
            return Ok(());
        }
        self.left.grow(&self.stream, m * k)?;
        self.right.grow(&self.stream, n * k)?;
        round(kernels, self.left.output(m * k), a)?;
        round(kernels, self.right.output(n * k), b)?;
        let (left, right) = (self.left.input(m * k), self.right.input(n * k));
        if let Some(blas) = &mut self.blas
            && blas.multiply(&c, left, right, [m, n, k], write)?
        {
            return Ok(());
        }
        let tiles = Launch::grid([n.div_ceil(TILE), m.div_ceil(TILE), 1], 128);
        kernels.swl_product_bf16(tiles, c, left, right, int(m)?, int(n)?, int(k)?, adds(write))
    }
}

/// `z[N,k] (= | +=) x[N,d] basis[k,d]^T` with the bits of the CPU, as the numbers that cross a cut must agree between
/// devices.
pub(super) fn project(
    kernels: &Kernels,
    z: &mut Buffer<f32>,
    x: &Buffer<f32>,
    basis: &Buffer<f32>,
    [rows, width, code]: [usize; 3],
    write: Write,
) -> Result<()> {
    let x = Factor { numbers: x.input(rows * width), rows, columns: width, transposed: false };
    let basis = Factor { numbers: basis.input(code * width), rows: code, columns: width, transposed: false };
    exact(kernels, z.output(rows * code), x, basis, write)
}

/// `x[N,d] += z[N,k] basis[k,d]` with the bits of the CPU.
pub(super) fn expand(
    kernels: &Kernels,
    x: &mut Buffer<f32>,
    z: &Buffer<f32>,
    basis: &Buffer<f32>,
    [rows, width, code]: [usize; 3],
) -> Result<()> {
    let z = Factor { numbers: z.input(rows * code), rows, columns: code, transposed: false };
    let basis = Factor { numbers: basis.input(code * width), rows: code, columns: width, transposed: true };
    exact(kernels, x.output(rows * width), z, basis, Write::Add)
}

fn exact(kernels: &Kernels, c: Out<'_, f32>, a: Factor<'_>, b: Factor<'_>, write: Write) -> Result<()> {
    let ((m, k), (n, _)) = (a.shape(), b.shape());
    let tiles = Launch::grid([n.div_ceil(TILE), m.div_ceil(TILE), 1], 256);
    let ((a_row, a_column), (b_column, b_row)) = (a.strides(), b.strides());
    kernels.swl_product(
        tiles,
        c,
        a.numbers,
        b.numbers,
        int(m)?,
        int(n)?,
        int(k)?,
        int(a_row)?,
        int(a_column)?,
        int(b_row)?,
        int(b_column)?,
        adds(write),
    )
}

/// Rounds a factor to bf16, in the shape the product needs.
fn round(kernels: &Kernels, to: Out<'_, u16>, from: Factor<'_>) -> Result<()> {
    let (rows, columns) = (from.rows, from.columns);
    if from.transposed {
        let tiles = Launch::grid([columns.div_ceil(32), rows.div_ceil(32), 1], 0).block([32, 8]);
        return kernels.swl_to_bf16_transposed(tiles, to, from.numbers, int(rows)?, int(columns)?);
    }
    kernels.swl_to_bf16(Launch::each(rows * columns, 256), to, from.numbers, int(rows)?, int(columns)?)
}

/// The library cuBLASLt.
#[derive(Debug)]
struct Blas {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    workspace: Buffer<u8>,
    /// The library's choice for `[m, n, k]`; `None` if it does not take that shape.
    algorithms: BTreeMap<[usize; 3], Option<sys::cublasLtMatmulAlgo_t>>,
}

impl Blas {
    /// `None` if the library refuses the driver.
    fn new(stream: &Arc<CudaStream>) -> Result<Option<Self>> {
        let workspace = Buffer::zeros(stream, WORKSPACE_BYTES)?;
        let Ok(handle) = result::create_handle() else { return Ok(None) };
        let (stream, algorithms) = (Arc::clone(stream), BTreeMap::new());
        Ok(Some(Self { handle, stream, workspace, algorithms }))
    }

    /// `c[m,n] (= | +=) a[m,k] b[n,k]^T`; `false` if the library does not take the shape and has done nothing.
    fn multiply(
        &mut self,
        c: &Out<'_, f32>,
        a: In<'_, u16>,
        b: In<'_, u16>,
        shape: [usize; 3],
        write: Write,
    ) -> Result<bool> {
        let operation = Operation::new(shape).map_err(|error| blas_error(&error))?;
        let algorithm = match self.algorithms.get(&shape) {
            Some(known) => *known,
            None => {
                let chosen = operation.choose(self.handle).map_err(|error| blas_error(&error))?;
                self.algorithms.insert(shape, chosen);
                chosen
            }
        };
        let Some(algorithm) = algorithm else { return Ok(false) };
        let (one, scale) = (1.0_f32, if write == Write::Add { 1.0_f32 } else { 0.0 });
        let workspace = self.workspace.output(WORKSPACE_BYTES).0;
        // SAFETY: the descriptions live until the call returns and say the lengths that the buffers were checked for;
        // all buffers are of the library's stream.
        unsafe {
            result::matmul(
                self.handle,
                operation.product.0,
                (&raw const one).cast(),
                (&raw const scale).cast(),
                b.0 as *const _,
                operation.first.0,
                a.0 as *const _,
                operation.second.0,
                c.0 as *const _,
                operation.result.0,
                c.0 as *mut _,
                operation.result.0,
                &raw const algorithm,
                workspace as *mut _,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(|error| blas_error(&error))?;
        Ok(true)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made by `create_handle` and destroyed nowhere else.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// A product in the terms of the library. It stores matrices by columns, so it computes the transpose: `c^T = b a^T`.
struct Operation {
    product: Description,
    first: Layout,
    second: Layout,
    result: Layout,
}

struct Description(sys::cublasLtMatmulDesc_t);
struct Layout(sys::cublasLtMatrixLayout_t);
struct Preference(sys::cublasLtMatmulPreference_t);

impl Operation {
    fn new([m, n, k]: [usize; 3]) -> std::result::Result<Self, result::CublasError> {
        use sys::cudaDataType::{CUDA_R_16BF as BF16, CUDA_R_32F as F32};
        let layout = |kind, rows: usize, columns: usize| {
            result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64).map(Layout)
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let product = Description(result::create_matmul_desc(compute, F32)?);
        let transpose = 1_i32;
        // SAFETY: the attribute is one 32-bit number.
        unsafe {
            result::set_matmul_desc_attribute(
                product.0,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transpose).cast(),
                size_of::<i32>(),
            )?;
        }
        Ok(Self {
            product,
            first: layout(BF16, k, n)?,
            second: layout(BF16, k, m)?,
            result: layout(F32, n, m)?,
        })
    }

    /// The algorithm the library chooses; `None` if it takes no such product.
    fn choose(
        &self,
        handle: sys::cublasLtHandle_t,
    ) -> std::result::Result<Option<sys::cublasLtMatmulAlgo_t>, result::CublasError> {
        let preference = Preference(result::create_matmul_pref()?);
        let bytes = WORKSPACE_BYTES;
        // SAFETY: the attribute is one length; all descriptions are alive.
        let chosen = unsafe {
            result::set_matmul_pref_attribute(
                preference.0,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                size_of::<usize>(),
            )?;
            let (first, second, result) = (self.first.0, self.second.0, self.result.0);
            result::get_matmul_algo_heuristic(
                handle,
                self.product.0,
                first,
                second,
                result,
                result,
                preference.0,
            )
        };
        match chosen {
            Ok(chosen) => Ok(Some(chosen.algo)),
            Err(result::CublasError(
                sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED
                | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE,
            )) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by the library and destroyed nowhere else.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn blas_error(error: &result::CublasError) -> Error {
    Error::Device(format!("cuBLASLt: {:?}", error.0))
}
