// Compiled once per instruction set; the rules of kernels.cpp hold here.
#include "gram_kernels.h"

#include "integers.h"

namespace fgrpo {
namespace {

inline Doubles load_wide(const float* from) { return widen(load<Vector<float, kWide>>(from)); }

// ---- codes ----

// The scales of four rows, and below of four columns, for the lanes of a FourByFour from `lane` on.
inline Doubles rotated_scales(const float* scales, size_t lane) {
#if defined(__AVX512F__)
    const __m512i places =
        lane ? _mm512_setr_epi64(2, 3, 0, 1, 3, 0, 1, 2) : _mm512_setr_epi64(0, 1, 2, 3, 1, 2, 3, 0);
    const __m256d wide = _mm256_cvtps_pd(_mm_loadu_ps(scales));
    return (Doubles)_mm512_permutexvar_pd(places, _mm512_castpd256_pd512(wide));
#elif defined(__AVX2__)
    const __m256d wide = _mm256_cvtps_pd(_mm_loadu_ps(scales));
    if (lane == 0) return (Doubles)wide;
    if (lane == 4) return (Doubles)_mm256_permute4x64_pd(wide, 0b00111001);
    if (lane == 8) return (Doubles)_mm256_permute4x64_pd(wide, 0b01001110);
    return (Doubles)_mm256_permute4x64_pd(wide, 0b10010011);
#else
    return Doubles{scales[(lane / 4 + lane) % 4], scales[(lane / 4 + lane + 1) % 4]};
#endif
}

inline Doubles repeated_scales(const float* scales, [[maybe_unused]] size_t lane) {
#if defined(__AVX512F__)
    return (Doubles)_mm512_broadcast_f64x4(_mm256_cvtps_pd(_mm_loadu_ps(scales)));
#else
    return load_wide(scales + lane % 4);
#endif
}

// Four rows times four columns: sixteen lanes, column by column the rows as they are, and rotated by 1, 2 and 3. Of rows
// with themselves, `own`, the last four would be the second again, and are left out.
template <bool own>
struct FourByFour {
    static constexpr size_t turns = own ? 3 : 4;
    size_t row, column;
    Ints products[4] = {};
    Doubles totals[16 / kWide] = {};

    // Where the sums of a lane are.
    double& place(double (*sums)[kRows], size_t lane) const {
        const size_t i = (lane / 4 + lane) % 4, j = lane % 4;
        return own && j < i ? sums[row + j][row + i] : sums[row + i][column + j];
    }

    void begin(double (*sums)[kRows]) {
        double lanes[16] = {};
        for (size_t lane = 0; lane < 4 * turns; ++lane) lanes[lane] = place(sums, lane);
        __builtin_memcpy(totals, lanes, sizeof(lanes));
    }

    void begin_run() {
        for (Ints& product : products) product = Ints{};
    }

    void add(const Shorts (&rows)[4], const CodeRows& columns, size_t at) {
        const Shorts codes = own ? rows[0] : load<Shorts>(columns.codes[column / 4] + at);
#pragma GCC unroll 4
        for (size_t turn = 0; turn < turns; ++turn) {
            products[turn] = add_products(products[turn], rows[turn], codes);
        }
    }

    void end_run(const CodeRows& rows, const CodeRows& columns, size_t b) {
        alignas(64) int dots[16];
        add_fourths(products, dots);
#pragma GCC unroll 8
        for (size_t lane = 0; lane < 4 * turns; lane += kWide) {
            const Doubles scales = rotated_scales(rows.scales[b] + row, lane) *
                                   repeated_scales(columns.scales[b] + column, lane);
            totals[lane / kWide] += widen(dots + lane) * scales;  // exact but for the addition
        }
    }

    void end(double (*sums)[kRows]) const {
        double lanes[16];
        __builtin_memcpy(lanes, totals, sizeof(lanes));
        for (size_t lane = 0; lane < 4 * turns; ++lane) place(sums, lane) = lanes[lane];
    }
};

// Four rows times four columns for each block; the sums of a run stay in registers.
template <size_t run, typename... Blocks>
inline void add_blocks(const CodeRows& rows, const CodeRows& columns, size_t row, size_t runs,
                       double (*sums)[kRows], Blocks... blocks) {
    (blocks.begin(sums), ...);
    for (size_t b = 0; b < runs; ++b) {
        (blocks.begin_run(), ...);
#pragma GCC unroll 1
        for (size_t at = 4 * b * run; at < 4 * (b + 1) * run; at += kShorts) {
            const auto codes = load<Shorts>(rows.codes[row / 4] + at);
            const Shorts left[4] = {codes, rotated<1>(codes), rotated<2>(codes), rotated<3>(codes)};
            (blocks.add(left, columns, at), ...);
        }
        (blocks.end_run(rows, columns, b), ...);
    }
    (blocks.end(sums), ...);
}

template <size_t run>
void add_runs(const CodeRows& rows, const CodeRows& columns, bool upper, size_t runs, double (*sums)[kRows]) {
    for (size_t row = 0; row < rows.count; row += 4) {
        const auto add = [&](auto... blocks) { add_blocks<run>(rows, columns, row, runs, sums, blocks...); };
        const FourByFour<true> own{row, row};
        size_t column = upper ? row + 4 : 0;
        const bool odd = column < columns.count && (columns.count - column + 3) / 4 % 2;
        if (upper && odd) add(own, FourByFour<false>{row, column});
        if (upper && !odd) add(own);
        if (!upper && odd) add(FourByFour<false>{row, column});
        for (column += odd ? 4 : 0; column < columns.count; column += 8) {
            add(FourByFour<false>{row, column}, FourByFour<false>{row, column + 4});
        }
    }
}

void add_code_products(const CodeRows& rows, const CodeRows& columns, bool upper, size_t run, size_t runs,
                       double (*sums)[kRows]) {
    switch (run) {
        case 32:
            return add_runs<32>(rows, columns, upper, runs, sums);
        case 64:
            return add_runs<64>(rows, columns, upper, runs, sums);
        case 128:
            return add_runs<128>(rows, columns, upper, runs, sums);
        case 256:
            return add_runs<256>(rows, columns, upper, runs, sums);
        case 512:
            return add_runs<512>(rows, columns, upper, runs, sums);
        default:
            return add_runs<kLargestBlock>(rows, columns, upper, runs, sums);
    }
}

// total + the squares of the first `count` runs, at most four.
template <size_t count>
inline double plus_squares(double total, const int8_t* codes, const float* scales, size_t run) {
    Ints products[4] = {};
    for (size_t i = 0; i < run; i += kShorts) {
#pragma GCC unroll 4
        for (size_t b = 0; b < count; ++b) {
            const auto row = load_shorts(codes + b * run + i);
            __builtin_prefetch(codes + b * run + i + kChunk);
            products[b] = add_products(products[b], row, row);
        }
    }
    const auto dots = sums_of_four(products);
#pragma GCC unroll 4
    for (size_t b = 0; b < count; ++b) {
        const double scale = scales[b];
        total += static_cast<double>(dots[b]) * (scale * scale);
    }
    return total;
}

void add_code_squares(const int8_t* codes, const float* scales, size_t run, size_t runs, double* sum) {
    double total = *sum;
    size_t b = 0;
    for (; b + 4 <= runs; b += 4) total = plus_squares<4>(total, codes + b * run, scales + b, run);
    for (; b < runs; ++b) total = plus_squares<1>(total, codes + b * run, scales + b, run);
    *sum = total;
}

// ---- values ----

constexpr size_t kSums = 8;  // of a pair, whatever the width
constexpr size_t kParts = kSums / kWide;

inline double total(const Doubles (&parts)[kParts]) {
    double sums[kSums];
    __builtin_memcpy(sums, parts, sizeof(sums));
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// Calls product(row, column) for every `height` rows and four columns that hold a pair that is needed.
template <size_t height, typename Product>
inline void for_each_pair(size_t rows, size_t columns, bool upper, const Product& product) {
    for (size_t row = 0; row < rows; row += height) {
        for (size_t column = upper ? row / 4 * 4 : 0; column < columns; column += 4) product(row, column);
    }
}

constexpr size_t kValueRowsAtOnce = kLanes == 16 ? 4 : 1;

void add_value_products(const ValueRows& rows, const ValueRows& columns, bool upper, size_t N,
                        double (*sums)[kRows]) {
    for_each_pair<kValueRowsAtOnce>(rows.count, columns.count, upper, [&](size_t row, size_t column) {
        Doubles products[kValueRowsAtOnce][4][kParts] = {};
        for (size_t i = 0; i < N; i += kSums) {
#pragma GCC unroll 4
            for (size_t part = 0; part < kParts; ++part) {
                const size_t at = i + part * kWide;
                Doubles left[kValueRowsAtOnce];
#pragma GCC unroll 4
                for (size_t r = 0; r < kValueRowsAtOnce; ++r) left[r] = load_wide(rows.values[row + r] + at);
#pragma GCC unroll 4
                for (size_t c = 0; c < 4; ++c) {
                    const Doubles right = load_wide(columns.values[column + c] + at);
#pragma GCC unroll 4
                    for (size_t r = 0; r < kValueRowsAtOnce; ++r) {
                        products[r][c][part] = add_exact_product(left[r], right, products[r][c][part]);
                    }
                }
            }
        }
        for (size_t r = 0; r < kValueRowsAtOnce; ++r) {
            for (size_t c = 0; c < 4; ++c) sums[row + r][column + c] += total(products[r][c]);
        }
    });
}

void add_value_squares(const float* values, size_t N, double* sum) {
    Doubles squares[kParts] = {};
    for (size_t i = 0; i < N; i += kSums) {
#pragma GCC unroll 4
        for (size_t part = 0; part < kParts; ++part) {
            const Doubles wide = load_wide(values + i + part * kWide);
            squares[part] = add_exact_product(wide, wide, squares[part]);
        }
    }
    *sum += total(squares);
}

}  // namespace

namespace gram_tables {
extern const GramKernels FGRPO_SIMD;
constinit const GramKernels FGRPO_SIMD = {
    {unpack<8>, unpack<4>, unpack<2>},
    {interleave<8>, interleave<4>, interleave<2>},
    add_code_products,
    add_value_products,
    add_code_squares,
    add_value_squares,
};
}  // namespace gram_tables

}  // namespace fgrpo
