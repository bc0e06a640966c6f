#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "delta_codec.h"
#include "format.h"
#include "kernels.h"
#include "threads.h"

namespace fgrpo {
namespace {

constexpr std::size_t kNowhere = SIZE_MAX;
constexpr std::size_t kGrain = 32;  // tiles; fewer are not worth a thread

std::size_t size_of(const Values& values) {
    return std::visit([](auto span) { return span.size(); }, values);
}

const void* address(const Values& values, std::size_t first) {
    return std::visit([&](auto span) { return static_cast<const void*>(span.data() + first); }, values);
}

float value_at(const Values& values, std::size_t index) {
    if (const auto* floats = std::get_if<std::span<const float>>(&values)) return (*floats)[index];
    const auto bits = static_cast<std::uint32_t>(std::get<std::span<const bfloat16>>(values)[index]);
    return std::bit_cast<float>(bits << 16);
}

struct Inputs {
    const Values& updated;
    const std::optional<Values>& base;
    std::span<const float> residual;

    std::size_t size() const { return size_of(updated); }

    Source from(std::size_t first) const {
        return {address(updated, first), base ? address(*base, first) : nullptr,
                residual.empty() ? nullptr : residual.data() + first};
    }

    // The entry of one of the kernels' tables for parameters of these types.
    template <typename Table>
    auto& in(const Table& table) const {
        return table[updated.index()][base ? base->index() : 0];
    }

    [[noreturn]] void refuse(std::size_t index) const {
        const float value = value_at(updated, index);
        float delta = value;
        std::string parts = "new = " + text(value);
        if (base) {
            delta -= value_at(*base, index);
            parts += ", base = " + text(value_at(*base, index));
        }
        if (!residual.empty()) {
            delta += residual[index];
            parts += ", residual = " + text(residual[index]);
        }
        throw NotEncodable(
            "encode: the delta at index " + std::to_string(index) + " is " + text(delta) + " (" + parts +
                "); values must be finite and at most 2^127 in magnitude. Did training diverge?",
            index);
    }
};

void lower(std::atomic<std::size_t>& lowest, std::size_t value) {
    std::size_t seen = lowest.load();
    while (value < seen && !lowest.compare_exchange_weak(seen, value)) {
    }
}

enum class Direction { forwards, backwards };

// Calls largest = work(first, N) from several threads for every tile; returns the index of the first value that
// cannot be encoded, or kNowhere, where no magnitude was larger than kLargestMagnitude.
template <typename Work>
std::size_t for_each_tile(const Inputs& inputs, int threads, Direction direction, const Work& work) {
    const std::size_t size = inputs.size();
    std::atomic<std::size_t> fault = kNowhere;
    parallel_for((size + kTile - 1) / kTile, kGrain, threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t step = begin; step < end; ++step) {
            const std::size_t tile = direction == Direction::forwards ? step : begin + end - 1 - step;
            const std::size_t first = tile * kTile, N = std::min(kTile, size - first);
            if (work(first, N) <= kLargestMagnitude) continue;
            const auto peak = inputs.in(kernels().peak);
            std::size_t index = first;
            while (index + 1 < first + N && peak(inputs.from(index), 1) <= kLargestMagnitude) ++index;
            lower(fault, index);
        }
    });
    return fault;
}

void require_arguments(const Inputs& inputs, Format format, std::span<std::uint8_t> codes,
                       std::span<bfloat16> scales) {
    const std::size_t size = inputs.size();
    if (inputs.base && size_of(*inputs.base) != size) {
        throw std::invalid_argument("encode: base has " + std::to_string(size_of(*inputs.base)) +
                                    " values, new has " + std::to_string(size) +
                                    "; are they the same parameters?");
    }
    if (!inputs.residual.empty() && inputs.residual.size() != size) {
        throw std::invalid_argument("encode: residual has " + std::to_string(inputs.residual.size()) +
                                    " values, new has " + std::to_string(size) +
                                    "; was it made for another model?");
    }
    require_lengths("encode", Payload{format, size, codes, scales});
    const auto apart = [&](const Values& values, const char* name) {
        std::visit(
            [&](auto span) {
                if (overlap(span, codes) || overlap(span, scales) || overlap(span, inputs.residual)) {
                    throw std::invalid_argument(
                        std::string("encode: ") + name +
                        " shares memory with residual or the output, which encode overwrites");
                }
            },
            values);
    };
    apart(inputs.updated, "new");
    if (inputs.base) apart(*inputs.base, "base");
    if (overlap(inputs.residual, codes) || overlap(inputs.residual, scales) || overlap(codes, scales)) {
        throw std::invalid_argument("encode: residual, codes and scales share memory");
    }
}

}  // namespace

void encode(const Values& updated, const std::optional<Values>& base, std::span<float> residual,
            Format format, Rounding rounding, std::uint64_t seed, std::span<std::uint8_t> codes,
            std::span<bfloat16> scales, int threads, Scaling scaling) {
    const Inputs inputs{updated, base, residual};
    require_arguments(inputs, format, codes, scales);
    const bool stochastic = rounding == Rounding::stochastic;
    if (stochastic && scaling == Scaling::mse) {
        throw std::invalid_argument(
            "encode: scale 'mse' goes with rounding 'nearest'; its scales cut off the largest values, so "
            "stochastic rounding would be biased. Use scale 'absmax'");
    }
    const Kernels& simd = kernels();

    // Backwards, so that what is read last is still in the caches when the second pass begins with it.
    if (!residual.empty()) {
        const auto peak = inputs.in(simd.peak);
        const std::size_t fault =
            for_each_tile(inputs, threads, Direction::backwards,
                          [&](std::size_t first, std::size_t N) { return peak(inputs.from(first), N); });
        if (fault != kNowhere) inputs.refuse(fault);
    }

    const auto quantise_tile = [&](std::size_t first, std::size_t N) {
        return simd.quantise[static_cast<int>(format.codec)](
            inputs.in(simd.read), inputs.from(first), N,
            {format.block, scaling == Scaling::mse, stochastic, seed, first,
             codes.data() + code_offset(format, first), scales.data() + first / format.block,
             residual.empty() ? nullptr : residual.data() + first});
    };
    const auto round_tile = [&](std::size_t first, std::size_t N) {
        alignas(64) float delta[kTile];
        alignas(64) std::uint16_t random[kTile];
        inputs.in(simd.delta)(inputs.from(first), N, delta);
        const std::uint32_t largest = simd.peak[0][0]({delta, nullptr, nullptr}, N);
        if (largest > kLargestMagnitude) return largest;
        std::uint8_t* tile_codes = codes.data() + code_offset(format, first);
        float* error = residual.empty() ? nullptr : residual.data() + first;
        if (format.codec == Codec::none) {
            std::memcpy(tile_codes, delta, N * sizeof(float));
            if (error) std::fill_n(error, N, 0.0f);
        } else {
            if (stochastic) simd.random_bits(seed, first, N, random);
            simd.round_to_bfloat16(delta, stochastic ? random : nullptr, N, tile_codes, error);
        }
        return largest;
    };
    const std::size_t fault = has_scales(format.codec)
                                  ? for_each_tile(inputs, threads, Direction::forwards, quantise_tile)
                                  : for_each_tile(inputs, threads, Direction::forwards, round_tile);
    if (fault != kNowhere) inputs.refuse(fault);
}

}  // namespace fgrpo
