// libFuzzer target for sparse_delta.h: updates between any two models, updates made by hand with and without
// the right hashes, damaged ones, arbitrary bytes. Compared with update_specification.h and between instruction
// sets and thread counts.
#include <limits>

#include "input.h"
#include "update_specification.h"

using namespace fgrpo;
using namespace fgrpo::fuzz;

namespace {

using Update = std::vector<std::uint8_t>;

// Mostly few values, now and then more than one block.
std::size_t size_from(Input& input) {
    if (input.up_to(255) == 255 && input.flag()) return kUpdateBlock + input.up_to(255);
    return input.up_to(input.flag() ? 20 : 255);
}

Update encoded(const Model& updated, const Model& base, int threads) {
    Update update(update_bound(updated.size()));
    update.resize(encode_update(updated, base, update, threads));
    update.shrink_to_fit();
    return update;
}

// Gives an update the hashes of what it starts from and leads to.
void sign(Update& update, const Model& base, const Model& result) {
    const Update of_library = encoded(result, base, 1);
    std::copy_n(of_library.begin() + 16, 16, update.begin() + 16);
}

// That the library follows an update as the specification does, or refuses it as that does.
void verify_applied(Input& input, const Update& update, const Model& base) {
    std::optional<Model> expected = followed(update, base);
    if (expected) {
        const Update of_library = encoded(*expected, base, 1);
        if (!std::equal(&of_library[16], &of_library[32], &update[16])) expected.reset();
    }
    choose_simd(input);
    const int threads = threads_from(input);
    Model out(base.size());
    switch (input.up_to(2)) {
        case 0:
            VERIFY(refused([&] { check_update(base, update, threads); }) == !expected);
            return;
        case 1:
            VERIFY(refused([&] { apply_update(base, update, out, threads); }) == !expected);
            VERIFY(!expected || out == *expected);
            return;
        default:
            out = base;
            VERIFY(refused([&] { apply_update(out, update, out, threads); }) == !expected);
            VERIFY(out == (expected ? *expected : base));
    }
}

void damage(Input& input, Update& update) {
    for (std::size_t i = input.up_to(3); i > 0 && !update.empty(); --i) {
        update[input.take<std::uint16_t>() % update.size()] ^= input.take<std::uint8_t>();
    }
    if (input.up_to(7) == 7) update.resize(input.take<std::uint16_t>() % (update.size() + 10));
}

void try_round_trip(Input& input) {
    const Model base = input.values<bfloat16>(size_from(input));
    Model updated = base;
    if (input.up_to(3) == 0 && base.size() < kUpdateBlock) updated = input.values<bfloat16>(base.size());
    for (std::size_t i = input.up_to(30); i > 0 && !base.empty(); --i) {
        bfloat16& value = updated[input.take<std::uint16_t>() % base.size()];
        value = moved(value, input.flag() ? input.up_to(3) : input.take<std::uint16_t>());
    }
    use_simd("baseline");
    Update update = encoded(updated, base, 1);
    const std::size_t blocks = (base.size() + kUpdateBlock - 1) / kUpdateBlock;
    VERIFY(update.size() <= 2 * base.size() + 3 * blocks + 40);
    VERIFY(base != updated || update.size() == 2 * blocks + 40);
    VERIFY(followed(update, base) == updated);
    choose_simd(input);
    VERIFY(encoded(updated, base, threads_from(input)) == update);
    verify_applied(input, update, base);
    damage(input, update);
    verify_applied(input, update, base);
}

// A block of any bytes, or of a form with fields that may well be right.
Update block_from(Input& input, std::size_t N) {
    const std::size_t form = input.up_to(4);
    Update block;
    if (form == 0) {
        block.push_back(0);
        block.push_back(input.take<std::uint8_t>() & (input.flag() ? 0xff : 0x11));
        block.push_back(static_cast<std::uint8_t>(input.up_to(20)));
        block.push_back(0);
    } else if (form == 1) {
        block.push_back(1);
        block.push_back(input.take<std::uint8_t>() & 0xf0);
        const Update map = input.values<std::uint8_t>((N + 7) / 8);
        block.insert(block.end(), map.begin(), map.end());
        if (N % 8 && input.flag()) block.back() &= static_cast<std::uint8_t>((1 << N % 8) - 1);
    } else if (form == 2) {
        block.push_back(2);
    }
    const std::size_t count = form == 2 && input.flag() ? 2 * N : input.up_to(60);
    const Update bits = input.values<std::uint8_t>(count);
    block.insert(block.end(), bits.begin(), bits.end());
    // The last byte of codes must end in zeros where they end; only these bytes know where.
    if (input.flag() && !block.empty()) block.back() &= static_cast<std::uint8_t>((1 << input.up_to(7)) - 1);
    return block;
}

void try_made_by_hand(Input& input) {
    const Model base = input.values<bfloat16>(size_from(input));
    const std::size_t size = base.size();
    Update update = encoded(base, base, 1);
    update.resize(kUpdateHeader);
    Update blocks;
    for (std::size_t first = 0; first < size; first += kUpdateBlock) {
        const Update block = block_from(input, std::min(kUpdateBlock, size - first));
        VERIFY(block.size() <= 0xffff);
        update.push_back(static_cast<std::uint8_t>(block.size()));
        update.push_back(static_cast<std::uint8_t>(block.size() >> 8));
        blocks.insert(blocks.end(), block.begin(), block.end());
    }
    update.insert(update.end(), blocks.begin(), blocks.end());
    update.resize(update.size() + kUpdatePadding);
    update.shrink_to_fit();
    const std::optional<Model> result = followed(update, base);
    if (result && input.up_to(7) != 7) sign(update, base, *result);
    verify_applied(input, update, base);
}

void try_arbitrary(Input& input) {
    const Model base = input.values<bfloat16>(size_from(input));
    verify_applied(input, input.values<std::uint8_t>(input.up_to(255)), base);
}

void try_sizes_and_shared_memory(Input& input) {
    const std::size_t shift = input.up_to(63), huge = input.take<std::uint64_t>() >> shift;
    std::size_t bound = 0;
    VERIFY(refused([&] { bound = update_bound(huge); }) ==
           (huge > std::numeric_limits<std::size_t>::max() / 8));
    VERIFY(bound == 0 || bound > 2 * huge);

    const std::size_t size = input.up_to(30), bytes = update_bound(size);
    Update memory = input.values<std::uint8_t>(512);
    const Update before = memory;
    const auto place = [&](std::size_t length) {
        return std::min(2 * input.up_to(255), (memory.size() - length) / 2 * 2);
    };
    const auto meet = [](std::size_t a, std::size_t a_bytes, std::size_t b, std::size_t b_bytes) {
        return a_bytes && b_bytes && a < b + b_bytes && b < a + a_bytes;
    };
    const std::size_t updated = place(2 * size), base = place(2 * size), out = place(bytes);
    const auto model = [&](std::size_t at) {
        return std::span(reinterpret_cast<bfloat16*>(memory.data() + at), size);
    };
    const bool shared = meet(updated, 2 * size, out, bytes) || meet(base, 2 * size, out, bytes);
    std::size_t length = 0;
    VERIFY(shared == refused([&] {
               length = encode_update(model(updated), model(base), std::span(memory).subspan(out, bytes));
           }));
    if (shared) {
        VERIFY(memory == before);
        return;
    }
    const std::size_t target = input.flag() ? base : place(2 * size);
    const bool wrong =
        meet(target, 2 * size, out, length) || (target != base && meet(target, 2 * size, base, 2 * size));
    const Model expected(model(updated).begin(), model(updated).end());
    const bool was_refused =
        refused([&] { apply_update(model(base), std::span(memory).subspan(out, length), model(target)); });
    VERIFY(was_refused == wrong);
    VERIFY(wrong || std::equal(expected.begin(), expected.end(), model(target).begin()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t count) {
    Input input(bytes, count);
    switch (input.up_to(7)) {
        case 0:
            try_sizes_and_shared_memory(input);
            break;
        case 1:
            try_arbitrary(input);
            break;
        case 2:
        case 3:
        case 4:
            try_round_trip(input);
            break;
        default:
            try_made_by_hand(input);
    }
    return 0;
}
