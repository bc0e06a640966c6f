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

void check_scales(const Payload& payload) {
    const std::uint16_t largest = largest_scale(payload.format.codec);
    const auto wrong = [&](bfloat16 scale) {
        const auto bits = static_cast<std::uint16_t>(scale);
        return bits > largest || (bits != 0 && bits < kSmallestNormal);  // with a sign, bits are large too
    };
    const auto found = std::find_if(payload.scales.begin(), payload.scales.end(), wrong);
    if (found == payload.scales.end()) return;
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(*found) << 16);
    throw std::invalid_argument("check_codes: scale " + std::to_string(found - payload.scales.begin()) +
                                " is " + text(value) +
                                "; scales are finite, not negative, not subnormal, and codes times scales "
                                "fit float32");
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

// The first value in [first, first + N) that encode() would not have written, or first + N.
std::size_t first_fault(const Payload& payload, std::size_t first, std::size_t N) {
    const std::uint8_t* codes = payload.codes.data() + code_offset(payload.format, first);
    if (payload.format.codec == Codec::none) {
        for (std::size_t i = 0; i < N; ++i) {
            std::uint32_t bits;
            std::memcpy(&bits, codes + sizeof(bits) * i, sizeof(bits));
            if ((bits & 0x7fffffffu) > kLargestMagnitude) return first + i;
        }
        return first + N;
    }
    const std::size_t bytes = code_bytes(payload.format, N);
    if (!kernels().out_of_range[static_cast<int>(payload.format.codec)](codes, bytes)) return first + N;
    std::size_t i = first;
    while (code_at(payload, i) >= -largest_code(payload.format.codec)) ++i;
    return i;
}

void check_codes(const Payload& payload, int threads) {
    std::atomic<std::size_t> fault = SIZE_MAX;
    parallel_for((payload.size + kTile - 1) / kTile, kGrain, threads,
                 [&](std::size_t begin, std::size_t end) {
                     for (std::size_t tile = begin; tile < end; ++tile) {
                         const std::size_t first = tile * kTile, N = std::min(kTile, payload.size - first);
                         const std::size_t index = first_fault(payload, first, N);
                         if (index == first + N) continue;
                         std::size_t seen = fault.load();
                         while (index < seen && !fault.compare_exchange_weak(seen, index)) {
                         }
                         return;
                     }
                 });
    if (fault == SIZE_MAX) return;
    const std::string where = "check_codes: the value at index " + std::to_string(fault);
    if (payload.format.codec == Codec::none) {
        throw std::invalid_argument(where + " is not finite, or larger than 2^127 in magnitude");
    }
    const std::string largest = std::to_string(largest_code(payload.format.codec));
    throw std::invalid_argument(where + " has code " + std::to_string(code_at(payload, fault)) +
                                ", outside -" + largest + ".." + largest);
}

}  // namespace

void check(const Payload& payload, int threads) {
    require_lengths("check_codes", payload);
    if (payload.format.codec != Codec::none) {
        check_scales(payload);
        check_padding(payload);
    }
    check_codes(payload, threads);
}

}  // namespace fgrpo
