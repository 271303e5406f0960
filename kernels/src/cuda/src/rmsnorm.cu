// Root-mean-square normalisation (Zhang, Sennrich: arXiv 1910.07467) with a gain per column. Bits of the CPU.
// Half a warp has a row: its lanes are the interleaved parts of the sums.

// Rows of one partial sum of dgain.
#define SWL_RMSNORM_ROWS 64

// y[N,d] = x * rstd * gain[d], rstd[N] = 1 / sqrt(mean(x^2) + epsilon). Grid ceil(N / 8), block 128.
extern "C" __global__ void swl_rmsnorm(
    float *y, float *rstd, const float *x, const float *gain, int rows, int width, float epsilon
) {
    int lane = threadIdx.x % SWL_LANES;
    int row = blockIdx.x * (blockDim.x / SWL_LANES) + threadIdx.x / SWL_LANES;
    bool real = row < rows;
    const float *in = x + at(real ? row : 0, 0, width);
    float part = 0.0f;
    for (int c = lane; c < width; c += SWL_LANES) {
        part = fmaf(in[c], in[c], part);
    }
    float r = 1.0f / sqrtf(lanes_sum(part) / (float)width + epsilon);
    if (!real) {
        return;
    }
    float *out = y + at(row, 0, width);
    for (int c = lane; c < width; c += SWL_LANES) {
        out[c] = in[c] * r * gain[c];
    }
    if (lane == 0) {
        rstd[row] = r;
    }
}

// y[N,d] = x * rstd[N] * gain[d]. Grid ceil(N * d / 256), block 256.
extern "C" __global__ void swl_rmsnorm_apply(
    float *y, const float *x, const float *gain, const float *rstd, int rows, int width
) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)rows * (u64)width) {
        y[i] = x[i] * rstd[i / width] * gain[i % width];
    }
}

// dx[N,d] = (add == 0) or += (add == 1) rstd u - s x with u = dy * gain, s = sum(u x) rstd^3 / d.
// Grid ceil(N / 8), block 128.
extern "C" __global__ void swl_rmsnorm_backward(
    float *dx, const float *dy, const float *x, const float *gain, const float *rstd, int rows, int width, int add
) {
    int lane = threadIdx.x % SWL_LANES;
    int row = blockIdx.x * (blockDim.x / SWL_LANES) + threadIdx.x / SWL_LANES;
    bool real = row < rows;
    u64 first = at(real ? row : 0, 0, width);
    float part = 0.0f;
    for (int c = lane; c < width; c += SWL_LANES) {
        part = fmaf(dy[first + c] * gain[c], x[first + c], part);
    }
    float sum = lanes_sum(part);
    if (!real) {
        return;
    }
    float r = rstd[row];
    float share = sum * r * r * r / (float)width;
    for (int c = lane; c < width; c += SWL_LANES) {
        float value = fmaf(dy[first + c] * gain[c], r, -(share * x[first + c]));
        dx[first + c] = add ? dx[first + c] + value : value;
    }
}

// partial[ceil(N / 64), d] = sums of dy x rstd over 64 consecutive rows. Grid (ceil(d / 128), ceil(N / 64)), block 128.
extern "C" __global__ void swl_rmsnorm_gain_partial(
    float *partial, const float *dy, const float *x, const float *rstd, int rows, int width
) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    int first = blockIdx.y * SWL_RMSNORM_ROWS;
    int end = first + SWL_RMSNORM_ROWS < rows ? first + SWL_RMSNORM_ROWS : rows;
    float sum = 0.0f;
    for (int row = first; row < end; ++row) {
        u64 i = at(row, column, width);
        sum = fmaf(dy[i] * x[i], rstd[row], sum);
    }
    partial[at(blockIdx.y, column, width)] = sum;
}

// dgain[d] += partial[0], partial[1], ... in this order; partial[partials, d]. Grid ceil(d / 128), block 128.
extern "C" __global__ void swl_rmsnorm_gain(float *dgain, const float *partial, int partials, int width) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    float sum = dgain[column];
    for (int i = 0; i < partials; ++i) {
        sum += partial[at(i, column, width)];
    }
    dgain[column] = sum;
}
