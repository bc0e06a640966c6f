// Compiled once per instruction set; the rules of kernels.cpp hold here.
#include "gram_kernels.h"

#include "integers.h"

namespace fgrpo {
namespace {

// ---- codes ----

// Rows at once, against four columns: as many products as a register has integers.
constexpr size_t kRowsAtOnce = kLanes / 4;

// The sums of the registers, four a row: of row r the columns' from four * r on.
inline Ints sums_of(const Ints (&products)[kRowsAtOnce][4]) {
    Ints quarters[kRowsAtOnce];
#pragma GCC unroll 4
    for (size_t r = 0; r < kRowsAtOnce; ++r) {
        quarters[r] = sums_of_quarters(products[r][0], products[r][1], products[r][2], products[r][3]);
    }
#if defined(__AVX512F__)
    const auto add_halves = [](Ints x, Ints y) {
        const __m512i low = _mm512_shuffle_i32x4((__m512i)x, (__m512i)y, 0x88);
        return (Ints)_mm512_add_epi32(low, _mm512_shuffle_i32x4((__m512i)x, (__m512i)y, 0xdd));
    };
    return add_halves(add_halves(quarters[0], quarters[1]), add_halves(quarters[2], quarters[3]));
#elif defined(__AVX2__)
    const __m256i low = _mm256_permute2x128_si256((__m256i)quarters[0], (__m256i)quarters[1], 0x20);
    return (Ints)_mm256_add_epi32(
        low, _mm256_permute2x128_si256((__m256i)quarters[0], (__m256i)quarters[1], 0x31));
#else
    return quarters[0];
#endif
}

// totals += the four sums from lane four * r on, each times the scales of its row and column; exact but for the
// addition.
template <size_t r>
inline void add_scaled(Ints sums, double row_scale, const double* column_scales, Four& totals) {
#if defined(__AVX512F__)
    const auto dots = (Four)_mm256_cvtepi32_pd(_mm512_extracti32x4_epi32((__m512i)sums, r));
    totals += dots * (row_scale * load<Four>(column_scales));
#elif defined(__AVX2__)
    const auto dots = (Four)_mm256_cvtepi32_pd(_mm256_extracti128_si256((__m256i)sums, r));
    totals += dots * (row_scale * load<Four>(column_scales));
#else
    for (size_t c = 0; c < 4; ++c) {
        totals[c] += static_cast<double>(sums[4 * r + c]) * (row_scale * column_scales[c]);
    }
#endif
}

// A run of `steps` registers; the sums of kRowsAtOnce rows and four columns stay in registers all the way.
template <size_t steps>
inline void add_rows_by_columns(const CodeRows& rows, const CodeRows& columns, size_t row, size_t column,
                                size_t runs, double (*sums)[kRows]) {
    constexpr size_t run = steps * kShorts;
    Four totals[kRowsAtOnce];
#pragma GCC unroll 4
    for (size_t r = 0; r < kRowsAtOnce; ++r)
        __builtin_memcpy(&totals[r], sums[row + r] + column, sizeof(Four));
    for (size_t b = 0; b < runs; ++b) {
        Ints products[kRowsAtOnce][4] = {};
        const auto add_step = [&](size_t step) {
            const size_t at = b * run + step * kShorts;
            Shorts left[kRowsAtOnce];
#pragma GCC unroll 4
            for (size_t r = 0; r < kRowsAtOnce; ++r) left[r] = load<Shorts>(rows.codes[row + r] + at);
#pragma GCC unroll 4
            for (size_t c = 0; c < 4; ++c) {
                const auto right = load<Shorts>(columns.codes[column + c] + at);
#pragma GCC unroll 4
                for (size_t r = 0; r < kRowsAtOnce; ++r) products[r][c] += multiply_add(left[r], right);
            }
        };
        for (size_t step = 0; step < steps; ++step) add_step(step);
        const Ints dots = sums_of(products);
        const double *row_scales = rows.scales[b] + row, *column_scales = columns.scales[b] + column;
        add_scaled<0>(dots, row_scales[0], column_scales, totals[0]);
        if constexpr (kRowsAtOnce > 1) add_scaled<1>(dots, row_scales[1], column_scales, totals[1]);
        if constexpr (kRowsAtOnce > 2) {
            add_scaled<2>(dots, row_scales[2], column_scales, totals[2]);
            add_scaled<3>(dots, row_scales[3], column_scales, totals[3]);
        }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < kRowsAtOnce; ++r)
        __builtin_memcpy(sums[row + r] + column, &totals[r], sizeof(Four));
}

// Calls product(row, column) for every `height` rows and four columns that hold a pair that is needed.
template <size_t height, typename Product>
inline void for_each_pair(size_t rows, size_t columns, bool upper, const Product& product) {
    for (size_t row = 0; row < rows; row += height) {
        for (size_t column = upper ? row / 4 * 4 : 0; column < columns; column += 4) product(row, column);
    }
}

template <size_t run>
void add_runs(const CodeRows& rows, const CodeRows& columns, bool upper, size_t runs, double (*sums)[kRows]) {
    for_each_pair<kRowsAtOnce>(rows.count, columns.count, upper, [&](size_t row, size_t column) {
        add_rows_by_columns<run / kShorts>(rows, columns, row, column, runs, sums);
    });
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

void add_code_squares(const int16_t* codes, const double* scales, size_t run, size_t runs, double* sum) {
    double total = *sum;
    for (size_t first = 0; first < runs; first += 4) {
        const size_t count = runs - first < 4 ? runs - first : 4;
        Ints products[4] = {};
        for (size_t b = 0; b < count; ++b) {
            for (size_t i = 0; i < run; i += kShorts) {
                const auto row = load<Shorts>(codes + (first + b) * run + i);
                products[b] += multiply_add(row, row);
            }
        }
        const auto dots = sums_of_four(products);
        for (size_t b = 0; b < count; ++b) {
            const double scale = scales[first + b];
            total += static_cast<double>(dots[b]) * (scale * scale);
        }
    }
    *sum = total;
}

// ---- values ----

constexpr size_t kSums = 8;  // of a pair, whatever the width
constexpr size_t kParts = kSums / kWide;

inline Doubles load_wide(const float* from) { return widen(load<Vector<float, kWide>>(from)); }

inline double total(const Doubles (&parts)[kParts]) {
    double sums[kSums];
    __builtin_memcpy(sums, parts, sizeof(sums));
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
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
    add_code_products,
    add_value_products,
    add_code_squares,
    add_value_squares,
};
}  // namespace gram_tables

}  // namespace fgrpo
