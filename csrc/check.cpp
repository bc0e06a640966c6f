#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "delta_codec.h"
#include "format.h"
#include "kernels.h"
#include "threads.h"

namespace fgrpo {
namespace {

constexpr std::size_t kGrain = 256;                // tiles; the fewest worth a thread
constexpr std::uint16_t kSmallestNormal = 0x0080;  // bfloat16 bits

float value_of(bfloat16 scale) { return std::bit_cast<float>(static_cast<std::uint32_t>(scale) << 16); }

// Threads agree on the first fault.
void lower(std::atomic<std::size_t>& fault, std::size_t index) {
    std::size_t seen = fault.load();
    while (index < seen && !fault.compare_exchange_weak(seen, index)) {
    }
}

void check_scales(const Payload& payload) {
    const std::uint16_t largest = largest_scale(payload.format.codec);
    const auto wrong = [&](bfloat16 scale) {
        const auto bits = static_cast<std::uint16_t>(scale);
        const auto magnitude = static_cast<std::uint16_t>(bits & 0x7fffu);
        return magnitude > largest || (bits != 0 && magnitude < kSmallestNormal);
    };
    const auto found = std::find_if(payload.scales.begin(), payload.scales.end(), wrong);
    if (found == payload.scales.end()) return;
    throw std::invalid_argument(
        "check_codes: scale " + std::to_string(found - payload.scales.begin()) + " is " +
        text(value_of(*found)) +
        "; scales are finite, not -0, not subnormal, and codes times scales fit float32");
}

// int2's largest scale, 2^127, overflows by the code -2; encode() never writes the two together.
void check_products(const Payload& payload) {
    if (payload.format.codec != Codec::int2) return;
    const std::uint16_t largest = largest_scale(Codec::int2);
    const std::size_t block = payload.format.block;
    for (std::size_t b = 0; b < payload.scales.size(); ++b) {
        if ((static_cast<std::uint16_t>(payload.scales[b]) & 0x7fffu) != largest) continue;
        for (std::size_t i = b * block; i < (b + 1) * block; ++i) {
            if (code_at(payload, i) >= -largest_code(Codec::int2)) continue;
            throw std::invalid_argument("check_codes: the value at index " + std::to_string(i) + ", code " +
                                        std::to_string(code_at(payload, i)) + " times scale " +
                                        text(value_of(payload.scales[b])) + ", does not fit float32");
        }
    }
}

// A scale is negative only so that the lowest code can stand for a positive value.
void check_signs(const Payload& payload, int threads) {
    const std::size_t block = payload.format.block;
    const int lowest = -largest_code(payload.format.codec) - 1;
    std::atomic<std::size_t> fault = SIZE_MAX;
    parallel_for(payload.scales.size(), kGrain * kTileBlocks, threads,
                 [&](std::size_t begin, std::size_t end) {
                     for (std::size_t b = begin; b < end; ++b) {
                         if (static_cast<std::uint16_t>(payload.scales[b]) < 0x8000u) continue;
                         std::size_t i = b * block;
                         while (i < (b + 1) * block && code_at(payload, i) != lowest) ++i;
                         if (i == (b + 1) * block) return lower(fault, b);
                     }
                 });
    if (fault == SIZE_MAX) return;
    throw std::invalid_argument(
        "check_codes: scale " + std::to_string(fault) + " is " + text(value_of(payload.scales[fault])) +
        "; a scale is negative only in a block with the code " + std::to_string(lowest));
}

void check_padding(const Payload& payload) {
    const std::size_t end = blocks_of(payload.format, payload.size) * payload.format.block;
    for (std::size_t i = payload.size; i < end; ++i) {
        if (code_at(payload, i) == 0) continue;
        throw std::invalid_argument("check_codes: padding code " + std::to_string(i) + " is " +
                                    std::to_string(code_at(payload, i)) +
                                    "; the last block is padded with zeros");
    }
}

// The bits of value i of a payload without scales, as a float32's, without the sign.
std::uint32_t magnitude_at(const Payload& payload, std::size_t i) {
    std::uint32_t bits = 0;
    if (payload.format.codec == Codec::bf16) {
        std::uint16_t upper;
        std::memcpy(&upper, payload.codes.data() + sizeof(upper) * i, sizeof(upper));
        bits = static_cast<std::uint32_t>(upper) << 16;
    } else {
        std::memcpy(&bits, payload.codes.data() + sizeof(bits) * i, sizeof(bits));
    }
    return bits & 0x7fffffffu;
}

void check_values(const Payload& payload, int threads) {
    std::atomic<std::size_t> fault = SIZE_MAX;
    const std::size_t tiles = (payload.size + kTile - 1) / kTile;
    parallel_for(tiles, kGrain, threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin * kTile; i < std::min(end * kTile, payload.size); ++i) {
            if (magnitude_at(payload, i) <= kLargestMagnitude) continue;
            return lower(fault, i);
        }
    });
    if (fault == SIZE_MAX) return;
    throw std::invalid_argument("check_codes: the value at index " + std::to_string(fault) +
                                " is not finite, or larger than 2^127 in magnitude");
}

}  // namespace

void check(const Payload& payload, int threads) {
    require_lengths("check_codes", payload);
    if (has_scales(payload.format.codec)) {
        check_scales(payload);
        check_products(payload);
        check_signs(payload, threads);
        check_padding(payload);
    } else {
        check_values(payload, threads);
    }
}

}  // namespace fgrpo
