#include "gram.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "chunk.h"
#include "gram_kernels.h"
#include "kernels.h"
#include "payloads.h"
#include "threads.h"

namespace fgrpo {

namespace {

constexpr std::size_t kPart = std::size_t{1} << 16;  // values; the unit of work, and of the order of sums
constexpr std::size_t kStreams = 8;  // payloads read by turns: memory serves several faster than one
constexpr std::size_t kPartialSums = std::size_t{1} << 19;  // doubles, 4 MB, that wait to be added in order

// Values that share a scale, or 0 where a payload has none.
std::size_t run_of(const Payload& payload) {
    return has_scales(payload.format.codec) ? payload.format.block : 0;
}

// Places in a list of payloads that have one run, at most kRows.
struct Group {
    std::vector<std::size_t> places;
    std::size_t run;
};

std::vector<Group> groups_of(std::span<const Payload> payloads) {
    std::vector<std::size_t> places(payloads.size());
    for (std::size_t k = 0; k < places.size(); ++k) places[k] = k;
    const auto run = [&](std::size_t place) { return run_of(payloads[place]); };
    std::stable_sort(places.begin(), places.end(),
                     [&](std::size_t a, std::size_t b) { return run(a) < run(b); });
    std::vector<Group> groups;
    for (std::size_t first = 0, past; first < places.size(); first = past) {
        past = first;
        while (past < places.size() && run(places[past]) == run(places[first])) ++past;
        const std::size_t count = past - first, parts = (count + kRows - 1) / kRows;  // of about equal length
        for (std::size_t part = 0; part < parts; ++part) {
            const auto begin = places.begin() + first;
            groups.push_back(
                {{begin + count * part / parts, begin + count * (part + 1) / parts}, run(places[first])});
        }
    }
    return groups;
}

// A rectangle of the result; on the diagonal the columns are the rows, and half of it is computed.
struct Rectangle {
    const Group *rows, *columns;
    bool diagonal;
    // The shorter of the runs, 0 where one of the groups has none: then values are multiplied.
    std::size_t run() const { return std::min(rows->run, columns->run); }
};

// A chunk of a group's payloads.
struct Unpacked {
    alignas(64) std::int8_t four[4][kChunk];
    alignas(64) std::int16_t codes[kRows / 4][4 * kChunk];
    alignas(64) float scales[kChunkRuns][kRows];
    alignas(64) float values[kRows][kChunk];

    // Where there are too few for the last four, the last stands there again in codes, and zeros in values.
    void take(const GramKernels& simd, std::span<const Payload> payloads, const Group& group, std::size_t run,
              std::size_t first, std::size_t N) {
        const std::size_t count = group.places.size(), past = (N + 7) / 8 * 8;
        const auto payload = [&](std::size_t row) -> const Payload& { return payloads[group.places[row]]; };
        if (run == 0) {
            for (std::size_t row = 0; row < count; ++row) take_values(payload(row), first, N, values[row]);
            for (std::size_t row = count; row % 4 != 0; ++row)
                std::fill(values[row], values[row] + past, 0.0f);
            return;
        }
        for (std::size_t row = 0; row < count; row += 4) {
            const Payload* together[4];
            for (std::size_t i = 0; i < 4; ++i) {
                together[i] = &payload(std::min(row + i, count - 1));
                take_scales(*together[i], first, N, run, &scales[0][row + i], kRows);
            }
            take_codes(simd, together, first, N, run, four, codes[row / 4]);
        }
    }
};

using Sums = double[kRows][kRows];

struct Scratch {
    Unpacked rows, columns;
};

// sums += the products of a rectangle's payloads in the values [first, past).
void add_products(const GramKernels& simd, std::span<const Payload> payloads, std::span<const Payload> others,
                  const Rectangle& rectangle, std::size_t first, std::size_t past, Scratch& scratch,
                  Sums& sums) {
    const std::size_t run = rectangle.run();
    Unpacked& columns = rectangle.diagonal ? scratch.rows : scratch.columns;
    for (; first < past; first += kChunk) {
        const std::size_t N = std::min(kChunk, past - first);
        scratch.rows.take(simd, payloads, *rectangle.rows, run, first, N);
        if (!rectangle.diagonal) columns.take(simd, others, *rectangle.columns, run, first, N);
        const std::size_t height = rectangle.rows->places.size(), width = rectangle.columns->places.size();
        if (run == 0) {
            simd.add_value_products({scratch.rows.values, height}, {columns.values, width},
                                    rectangle.diagonal, N, sums);
        } else {
            simd.add_code_products({scratch.rows.codes, scratch.rows.scales, height},
                                   {columns.codes, columns.scales, width}, rectangle.diagonal, run,
                                   (N + run - 1) / run, sums);
        }
    }
}

// Calls work(scratch, item) for each item; each thread has a Scratch of its own.
template <typename Work>
void for_each_item(std::size_t items, int threads, const Work& work) {
    const auto scratch = std::make_unique_for_overwrite<Scratch[]>(std::min(items, most_threads(threads)));
    std::atomic<std::size_t> ranges = 0;
    parallel_for(items, 1, threads, [&](std::size_t begin, std::size_t end) {
        if (begin == end) return;
        Scratch& own = scratch[ranges++];
        for (std::size_t item = begin; item < end; ++item) work(own, item);
    });
}

// The products of all rectangles; the others of `out` are 0.
void multiply(std::span<const Payload> payloads, std::span<const Payload> others,
              const std::vector<Rectangle>& rectangles, std::span<double> out, int threads) {
    const GramKernels& simd = kernels().gram;
    const std::size_t size = payloads[0].size, parts = (size + kPart - 1) / kPart;
    const std::size_t together =
        std::clamp<std::size_t>(kPartialSums / (rectangles.size() * kRows * kRows), 1, parts + 1);
    std::vector<double> partial(std::min(together, parts) * rectangles.size() * kRows * kRows);
    const auto sums_of = [&](std::size_t item) -> Sums& {
        return *reinterpret_cast<Sums*>(partial.data() + item * kRows * kRows);
    };
    std::fill(out.begin(), out.end(), 0.0);
    for (std::size_t part = 0; part < parts; part += together) {
        const std::size_t items = std::min(together, parts - part) * rectangles.size();
        std::fill(partial.begin(), partial.end(), 0.0);
        for_each_item(items, threads, [&](Scratch& scratch, std::size_t item) {
            const std::size_t first = (part + item / rectangles.size()) * kPart;
            add_products(simd, payloads, others, rectangles[item % rectangles.size()], first,
                         std::min(first + kPart, size), scratch, sums_of(item));
        });
        for (std::size_t item = 0; item < items; ++item) {
            const Rectangle& rectangle = rectangles[item % rectangles.size()];
            for (std::size_t i = 0; i < rectangle.rows->places.size(); ++i) {
                double* row = out.data() + rectangle.rows->places[i] * others.size();
                for (std::size_t j = rectangle.diagonal ? i : 0; j < rectangle.columns->places.size(); ++j) {
                    row[rectangle.columns->places[j]] += sums_of(item)[i][j];
                }
            }
        }
    }
}

// sum += the squares of the values [first, first + N).
void add_squares(const GramKernels& simd, const Payload& payload, std::size_t first, std::size_t N,
                 double& sum) {
    const std::size_t run = run_of(payload);
    if (run == 0) {
        alignas(64) float values[kChunk];
        take_values(payload, first, N, values);
        return simd.add_value_squares(values, N, &sum);
    }
    alignas(64) std::int8_t buffer[kChunk];
    float scales[kChunkRuns];
    const std::int8_t* codes = codes_at(simd, payload, first, N, run, buffer);
    take_scales(payload, first, N, run, scales, 1);
    simd.add_code_squares(codes, scales, run, (N + run - 1) / run, &sum);
}

// Whether a code times a scale may be beyond float32: then the codes have to be looked at.
bool may_overflow(const Payload& payload) {
    unsigned largest = 0;
    for (const bfloat16 scale : payload.scales) {
        largest = std::max(largest, static_cast<std::uint16_t>(scale) & 0x7fffu);
    }
    const Codec codec = payload.format.codec;
    return has_scales(codec) && largest + (codec == Codec::int2) > largest_scale(codec);
}

// The codes' products do not show a value that overflows; those of values do, in what comes out.
void require_small_scales(const std::string& function, std::span<const Payload> payloads,
                          const std::string& kind) {
    for (std::size_t k = 0; k < payloads.size(); ++k) {
        if (!may_overflow(payloads[k])) continue;
        require_finite(function + ": " + kind + " " + std::to_string(k), payloads[k], 0, payloads[k].size);
    }
}

void require_room(const std::string& function, std::span<const double> out, std::size_t expected) {
    if (out.size() == expected) return;
    throw std::invalid_argument(function + ": " + std::to_string(expected) + " results but room for " +
                                std::to_string(out.size()));
}

void require_apart(std::span<const Payload> payloads, std::span<const double> out) {
    for (const Payload& payload : payloads) {
        if (!overlap(payload.codes, out) && !overlap(payload.scales, out)) continue;
        throw std::invalid_argument("gram: a payload shares memory with out, which is overwritten");
    }
}

}  // namespace

void gram(std::span<const Payload> payloads, std::span<double> out, int threads) {
    const std::size_t K = payloads.size();
    require_payloads("gram", payloads);
    require_room("gram", out, K * K);
    require_apart(payloads, out);
    require_small_scales("gram", payloads, "payload");
    const std::vector<Group> groups = groups_of(payloads);
    std::vector<Rectangle> rectangles;
    for (std::size_t i = 0; i < groups.size(); ++i) {
        for (std::size_t j = i; j < groups.size(); ++j) {
            rectangles.push_back({&groups[i], &groups[j], i == j});
        }
    }
    multiply(payloads, payloads, rectangles, out, threads);
    for (const Rectangle& rectangle : rectangles) {
        for (const std::size_t i : rectangle.rows->places) {
            for (const std::size_t j : rectangle.columns->places) {
                if (!rectangle.diagonal || i < j) out[j * K + i] = out[i * K + j];
            }
        }
    }
    for (std::size_t k = 0; k < K; ++k) {
        if (std::isfinite(out[k * K + k])) continue;
        require_finite("gram: payload " + std::to_string(k), payloads[k], 0, payloads[k].size);
    }
}

void gram(std::span<const Payload> payloads, std::span<const Payload> others, std::span<double> out,
          int threads) {
    require_payloads("gram", payloads);
    require_payloads("gram", others, "other", payloads[0].size);
    require_room("gram", out, payloads.size() * others.size());
    require_apart(payloads, out);
    require_apart(others, out);
    require_small_scales("gram", payloads, "payload");
    require_small_scales("gram", others, "other");
    const std::vector<Group> rows = groups_of(payloads), columns = groups_of(others);
    std::vector<Rectangle> rectangles;
    for (const Group& row : rows) {
        for (const Group& column : columns) rectangles.push_back({&row, &column, false});
    }
    multiply(payloads, others, rectangles, out, threads);
    for (std::size_t at = 0; at < out.size(); ++at) {
        if (std::isfinite(out[at])) continue;
        const std::size_t k = at / others.size(), m = at % others.size();
        require_finite("gram: payload " + std::to_string(k), payloads[k], 0, payloads[k].size);
        require_finite("gram: other " + std::to_string(m), others[m], 0, others[m].size);
    }
}

void squared_norms(std::span<const Payload> payloads, std::span<double> squares, int threads) {
    require_payloads("norms", payloads);
    require_room("norms", squares, payloads.size());
    require_apart(payloads, squares);
    require_small_scales("norms", payloads, "payload");
    const GramKernels& simd = kernels().gram;
    const std::size_t size = payloads[0].size, parts = (size + kPart - 1) / kPart;
    const std::size_t share = payloads.size() * parts / most_threads(threads);  // all threads have work
    const std::size_t streams = std::clamp<std::size_t>(share, 1, kStreams);
    const std::size_t groups = (payloads.size() + streams - 1) / streams;
    std::vector<double> partial(payloads.size() * parts);
    parallel_for(groups * parts, 1, threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t item = begin; item < end; ++item) {
            const std::size_t from = item / parts * streams, to = std::min(from + streams, payloads.size());
            const std::size_t part = item % parts, past = std::min((part + 1) * kPart, size);
            for (std::size_t first = part * kPart; first < past; first += kChunk) {
                const std::size_t N = std::min(kChunk, past - first);
                for (std::size_t k = from; k < to; ++k) {
                    add_squares(simd, payloads[k], first, N, partial[k * parts + part]);
                }
            }
        }
    });
    for (std::size_t k = 0; k < payloads.size(); ++k) {
        squares[k] = 0.0;
        for (std::size_t part = 0; part < parts; ++part) squares[k] += partial[k * parts + part];
        if (std::isfinite(squares[k])) continue;
        require_finite("norms: payload " + std::to_string(k), payloads[k], 0, size);
    }
}

}  // namespace fgrpo
