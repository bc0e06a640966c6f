#include <atomic>
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

constexpr std::size_t kRoom = 16;  // bytes that encoding a block needs beyond 2 a value

// The values that change in one block.
struct Changes {
    std::size_t count;
    std::uint16_t positions[kUpdateBlock + 4], steps[kUpdateBlock];
};

std::uint16_t gap_before(const Changes& changes, std::size_t i) {
    return static_cast<std::uint16_t>(i ? changes.positions[i] - changes.positions[i - 1] - 1
                                        : changes.positions[0]);
}

// Writes a list or a bitmap; returns its end, or null as soon as it is longer than `limit`.
std::uint8_t* write_coded(const Changes& changes, Form form, unsigned gap_order, unsigned step_order,
                          std::size_t N, std::uint8_t* out, const std::uint8_t* limit) {
    *out++ = form;
    *out++ = static_cast<std::uint8_t>(gap_order | step_order << 4);
    if (form == kList) {
        const std::uint16_t count = static_cast<std::uint16_t>(changes.count - 1);
        std::memcpy(out, &count, sizeof(count));
        out += sizeof(count);
    } else {
        const std::size_t bytes = (N + 7) / 8;
        if (limit - out < static_cast<std::ptrdiff_t>(bytes)) return nullptr;
        std::memset(out, 0, bytes);
        for (std::size_t i = 0; i < changes.count; ++i) {
            out[changes.positions[i] / 8] |= static_cast<std::uint8_t>(1u << changes.positions[i] % 8);
        }
        out += bytes;
    }
    BitWriter writer(out);
    for (std::size_t i = 0; i < changes.count; ++i) {
        if (writer.at() > limit) return nullptr;
        if (form == kList) writer.put(gap_before(changes, i), gap_order);
        writer.put(changes.steps[i], step_order);
    }
    std::uint8_t* end = writer.finish();
    return end > limit ? nullptr : end;
}

// Encodes a block in the cheapest form; returns its length, which is 0 where nothing changes and 1 + 2N at
// most. `out` has room for 2N + kRoom bytes.
std::size_t encode_block(const UpdateKernels& simd, const std::uint16_t* updated, const std::uint16_t* base,
                         std::size_t N, std::uint8_t* out) {
    Changes changes;
    changes.count = simd.changes(updated, base, N, changes.positions);
    if (changes.count == 0) return 0;
    Widths gaps, steps;
    for (std::size_t i = 0; i < changes.count; ++i) {
        const std::size_t at = changes.positions[i];
        changes.steps[i] = step_between(base[at], updated[at]);
        steps.add(changes.steps[i]);
        gaps.add(gap_before(changes, i));
    }
    const Estimate gap = gaps.best_order(), step = steps.best_order();
    const bool list = 16 + gap.bits <= N;
    const std::uint8_t* limit = out + 2 * N;  // a raw block has one byte more
    const std::uint8_t* end =
        write_coded(changes, list ? kList : kBitmap, list ? gap.order : 0, step.order, N, out, limit);
    if (end) return static_cast<std::size_t>(end - out);
    out[0] = kRaw;
    std::memcpy(out + 1, updated, 2 * N);
    return 1 + 2 * N;
}

}  // namespace

std::size_t update_bound(std::size_t size) {
    if (size > SIZE_MAX / 8) {
        throw std::invalid_argument("update_bound: " + std::to_string(size) +
                                    " values are more than memory can hold");
    }
    return kHeaderBytes + 2 * size + (2 + kRoom) * count_blocks(size) + kPadding;
}

std::size_t encode_update(std::span<const bfloat16> updated, std::span<const bfloat16> base,
                          std::span<std::uint8_t> out, int threads) {
    const std::size_t size = updated.size(), blocks = count_blocks(size);
    if (base.size() != size) {
        throw std::invalid_argument("encode_update: base has " + std::to_string(base.size()) +
                                    " values, new has " + std::to_string(size) +
                                    "; are they the same parameters?");
    }
    if (out.size() < update_bound(size)) {
        throw std::invalid_argument("encode_update: out has " + std::to_string(out.size()) + " bytes, " +
                                    std::to_string(size) + " values may need " +
                                    std::to_string(update_bound(size)));
    }
    if (overlap(updated, out) || overlap(base, out)) {
        throw std::invalid_argument(
            "encode_update: new or base shares memory with out, which is overwritten");
    }

    const UpdateKernels& simd = kernels().update;
    std::uint8_t* const lengths = out.data() + kHeaderBytes;
    std::uint8_t* const first_block = lengths + 2 * blocks;
    std::atomic<std::uint64_t> base_hash = size, result_hash = size;
    // Each block first has a place of its own, so that threads need not wait for each other.
    constexpr std::size_t stride = 2 * kUpdateBlock + kRoom;
    parallel_for(blocks, kUpdateGrain, threads, [&](std::size_t begin, std::size_t end) {
        std::uint64_t base_sum = 0, result_sum = 0;
        for (std::size_t block = begin; block < end; ++block) {
            const std::size_t first = block * kUpdateBlock, N = length_of_block(size, block);
            const std::uint16_t *to = patterns(updated) + first, *from = patterns(base) + first;
            const std::size_t bytes = encode_block(simd, to, from, N, first_block + block * stride);
            const std::uint16_t length = static_cast<std::uint16_t>(bytes);
            std::memcpy(lengths + 2 * block, &length, sizeof(length));
            std::uint64_t hash = simd.hash(from, N);
            base_sum += share_of_block(hash, block);
            if (bytes != 0) hash = simd.hash(to, N);
            result_sum += share_of_block(hash, block);
        }
        base_hash += base_sum;
        result_hash += result_sum;
    });
    std::uint8_t* end = first_block;
    for (std::size_t block = 0; block < blocks; ++block) {
        std::uint16_t length;
        std::memcpy(&length, lengths + 2 * block, sizeof(length));
        std::memmove(end, first_block + block * stride, length);
        end += length;
    }
    std::memset(end, 0, kPadding);
    UpdateHeader header{{}, size, base_hash, result_hash};
    std::memcpy(header.magic, kMagic, sizeof(kMagic));
    std::memcpy(out.data(), &header, kHeaderBytes);
    return static_cast<std::size_t>(end + kPadding - out.data());
}

}  // namespace fgrpo
