// Attention of `attention.cu` on tensor cores, from factors in bf16. Blocks of 64 queries (or keys), four warps of 16.

// Queries, and keys, of a tile on tensor cores, and threads of a block; words of a staged row of 64 keys.
#define SWL_ATTENTION_BF16_TILE 64
#define SWL_ATTENTION_BF16_THREADS 128
#define SWL_ATTENTION_BF16_KEYS (SWL_ATTENTION_BF16_TILE / 2 + 4)

// Rows `first..first + 64` of one head of x[T, heads*E], as words of two numbers, 16 bytes at a time; rows from T on
// are zeros.
template <int E>
__device__ inline void attention_stage_bf16(u32 *tile, const u16 *x, int first, int tokens, int heads, int head) {
    const int parts = E / 8;
    for (int i = threadIdx.x; i < SWL_ATTENTION_BF16_TILE * parts; i += SWL_ATTENTION_BF16_THREADS) {
        int r = i / parts, part = i % parts;
        // Rows from T on read the first instead: loads without conditions are under way together.
        int token = first + r < tokens ? first + r : first;
        MatrixRow numbers = ((const MatrixRow *)(x + ((u64)token * heads + head) * E))[part];
        for (int word = 0; word < 4; ++word) {
            numbers.words[word] = first + r < tokens ? numbers.words[word] : 0;
        }
        *(MatrixRow *)(tile + r * (E / 2 + 4) + 4 * part) = numbers;
    }
}

// The same turned: a row per column of the head, words of two neighbouring keys.
template <int E>
__device__ inline void attention_stage_turned(u32 *tile, const u16 *x, int first, int tokens, int heads, int head) {
    for (int i = threadIdx.x; i < SWL_ATTENTION_BF16_TILE / 2 * E; i += blockDim.x) {
        int word = i / E, column = i % E, token = first + 2 * word;
        u32 low = token < tokens ? x[((u64)token * heads + head) * E + column] : 0;
        u32 high = token + 1 < tokens ? x[((u64)(token + 1) * heads + head) * E + column] : 0;
        tile[column * SWL_ATTENTION_BF16_KEYS + word] = low | high << 16;
    }
}

// The largest number, or the sum, over the four lanes that share a row of a fragment.
__device__ inline float quad_max(float x) {
    for (int other = 1; other < 4; other *= 2) {
        float y = __shfl_xor_sync(SWL_ALL_LANES, x, other);
        x = y > x ? y : x;
    }
    return x;
}

__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(SWL_ALL_LANES, x, 1);
    return x + __shfl_xor_sync(SWL_ALL_LANES, x, 2);
}

// a[16,16] = bf16(c), two results of products as the left factor of the next.
__device__ inline void attention_factor(u32 *a, const float (*c)[4]) {
    for (int i = 0; i < 4; ++i) {
        const float *pair = &c[i / 2][i % 2 * 2];
        a[i] = f32_to_bf16(pair[0]) | (u32)f32_to_bf16(pair[1]) << 16;
    }
}

// A warp has 16 of the block's 64 queries; a lane has parts of the rows g and g + 8 of the fragments.
template <int E>
__device__ inline void attention_bf16(
    u32 *shared, float *out, float *lse, const u16 *q, const u16 *k, const u16 *v,
    int tokens, int heads, int kv_heads
) {
    const int stride = E / 2 + 4;
    u32 *k_tile = shared, *v_tile = k_tile + SWL_ATTENTION_BF16_TILE * stride;
    int head = blockIdx.y, kv_head = head / (heads / kv_heads);
    u64 sequence = (u64)blockIdx.z * tokens;
    k += sequence * kv_heads * E;
    v += sequence * kv_heads * E;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp_row = threadIdx.x / 32 * 16;
    int first = blockIdx.x * SWL_ATTENTION_BF16_TILE;
    int last = first + SWL_ATTENTION_BF16_TILE < tokens ? first + SWL_ATTENTION_BF16_TILE - 1 : tokens - 1;
    float scale = 1.0f / sqrtf((float)E);
    float infinity = __uint_as_float(0x7F800000u);
    float top[2] = {-infinity, -infinity}, total[2] = {0.0f, 0.0f};
    float sum[E / 8][4] = {};
    u32 query[E / 16][4];
    attention_stage_bf16<E>(k_tile, q + sequence * heads * E, first, tokens, heads, head);
    __syncthreads();
    for (int step = 0; step < E / 16; ++step) {
        const u32 *tile = k_tile + (warp_row + g) * stride + 8 * step + t;
        query[step][0] = tile[0];
        query[step][1] = tile[8 * stride];
        query[step][2] = tile[4];
        query[step][3] = tile[8 * stride + 4];
    }
    for (int key = 0; key <= last; key += SWL_ATTENTION_BF16_TILE) {
        __syncthreads();
        attention_stage_bf16<E>(k_tile, k, key, tokens, kv_heads, kv_head);
        attention_stage_turned<E>(v_tile, v, key, tokens, kv_heads, kv_head);
        __syncthreads();
        float score[8][4] = {};
        for (int step = 0; step < E / 16; ++step) {
            for (int j = 0; j < 8; ++j) {
                const u32 *tile = k_tile + (8 * j + g) * stride + 8 * step + t;
                u32 word[2] = {tile[0], tile[4]};
                mma_bf16(score[j], query[step], word);
            }
        }
        for (int half = 0; half < 2; ++half) {
            int token = first + warp_row + g + 8 * half;
            float new_top = top[half];
            for (int j = 0; j < 8; ++j) {
                for (int i = 0; i < 2; ++i) {
                    float *x = &score[j][2 * half + i];
                    *x = key + 8 * j + 2 * t + i <= token ? *x * scale : -infinity;
                    new_top = *x > new_top ? *x : new_top;
                }
            }
            new_top = quad_max(new_top);
            float correction = exp_f32(top[half] - new_top), part = 0.0f;
            top[half] = new_top;
            for (int j = 0; j < 8; ++j) {
                for (int i = 0; i < 2; ++i) {
                    float *x = &score[j][2 * half + i];
                    *x = *x == -infinity ? 0.0f : exp_f32(*x - new_top);
                    part += *x;
                }
            }
            total[half] = total[half] * correction + quad_sum(part);
            for (int n = 0; n < E / 8; ++n) {
                sum[n][2 * half] *= correction;
                sum[n][2 * half + 1] *= correction;
            }
        }
        for (int step = 0; step < 4; ++step) {
            u32 p[4];
            attention_factor(p, score + 2 * step);
            for (int n = 0; n < E / 8; ++n) {
                const u32 *tile = v_tile + (8 * n + g) * SWL_ATTENTION_BF16_KEYS + 8 * step + t;
                u32 word[2] = {tile[0], tile[4]};
                mma_bf16(sum[n], p, word);
            }
        }
    }
    for (int half = 0; half < 2; ++half) {
        int token = first + warp_row + g + 8 * half;
        if (token >= tokens) {
            continue;
        }
        u64 row = (sequence + token) * heads + head;
        for (int n = 0; n < E / 8; ++n) {
            out[row * E + 8 * n + 2 * t] = sum[n][2 * half] / total[half];
            out[row * E + 8 * n + 2 * t + 1] = sum[n][2 * half + 1] / total[half];
        }
        if (t == 0) {
            lse[row] = (float)(ln_f64((double)total[half]) + (double)top[half]);
        }
    }
}

// The forward pass with q and k, rotated, and v in bf16, on tensor cores, for heads of 64. Not bit-equal to the CPU.
// Grid (ceil(T / 64), h, B), block 128, dynamic shared 18432 bytes.
extern "C" __global__ void __launch_bounds__(128, 4) swl_attention_bf16_64(
    float *out, float *lse, const u16 *q, const u16 *k, const u16 *v, int tokens, int heads, int kv_heads
) {
    SWL_DYNAMIC_SHARED(MatrixRow, shared_rows);
    attention_bf16<64>((u32 *)shared_rows, out, lse, q, k, v, tokens, heads, kv_heads);
}

// The same for heads of 128. Grid (ceil(T / 64), h, B), block 128, dynamic shared 35840 bytes.
extern "C" __global__ void __launch_bounds__(128, 2) swl_attention_bf16_128(
    float *out, float *lse, const u16 *q, const u16 *k, const u16 *v, int tokens, int heads, int kv_heads
) {
    SWL_DYNAMIC_SHARED(MatrixRow, shared_rows);
    attention_bf16<128>((u32 *)shared_rows, out, lse, q, k, v, tokens, heads, kv_heads);
}

// The backward pass on tensor cores (Dao: arXiv 2307.08691) keeps every tile in shared memory as it lies; a factor is
// turned, where need be, on its way to the registers. Rows are E / 2 + 4 words: 4 apart modulo 32 banks, so that the
// eight rows of a matrix never share a bank. Scores are made for half a tile at a time, or registers run out.
#define SWL_ATTENTION_BF16_PART (SWL_ATTENTION_BF16_TILE / 2)

// sum[16,32] += a[16,E] b[32,E]^T of staged rows.
template <int E>
__device__ inline void attention_scores(float (*sum)[4], const u32 *a, const u32 *b) {
    const int stride = E / 2 + 4;
    int lane = threadIdx.x % 32;
    a += lane % 16 * stride + lane / 16 * 4;
    b += (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 4;
    for (int step = 0; step < E / 16; ++step) {
        u32 x[4];
        load_matrices<false>(x, a + 8 * step);
        for (int j = 0; j < SWL_ATTENTION_BF16_PART / 8; j += 2) {
            u32 y[4];
            load_matrices<false>(y, b + 8 * j * stride + 8 * step);
            mma_bf16(sum[j], x, y);
            mma_bf16(sum[j + 1], x, y + 2);
        }
    }
}

// sum[16,E] += bf16(p[16,32]) x[32,E], x of staged rows.
template <int E>
__device__ inline void attention_accumulate_bf16(float (*sum)[4], const float (*p)[4], const u32 *x) {
    const int stride = E / 2 + 4;
    int lane = threadIdx.x % 32;
    x += lane % 16 * stride + lane / 16 * 4;
    for (int step = 0; step < SWL_ATTENTION_BF16_PART / 16; ++step) {
        u32 factor[4];
        attention_factor(factor, p + 2 * step);
        for (int n = 0; n < E / 8; n += 2) {
            u32 y[4];
            load_matrices<true>(y, x + 16 * step * stride + 4 * n);
            mma_bf16(sum[n], factor, y);
            mma_bf16(sum[n + 1], factor, y + 2);
        }
    }
}

// Makes a score its probability, and the gradient of that the gradient of q . k.
__device__ inline void attention_differentiate(
    float *score, float *gradient, bool seen, float scale, float lse, float delta
) {
    float p = seen ? exp_f32(fmaf(*score, scale, -lse)) : 0.0f;
    *gradient = seen ? p * (*gradient - delta) * scale : 0.0f;
    *score = p;
}

// Stores the 16 rows of a warp, the first of them of token `first`.
template <int E>
__device__ inline void attention_store_bf16(
    float *x, const float (*sum)[4], int first, int tokens, int heads, int head
) {
    int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
        int token = first + lane / 4 + 8 * (i / 2);
        if (token < tokens) {
            float *row = x + ((u64)token * heads + head) * E + 2 * (lane % 4) + i % 2;
            for (int n = 0; n < E / 8; ++n) {
                row[8 * n] = sum[n][i];
            }
        }
    }
}

// The same rotated back. A lane has both columns of a pair: they are E / 2 apart, fragments are 8 wide.
template <int E>
__device__ inline void attention_store_back_bf16(
    float *x, const float (*sum)[4], const float *cos_table, const float *sin_table,
    int first, int tokens, int heads, int head
) {
    int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
        int token = first + lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        if (token < tokens) {
            float *low = x + ((u64)token * heads + head) * E + column;
            u64 angle = (u64)token * (E / 2) + column;
            for (int n = 0; n < E / 16; ++n, low += 8, angle += 8) {
                float c = cos_table[angle], s = sin_table[angle];
                rope_turn(low, low + E / 2, sum[n][i], sum[n + E / 16][i], c, -s);
            }
        }
    }
}

// A warp has 16 of the block's 64 queries.
template <int E>
__device__ inline void attention_backward_query_bf16(
    u32 *shared, float *dq, const u16 *dout, const u16 *q, const u16 *k, const u16 *v,
    const float *lse, const float *delta, const float *cos_table, const float *sin_table,
    int tokens, int heads, int kv_heads
) {
    const int stride = E / 2 + 4, tile = SWL_ATTENTION_BF16_TILE * stride;
    u32 *q_tile = shared, *dout_tile = q_tile + tile, *k_tile = dout_tile + tile, *v_tile = k_tile + tile;
    int head = blockIdx.y, kv_head = head / (heads / kv_heads);
    u64 sequence = (u64)blockIdx.z * tokens;
    u64 queries = sequence * heads * E, keys = sequence * kv_heads * E;
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp_row = threadIdx.x / 32 * 16;
    int first = blockIdx.x * SWL_ATTENTION_BF16_TILE;
    int last = first + SWL_ATTENTION_BF16_TILE < tokens ? first + SWL_ATTENTION_BF16_TILE - 1 : tokens - 1;
    float scale = 1.0f / sqrtf((float)E);
    float row_lse[2], row_delta[2];
    for (int half = 0; half < 2; ++half) {
        int token = first + warp_row + g + 8 * half;
        u64 row = (sequence + (token < tokens ? token : last)) * heads + head;
        row_lse[half] = lse[row];
        row_delta[half] = delta[row];
    }
    float sum[E / 8][4] = {};
    attention_stage_bf16<E>(q_tile, q + queries, first, tokens, heads, head);
    attention_stage_bf16<E>(dout_tile, dout + queries, first, tokens, heads, head);
    for (int from = 0; from <= last; from += SWL_ATTENTION_BF16_TILE) {
        __syncthreads();
        attention_stage_bf16<E>(k_tile, k + keys, from, tokens, kv_heads, kv_head);
        attention_stage_bf16<E>(v_tile, v + keys, from, tokens, kv_heads, kv_head);
        __syncthreads();
        for (int part = 0; part < SWL_ATTENTION_BF16_TILE; part += SWL_ATTENTION_BF16_PART) {
            float p[SWL_ATTENTION_BF16_PART / 8][4] = {}, ds[SWL_ATTENTION_BF16_PART / 8][4] = {};
            attention_scores<E>(p, q_tile + warp_row * stride, k_tile + part * stride);
            attention_scores<E>(ds, dout_tile + warp_row * stride, v_tile + part * stride);
            for (int j = 0; j < SWL_ATTENTION_BF16_PART / 8; ++j) {
                for (int i = 0; i < 4; ++i) {
                    int token = first + warp_row + g + 8 * (i / 2), key = from + part + 8 * j + 2 * t + i % 2;
                    bool seen = key <= token && token < tokens;
                    attention_differentiate(&p[j][i], &ds[j][i], seen, scale, row_lse[i / 2], row_delta[i / 2]);
                }
            }
            attention_accumulate_bf16<E>(sum, ds, k_tile + part * stride);
        }
    }
    attention_store_back_bf16<E>(
        dq + queries, sum, cos_table, sin_table, first + warp_row, tokens, heads, head
    );
}

// A warp has 16 of the block's 64 keys: its scores are those of a row of queries turned.
template <int E>
__device__ inline void attention_backward_key_value_bf16(
    u32 *shared, float *dk, float *dv, const u16 *dout, const u16 *q, const u16 *k, const u16 *v,
    const float *lse, const float *delta, const float *cos_table, const float *sin_table,
    int tokens, int heads, int kv_heads
) {
    const int stride = E / 2 + 4, tile = SWL_ATTENTION_BF16_TILE * stride;
    u32 *q_tile = shared, *dout_tile = q_tile + tile, *k_tile = dout_tile + tile, *v_tile = k_tile + tile;
    float *lse_tile = (float *)(v_tile + tile), *delta_tile = lse_tile + SWL_ATTENTION_BF16_TILE;
    int kv_head = blockIdx.y, group = heads / kv_heads;
    u64 sequence = (u64)blockIdx.z * tokens;
    u64 queries = sequence * heads * E, keys = sequence * kv_heads * E;
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp_row = threadIdx.x / 32 * 16;
    int first = blockIdx.x * SWL_ATTENTION_BF16_TILE;
    float scale = 1.0f / sqrtf((float)E);
    float dk_sum[E / 8][4] = {}, dv_sum[E / 8][4] = {};
    attention_stage_bf16<E>(k_tile, k + keys, first, tokens, kv_heads, kv_head);
    attention_stage_bf16<E>(v_tile, v + keys, first, tokens, kv_heads, kv_head);
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int from = first; from < tokens; from += SWL_ATTENTION_BF16_TILE) {
            __syncthreads();
            attention_stage_bf16<E>(q_tile, q + queries, from, tokens, heads, head);
            attention_stage_bf16<E>(dout_tile, dout + queries, from, tokens, heads, head);
            for (int i = threadIdx.x; i < SWL_ATTENTION_BF16_TILE; i += SWL_ATTENTION_BF16_THREADS) {
                u64 row = (sequence + (from + i < tokens ? from + i : from)) * heads + head;
                lse_tile[i] = lse[row];
                delta_tile[i] = delta[row];
            }
            __syncthreads();
            for (int part = 0; part < SWL_ATTENTION_BF16_TILE; part += SWL_ATTENTION_BF16_PART) {
                float p[SWL_ATTENTION_BF16_PART / 8][4] = {}, ds[SWL_ATTENTION_BF16_PART / 8][4] = {};
                attention_scores<E>(p, k_tile + warp_row * stride, q_tile + part * stride);
                attention_scores<E>(ds, v_tile + warp_row * stride, dout_tile + part * stride);
                for (int j = 0; j < SWL_ATTENTION_BF16_PART / 8; ++j) {
                    for (int i = 0; i < 4; ++i) {
                        int key = first + warp_row + g + 8 * (i / 2), c = part + 8 * j + 2 * t + i % 2;
                        bool seen = key <= from + c && from + c < tokens;
                        attention_differentiate(&p[j][i], &ds[j][i], seen, scale, lse_tile[c], delta_tile[c]);
                    }
                }
                attention_accumulate_bf16<E>(dv_sum, p, dout_tile + part * stride);
                attention_accumulate_bf16<E>(dk_sum, ds, q_tile + part * stride);
            }
        }
    }
    attention_store_back_bf16<E>(
        dk + keys, dk_sum, cos_table, sin_table, first + warp_row, tokens, kv_heads, kv_head
    );
    attention_store_bf16<E>(dv + keys, dv_sum, first + warp_row, tokens, kv_heads, kv_head);
}

// dq = with q and k, rotated, v and dout in bf16, on tensor cores, for heads of 64. Not bit-equal to the CPU.
// Grid (ceil(T / 64), h, B), block 128, dynamic shared 36864 bytes.
extern "C" __global__ void __launch_bounds__(128, 3) swl_attention_backward_query_bf16_64(
    float *dq, const u16 *dout, const u16 *q, const u16 *k, const u16 *v,
    const float *lse, const float *delta, const float *cos_table, const float *sin_table,
    int tokens, int heads, int kv_heads
) {
    SWL_DYNAMIC_SHARED(MatrixRow, shared_rows);
    attention_backward_query_bf16<64>(
        (u32 *)shared_rows, dq, dout, q, k, v, lse, delta, cos_table, sin_table, tokens, heads, kv_heads
    );
}

// The same for heads of 128. Grid (ceil(T / 64), h, B), block 128, dynamic shared 69632 bytes.
extern "C" __global__ void __launch_bounds__(128, 2) swl_attention_backward_query_bf16_128(
    float *dq, const u16 *dout, const u16 *q, const u16 *k, const u16 *v,
    const float *lse, const float *delta, const float *cos_table, const float *sin_table,
    int tokens, int heads, int kv_heads
) {
    SWL_DYNAMIC_SHARED(MatrixRow, shared_rows);
    attention_backward_query_bf16<128>(
        (u32 *)shared_rows, dq, dout, q, k, v, lse, delta, cos_table, sin_table, tokens, heads, kv_heads
    );
}

// dk =, dv = in the same way, for heads of 64; query heads and queries are added from the first to the last.
// Grid (ceil(T / 64), g, B), block 128, dynamic shared 37376 bytes.
extern "C" __global__ void __launch_bounds__(128, 3) swl_attention_backward_key_value_bf16_64(
    float *dk, float *dv, const u16 *dout, const u16 *q, const u16 *k, const u16 *v,
    const float *lse, const float *delta, const float *cos_table, const float *sin_table,
    int tokens, int heads, int kv_heads
) {
    SWL_DYNAMIC_SHARED(MatrixRow, shared_rows);
    attention_backward_key_value_bf16<64>(
        (u32 *)shared_rows, dk, dv, dout, q, k, v, lse, delta, cos_table, sin_table, tokens, heads, kv_heads
    );
}

// The same for heads of 128. Grid (ceil(T / 64), g, B), block 128, dynamic shared 70144 bytes.
extern "C" __global__ void __launch_bounds__(128, 2) swl_attention_backward_key_value_bf16_128(
    float *dk, float *dv, const u16 *dout, const u16 *q, const u16 *k, const u16 *v,
    const float *lse, const float *delta, const float *cos_table, const float *sin_table,
    int tokens, int heads, int kv_heads
) {
    SWL_DYNAMIC_SHARED(MatrixRow, shared_rows);
    attention_backward_key_value_bf16<128>(
        (u32 *)shared_rows, dk, dv, dout, q, k, v, lse, delta, cos_table, sin_table, tokens, heads, kv_heads
    );
}
