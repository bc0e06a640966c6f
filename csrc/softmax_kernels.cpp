// Compiled once per instruction set; the rules of kernels.cpp hold here.
#include "softmax_kernels.h"

#include "delta.h"

namespace fgrpo {
namespace {

using Floats = Vector<float, kLanes>;
using Ints = Vector<int, kLanes>;

constexpr size_t kAtOnce = 64;  // values, in several registers
constexpr size_t kParts = kAtOnce / kLanes;
constexpr size_t kAddedInFloat32 = 16 * kAtOnce;  // then on to float64
constexpr float kLowest = -87.0f;                 // under it exp is taken for 0; it is 2^-125

inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// e^x for x from -87 to 88, to one unit in the last place: 2^n * e^r with |r| <= ln(2) / 2, where e^r is 1 + r + r^2 q(r)
// with the q of degree 4 whose largest relative error there is least. ln(2) is taken off in two parts, of which the
// first has zeros enough for an exact product.
inline Floats exp(Floats x) {
    const Floats shifted = fused(x, Floats{} + 0x1.715476p+0f, Floats{} + 0x1.8p23f);  // n in the low bits
    const Floats n = shifted - 0x1.8p23f;
    Floats r = fused(n, Floats{} - 0x1.62e400p-1f, x);
    r = fused(n, Floats{} - 0x1.7f7d1cp-20f, r);
    Floats p = fused(r, Floats{} + 0x1.6a23cep-10f, Floats{} + 0x1.123a2p-7f);
    p = fused(p, r, Floats{} + 0x1.5558f2p-5f);
    p = fused(p, r, Floats{} + 0x1.555492p-3f);
    p = fused(p, r, Floats{} + 0x1.fffffcp-2f);
    p = fused(p, r, Floats{} + 1.0f);
    p = fused(p, r, Floats{} + 1.0f);
    return p * (Floats)(((Ints)shifted << 23) + (127 << 23));  // a product, so that NaN stays NaN
}

struct Power {
    Floats exp, y;
};

template <typename Value>
inline Power power(const void* row, size_t at, const Exponents& exponents) {
    const Floats y = fused(load_wide<Value>(row, at) - exponents.peak, Floats{} + exponents.scale,
                           Floats{} - exponents.shift);
    const Floats kept = y < kLowest ? Floats{} + kLowest : y;  // NaN stays
    return {y < kLowest ? Floats{} : exp(kept), kept};
}

// The last values of a row, filled up with what changes no sum and no maximum.
template <typename Value>
struct Rest {
    Rest(const void* row, size_t at, size_t N) {
        const Value* from = static_cast<const Value*>(row) + at;
        for (size_t i = 0; i < kAtOnce; ++i) values[i] = i < N ? from[i] : lowest();
    }
    static Value lowest() {
        if constexpr (sizeof(Value) == sizeof(float)) {
            return -__builtin_inff();
        } else {
            return static_cast<Value>(0xff80);
        }
    }
    Value values[kAtOnce];
};

template <typename Value>
float peak(const void* row, size_t N) {
    Floats most[kParts];
    for (Floats& part : most) part = Floats{} - __builtin_inff();
    const auto take = [&](const void* values, size_t at) {
#pragma GCC unroll 16
        for (size_t part = 0; part < kParts; ++part) {
            const Floats value = load_wide<Value>(values, at + part * kLanes);
            most[part] = most[part] > value ? most[part] : value;
        }
    };
    size_t at = 0;
    for (; at + kAtOnce <= N; at += kAtOnce) take(row, at);
    if (at < N) take(Rest<Value>(row, at, N - at).values, 0);
    float all[kAtOnce];
    __builtin_memcpy(all, most, sizeof(all));
    float peak = all[0];
    for (const float value : all) peak = peak > value ? peak : value;
    return peak;
}

// Adds 64 partial sums to sixteen in float64.
inline void add(const Floats (&parts)[kParts], double (&total)[16]) {
    float all[kAtOnce];
    __builtin_memcpy(all, parts, sizeof(all));
    for (size_t i = 0; i < 16; ++i) total[i] += (all[i] + all[i + 16]) + (all[i + 32] + all[i + 48]);
}

inline double sum_of(const double (&total)[16]) {
    double sum = 0.0;
    for (const double part : total) sum += part;
    return sum;
}

template <typename Value>
void sums(const void* row, size_t N, const Exponents& y, double* sum, double* dot) {
    double sum_total[16] = {}, dot_total[16] = {};
    Floats sum_parts[kParts] = {}, dot_parts[kParts] = {};
    const auto take = [&](const void* values, size_t at) {
#pragma GCC unroll 16
        for (size_t part = 0; part < kParts; ++part) {
            const Power term = power<Value>(values, at + part * kLanes, y);
            sum_parts[part] += term.exp;
            dot_parts[part] = fused(term.exp, term.y, dot_parts[part]);
        }
    };
    const auto carry = [&] {
        add(sum_parts, sum_total);
        add(dot_parts, dot_total);
        for (size_t part = 0; part < kParts; ++part) sum_parts[part] = dot_parts[part] = Floats{};
    };
    size_t at = 0;
    while (at + kAtOnce <= N) {
        const size_t left = (N - at) / kAtOnce * kAtOnce;
        const size_t end = at + (left < kAddedInFloat32 ? left : kAddedInFloat32);
        for (; at < end; at += kAtOnce) take(row, at);
        carry();
    }
    if (at < N) {
        take(Rest<Value>(row, at, N - at).values, 0);
        carry();
    }
    *sum += sum_of(sum_total);
    *dot += sum_of(dot_total);
}

inline void store_as(float*, void* to, size_t at, Floats values) {
    store(static_cast<float*>(to) + at, values);
}

// To nearest, ties to even; NaN stays NaN.
inline void store_as(bfloat16*, void* to, size_t at, Floats values) {
    const auto bits = (Vector<uint32_t, kLanes>)values;
    const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const auto quiet = (bits >> 16) | 0x40u;
    const auto chosen = (values == values) ? rounded : quiet;
    store(static_cast<uint16_t*>(to) + at, __builtin_convertvector(chosen, Vector<uint16_t, kLanes>));
}

template <typename Value>
void gradient(const void* row, size_t N, const Exponents& y, float factor, float log_factor, void* grad) {
    const auto give = [&](const void* values, size_t at, void* to) {
#pragma GCC unroll 16
        for (size_t part = 0; part < kParts; ++part) {
            const Power term = power<Value>(values, at + part * kLanes, y);
            const Floats slope = fused(term.y, Floats{} + log_factor, Floats{} + factor);
            store_as(static_cast<Value*>(nullptr), to, at + part * kLanes, term.exp * slope);
        }
    };
    size_t at = 0;
    for (; at + kAtOnce <= N; at += kAtOnce) give(row, at, grad);
    if (at < N) {
        Rest<Value> rest(row, at, N - at);
        give(rest.values, 0, rest.values);
        __builtin_memcpy(static_cast<Value*>(grad) + at, rest.values, (N - at) * sizeof(Value));
    }
}

}  // namespace

namespace softmax {
extern const SoftmaxKernels FGRPO_SIMD;
constinit const SoftmaxKernels FGRPO_SIMD = {
    {peak<float>, peak<bfloat16>}, {sums<float>, sums<bfloat16>}, {gradient<float>, gradient<bfloat16>}};
}  // namespace softmax

}  // namespace fgrpo
