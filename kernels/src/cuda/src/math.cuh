// Elementary functions with the operations, and so the bits, of the CPU's.

#define SWL_ROUND_F32 12582912.0f // 1.5 * 2^23: adding it rounds a small number to an integer

__device__ inline float exp_f32(float x) {
    // Comparisons let NaN through.
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.3f ? 88.3f : x;
    float shifted = fmaf(x, 1.44269504088896340736f, SWL_ROUND_F32);
    float whole = shifted - SWL_ROUND_F32;
    float rest = fmaf(whole, -(355.0f / 512.0f), x);
    rest = fmaf(whole, 2.1219444e-4f, rest);
    float p = 1.9875691e-4f;
    p = fmaf(p, rest, 1.3982e-3f);
    p = fmaf(p, rest, 8.333452e-3f);
    p = fmaf(p, rest, 4.1665796e-2f);
    p = fmaf(p, rest, 1.6666666e-1f);
    p = fmaf(p, rest, 0.5f);
    float value = fmaf(p, rest * rest, rest) + 1.0f;
    u32 power = (__float_as_uint(shifted) << 23) + 0x3F800000u;
    return value * __uint_as_float(power);
}

__device__ inline float sigmoid_f32(float x) {
    return 1.0f / (1.0f + exp_f32(-x));
}

// For |x| < 700.
__device__ inline double exp_f64(double x) {
    double whole = round(x * 1.4426950408889634074);
    double rest = (x - whole * 6.931471803691238e-1) - whole * 1.9082149292705877e-10;
    double series = 1.0;
    for (int i = 14; i >= 1; --i) {
        series = 1.0 + series * rest / (double)i;
    }
    return series * __longlong_as_double(((long long)whole + 1023) << 52);
}

// Of a positive normal number; NaN and infinity are returned as they are.
__device__ inline double ln_f64(double x) {
    long long bits = __double_as_longlong(x);
    if ((bits & 0x7FF0000000000000LL) == 0x7FF0000000000000LL) {
        return x;
    }
    double exponent = (double)((bits >> 52) - 1023);
    double mantissa = __longlong_as_double((bits & 0x000FFFFFFFFFFFFFLL) | 0x3FF0000000000000LL);
    if (mantissa > 1.41421356237309504880) {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    double s = (mantissa - 1.0) / (mantissa + 1.0);
    double series = 0.0;
    for (int i = 10; i >= 0; --i) {
        series = series * s * s + 1.0 / (double)(2 * i + 1);
    }
    return 2.0 * s * series + exponent * 0.693147180559945309417;
}

// Of an angle of up to some millions of radians.
__device__ inline void sin_cos_f64(double x, double *sin_out, double *cos_out) {
    double quarter = round(x / 1.57079632679489661923);
    double rest = (x - quarter * 1.5707963267341256) - quarter * 6.077100506506192e-11;
    double square = rest * rest;
    double sine = 1.0, cosine = 1.0;
    for (int i = 9; i >= 1; --i) {
        sine = 1.0 - sine * square / (double)((2 * i) * (2 * i + 1));
        cosine = 1.0 - cosine * square / (double)((2 * i - 1) * (2 * i));
    }
    sine = rest * sine;
    switch ((long long)quarter & 3) {
    case 0: *sin_out = sine; *cos_out = cosine; break;
    case 1: *sin_out = cosine; *cos_out = -sine; break;
    case 2: *sin_out = -sine; *cos_out = -cosine; break;
    default: *sin_out = -cosine; *cos_out = sine; break;
    }
}
