#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <string>

#include "bit_stream.h"
#include "format.h"
#include "kernels.h"
#include "sparse_delta.h"
#include "threads.h"
#include "update_format.h"
#include "update_kernels.h"

namespace fgrpo {

namespace {

// What is wrong with a block, as the rest of a sentence; null if nothing is.
using Fault = const char*;

Fault apply_list(const std::uint8_t* block, std::size_t length, std::size_t N, std::uint16_t* values) {
    if (length < 4) return "is cut off";
    std::uint16_t last;
    std::memcpy(&last, block + 2, sizeof(last));
    BitReader reader(block + 4, length - 4);
    const unsigned gap_order = block[1] & 15u, step_order = block[1] >> 4;
    std::size_t at = 0;
    for (std::size_t left = last + std::size_t{1}; left > 0; --left, ++at) {
        const auto [gap, step] = reader.take_two(gap_order, step_order);
        at += gap;
        if (at >= N) return "changes values past its end";
        if (step > 0xffff || reader.past_end()) return "has a code that is cut off or too large";
        values[at] = stepped(values[at], step);
    }
    return reader.at_end() ? nullptr : "has bytes left over";
}

Fault apply_bitmap(const std::uint8_t* block, std::size_t length, std::size_t N, std::uint16_t* values) {
    const std::size_t bytes = (N + 7) / 8;
    if (length < 2 + bytes) return "is cut off";
    if (block[1] & 15u) return "is a bitmap with a gap order";
    if (N % 8 != 0 && block[1 + bytes] >> N % 8) return "changes values past its end";
    BitReader reader(block + 2 + bytes, length - 2 - bytes);
    const unsigned step_order = block[1] >> 4;
    for (std::size_t i = 0; i < bytes; ++i) {
        for (unsigned bits = block[2 + i]; bits != 0; bits &= bits - 1) {
            std::uint16_t& value = values[8 * i + static_cast<std::size_t>(std::countr_zero(bits))];
            const std::uint64_t step = reader.take(step_order);
            if (step > 0xffff || reader.past_end()) return "has a code that is cut off or too large";
            value = stepped(value, step);
        }
    }
    return reader.at_end() ? nullptr : "has bytes left over";
}

// Changes N values of the base into those of the result. Reads up to 8 bytes beyond the block.
Fault apply_block(const std::uint8_t* block, std::size_t length, std::size_t N, std::uint16_t* values) {
    switch (block[0]) {
        case kList:
            return apply_list(block, length, N, values);
        case kBitmap:
            return apply_bitmap(block, length, N, values);
        case kRaw:
            if (length != 1 + 2 * N) return "is raw and has a wrong length";
            std::memcpy(values, block + 1, 2 * N);
            return nullptr;
        default:
            return "has an unknown form";
    }
}

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("apply_update: " + what); }

// An update whose header, lengths and padding are in order.
struct Parsed {
    Parsed(std::span<const std::uint8_t> update, std::size_t size)
        : update(update), blocks(count_blocks(size)) {
        const std::string got = std::to_string(update.size()) + " bytes";
        if (update.size() < kHeaderBytes + kPadding) refuse(got + " are too few for an update; was it cut?");
        std::memcpy(&header, update.data(), kHeaderBytes);
        if (std::memcmp(header.magic, kMagic, 4) != 0) refuse("the bytes are not an update");
        if (header.magic[4] != kMagic[4]) {
            refuse("the update has version " + std::to_string(static_cast<std::uint8_t>(header.magic[4])) +
                   ", expected 1; was it made by another release?");
        }
        if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) refuse("bytes 5 to 7 are not 0");
        if (header.size != size) {
            refuse("the update is of " + std::to_string(header.size) + " values, the base has " +
                   std::to_string(size) + "; are they the same model?");
        }
        const std::size_t fixed = kHeaderBytes + 2 * blocks + kPadding;
        std::size_t needed = fixed;
        if (update.size() >= fixed) {
            for (std::size_t block = 0; block < blocks; ++block) needed += length(block);
        }
        if (update.size() != needed) {
            refuse(got + " where " + (needed == fixed ? "at least " : "") + std::to_string(needed) +
                   " were expected; was it cut?");
        }
        const auto padding = update.last(kPadding);
        if (std::any_of(padding.begin(), padding.end(), [](std::uint8_t byte) { return byte != 0; })) {
            refuse("the last 8 bytes are not 0");
        }
    }

    std::size_t length(std::size_t block) const {
        std::uint16_t length;
        std::memcpy(&length, update.data() + kHeaderBytes + 2 * block, sizeof(length));
        return length;
    }

    // Where a block's bytes begin.
    const std::uint8_t* start(std::size_t block) const {
        const std::uint8_t* at = update.data() + kHeaderBytes + 2 * blocks;
        for (std::size_t before = 0; before < block; ++before) at += length(before);
        return at;
    }

    std::span<const std::uint8_t> update;
    std::size_t blocks;
    UpdateHeader header;
};

// Applies the update to each block, in `out` or, where that is null, nowhere; throws unless all is as it says.
void follow(std::span<const bfloat16> base, std::span<const std::uint8_t> update, bfloat16* out,
            int threads) {
    const Parsed parsed(update, base.size());
    const UpdateKernels& simd = kernels().update;
    std::atomic<std::uint64_t> base_hash = base.size(), result_hash = base.size();
    std::atomic<std::size_t> fault = SIZE_MAX;
    const auto apply_to = [&](std::size_t block, const std::uint8_t* bytes, std::uint16_t* values) {
        return apply_block(bytes, parsed.length(block), length_of_block(base.size(), block), values);
    };
    parallel_for(parsed.blocks, kUpdateGrain, threads, [&](std::size_t begin, std::size_t end) {
        std::uint16_t scratch[kUpdateBlock];
        const std::uint8_t* bytes = parsed.start(begin);
        std::uint64_t base_sum = 0, result_sum = 0;
        for (std::size_t block = begin; block < end; bytes += parsed.length(block), ++block) {
            const std::size_t first = block * kUpdateBlock, N = length_of_block(base.size(), block);
            const std::uint16_t* from = patterns(base) + first;
            std::uint16_t* values = out ? reinterpret_cast<std::uint16_t*>(out) + first : scratch;
            std::uint64_t hash = simd.hash(from, N);
            base_sum += share_of_block(hash, block);
            if (values != from) std::memcpy(values, from, 2 * N);
            if (parsed.length(block) != 0) {
                if (apply_to(block, bytes, values)) {
                    std::size_t seen = fault.load();
                    while (block < seen && !fault.compare_exchange_weak(seen, block)) {
                    }
                }
                hash = simd.hash(values, N);
            }
            result_sum += share_of_block(hash, block);
        }
        base_hash += base_sum;
        result_hash += result_sum;
    });
    if (base_hash != parsed.header.base_hash) {
        refuse("the update was made for another base, or its header is damaged; is a round missing?");
    }
    if (fault != SIZE_MAX) {
        std::uint16_t scratch[kUpdateBlock] = {};
        const std::string what = apply_to(fault, parsed.start(fault), scratch);
        refuse("block " + std::to_string(fault) + " (values from " + std::to_string(fault * kUpdateBlock) +
               ") " + what + "; were the update's bytes damaged?");
    }
    if (result_hash != parsed.header.result_hash) {
        refuse("the result is not the one that the update names; were the update's bytes damaged?");
    }
}

}  // namespace

void apply_update(std::span<const bfloat16> base, std::span<const std::uint8_t> update,
                  std::span<bfloat16> out, int threads) {
    if (out.size() != base.size()) {
        throw std::invalid_argument("apply_update: out has " + std::to_string(out.size()) +
                                    " values, the base " + std::to_string(base.size()));
    }
    const bool in_place = out.data() == base.data();
    if (overlap(update, out) || (!in_place && overlap(base, out))) {
        throw std::invalid_argument(
            "apply_update: out shares memory with the update or with another part of base; it may only be "
            "base "
            "itself");
    }
    if (in_place) check_update(base, update, threads);
    follow(base, update, out.data(), threads);
}

void check_update(std::span<const bfloat16> base, std::span<const std::uint8_t> update, int threads) {
    follow(base, update, nullptr, threads);
}

}  // namespace fgrpo
