// Matrix products: f32 in a fixed order, and bf16 on tensor cores for products that cuBLASLt does not take.

// Terms summed from zero before they are added to the result: part of the specification.
#define SWL_DEPTH 256

// The sum of x[i x_stride] w[i w_stride] over i < k, added to `start` (if `add`) in chunks of 256 terms.
__device__ inline float fixed_dot(
    const float *x, u64 x_stride, const float *w, u64 w_stride, int k, float start, bool add
) {
    float total = start;
    for (int from = 0; from < k; from += SWL_DEPTH) {
        int end = from + SWL_DEPTH < k ? from + SWL_DEPTH : k;
        float sum = 0.0f;
        for (int i = from; i < end; ++i) {
            sum = fmaf(x[i * x_stride], w[i * w_stride], sum);
        }
        total = add ? total + sum : sum;
        add = true;
    }
    return total;
}

// Side of the square of the result that a block makes, and terms staged at a time; the latter divides SWL_DEPTH.
#define SWL_TILE 64
#define SWL_TILE_DEPTH 16

// c[m,n] = (add == 0) or += (add == 1) a[m,k] b[k,n], where a[i,p] = a[i a_row + p a_column] and
// b[p,j] = b[p b_row + j b_column]. Every number is the chain of `fmaf` over ascending p of its chunks of 256 terms,
// chunks added in order: the bits of the CPU. Grid (ceil(n / 64), ceil(m / 64)), block 256.
extern "C" __global__ void __launch_bounds__(256) swl_product(
    float *c, const float *a, const float *b, int m, int n, int k,
    int a_row, int a_column, int b_row, int b_column, int add
) {
    __shared__ float a_tile[SWL_TILE_DEPTH][SWL_TILE + 1];
    __shared__ float b_tile[SWL_TILE_DEPTH][SWL_TILE + 1];
    int thread = threadIdx.x;
    int first_row = blockIdx.y * SWL_TILE, first_column = blockIdx.x * SWL_TILE;
    // A thread has the rows `row + 16 i` and the columns `column + 16 j` of the tile.
    int row = thread / 16, column = thread % 16;
    float total[4][4], sum[4][4];
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
            int r = first_row + row + 16 * i, s = first_column + column + 16 * j;
            total[i][j] = add && r < m && s < n ? c[at(r, s, n)] : 0.0f;
            sum[i][j] = 0.0f;
        }
    }
    for (int from = 0; from < k; from += SWL_TILE_DEPTH) {
        int depth = k - from < SWL_TILE_DEPTH ? k - from : SWL_TILE_DEPTH;
        for (int i = thread; i < SWL_TILE * SWL_TILE_DEPTH; i += 256) {
            // Neighbouring threads read neighbouring numbers.
            int p = a_column == 1 ? i % SWL_TILE_DEPTH : i / SWL_TILE;
            int r = a_column == 1 ? i / SWL_TILE_DEPTH : i % SWL_TILE;
            if (p < depth && first_row + r < m) {
                a_tile[p][r] = a[(u64)(first_row + r) * a_row + (u64)(from + p) * a_column];
            }
            p = b_column == 1 ? i / SWL_TILE : i % SWL_TILE_DEPTH;
            int s = b_column == 1 ? i % SWL_TILE : i / SWL_TILE_DEPTH;
            if (p < depth && first_column + s < n) {
                b_tile[p][s] = b[(u64)(from + p) * b_row + (u64)(first_column + s) * b_column];
            }
        }
        __syncthreads();
        for (int p = 0; p < depth; ++p) {
            float x[4], y[4];
            for (int i = 0; i < 4; ++i) {
                x[i] = a_tile[p][row + 16 * i];
                y[i] = b_tile[p][column + 16 * i];
            }
            for (int i = 0; i < 4; ++i) {
                for (int j = 0; j < 4; ++j) {
                    sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
                }
            }
        }
        int done = from + depth;
        if (done % SWL_DEPTH == 0 || done == k) {
            bool first = done <= SWL_DEPTH && !add;
            for (int i = 0; i < 4; ++i) {
                for (int j = 0; j < 4; ++j) {
                    total[i][j] = first ? sum[i][j] : total[i][j] + sum[i][j];
                    sum[i][j] = 0.0f;
                }
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
            int r = first_row + row + 16 * i, s = first_column + column + 16 * j;
            if (r < m && s < n) {
                c[at(r, s, n)] = total[i][j];
            }
        }
    }
}

// c[16,8] += a[16,16] b[8,16]^T by one warp. In the fragments of `mma.sync`, with g = lane / 4 and t = lane % 4:
// a0 = A[g][2t..], a1 = A[g+8][2t..], a2 = A[g][2t+8..], a3 = A[g+8][2t+8..], b0 = B[g][2t..], b1 = B[g][2t+8..],
// c0, c1 = C[g][2t..], c2, c3 = C[g+8][2t..].
__device__ inline void mma_bf16(float *c, const u32 *a, const u32 *b) {
#if defined(__CUDA_ARCH__)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // The scalar twin gathers the fragments of the other lanes.
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    for (int pair = 0; pair < 8; ++pair) {
        int word = pair / 4, owner = pair % 4;
        u32 upper = __shfl_sync(SWL_ALL_LANES, a[2 * word], 4 * g + owner);
        u32 lower = __shfl_sync(SWL_ALL_LANES, a[2 * word + 1], 4 * g + owner);
        for (int j = 0; j < 2; ++j) {
            u32 other = __shfl_sync(SWL_ALL_LANES, b[word], 4 * (2 * t + j) + owner);
            for (int high = 0; high < 32; high += 16) {
                float y = bf16_to_f32((u16)(other >> high));
                c[j] = fmaf(bf16_to_f32((u16)(upper >> high)), y, c[j]);
                c[2 + j] = fmaf(bf16_to_f32((u16)(lower >> high)), y, c[2 + j]);
            }
        }
    }
#endif
}

// The words that a lane addresses in `load_matrices`: shared memory of this type has the alignment of the instruction.
struct alignas(16) MatrixRow {
    u32 words[4];
};

// Four matrices of 8 x 8 bf16 numbers in shared memory as parts of the fragments above: x[i] = M_i[g][2t..], or
// M_i^T[g][2t..] if TURNED. Lane l brings the address of row l % 8 of matrix l / 8; the whole warp must call.
template <bool TURNED>
__device__ inline void load_matrices(u32 *x, const u32 *row) {
#if defined(__CUDA_ARCH__)
    u32 address = (u32)__cvta_generic_to_shared(row);
    // Clobbering memory keeps the load between its barriers.
    if (TURNED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address) : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address) : "memory");
    }
#else
    // The scalar twin gathers the addresses of the other lanes.
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
        if (TURNED) {
            const u16 *upper = (const u16 *)__shfl_sync(SWL_ALL_LANES, (u64)row, 8 * i + 2 * t);
            const u16 *lower = (const u16 *)__shfl_sync(SWL_ALL_LANES, (u64)row, 8 * i + 2 * t + 1);
            x[i] = upper[g] | (u32)lower[g] << 16;
        } else {
            x[i] = ((const u32 *)__shfl_sync(SWL_ALL_LANES, (u64)row, 8 * i + g))[t];
        }
    }
#endif
}

// Staged terms of the bf16 product, and words of a staged row: 4 apart modulo 32 banks, so that the eight rows and
// four words a warp reads at once never share a bank.
#define SWL_BF16_DEPTH 32
#define SWL_BF16_STRIDE (SWL_BF16_DEPTH / 2 + 4)

__device__ inline void stage_bf16(u32 *tile, const u16 *x, int first_row, int rows, int from, int width) {
    for (int i = threadIdx.x; i < SWL_TILE * SWL_BF16_DEPTH / 2; i += blockDim.x) {
        int r = i / (SWL_BF16_DEPTH / 2), word = i % (SWL_BF16_DEPTH / 2);
        int row = first_row + r, column = from + 2 * word;
        u32 low = 0, high = 0;
        if (row < rows) {
            u64 place = at(row, column, width);
            low = column < width ? x[place] : 0;
            high = column + 1 < width ? x[place + 1] : 0;
        }
        tile[r * SWL_BF16_STRIDE + word] = low | high << 16;
    }
}

// c[m,n] = (add == 0) or += (add == 1) a[m,k] b[n,k]^T, factors in bf16, sums in f32. Not bit-equal to the CPU.
// Grid (ceil(n / 64), ceil(m / 64)), block 128.
extern "C" __global__ void __launch_bounds__(128) swl_product_bf16(
    float *c, const u16 *a, const u16 *b, int m, int n, int k, int add
) {
    __shared__ u32 a_tile[SWL_TILE * SWL_BF16_STRIDE];
    __shared__ u32 b_tile[SWL_TILE * SWL_BF16_STRIDE];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int g = lane / 4, t = lane % 4;
    // A warp has a quarter of the tile: 32 x 32, two by four fragments.
    int row = warp / 2 * 32, column = warp % 2 * 32;
    int first_row = blockIdx.y * SWL_TILE, first_column = blockIdx.x * SWL_TILE;
    float sum[2][4][4] = {};
    for (int from = 0; from < k; from += SWL_BF16_DEPTH) {
        stage_bf16(a_tile, a, first_row, m, from, k);
        stage_bf16(b_tile, b, first_column, n, from, k);
        __syncthreads();
        for (int step = 0; step < SWL_BF16_DEPTH / 2; step += 8) {
            u32 x[2][4], y[4][2];
            for (int i = 0; i < 2; ++i) {
                const u32 *tile = a_tile + (row + 16 * i + g) * SWL_BF16_STRIDE + step + t;
                x[i][0] = tile[0];
                x[i][1] = tile[8 * SWL_BF16_STRIDE];
                x[i][2] = tile[4];
                x[i][3] = tile[8 * SWL_BF16_STRIDE + 4];
            }
            for (int j = 0; j < 4; ++j) {
                const u32 *tile = b_tile + (column + 8 * j + g) * SWL_BF16_STRIDE + step + t;
                y[j][0] = tile[0];
                y[j][1] = tile[4];
            }
            for (int i = 0; i < 2; ++i) {
                for (int j = 0; j < 4; ++j) {
                    mma_bf16(sum[i][j], x[i], y[j]);
                }
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
            for (int q = 0; q < 4; ++q) {
                int r = first_row + row + 16 * i + g + 8 * (q / 2);
                int s = first_column + column + 8 * j + 2 * t + q % 2;
                if (r < m && s < n) {
                    c[at(r, s, n)] = add ? c[at(r, s, n)] + sum[i][j][q] : sum[i][j][q];
                }
            }
        }
    }
}
