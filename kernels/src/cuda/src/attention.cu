// Causal grouped-query attention over B sequences of T tokens: q, out [B*T, h*e], k, v [B*T, g*e], lse, delta
// [B*T, h]; query head i reads key-value head i / (h/g). No T x T memory: a block has 16 queries (or keys) and goes
// through the others in tiles of 16 (Dao et al.: arXiv 2205.14135). e is even and at most 256; where the dynamic
// shared memory passes 48 KiB the host must raise the kernel's limit.
//
// q and k come as they are before their rotary embedding, dq and dk are by them: tiles are rotated as they are loaded,
// gradients back as they are stored. cos, sin [T, e/2] are those of swl_rope_table.

#define SWL_ATTENTION_TILE 16
#define SWL_ATTENTION_COLUMNS 16 // columns of a head per thread: e <= 16 * 16

// Copies rows `first..first + 16` of one head of x[T, heads*e] into tile[16, e + 1]; rows from T on are zeros.
__device__ inline void attention_stage(
    float *tile, const float *x, int first, int tokens, int heads, int head, int head_width
) {
    for (int i = threadIdx.x; i < SWL_ATTENTION_TILE * head_width; i += blockDim.x) {
        int r = i / head_width, column = i % head_width;
        float value = 0.0f;
        if (first + r < tokens) {
            value = x[((u64)(first + r) * heads + head) * head_width + column];
        }
        tile[r * (head_width + 1) + column] = value;
    }
}

// The same, every row rotated by its position.
__device__ inline void attention_stage_rotated(
    float *tile, const float *x, const float *cos_table, const float *sin_table,
    int first, int tokens, int heads, int head, int head_width
) {
    int half = head_width / 2;
    for (int i = threadIdx.x; i < SWL_ATTENTION_TILE * half; i += blockDim.x) {
        int r = i / half, pair = i % half;
        float *low = tile + r * (head_width + 1) + pair;
        if (first + r < tokens) {
            const float *row = x + ((u64)(first + r) * heads + head) * head_width + pair;
            u64 angle = (u64)first * half + i;
            rope_turn(low, low + half, row[0], row[half], cos_table[angle], sin_table[angle]);
        } else {
            low[0] = low[half] = 0.0f;
        }
    }
}

__device__ inline float attention_dot(const float *x, const float *y, int head_width) {
    float sum = 0.0f;
    for (int i = 0; i < head_width; ++i) {
        sum = fmaf(x[i], y[i], sum);
    }
    return sum;
}

__device__ inline float half_warp_max(float x) {
    for (int half = SWL_LANES / 2; half > 0; half /= 2) {
        float other = __shfl_xor_sync(SWL_ALL_LANES, x, half);
        x = other > x ? other : x;
    }
    return x;
}

// sum[columns of this thread] += p[16] x[16, e], keys (or queries) from the first to the last of `count`.
__device__ inline void attention_accumulate(
    float *sum, const float *p, const float *x, int first, int count, int head_width
) {
    const float *row = x + first * (head_width + 1) + threadIdx.x % SWL_LANES;
    for (int j = first; j < count; ++j, row += head_width + 1) {
        float factor = p[j];
        for (int i = 0; i < SWL_ATTENTION_COLUMNS; ++i) {
            if ((int)(threadIdx.x % SWL_LANES) + SWL_LANES * i < head_width) {
                sum[i] = fmaf(factor, row[SWL_LANES * i], sum[i]);
            }
        }
    }
}

__device__ inline void attention_store(
    float *x, const float *sum, float factor, int token, int heads, int head, int head_width
) {
    for (int i = 0; i < SWL_ATTENTION_COLUMNS; ++i) {
        int column = threadIdx.x % SWL_LANES + SWL_LANES * i;
        if (column < head_width) {
            x[((u64)token * heads + head) * head_width + column] = sum[i] * factor;
        }
    }
}

// Stores the sums of row `first + threadIdx.x / 16` rotated back; all threads must call. The partner of a column is
// with another thread of the row: they meet in `tile`, which no thread reads any more. A row's threads are of one warp.
__device__ inline void attention_store_back(
    float *tile, float *x, const float *sum, const float *cos_table, const float *sin_table,
    int first, int tokens, int heads, int head, int head_width
) {
    int r = threadIdx.x / SWL_LANES, c = threadIdx.x % SWL_LANES, half = head_width / 2;
    float *row = tile + r * (head_width + 1);
    for (int i = 0; i < SWL_ATTENTION_COLUMNS; ++i) {
        if (c + SWL_LANES * i < head_width) {
            row[c + SWL_LANES * i] = sum[i];
        }
    }
    __syncwarp();
    if (first + r >= tokens) {
        return;
    }
    float *to = x + ((u64)(first + r) * heads + head) * head_width;
    u64 angle = (u64)(first + r) * half;
    for (int pair = c; pair < half; pair += SWL_LANES) {
        float *low = to + pair;
        rope_turn(low, low + half, row[pair], row[pair + half], cos_table[angle + pair], -sin_table[angle + pair]);
    }
}

// Where a block of 16 queries stands: this thread has column `c` of the row of `token`, which is row `r` of the block;
// the block's tokens are `first..=last` of the sequence that begins at row `sequence`.
struct AttentionQueries {
    int head, kv_head, r, c, first, token, last;
    u64 sequence;
    float scale;
};

__device__ inline AttentionQueries attention_queries(int tokens, int heads, int kv_heads, int head_width) {
    int head = blockIdx.y, r = threadIdx.x / 16, first = blockIdx.x * SWL_ATTENTION_TILE;
    int last = first + 15 < tokens ? first + 15 : tokens - 1;
    return {
        head, head / (heads / kv_heads), r, (int)(threadIdx.x % 16), first, first + r, last,
        (u64)blockIdx.z * tokens, 1.0f / sqrtf((float)head_width)
    };
}

// out = softmax(q k^T / sqrt(e)) v, lse = log-sum-exp of the scores, by online softmax: one pass over the keys.
// Grid (ceil(T / 16), h, B), block 256, dynamic shared 192 (e + 1) bytes.
extern "C" __global__ void __launch_bounds__(256) swl_attention(
    float *out, float *lse, const float *q, const float *k, const float *v,
    const float *cos_table, const float *sin_table, int tokens, int heads, int kv_heads, int head_width
) {
    SWL_DYNAMIC_SHARED(float, shared);
    __shared__ float p_tile[SWL_ATTENTION_TILE][SWL_ATTENTION_TILE + 1];
    int stride = head_width + 1;
    float *q_tile = shared, *k_tile = q_tile + 16 * stride, *v_tile = k_tile + 16 * stride;
    auto [head, kv_head, r, c, first, token, last, sequence, scale] =
        attention_queries(tokens, heads, kv_heads, head_width);
    k += sequence * kv_heads * head_width;
    v += sequence * kv_heads * head_width;
    float top = -__uint_as_float(0x7F800000u), total = 0.0f;
    float sum[SWL_ATTENTION_COLUMNS] = {};
    q += sequence * heads * head_width;
    attention_stage_rotated(q_tile, q, cos_table, sin_table, first, tokens, heads, head, head_width);
    for (int key = 0; key <= last; key += SWL_ATTENTION_TILE) {
        attention_stage_rotated(k_tile, k, cos_table, sin_table, key, tokens, kv_heads, kv_head, head_width);
        attention_stage(v_tile, v, key, tokens, kv_heads, kv_head, head_width);
        __syncthreads();
        float score = attention_dot(q_tile + r * stride, k_tile + c * stride, head_width) * scale;
        bool seen = key + c <= token;
        float new_top = half_warp_max(seen ? score : top);
        new_top = new_top > top ? new_top : top;
        float correction = exp_f32(top - new_top);
        float p = seen ? exp_f32(score - new_top) : 0.0f;
        total = total * correction + lanes_sum(p);
        top = new_top;
        p_tile[r][c] = p;
        __syncwarp();
        for (int i = 0; i < SWL_ATTENTION_COLUMNS; ++i) {
            sum[i] *= correction;
        }
        int count = token - key + 1 < 16 ? token - key + 1 : 16;
        attention_accumulate(sum, p_tile[r], v_tile, 0, count, head_width);
        __syncthreads();
    }
    if (token < tokens) {
        attention_store(out + sequence * heads * head_width, sum, 1.0f / total, token, heads, head, head_width);
        if (c == 0) {
            lse[(sequence + token) * heads + head] = (float)(ln_f64((double)total) + (double)top);
        }
    }
}

// The same with the bits of the CPU, in three passes over the keys: the largest score, the sum, the result.
// Grid (ceil(T / 16), h, B), block 256, dynamic shared 192 (e + 1) bytes.
extern "C" __global__ void __launch_bounds__(256) swl_attention_exact(
    float *out, float *lse, const float *q, const float *k, const float *v,
    const float *cos_table, const float *sin_table, int tokens, int heads, int kv_heads, int head_width
) {
    SWL_DYNAMIC_SHARED(float, shared);
    __shared__ float p_tile[SWL_ATTENTION_TILE][SWL_ATTENTION_TILE + 1];
    int stride = head_width + 1;
    float *q_tile = shared, *k_tile = q_tile + 16 * stride, *v_tile = k_tile + 16 * stride;
    auto [head, kv_head, r, c, first, token, last, sequence, scale] =
        attention_queries(tokens, heads, kv_heads, head_width);
    k += sequence * kv_heads * head_width;
    v += sequence * kv_heads * head_width;
    float top = -__uint_as_float(0x7F800000u), total = 0.0f, part = 0.0f, factor = 0.0f;
    float sum[SWL_ATTENTION_COLUMNS] = {};
    q += sequence * heads * head_width;
    attention_stage_rotated(q_tile, q, cos_table, sin_table, first, tokens, heads, head, head_width);
    for (int pass = 0; pass < 3; ++pass) {
        for (int key = 0; key <= last; key += SWL_ATTENTION_TILE) {
            attention_stage_rotated(k_tile, k, cos_table, sin_table, key, tokens, kv_heads, kv_head, head_width);
            if (pass == 2) {
                attention_stage(v_tile, v, key, tokens, kv_heads, kv_head, head_width);
            }
            __syncthreads();
            float score = attention_dot(q_tile + r * stride, k_tile + c * stride, head_width);
            bool seen = key + c <= token;
            if (pass == 0) {
                top = seen && score > top ? score : top;
            } else if (pass == 1) {
                // Key `key + c` belongs to part c.
                part = seen ? part + exp_f32((score - top) * scale) : part;
            } else {
                p_tile[r][c] = exp_f32((score - top) * scale) * factor;
                __syncwarp();
                int count = token - key + 1 < 16 ? token - key + 1 : 16;
                attention_accumulate(sum, p_tile[r], v_tile, 0, count, head_width);
            }
            __syncthreads();
        }
        if (pass == 0) {
            top = half_warp_max(top);
        } else if (pass == 1) {
            total = lanes_sum(part);
            factor = 1.0f / total;
        }
    }
    if (token < tokens) {
        attention_store(out + sequence * heads * head_width, sum, 1.0f, token, heads, head, head_width);
        if (c == 0) {
            lse[(sequence + token) * heads + head] = (float)(ln_f64((double)total) + (double)(top * scale));
        }
    }
}

// delta[B*T, h] = out . dout per head. `rows_heads` = B*T*h. Grid ceil(B*T*h / 8), block 128. Bits of the CPU.
extern "C" __global__ void swl_attention_delta(
    float *delta, const float *out, const float *dout, int rows_heads, int head_width
) {
    int lane = threadIdx.x % SWL_LANES;
    int row = blockIdx.x * (blockDim.x / SWL_LANES) + threadIdx.x / SWL_LANES;
    u64 first = at(row < rows_heads ? row : 0, 0, head_width);
    float part = 0.0f;
    for (int c = lane; c < head_width; c += SWL_LANES) {
        part = fmaf(out[first + c], dout[first + c], part);
    }
    float sum = lanes_sum(part);
    if (lane == 0 && row < rows_heads) {
        delta[row] = sum;
    }
}

// dq = from dout and the tensors of the forward pass. Bits of the CPU.
// Grid (ceil(T / 16), h, B), block 256, dynamic shared 256 (e + 1) bytes.
extern "C" __global__ void __launch_bounds__(256) swl_attention_backward_query(
    float *dq, const float *dout, const float *q, const float *k, const float *v,
    const float *lse, const float *delta, const float *cos_table, const float *sin_table,
    int tokens, int heads, int kv_heads, int head_width
) {
    SWL_DYNAMIC_SHARED(float, shared);
    __shared__ float ds_tile[SWL_ATTENTION_TILE][SWL_ATTENTION_TILE + 1];
    int stride = head_width + 1;
    float *q_tile = shared, *dout_tile = q_tile + 16 * stride;
    float *k_tile = dout_tile + 16 * stride, *v_tile = k_tile + 16 * stride;
    auto [head, kv_head, r, c, first, token, last, sequence, scale] =
        attention_queries(tokens, heads, kv_heads, head_width);
    u64 queries = sequence * heads * head_width, keys = sequence * kv_heads * head_width;
    u64 row = (sequence + (token < tokens ? token : last)) * heads + head;
    float row_lse = lse[row], row_delta = delta[row];
    float sum[SWL_ATTENTION_COLUMNS] = {};
    attention_stage_rotated(q_tile, q + queries, cos_table, sin_table, first, tokens, heads, head, head_width);
    attention_stage(dout_tile, dout + queries, first, tokens, heads, head, head_width);
    for (int key = 0; key <= last; key += SWL_ATTENTION_TILE) {
        attention_stage_rotated(k_tile, k + keys, cos_table, sin_table, key, tokens, kv_heads, kv_head, head_width);
        attention_stage(v_tile, v + keys, key, tokens, kv_heads, kv_head, head_width);
        __syncthreads();
        float score = attention_dot(q_tile + r * stride, k_tile + c * stride, head_width);
        float dp = attention_dot(dout_tile + r * stride, v_tile + c * stride, head_width);
        float p = exp_f32(fmaf(score, scale, -row_lse));
        ds_tile[r][c] = p * (dp - row_delta) * scale;
        __syncwarp();
        int count = token - key + 1 < 16 ? token - key + 1 : 16;
        attention_accumulate(sum, ds_tile[r], k_tile, 0, count, head_width);
        __syncthreads();
    }
    attention_store_back(q_tile, dq + queries, sum, cos_table, sin_table, first, tokens, heads, head, head_width);
}

// dk =, dv =; the query heads of a group and their queries are added from the first to the last. Bits of the CPU.
// Grid (ceil(T / 16), g, B), block 256, dynamic shared 256 (e + 1) bytes.
extern "C" __global__ void __launch_bounds__(256) swl_attention_backward_key_value(
    float *dk, float *dv, const float *dout, const float *q, const float *k, const float *v,
    const float *lse, const float *delta, const float *cos_table, const float *sin_table,
    int tokens, int heads, int kv_heads, int head_width
) {
    SWL_DYNAMIC_SHARED(float, shared);
    __shared__ float p_tile[SWL_ATTENTION_TILE][SWL_ATTENTION_TILE + 1];
    __shared__ float ds_tile[SWL_ATTENTION_TILE][SWL_ATTENTION_TILE + 1];
    int stride = head_width + 1;
    float *q_tile = shared, *dout_tile = q_tile + 16 * stride;
    float *k_tile = dout_tile + 16 * stride, *v_tile = k_tile + 16 * stride;
    int kv_head = blockIdx.y, group = heads / kv_heads;
    u64 sequence = (u64)blockIdx.z * tokens;
    u64 queries = sequence * heads * head_width, keys = sequence * kv_heads * head_width;
    // Here a row is a key, a column a query.
    int r = threadIdx.x / 16, c = threadIdx.x % 16;
    int first = blockIdx.x * SWL_ATTENTION_TILE, key = first + r;
    float scale = 1.0f / sqrtf((float)head_width);
    float dk_sum[SWL_ATTENTION_COLUMNS] = {}, dv_sum[SWL_ATTENTION_COLUMNS] = {};
    attention_stage_rotated(k_tile, k + keys, cos_table, sin_table, first, tokens, kv_heads, kv_head, head_width);
    attention_stage(v_tile, v + keys, first, tokens, kv_heads, kv_head, head_width);
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int from = first; from < tokens; from += SWL_ATTENTION_TILE) {
            attention_stage_rotated(q_tile, q + queries, cos_table, sin_table, from, tokens, heads, head, head_width);
            attention_stage(dout_tile, dout + queries, from, tokens, heads, head, head_width);
            __syncthreads();
            int count = tokens - from < 16 ? tokens - from : 16;
            u64 row = (sequence + from + (c < count ? c : 0)) * heads + head;
            float score = attention_dot(q_tile + c * stride, k_tile + r * stride, head_width);
            float dp = attention_dot(dout_tile + c * stride, v_tile + r * stride, head_width);
            float p = exp_f32(fmaf(score, scale, -lse[row]));
            p_tile[r][c] = p;
            ds_tile[r][c] = p * (dp - delta[row]) * scale;
            __syncwarp();
            int begin = key > from ? key - from : 0;
            attention_accumulate(dv_sum, p_tile[r], dout_tile, begin, count, head_width);
            attention_accumulate(dk_sum, ds_tile[r], q_tile, begin, count, head_width);
            __syncthreads();
        }
    }
    attention_store_back(
        q_tile, dk + keys, dk_sum, cos_table, sin_table, first, tokens, kv_heads, kv_head, head_width
    );
    if (key < tokens) {
        attention_store(dv + keys, dv_sum, 1.0f, key, kv_heads, kv_head, head_width);
    }
}
