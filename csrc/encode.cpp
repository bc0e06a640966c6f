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

    // Reads values [first, first + N) into `delta` and pads it with zeros to whole blocks.
    void read(const Kernels& kernels, std::size_t first, std::size_t N, std::size_t padded,
              float* delta) const {
        const auto load = kernels.delta[updated.index()][base ? base->index() : 0];
        load(address(updated, first), base ? address(*base, first) : nullptr,
             residual.empty() ? nullptr : residual.data() + first, N, delta);
        std::fill(delta + N, delta + padded, 0.0f);
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

std::size_t first_unencodable(const float* delta, std::size_t N) {
    const float* found = std::find_if(delta, delta + N, [](float value) {
        return (std::bit_cast<std::uint32_t>(value) & 0x7fffffffu) > kLargestMagnitude;
    });
    return static_cast<std::size_t>(found - delta);
}

enum class Direction { forwards, backwards };

// Calls work(first, N, delta, peaks) from several threads for every tile but those with a value that cannot be
// encoded; returns the index of the first such value, or kNowhere.
template <typename Work>
std::size_t for_each_tile(const Inputs& inputs, std::size_t block, int threads, Direction direction,
                          const Work& work) {
    const Kernels& simd = kernels();
    const std::size_t size = inputs.size();
    std::atomic<std::size_t> fault = kNowhere;
    parallel_for((size + kTile - 1) / kTile, kGrain, threads, [&](std::size_t begin, std::size_t end) {
        alignas(64) float delta[kTile];
        std::uint32_t peaks[kTileBlocks];
        for (std::size_t step = begin; step < end; ++step) {
            const std::size_t tile = direction == Direction::forwards ? step : begin + end - 1 - step;
            const std::size_t first = tile * kTile, N = std::min(kTile, size - first);
            const std::size_t blocks = (N + block - 1) / block;
            inputs.read(simd, first, N, blocks * block, delta);
            simd.peaks(delta, block, blocks, peaks);
            if (*std::max_element(peaks, peaks + blocks) > kLargestMagnitude) {
                lower(fault, first + first_unencodable(delta, N));
            } else {
                work(first, N, delta, peaks);
            }
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
        const std::size_t fault =
            for_each_tile(inputs, format.block, threads, Direction::backwards, [](auto...) {});
        if (fault != kNowhere) inputs.refuse(fault);
    }

    const int codec = static_cast<int>(format.codec);
    const auto encode_tile = [&](std::size_t first, std::size_t N, float* delta, const std::uint32_t* peaks) {
        std::uint8_t* tile_codes = codes.data() + code_offset(format, first);
        float* tile_residual = residual.empty() ? nullptr : residual.data() + first;
        if (format.codec == Codec::none) {
            std::memcpy(tile_codes, delta, N * sizeof(float));
            if (tile_residual) std::fill_n(tile_residual, N, 0.0f);
            return;
        }
        alignas(64) float uniform[kTile];
        if (stochastic) simd.uniform(seed, first, blocks_of(format, N) * format.block, uniform);
        const float* shifts = stochastic ? uniform : nullptr;
        if (format.codec == Codec::bf16) {
            simd.round_to_bfloat16(delta, shifts, N, tile_codes, tile_residual);
            return;
        }
        const std::size_t blocks = blocks_of(format, N);
        bfloat16* tile_scales = scales.data() + first / format.block;
        simd.scale[static_cast<int>(scaling)][codec](delta, peaks, format.block, blocks, tile_scales);
        // The padding of the last block has no residual.
        float* error = tile_residual && N < blocks * format.block ? delta : tile_residual;
        simd.quantise[codec](delta, tile_scales, shifts, format.block, blocks, tile_codes, error);
        if (error != tile_residual) std::memcpy(tile_residual, delta, N * sizeof(float));
    };
    const std::size_t fault = for_each_tile(inputs, format.block, threads, Direction::forwards, encode_tile);
    if (fault != kNowhere) inputs.refuse(fault);
}

}  // namespace fgrpo
