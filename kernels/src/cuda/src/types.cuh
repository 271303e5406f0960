// The kernels are one translation unit: the files of `sources.txt`, one after the other, without includes, so that
// the run-time compiler needs no header path. Compile with `--fmad=false`: an operation is fused where `fmaf` is
// written and nowhere else, as on the CPU, whose bits most kernels repeat.
//
// Shapes use the alphabet of the crate: N rows, d width, k code, f feed-forward, h/g query/key-value heads, e head
// width, T tokens, B sequences, V vocabulary. All matrices are row-major f32. Sizes are `int`; the host checks that
// each fits, products of sizes are formed in 64 bits. A kernel whose sizes are zero must not be launched.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Dynamic shared memory of a launch; a host build defines it differently.
#ifndef SWL_DYNAMIC_SHARED
#define SWL_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

#define SWL_ALL_LANES 0xFFFFFFFFu

__device__ inline bool is_finite(float x) {
    return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u;
}

__device__ inline float bf16_to_f32(u16 bits) {
    return __uint_as_float((u32)bits << 16);
}

// To nearest even; NaN stays NaN.
__device__ inline u16 f32_to_bf16(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
        return (u16)(bits >> 16 | 0x40u);
    }
    return (u16)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

__device__ inline u64 at(int row, int column, int width) {
    return (u64)row * (u64)width + (u64)column;
}
