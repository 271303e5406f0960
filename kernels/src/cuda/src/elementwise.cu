// Elementwise passes, and the sum of squares.

// x[len] = value. Grid ceil(len / 256), block 256.
extern "C" __global__ void swl_fill(float *x, float value, int len) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)len) {
        x[i] = value;
    }
}

// y[len] = x[len]. Grid ceil(len / 256), block 256.
extern "C" __global__ void swl_copy(float *y, const float *x, int len) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)len) {
        y[i] = x[i];
    }
}

// y[len] += alpha x[len]. Grid ceil(len / 256), block 256. Bits of the CPU.
extern "C" __global__ void swl_add_scaled(float *y, const float *x, float alpha, int len) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)len) {
        y[i] = fmaf(alpha, x[i], y[i]);
    }
}

// Numbers of one partial sum of squares.
#define SWL_SQUARES_BLOCK 16384

// partial[ceil(len / 16384)] = sums of squares of consecutive 16384 numbers in f64, each in 16 interleaved parts.
// Grid ceil(partials / 16), block 256: half a warp per partial sum. Bits of the CPU.
extern "C" __global__ void swl_sum_squares_partial(double *partial, const float *x, int len) {
    int lane = threadIdx.x % SWL_LANES;
    u64 index = (u64)blockIdx.x * (blockDim.x / SWL_LANES) + threadIdx.x / SWL_LANES;
    u64 first = index * SWL_SQUARES_BLOCK;
    u64 end = first + SWL_SQUARES_BLOCK < (u64)len ? first + SWL_SQUARES_BLOCK : (u64)len;
    double part = 0.0;
    for (u64 i = first + lane; i < end; i += SWL_LANES) {
        part += (double)x[i] * (double)x[i];
    }
    // The parts are added from the first to the last.
    double sum = 0.0;
    for (int i = 0; i < SWL_LANES; ++i) {
        sum += __shfl_sync(SWL_ALL_LANES, part, i, SWL_LANES);
    }
    if (lane == 0 && first < (u64)len) {
        partial[index] = sum;
    }
}

// out[1] = partial[0] + partial[1] + ..., in this order. Grid 1, block 1.
extern "C" __global__ void swl_sum_in_order(double *out, const double *partial, int count) {
    double sum = 0.0;
    for (int i = 0; i < count; ++i) {
        sum += partial[i];
    }
    out[0] = sum;
}

// y[rows, columns] = bf16(x[rows, columns]), to nearest even. Grid ceil(rows * columns / 256), block 256.
extern "C" __global__ void swl_to_bf16(u16 *y, const float *x, int rows, int columns) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)rows * (u64)columns) {
        y[i] = f32_to_bf16(x[i]);
    }
}

// y[columns, rows] = bf16(x[rows, columns]^T). Grid (ceil(columns / 32), ceil(rows / 32)), block (32, 8).
extern "C" __global__ void swl_to_bf16_transposed(u16 *y, const float *x, int rows, int columns) {
    __shared__ u16 tile[32][33];
    int column = blockIdx.x * 32 + threadIdx.x;
    for (int i = threadIdx.y; i < 32; i += 8) {
        int row = blockIdx.y * 32 + i;
        if (row < rows && column < columns) {
            tile[i][threadIdx.x] = f32_to_bf16(x[at(row, column, columns)]);
        }
    }
    __syncthreads();
    int row = blockIdx.y * 32 + threadIdx.x;
    for (int i = threadIdx.y; i < 32; i += 8) {
        int out_row = blockIdx.x * 32 + i;
        if (row < rows && out_row < columns) {
            y[at(out_row, row, rows)] = tile[threadIdx.x][i];
        }
    }
}
