/// How exactly a backend computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// In f32, in one fixed order: the same bits on every processor, for every number of threads, and for products on a
    /// GPU.
    #[default]
    Repro,
    /// Factors of products rounded to bf16 (to nearest, ties to even), sums in f32: much faster where the device
    /// multiplies bf16 (AVX512-BF16, tensor cores). A CPU without runs as under [`Profile::Repro`]. The number of threads
    /// does not show; the kind of device does.
    Fast,
}
