//! The table of kernels: a typed function for each, and the shape of a launch.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUfunction_attribute};
use cudarc::driver::{CudaFunction, CudaModule, CudaStream, result};

use super::memory::{In, Out, device_error};
use crate::{Error, Result, Write};

/// Blocks of a grid in y and z; in x there may be 2^31 - 1.
const GRID_SIDE_MAX: usize = 65_535;
/// Bytes of dynamic shared memory that every kernel may take without a raised limit: 48 KiB less the static share.
const SHARED_FREE: usize = 32 << 10;

/// The shape of a launch: blocks of the grid, threads of a block, dynamic shared memory of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Launch {
    grid: [usize; 3],
    block: [u32; 2],
    shared_bytes: usize,
}

impl Launch {
    /// A row of `blocks` of `threads` each.
    pub(super) fn row(blocks: usize, threads: u32) -> Self {
        Self::grid([blocks, 1, 1], threads)
    }

    /// A thread for each of `len` numbers.
    pub(super) fn each(len: usize, threads: u32) -> Self {
        Self::row(len.div_ceil(threads as usize), threads)
    }

    /// A grid of blocks in x, y and z, of `threads` each.
    pub(super) fn grid(grid: [usize; 3], threads: u32) -> Self {
        Self { grid, block: [threads, 1], shared_bytes: 0 }
    }

    /// With blocks of two sides.
    pub(super) fn block(self, block: [u32; 2]) -> Self {
        Self { block, ..self }
    }

    /// With this much dynamic shared memory a block.
    pub(super) fn shared(self, shared_bytes: usize) -> Self {
        Self { shared_bytes, ..self }
    }

    fn is_empty(self) -> bool {
        self.grid.contains(&0)
    }

    /// Grid and shared memory as the driver takes them.
    fn checked(self) -> Result<((u32, u32, u32), u32)> {
        let [x, y, z] = self.grid;
        if y > GRID_SIDE_MAX || z > GRID_SIDE_MAX {
            return Err(Error::Device(format!(
                "a grid of {x} x {y} x {z} blocks is more than a device takes"
            )));
        }
        let side = |side| int(side).map(i32::unsigned_abs);
        Ok(((side(x)?, side(y)?, side(z)?), side(self.shared_bytes)?))
    }
}

/// A size as kernels take it; one beyond `i32` is [`Error::Device`].
pub(super) fn int(size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| Error::Device(format!("{size} numbers are more than a kernel counts")))
}

/// [`Write`] as kernels take it: 0 sets, 1 adds.
pub(super) fn adds(write: Write) -> i32 {
    match write {
        Write::Set => 0,
        Write::Add => 1,
    }
}

/// A value that the driver copies into a parameter of a kernel.
trait Argument {
    type Raw: Copy;
    fn raw(self) -> Self::Raw;
    #[cfg(test)]
    fn in_c() -> String;
}

macro_rules! scalars {
    ($($scalar:ty = $c:literal),*) => {$(
        impl Argument for $scalar {
            type Raw = Self;
            fn raw(self) -> Self {
                self
            }
            #[cfg(test)]
            fn in_c() -> String {
                $c.to_owned()
            }
        }
    )*};
}

scalars!(i32 = "int", u8 = "u8", u16 = "u16", u32 = "u32", u64 = "u64", f32 = "float", f64 = "double");

impl<T: Argument> Argument for In<'_, T> {
    type Raw = CUdeviceptr;
    fn raw(self) -> CUdeviceptr {
        self.0
    }
    #[cfg(test)]
    fn in_c() -> String {
        format!("const {} *", T::in_c())
    }
}

impl<T: Argument> Argument for Out<'_, T> {
    type Raw = CUdeviceptr;
    fn raw(self) -> CUdeviceptr {
        self.0
    }
    #[cfg(test)]
    fn in_c() -> String {
        format!("{} *", T::in_c())
    }
}

macro_rules! kernels {
    ($($name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        /// The kernels of a module, loaded on a device. A call queues the kernel on the compute stream.
        #[derive(Debug)]
        pub(super) struct Kernels {
            stream: Arc<CudaStream>,
            $($name: CudaFunction,)*
        }

        impl Kernels {
            /// Looks up every kernel.
            pub(super) fn new(
                module: &Arc<CudaModule>,
                stream: Arc<CudaStream>,
            ) -> std::result::Result<Self, result::DriverError> {
                Ok(Self {
                    stream,
                    $($name: module.load_function(stringify!($name))?,)*
                })
            }

            $(
                pub(super) fn $name(&self, launch: Launch, $($argument: $type),*) -> Result<()> {
                    $(let $argument = Argument::raw($argument);)*
                    let mut arguments = [$((&raw const $argument).cast_mut().cast::<c_void>()),*];
                    // SAFETY: number and types of the arguments are those of the kernel (a test compares this table
                    // with the sources); each points to a live local.
                    unsafe { self.launch(&self.$name, launch, &mut arguments) }
                }
            )*
        }

        /// Name and parameters of every kernel in C.
        #[cfg(test)]
        fn table() -> Vec<(&'static str, Vec<String>)> {
            vec![$((stringify!($name), vec![$(<$type as Argument>::in_c()),*])),*]
        }
    };
}

kernels! {
    swl_product(
        c: Out<'_, f32>, a: In<'_, f32>, b: In<'_, f32>, m: i32, n: i32, k: i32,
        a_row: i32, a_column: i32, b_row: i32, b_column: i32, add: i32,
    );
    swl_product_bf16(
        c: Out<'_, f32>, a: In<'_, u16>, b: In<'_, u16>, m: i32, n: i32, k: i32, add: i32,
    );
    swl_attention(
        out: Out<'_, f32>, lse: Out<'_, f32>, q: In<'_, f32>, k: In<'_, f32>, v: In<'_, f32>,
        cos_table: In<'_, f32>, sin_table: In<'_, f32>, tokens: i32, heads: i32, kv_heads: i32, head_width: i32,
    );
    swl_attention_exact(
        out: Out<'_, f32>, lse: Out<'_, f32>, q: In<'_, f32>, k: In<'_, f32>, v: In<'_, f32>,
        cos_table: In<'_, f32>, sin_table: In<'_, f32>, tokens: i32, heads: i32, kv_heads: i32, head_width: i32,
    );
    swl_attention_bf16_64(
        out: Out<'_, f32>, lse: Out<'_, f32>, q: In<'_, u16>, k: In<'_, u16>, v: In<'_, u16>,
        tokens: i32, heads: i32, kv_heads: i32,
    );
    swl_attention_bf16_128(
        out: Out<'_, f32>, lse: Out<'_, f32>, q: In<'_, u16>, k: In<'_, u16>, v: In<'_, u16>,
        tokens: i32, heads: i32, kv_heads: i32,
    );
    swl_attention_delta(
        delta: Out<'_, f32>, out: In<'_, f32>, dout: In<'_, f32>, rows_heads: i32, head_width: i32,
    );
    swl_attention_backward_query(
        dq: Out<'_, f32>, dout: In<'_, f32>, q: In<'_, f32>, k: In<'_, f32>, v: In<'_, f32>,
        lse: In<'_, f32>, delta: In<'_, f32>, cos_table: In<'_, f32>, sin_table: In<'_, f32>,
        tokens: i32, heads: i32, kv_heads: i32, head_width: i32,
    );
    swl_attention_backward_key_value(
        dk: Out<'_, f32>, dv: Out<'_, f32>, dout: In<'_, f32>, q: In<'_, f32>, k: In<'_, f32>, v: In<'_, f32>,
        lse: In<'_, f32>, delta: In<'_, f32>, cos_table: In<'_, f32>, sin_table: In<'_, f32>,
        tokens: i32, heads: i32, kv_heads: i32, head_width: i32,
    );
    swl_attention_backward_query_bf16_64(
        dq: Out<'_, f32>, dout: In<'_, u16>, q: In<'_, u16>, k: In<'_, u16>, v: In<'_, u16>,
        lse: In<'_, f32>, delta: In<'_, f32>, cos_table: In<'_, f32>, sin_table: In<'_, f32>,
        tokens: i32, heads: i32, kv_heads: i32,
    );
    swl_attention_backward_query_bf16_128(
        dq: Out<'_, f32>, dout: In<'_, u16>, q: In<'_, u16>, k: In<'_, u16>, v: In<'_, u16>,
        lse: In<'_, f32>, delta: In<'_, f32>, cos_table: In<'_, f32>, sin_table: In<'_, f32>,
        tokens: i32, heads: i32, kv_heads: i32,
    );
    swl_attention_backward_key_value_bf16_64(
        dk: Out<'_, f32>, dv: Out<'_, f32>, dout: In<'_, u16>, q: In<'_, u16>, k: In<'_, u16>, v: In<'_, u16>,
        lse: In<'_, f32>, delta: In<'_, f32>, cos_table: In<'_, f32>, sin_table: In<'_, f32>,
        tokens: i32, heads: i32, kv_heads: i32,
    );
    swl_attention_backward_key_value_bf16_128(
        dk: Out<'_, f32>, dv: Out<'_, f32>, dout: In<'_, u16>, q: In<'_, u16>, k: In<'_, u16>, v: In<'_, u16>,
        lse: In<'_, f32>, delta: In<'_, f32>, cos_table: In<'_, f32>, sin_table: In<'_, f32>,
        tokens: i32, heads: i32, kv_heads: i32,
    );
    swl_anchor(x: Out<'_, f32>, ids: In<'_, u32>, seed: u64, width: i32, scale: f32);
    swl_check_finite(bad: Out<'_, i32>, x: In<'_, f32>, width: i32);
    swl_pack_bf16(bytes: Out<'_, u16>, bad: Out<'_, i32>, x: In<'_, f32>, rows: i32, width: i32);
    swl_unpack_bf16(x: Out<'_, f32>, bad: Out<'_, i32>, bytes: In<'_, u16>, rows: i32, width: i32);
    swl_pack_levels(
        bytes: Out<'_, u8>, bad: Out<'_, i32>, x: In<'_, f32>, width: i32, top: i32, run: u64, tensor: u64,
    );
    swl_unpack_levels(
        x: Out<'_, f32>, bad: Out<'_, i32>, bytes: In<'_, u8>, width: i32, top: i32, run: u64, tensor: u64,
    );
    swl_project_pack(
        bytes: Out<'_, u8>, bad: Out<'_, i32>, x: In<'_, f32>, basis: In<'_, f32>,
        width: i32, code: i32, top: i32, run: u64, tensor: u64,
    );
    swl_unpack_reconstruct(
        x: Out<'_, f32>, bad: Out<'_, i32>, bytes: In<'_, u8>, basis: In<'_, f32>, anchor: In<'_, f32>,
        width: i32, code: i32, top: i32, run: u64, tensor: u64,
    );
    swl_cross_entropy(
        losses: Out<'_, f32>, logits: Out<'_, f32>, targets: In<'_, u32>, vocab: i32, scale: f32,
    );
    swl_fill(x: Out<'_, f32>, value: f32, len: i32);
    swl_copy(y: Out<'_, f32>, x: In<'_, f32>, len: i32);
    swl_add_scaled(y: Out<'_, f32>, x: In<'_, f32>, alpha: f32, len: i32);
    swl_sum_squares_partial(partial: Out<'_, f64>, x: In<'_, f32>, len: i32);
    swl_sum_in_order(out: Out<'_, f64>, partial: In<'_, f64>, count: i32);
    swl_to_bf16(y: Out<'_, u16>, x: In<'_, f32>, rows: i32, columns: i32);
    swl_to_bf16_transposed(y: Out<'_, u16>, x: In<'_, f32>, rows: i32, columns: i32);
    swl_embedding(
        x: Out<'_, f32>, ids: In<'_, u32>, table: In<'_, f32>, rows: i32, width: i32, add: i32,
    );
    swl_embedding_backward(dtable: Out<'_, f32>, dx: In<'_, f32>, ids: In<'_, u32>, rows: i32, width: i32);
    swl_rmsnorm(
        y: Out<'_, f32>, rstd: Out<'_, f32>, x: In<'_, f32>, gain: In<'_, f32>,
        rows: i32, width: i32, epsilon: f32,
    );
    swl_rmsnorm_apply(
        y: Out<'_, f32>, x: In<'_, f32>, gain: In<'_, f32>, rstd: In<'_, f32>, rows: i32, width: i32,
    );
    swl_rmsnorm_backward(
        dx: Out<'_, f32>, dy: In<'_, f32>, x: In<'_, f32>, gain: In<'_, f32>, rstd: In<'_, f32>,
        rows: i32, width: i32, add: i32,
    );
    swl_rmsnorm_gain_partial(
        partial: Out<'_, f32>, dy: In<'_, f32>, x: In<'_, f32>, rstd: In<'_, f32>, rows: i32, width: i32,
    );
    swl_rmsnorm_gain(dgain: Out<'_, f32>, partial: In<'_, f32>, partials: i32, width: i32);
    swl_rope_table(cos_out: Out<'_, f32>, sin_out: Out<'_, f32>, tokens: i32, head_width: i32, theta: f32);
    swl_rope_to_bf16(
        y: Out<'_, u16>, x: In<'_, f32>, cos_table: In<'_, f32>, sin_table: In<'_, f32>,
        batch: i32, tokens: i32, heads: i32, head_width: i32,
    );
    swl_swiglu(h: Out<'_, f32>, gate: In<'_, f32>, up: In<'_, f32>, len: i32);
    swl_swiglu_backward(
        dgate: Out<'_, f32>, dup: Out<'_, f32>, dh: In<'_, f32>, gate: In<'_, f32>, up: In<'_, f32>, len: i32,
    );
    swl_adam_update(
        w: Out<'_, f32>, m: Out<'_, f32>, v: Out<'_, f32>, g: In<'_, f32>, len: i32,
        beta1: f32, beta2: f32, bias_correction2: f32, epsilon: f32,
        gradient_scale: f32, decay: f32, gradient_rate: f32, momentum_rate: f32,
    );
}

impl Kernels {
    /// Queues a kernel; a launch without blocks does nothing.
    ///
    /// # Safety
    ///
    /// `arguments` point to values of the kernel's types, and buffers among them are as long as the kernel needs.
    unsafe fn launch(
        &self,
        kernel: &CudaFunction,
        launch: Launch,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        if launch.is_empty() {
            return Ok(());
        }
        let (grid, shared_bytes) = launch.checked()?;
        self.stream.context().bind_to_thread().map_err(device_error)?;
        if launch.shared_bytes > SHARED_FREE {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            kernel.set_attribute(attribute, int(launch.shared_bytes)?).map_err(device_error)?;
        }
        let block = (launch.block[0], launch.block[1], 1);
        let stream = self.stream.cu_stream();
        // SAFETY: kernel and stream are alive; the caller vouches for the arguments.
        unsafe { result::launch_kernel(kernel.cu_function(), grid, block, shared_bytes, stream, arguments) }
            .map_err(device_error)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cuda::compile::tests::sources;

    /// Name and parameter types of every kernel in a source.
    fn signatures(text: &str) -> Vec<(&str, Vec<String>)> {
        let code: String = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default())
            .fold(String::new(), |code, line| code + line + "\n");
        let mut found = Vec::new();
        for head in code.split("extern \"C\" __global__").skip(1) {
            let head = head.trim_start().trim_start_matches("void").trim_start();
            // `__launch_bounds__(N)` stands in front of the name.
            let head = match head.strip_prefix("__launch_bounds__") {
                Some(rest) => rest.split_once(')').unwrap().1.trim_start(),
                None => head,
            };
            let (name, rest) = head.split_once('(').unwrap();
            let parameters = rest.split_once(')').unwrap().0;
            let place = text.find(&format!("{name}(")).unwrap();
            let name = &text[place..place + name.len()];
            found.push((name, parameters.split(',').map(type_of).collect()));
        }
        found
    }

    /// `const float *x` -> `const float *`
    fn type_of(parameter: &str) -> String {
        let parameter = parameter.trim().replace("__restrict__", "").replace('*', " * ");
        let words: Vec<_> = parameter.split_whitespace().collect();
        words[..words.len() - 1].join(" ")
    }

    #[test]
    fn the_table_is_that_of_the_sources() {
        let mut in_sources = BTreeMap::new();
        for (file, text) in sources() {
            for (name, parameters) in signatures(text) {
                assert!(in_sources.insert(name, parameters).is_none(), "{file}: a second {name}");
            }
        }
        let counted: usize = sources().map(|(_, text)| text.matches("extern \"C\" __global__").count()).sum();
        assert_eq!(in_sources.len(), counted);
        let in_table: BTreeMap<_, _> = table().into_iter().collect();
        assert_eq!(in_table, in_sources);
    }

    #[test]
    fn every_kernel_is_precompiled_for_the_oldest_driver() {
        let ptx = crate::cuda::compile::PRECOMPILED;
        for (name, parameters) in table() {
            let entry = ptx.split_once(&format!(".visible .entry {name}(")).map(|(_, rest)| rest);
            let entry = entry.unwrap_or_else(|| panic!("{name} was not precompiled"));
            let declared = entry.split_once(')').unwrap().0.matches(".param").count();
            assert_eq!(declared, parameters.len(), "{name}");
        }
        // PTX 8.0 is that of CUDA 12.0, the oldest driver.
        assert_eq!(crate::cuda::libraries::DRIVER_MIN, crate::report::Version { major: 12, minor: 0 });
        assert!(ptx.contains("\n.version 8.0\n"));
        assert!(ptx.contains("\n.target sm_80\n"));
        assert!(!ptx.contains('\0'));
    }

    #[test]
    fn signatures_are_read_as_c_reads_them() {
        let text = "// extern \"C\" __global__ void no(int x)\n\
            extern \"C\" __global__ void __launch_bounds__(64) yes(\n    float *x, const u16 *y, // why\n int n) {";
        assert_eq!(
            signatures(text),
            [("yes", ["float *", "const u16 *", "int"].map(str::to_owned).to_vec())]
        );
    }

    #[test]
    fn a_launch_beyond_the_limits_of_a_device_is_refused() {
        assert!(Launch::each(1 << 38, 256).checked().is_ok());
        assert!(Launch::each(1 << 40, 256).checked().is_err());
        assert!(Launch::grid([1, 65_536, 1], 256).checked().is_err());
        assert!(Launch::grid([1, 1, 65_536], 256).checked().is_err());
        assert!(Launch::each(0, 256).is_empty());
        assert!(int(i32::MAX as usize).is_ok() && int(1 << 31).is_err());
    }
}
