// The residual stream at a cut: anchors of tokens, and numbers to bytes and back; `PackedFormat` has the layout.
// Bits of the CPU.
//
// `bad[2]` names rows that cannot be packed. The host sets both to 0x7FFFFFFF before: bad[0] becomes the first row with
// a number that is not finite, bad[1] the first row whose numbers overflow the format. The CPU reports bad[0] if set,
// else bad[1]. `top` is the largest level: 127 (Q8) or 7 (Q4). Levels need a row in shared memory; where the dynamic
// shared memory passes 48 KiB the host must raise the kernel's limit.

// x[N,d] = scale * E0[ids[N]]. Grid (N, ceil(ceil(d / 32) * 16 / 128)), block 128.
extern "C" __global__ void swl_anchor(float *x, const u32 *ids, u64 seed, int width, float scale) {
    u32 counter = blockIdx.y * blockDim.x + threadIdx.x;
    // A counter makes the columns `column` and `column + 16`.
    u64 column = (u64)(counter / 16) * 32 + counter % 16;
    if (column >= (u64)width) {
        return;
    }
    float factor = (float)((double)scale / 209.0223272);
    Words words = philox(Words{counter, ids[blockIdx.x], 0, 0}, random_key(seed, SWL_DOMAIN_ANCHOR));
    float *row = x + (u64)blockIdx.x * width;
    u32 pair[4] = {words.a, words.b, words.c, words.d};
    for (int i = 0; i < 2; ++i) {
        u32 sum = 0;
        for (int byte = 0; byte < 4; ++byte) {
            sum += (pair[2 * i] >> (8 * byte) & 0xFFu) + (pair[2 * i + 1] >> (8 * byte) & 0xFFu);
        }
        if (column + 16 * i < (u64)width) {
            row[column + 16 * i] = ((float)(int)sum - 1020.0f) * factor;
        }
    }
}

// The first row with a number that is not finite into bad[0]. Grid N, block 128.
extern "C" __global__ void swl_check_finite(int *bad, const float *x, int width) {
    bool finite = true;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        finite = finite && is_finite(x[(u64)blockIdx.x * width + c]);
    }
    if (!finite) {
        atomicMin(&bad[0], (int)blockIdx.x);
    }
}

// bytes[N,d] = bf16(x[N,d]), to nearest even. Grid ceil(N * d / 256), block 256.
extern "C" __global__ void swl_pack_bf16(u16 *bytes, int *bad, const float *x, int rows, int width) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)rows * (u64)width) {
        return;
    }
    u16 packed = f32_to_bf16(x[i]);
    bytes[i] = packed;
    if (!is_finite(x[i])) {
        atomicMin(&bad[0], (int)(i / width));
    } else if (!is_finite(bf16_to_f32(packed))) {
        atomicMin(&bad[1], (int)(i / width));
    }
}

// x[N,d] = bytes[N,d], bf16. Grid ceil(N * d / 256), block 256.
extern "C" __global__ void swl_unpack_bf16(float *x, int *bad, const u16 *bytes, int rows, int width) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)rows * (u64)width) {
        return;
    }
    x[i] = bf16_to_f32(bytes[i]);
    if (!is_finite(x[i])) {
        atomicMin(&bad[0], (int)(i / width));
    }
}

// Width of a Hadamard block: the largest power of two that divides `width`.
__device__ inline int hadamard_block(int width) {
    return width & -width;
}

// +-1/sqrt(block) of column `c`.
__device__ inline float sign_of(int c, float magnitude, u64 run, u64 tensor) {
    Words counter = {(u32)c / 128, 0, (u32)tensor, (u32)(tensor >> 32)};
    u32 word = word_of(philox(counter, random_key(run, SWL_DOMAIN_SIGNS)), c / 32 % 4);
    return word >> (c % 32) & 1 ? -magnitude : magnitude;
}

// Walsh-Hadamard transform of every block of row[width], by the whole thread block; not normalised.
__device__ inline void hadamard(float *row, int width, int block) {
    __syncthreads();
    for (int half = 1; half < block; half *= 2) {
        for (int i = threadIdx.x; i < width / 2; i += blockDim.x) {
            int low = i / half * 2 * half + i % half;
            float a = row[low], b = row[low + half];
            row[low] = a + b;
            row[low + half] = a - b;
        }
        __syncthreads();
    }
}

// The bf16 step between levels, rounded up so that no level overflows.
__device__ inline u16 step_of(float largest, int top) {
    float step = largest / (float)top;
    // For a step below the normal numbers, 1/step would overflow; such a row packs to zeros.
    if (step < __uint_as_float(0x00800000u)) {
        return 0;
    }
    u32 bits = __float_as_uint(step);
    return (u16)((bits >> 16) + ((bits & 0xFFFFu) != 0));
}

// The level of x in row `row`, column `c`.
__device__ inline int level_of(float x, float inverse, int c, int row, int top, u64 run, u64 tensor) {
    Words counter = {16 * ((u32)c / 128) + (u32)c % 16, (u32)row, (u32)tensor, (u32)(tensor >> 32)};
    u32 word = word_of(philox(counter, random_key(run, SWL_DOMAIN_ROUNDING)), c / 32 % 4);
    u32 half = c / 16 % 2 == 0 ? word & 0xFFFFu : word >> 16;
    float uniform = ((float)(int)half + 0.5f) / 65536.0f;
    float value = floorf(fmaf(x, inverse, uniform));
    value = value > (float)top ? (float)top : value;
    value = value < -(float)top ? -(float)top : value;
    return (int)value;
}

__device__ inline int row_bytes_of(int width, int top) {
    return 2 + (top == 7 ? (width + 1) / 2 : width);
}

// Rotates and rounds row[width] in shared memory into the bytes of row `index`. `scratch` has one number per warp.
__device__ inline void pack_row(
    u8 *bytes, int *bad, float *row, float *scratch, int index, int width, int top, u64 run, u64 tensor
) {
    int block = hadamard_block(width);
    float root = sqrtf((float)block);
    float largest = 0.0f;
    bool finite = true;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        finite = finite && is_finite(row[c]);
        largest = fabsf(row[c]) > largest ? fabsf(row[c]) : largest;
        row[c] *= sign_of(c, 1.0f / root, run, tensor);
    }
    if (!finite) {
        atomicMin(&bad[0], index);
    }
    largest = block_max(largest, scratch);
    if (threadIdx.x == 0 && finite && largest >= __uint_as_float(0x7F7FFFFFu) / (2.0f * root * root * root)) {
        atomicMin(&bad[1], index);
    }
    hadamard(row, width, block);
    largest = 0.0f;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        largest = fabsf(row[c]) > largest ? fabsf(row[c]) : largest;
    }
    u16 step = step_of(block_max(largest, scratch), top);
    float inverse = step == 0 ? 0.0f : 1.0f / bf16_to_f32(step);
    u8 *out = bytes + (u64)index * row_bytes_of(width, top);
    if (threadIdx.x < 2) {
        out[threadIdx.x] = (u8)(step >> (8 * threadIdx.x));
    }
    int per_byte = top == 7 ? 2 : 1;
    for (int i = threadIdx.x; i * per_byte < width; i += blockDim.x) {
        int c = i * per_byte;
        int level = step == 0 ? 0 : level_of(row[c], inverse, c, index, top, run, tensor);
        int upper = 0;
        if (per_byte == 2 && c + 1 < width && step != 0) {
            upper = level_of(row[c + 1], inverse, c + 1, index, top, run, tensor);
        }
        out[2 + i] = per_byte == 2 ? (u8)((level & 0xF) | (upper & 0xF) << 4) : (u8)level;
    }
}

// Reads row `index` of the bytes into row[width] in shared memory, rotated back.
__device__ inline void unpack_row(
    float *row, int *bad, const u8 *bytes, int index, int width, int top, u64 run, u64 tensor
) {
    const u8 *in = bytes + (u64)index * row_bytes_of(width, top);
    float step = bf16_to_f32((u16)(in[0] | in[1] << 8));
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        int level;
        if (top == 7) {
            int nibble = in[2 + c / 2] >> (c % 2 * 4) & 0xF;
            level = nibble >= 8 ? nibble - 16 : nibble;
        } else {
            level = (int)(signed char)in[2 + c];
        }
        row[c] = (float)level * step;
    }
    int block = hadamard_block(width);
    hadamard(row, width, block);
    float magnitude = 1.0f / sqrtf((float)block);
    bool finite = true;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        row[c] *= sign_of(c, magnitude, run, tensor);
        finite = finite && is_finite(row[c]);
    }
    if (!finite) {
        atomicMin(&bad[0], index);
    }
    __syncthreads();
}

// bytes[N, packed row] = x[N,d] in Q8 or Q4. Grid N, block 256, dynamic shared 4 d bytes.
extern "C" __global__ void swl_pack_levels(
    u8 *bytes, int *bad, const float *x, int width, int top, u64 run, u64 tensor
) {
    SWL_DYNAMIC_SHARED(float, shared);
    __shared__ float scratch[8];
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        shared[c] = x[(u64)blockIdx.x * width + c];
    }
    __syncthreads();
    pack_row(bytes, bad, shared, scratch, blockIdx.x, width, top, run, tensor);
}

// x[N,d] = bytes[N, packed row] in Q8 or Q4. Grid N, block 256, dynamic shared 4 d bytes.
extern "C" __global__ void swl_unpack_levels(
    float *x, int *bad, const u8 *bytes, int width, int top, u64 run, u64 tensor
) {
    SWL_DYNAMIC_SHARED(float, shared);
    unpack_row(shared, bad, bytes, blockIdx.x, width, top, run, tensor);
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        x[(u64)blockIdx.x * width + c] = shared[c];
    }
}

// bytes[N, packed row of k] = x[N,d] basis[k,d]^T in Q8 or Q4: projection, rotation and rounding at once.
// Grid N, block 256, dynamic shared 4 (d + k) bytes.
extern "C" __global__ void swl_project_pack(
    u8 *bytes, int *bad, const float *x, const float *basis, int width, int code, int top, u64 run, u64 tensor
) {
    SWL_DYNAMIC_SHARED(float, shared);
    __shared__ float scratch[8];
    float *z = shared + width;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        shared[c] = x[(u64)blockIdx.x * width + c];
    }
    __syncthreads();
    for (int j = threadIdx.x; j < code; j += blockDim.x) {
        z[j] = fixed_dot(shared, 1, basis + (u64)j * width, 1, width, 0.0f, false);
    }
    __syncthreads();
    pack_row(bytes, bad, z, scratch, blockIdx.x, code, top, run, tensor);
}

// x[N,d] = anchor[N,d] + z[N,k] basis[k,d] with z in Q8 or Q4: the inverse of the above.
// Grid N, block 256, dynamic shared 4 k bytes.
extern "C" __global__ void swl_unpack_reconstruct(
    float *x, int *bad, const u8 *bytes, const float *basis, const float *anchor,
    int width, int code, int top, u64 run, u64 tensor
) {
    SWL_DYNAMIC_SHARED(float, shared);
    unpack_row(shared, bad, bytes, blockIdx.x, code, top, run, tensor);
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        u64 i = (u64)blockIdx.x * width + c;
        x[i] = fixed_dot(shared, 1, basis + c, width, code, anchor[i], true);
    }
}
