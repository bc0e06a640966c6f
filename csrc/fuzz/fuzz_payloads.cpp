// libFuzzer target for what reads payloads: check, decode and the sums of delta_codec.h, the means of robust.h, the
// products of gram.h.
// Payloads hold arbitrary bytes, in buffers of exactly the size of the contract, so that AddressSanitizer sees the
// first byte beyond. Compared with specification.h and between instruction sets, thread counts and orders.
#include <algorithm>
#include <cmath>

#include "formats.h"
#include "gram.h"
#include "input.h"
#include "robust.h"
#include "specification.h"

using namespace fgrpo;
using namespace fgrpo::fuzz;

namespace {

struct Owned {
    Format format;
    std::size_t size;
    std::vector<std::uint8_t> codes;
    std::vector<bfloat16> scales;
    bool tamed;

    Payload payload() const { return {format, size, codes, scales}; }
};

// Makes arbitrary bytes such that check() should pass.
void tame(Owned& owned) {
    const Codec codec = owned.format.codec;
    if (!quantises(codec)) {
        const std::size_t bytes = bits_of(codec) / 8;
        for (std::size_t i = bytes - 1; i < owned.codes.size(); i += bytes)
            owned.codes[i] &= 0xbf;  // below 2
        return;
    }
    for (bfloat16& scale : owned.scales) {
        const bool largest =
            (static_cast<std::uint16_t>(scale) & 0x7fff) == 0x7f00;  // too large for int2's -2
        if (largest || !well_formed(scale, codec)) scale = bfloat16{0x3f80};
    }
    const std::size_t bits = bits_of(codec), block = owned.format.block, bytes = block * bits / 8;
    for (std::size_t i = owned.size; i < owned.scales.size() * block; ++i) {
        const std::size_t shift = bits * (i % block / bytes);
        owned.codes[i / block * bytes + i % bytes] &=
            static_cast<std::uint8_t>(~(((1u << bits) - 1) << shift));
    }
    const std::vector<float> codes = unpacked(owned.payload());
    for (std::size_t b = 0; b < owned.scales.size(); ++b) {
        if (has_lowest_code(codes, b, owned.format)) continue;
        owned.scales[b] =
            bfloat16{static_cast<std::uint16_t>(static_cast<std::uint16_t>(owned.scales[b]) & 0x7fff)};
    }
}

Owned payload_from(Input& input, std::size_t size) {
    Owned owned{format_from(input), size, {}, {}, false};
    owned.tamed = input.up_to(3) != 0;
    const bool cut = input.up_to(31) == 31;
    owned.codes = input.values<std::uint8_t>(code_bytes(owned.format, size));
    owned.scales = input.values<bfloat16>(scale_count(owned.format, size));
    if (owned.tamed) tame(owned);
    if (cut) {
        owned.codes.resize(input.up_to(255));
        owned.scales.resize(input.up_to(7));
    }
    return owned;
}

bool lengths_are_right(const Owned& owned) {
    return owned.codes.size() == code_bytes(owned.format, owned.size) &&
           owned.scales.size() == scale_count(owned.format, owned.size);
}

void try_payload(Input& input, const Owned& owned, const std::vector<float>& codes, bool sound) {
    const Payload payload = owned.payload();
    const bool good = sound && well_formed(payload, codes);
    VERIFY(good || !owned.tamed || !sound);
    std::vector<float> out(owned.size, 2.0f);
    choose_simd(input);
    VERIFY(refused([&] { check(payload, threads_from(input)); }) == !good);
    VERIFY(refused([&] { decode(payload, out, threads_from(input)); }) == !sound);
    for (std::size_t i = 0; i < out.size(); ++i) {
        VERIFY(same(out[i], sound ? add_term(-0.0f, 1.0f, payload, codes, i) : 2.0f));
        VERIFY(!good || std::isfinite(out[i]));
    }
}

// What aggregate() is given. Payloads may come more than once.
struct Terms {
    std::vector<Payload> payloads;
    std::vector<const std::vector<float>*> codes;
    std::vector<float> weights;

    // The values of coordinate i, and of the sum.
    float value(std::size_t k, std::size_t i) const {
        return add_term(-0.0f, 1.0f, payloads[k], *codes[k], i);
    }
    float sum(std::size_t i) const {
        float sum = -0.0f;
        for (const std::size_t k : order) sum = add_term(sum, weights[k], payloads[k], *codes[k], i);
        return sum;
    }

    std::vector<std::size_t> order;
};

bool equal(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// For sums of terms whose magnitudes sum to `most`.
bool close(double a, double b, double most, double error = 1e-12) {
    return std::isfinite(b) ? std::abs(a - b) <= error * most : equal(a, b);
}

// Of products with the mean: those of codes are added up in float32 within a block (see kernels.h).
double error_of_dot(Format format) {
    if (!quantises(format.codec)) return 1e-12;
    return static_cast<double>(std::max<std::size_t>(4, format.block / 16) + 2) * 0x1p-24;
}

bool agree(const ClientStats& a, const ClientStats& b) {
    return equal(a.squared_norm, b.squared_norm) && equal(a.dot_with_mean, b.dot_with_mean);
}

// That statistics are right as far as they should be, and the same for another order, instruction set and
// number of threads.
void try_stats(Input& input, const Terms& terms, std::span<float> out) {
    const std::size_t K = terms.payloads.size();
    std::vector<ClientStats> stats(K), backwards(K), too_many(K + 1);
    VERIFY(refused([&] { aggregate_with_stats(terms.payloads, terms.weights, out, too_many); }));
    aggregate_with_stats(terms.payloads, terms.weights, out, stats, threads_from(input));
    for (std::size_t k = 0; k < K; ++k) {
        double squares = 0, dot = 0, magnitude = 0;
        for (std::size_t i = 0; i < out.size(); ++i) {
            const double value = terms.value(k, i);
            squares += value * value, dot += value * out[i], magnitude += std::abs(value * out[i]);
        }
        VERIFY(close(stats[k].squared_norm, squares, squares));
        VERIFY(close(stats[k].dot_with_mean, dot, magnitude, error_of_dot(terms.payloads[k].format)));
    }
    const std::vector<Payload> payloads(terms.payloads.rbegin(), terms.payloads.rend());
    const std::vector<float> weights(terms.weights.rbegin(), terms.weights.rend());
    std::vector<float> again(out.size());
    use_simd("baseline");
    aggregate_with_stats(payloads, weights, again, backwards, 1);
    VERIFY(std::equal(out.begin(), out.end(), again.begin(), same));
    VERIFY(std::equal(stats.begin(), stats.end(), backwards.rbegin(), agree));
}

void try_robust_means(Input& input, const Terms& terms, std::size_t size) {
    const std::size_t K = terms.payloads.size(), trim = input.up_to(K);
    bool finite = true;
    for (std::size_t k = 0; k < K; ++k) {
        for (std::size_t i = 0; i < size; ++i) finite = finite && std::isfinite(terms.value(k, i));
    }
    choose_simd(input);
    std::vector<float> out(size), values(K);
    const bool too_many = 2 * trim >= K;
    VERIFY(refused([&] { trimmed_mean(terms.payloads, trim, out, threads_from(input)); }) ==
           (too_many || !finite));
    for (std::size_t i = 0; i < size && finite && !too_many; ++i) {
        for (std::size_t k = 0; k < K; ++k) values[k] = terms.value(k, i);
        std::sort(values.begin(), values.end(),
                  [](float a, float b) { return a < b || (a == b && std::signbit(a) && !std::signbit(b)); });
        float sum = values[trim];
        for (std::size_t k = trim + 1; k < K - trim; ++k) sum += values[k];
        VERIFY(same(out[i], sum / static_cast<float>(K - 2 * trim)));
    }
    std::vector<double> lengths(K);
    VERIFY(refused([&] { norms(terms.payloads, lengths, threads_from(input)); }) == !finite);
    for (std::size_t k = 0; k < K && finite; ++k) {
        double squares = 0;
        for (std::size_t i = 0; i < size; ++i) squares += double{terms.value(k, i)} * terms.value(k, i);
        VERIFY(std::abs(lengths[k] - std::sqrt(squares)) <= 1e-12 * lengths[k]);
    }
}

// That products are right as far as float64 goes, the same for each instruction set, number of threads and place in
// the lists, and refused with a value that is not finite.
void try_gram(Input& input, const Terms& terms, std::size_t size) {
    const std::size_t K = terms.payloads.size();
    std::vector<double> products(K * K, 2.0), backwards(K * K), rows(K), squares(K);
    bool finite = true;
    for (std::size_t k = 0; k < K; ++k) {
        for (std::size_t i = 0; i < size; ++i) finite = finite && std::isfinite(terms.value(k, i));
    }
    choose_simd(input);
    VERIFY(refused([&] { gram(terms.payloads, products, threads_from(input)); }) == !finite);
    const std::span<const Payload> last = std::span(terms.payloads).last(1);
    VERIFY(refused([&] { gram(terms.payloads, last, rows, threads_from(input)); }) == !finite);
    if (!finite) return;
    for (std::size_t k = 0; k < K; ++k) {
        VERIFY(equal(rows[k], products[k * K + K - 1]));
        for (std::size_t m = 0; m < K; ++m) {
            double dot = 0, magnitude = 0;
            for (std::size_t i = 0; i < size; ++i) {
                const double product = double{terms.value(k, i)} * terms.value(m, i);
                dot += product, magnitude += std::abs(product);
            }
            VERIFY(close(products[k * K + m], dot, magnitude));
            VERIFY(equal(products[k * K + m], products[m * K + k]));
        }
    }
    use_simd("baseline");
    gram(std::vector(terms.payloads.rbegin(), terms.payloads.rend()), backwards, 1);
    VERIFY(std::equal(products.begin(), products.end(), backwards.rbegin(), equal));
    squared_norms(terms.payloads, squares, 1);
    for (std::size_t k = 0; k < K; ++k) VERIFY(equal(squares[k], products[k * K + k]));
}

void try_payloads(Input& input) {
    const std::size_t size = input.size();
    std::vector<Owned> owned;
    std::vector<std::vector<float>> codes;
    for (std::size_t k = 1 + input.up_to(2); k > 0; --k) {
        if (!owned.empty() && !owned.back().codes.empty() && input.up_to(3) == 3) {
            owned.push_back(owned.back());  // but for one bit, as the order of terms must tell them apart
            owned.back().codes.back() ^= 1;
            owned.back().tamed = false;
        } else {
            owned.push_back(payload_from(input, size));
        }
        const bool sound = lengths_are_right(owned.back());
        codes.push_back(sound ? unpacked(owned.back().payload()) : std::vector<float>());
        try_payload(input, owned.back(), codes.back(), sound);
    }

    Terms terms;
    bool sound = true;
    const bool many = size < 300 && input.up_to(15) == 15;
    for (std::size_t k = 1 + input.up_to(many ? 40 : 3); k > 0; --k) {
        const std::size_t choice = input.up_to(owned.size() - 1);
        terms.order.push_back(terms.payloads.size());
        terms.payloads.push_back(owned[choice].payload());
        terms.codes.push_back(&codes[choice]);
        const std::size_t kind = input.up_to(3);
        if (kind == 0) terms.weights.push_back(input.take<float>());
        if (kind == 1) terms.weights.push_back(input.take<std::int8_t>() / 64.0f);
        if (kind > 1) terms.weights.push_back(0.1f);
        sound = sound && lengths_are_right(owned[choice]) && std::isfinite(terms.weights.back());
    }
    if (input.up_to(63) == 63) {
        terms.weights.resize(input.up_to(9));
        sound = sound && terms.weights.size() == terms.payloads.size();
    }
    if (sound) {
        std::sort(terms.order.begin(), terms.order.end(), [&](std::size_t a, std::size_t b) {
            return comes_before(terms.payloads[a], terms.weights[a], terms.payloads[b], terms.weights[b]);
        });
    }
    std::vector<float> out(size, 2.0f);
    choose_simd(input);
    VERIFY(refused([&] { aggregate(terms.payloads, terms.weights, out, threads_from(input)); }) == !sound);
    for (std::size_t i = 0; i < size; ++i) VERIFY(same(out[i], sound ? terms.sum(i) : 2.0f));
    if (!sound) return;
    switch (input.up_to(2)) {
        case 0:
            return try_robust_means(input, terms, size);
        case 1:
            return try_stats(input, terms, out);
        default:
            return try_gram(input, terms, size);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t count) {
    Input input(bytes, count);
    try_payloads(input);
    return 0;
}
