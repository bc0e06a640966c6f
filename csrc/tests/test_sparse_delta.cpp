// The contract of sparse_delta.h, checked without Python: round trips of any bits, and damaged bytes in buffers
// of exactly their size. Meant to run under sanitizers.
#include <cstring>
#include <random>

#include "check.h"
#include "sparse_delta.h"

using namespace fgrpo;

namespace {

using Model = std::vector<bfloat16>;
using Bytes = std::vector<std::uint8_t>;

std::mt19937 engine(7);

Model random_patterns(std::size_t size) {
    Model model(size);
    for (bfloat16& value : model) value = static_cast<bfloat16>(engine());
    return model;
}

// A model that differs from `base` in about `density` of its values, by at most `farthest` patterns.
Model changed(Model model, double density, unsigned farthest) {
    std::bernoulli_distribution changes(density);
    for (bfloat16& value : model) {
        if (!changes(engine)) continue;
        const unsigned distance = 1 + engine() % farthest;
        value = static_cast<bfloat16>(static_cast<unsigned>(value) + (engine() % 2 ? distance : -distance));
    }
    return model;
}

Bytes encoded(const Model& updated, const Model& base, int threads = 1) {
    Bytes bytes(update_bound(updated.size()));
    bytes.resize(encode_update(updated, base, bytes, threads));
    bytes.shrink_to_fit();
    return bytes;
}

void test_round_trips() {
    for (const std::size_t size : {0u, 1u, 2u, 255u, 256u, 257u, 16383u, 16384u, 16385u, 100001u}) {
        const Model base = random_patterns(size);
        for (const double density : {0.0, 1e-4, 1e-2, 0.3, 1.0}) {
            for (const unsigned farthest : {1u, 50u, 65535u}) {
                const Model updated = changed(base, density, farthest);
                use_simd(simd_levels().front());
                const Bytes expected = encoded(updated, base);
                CHECK(expected.size() <= 2 * size + 3 * ((size + kUpdateBlock - 1) / kUpdateBlock) + 40);
                for (const std::string& level : simd_levels()) {
                    use_simd(level);
                    for (const int threads : {1, 3}) {
                        CHECK(encoded(updated, base, threads) == expected);
                        Model out(size), in_place = base;
                        apply_update(base, expected, out, threads);
                        apply_update(in_place, expected, in_place, threads);
                        CHECK(out == updated && in_place == updated);
                    }
                }
            }
        }
    }
}

template <typename Function>
void refused(const Function& function, const std::string& part = "") {
    try {
        function();
    } catch (const std::invalid_argument& error) {
        CHECK(std::string(error.what()).find(part) != std::string::npos);
        return;
    }
    CHECK(!"nothing was thrown");
}

// Every form of block is there, and so is a shorter last block.
void test_damaged_bytes() {
    Model base = random_patterns(4 * kUpdateBlock + 100), updated = base;
    const auto patch = [&](std::size_t block, std::size_t count, double density, unsigned farthest) {
        const auto first = updated.begin() + static_cast<std::ptrdiff_t>(block * kUpdateBlock);
        const Model part =
            changed(Model(first, first + static_cast<std::ptrdiff_t>(count)), density, farthest);
        std::copy(part.begin(), part.end(), first);
    };
    patch(0, kUpdateBlock, 0.002, 3);
    patch(1, kUpdateBlock, 0.5, 1);
    patch(2, kUpdateBlock, 1.0, 65535);
    patch(4, 100, 0.9, 1);
    const Bytes good = encoded(updated, base);
    const std::size_t blocks = 32 + 2 * 5;
    std::uint16_t list;
    std::memcpy(&list, &good[32], 2);
    CHECK(good[blocks] == 0 && good[blocks + list] == 1);

    Model target = base;
    for (std::size_t length = 0; length < good.size(); length += length < 300 ? 1 : 97) {
        const Bytes cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(length));
        refused([&] { apply_update(target, cut, target); });
    }
    for (int trial = 0; trial < 3000; ++trial) {
        Bytes bad = good;
        const std::size_t at = trial % 2 ? engine() % (blocks + 600) : engine() % bad.size();
        bad[at] ^= static_cast<std::uint8_t>(1u << engine() % 8);
        refused([&] { apply_update(target, bad, target, 1); });
    }
    CHECK(target == base);
    for (int trial = 0; trial < 3000; ++trial) {  // rubbish behind a header that is right
        Bytes bad(good.begin(), good.begin() + 32);
        std::memset(&bad[8], 0, 8);
        bad[8] = 200;
        const std::uint16_t length = static_cast<std::uint16_t>(1 + engine() % 60);
        bad.insert(bad.end(), {static_cast<std::uint8_t>(length), 0});
        for (int i = 0; i < length; ++i) {
            bad.push_back(static_cast<std::uint8_t>(engine() & (engine() % 3 ? 0xff : 0x01)));
        }
        bad[34] %= 4;
        bad.resize(bad.size() + 8);
        bad.shrink_to_fit();
        Model small(base.begin(), base.begin() + 200), out(200);
        refused([&] { apply_update(small, bad, out, 1); });
    }
}

void test_wrong_arguments() {
    Model base = random_patterns(1000);
    const Model updated = changed(base, 0.1, 1), shorter(base.begin(), base.begin() + 999);
    const Bytes good = encoded(updated, base);
    Model out(1000);
    Bytes room(update_bound(1000)), small(update_bound(1000) - 1);
    refused([&] { encode_update(updated, shorter, room); }, "base has 999 values, new has 1000");
    refused([&] { encode_update(updated, base, small); }, "out has");
    refused([&] { encode_update(updated, base, room, -1); }, "threads");
    refused([&] { update_bound(SIZE_MAX); }, "memory");
    refused([&] { apply_update(updated, good, out); }, "another base");
    refused([&] { apply_update(shorter, good, std::span(out).first(999)); },
            "of 1000 values, the base has 999");
    refused([&] { apply_update(base, good, std::span(out).first(999)); }, "out has 999 values");
    const std::span<bfloat16> whole(base);
    refused([&] { apply_update(whole.first(999), good, whole.subspan(1)); }, "shares memory");
    const auto fault = [&](std::size_t at, std::uint8_t value) {
        Bytes bad = good;
        bad[at] = value;
        refused(
            [&] {
                check_update(base, good);
                check_update(base, bad);
            },
            at == 0   ? "not an update"
            : at == 4 ? "version 2"
            : at == 6 ? "5 to 7"
                      : "last 8 bytes");
    };
    fault(0, 'X');
    fault(4, 2);
    fault(6, 1);
    fault(good.size() - 1, 1);
}

}  // namespace

int main() {
    test_round_trips();
    test_damaged_bytes();
    test_wrong_arguments();
    std::puts("3 passed, 0 failed");
}
