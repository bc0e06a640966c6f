// Calls of every function from several threads at once, each of which starts threads of its own. Says whether
// the results are right; ThreadSanitizer says whether that was luck.
#include <cmath>
#include <functional>
#include <random>
#include <thread>

#include "check.h"
#include "delta_codec.h"
#include "gram.h"

using namespace fgrpo;

namespace {

// Enough values that each function divides them among its threads (check() does so from 2^20 on).
constexpr std::size_t kSize = (std::size_t{1} << 20) + 4321;
constexpr int kCallers = 3, kThreads = 3;

// Calls function(caller) from kCallers threads that start together.
void together(const std::function<void(int)>& function) {
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller) callers.emplace_back(function, caller);
    for (std::thread& caller : callers) caller.join();
}

std::vector<float> gaussian(unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(kSize);
    for (float& value : values) value = normal(engine);
    return values;
}

struct Owned {
    explicit Owned(Format format)
        : format(format), codes(code_bytes(format, kSize)), scales(scale_count(format, kSize)) {}
    Payload payload() const { return {format, kSize, codes, scales}; }

    Format format;
    std::vector<std::uint8_t> codes;
    std::vector<bfloat16> scales;
};

Owned encoded(const std::vector<float>& delta, Format format, int threads, std::vector<float>* residual) {
    Owned owned(format);
    const std::span<float> left = residual ? std::span(*residual) : std::span<float>();
    encode(std::span(delta), std::nullopt, left, format, Rounding::stochastic, 7, owned.codes, owned.scales,
           threads);
    return owned;
}

// The first calls of the program, so that the choice of the instruction set is among what they do together.
void test_first_use() {
    const std::vector<float> delta = gaussian(0);
    std::vector<std::vector<std::uint8_t>> codes(kCallers);
    together([&](int caller) {
        codes[static_cast<std::size_t>(caller)] = encoded(delta, {Codec::int8, 64}, kThreads, nullptr).codes;
    });
    CHECK(codes[0] == codes[1] && codes[0] == codes[2]);
}

// Readers of the same inputs, each with outputs of its own.
void test_shared_inputs() {
    const std::vector<float> delta = gaussian(1), zeros(kSize, 0.0f);
    const std::vector<float> weights = {0.25f, -1.0f, 3.0f, 0.5f};
    for (const Codec codec : {Codec::int4, Codec::none}) {
        std::vector<float> residual = zeros, values(kSize), sum(kSize);
        const Owned expected = encoded(delta, {codec, 64}, 1, &residual);
        const std::vector<Payload> payloads(weights.size(), expected.payload());
        decode(expected.payload(), values, 1);
        aggregate(payloads, weights, sum, 1);
        std::vector<double> products(payloads.size() * payloads.size());
        gram(payloads, products, 1);
        together([&](int) {
            std::vector<float> left = zeros, out(kSize, NAN);
            const Owned owned = encoded(delta, {codec, 64}, kThreads, &left);
            CHECK(owned.codes == expected.codes && owned.scales == expected.scales && left == residual);
            check(expected.payload(), kThreads);
            decode(expected.payload(), out, kThreads);
            CHECK(out == values);
            aggregate(payloads, weights, out, kThreads);
            CHECK(out == sum);
            std::vector<double> again(products.size());
            gram(payloads, again, kThreads);
            CHECK(again == products);
        });
    }
}

// Faults in every thread's share: the first one is named, whichever thread comes to its own first.
void test_faults() {
    std::vector<float> delta = gaussian(2);
    for (const std::size_t index : {std::size_t{70001}, kSize / 2, kSize - 1}) delta[index] = NAN;
    Owned bad({Codec::none, 32});
    for (const std::size_t index : {kSize / 3, kSize - 1})
        bad.codes[4 * index + 3] = bad.codes[4 * index + 2] = 0xff;
    together([&](int) {
        try {
            encoded(delta, {Codec::int4, 64}, kThreads, nullptr);
            CHECK(!"nothing was thrown");
        } catch (const NotEncodable& error) {
            CHECK(error.index == 70001);
        }
        try {
            check(bad.payload(), kThreads);
            CHECK(!"nothing was thrown");
        } catch (const std::invalid_argument& error) {
            const std::string message = error.what(), index = std::to_string(kSize / 3);
            CHECK(message.find("index " + index + " ") != std::string::npos);
        }
    });
}

// A change of the instruction set while calls run: each call uses one of them throughout.
void test_change_of_instruction_set() {
    const std::vector<float> delta = gaussian(3);
    const Owned expected = encoded(delta, {Codec::int2, 128}, 1, nullptr);
    const std::vector<std::string> levels = simd_levels();
    together([&](int caller) {
        for (int i = 0; i < 4; ++i) {
            use_simd(levels[static_cast<std::size_t>(caller + i) % levels.size()]);
            CHECK(encoded(delta, {Codec::int2, 128}, kThreads, nullptr).codes == expected.codes);
        }
    });
}

}  // namespace

int main() {
    test_first_use();
    test_shared_inputs();
    test_faults();
    test_change_of_instruction_set();
    std::puts("4 passed, 0 failed");
}
