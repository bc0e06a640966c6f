// Runs a fuzz target without libFuzzer, which only Clang has: on every file of the folders named on the
// command line, and on some thousands of inputs drawn at random, always the same ones.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t count);

int main(int argc, char** argv) {
    constexpr int kRandomInputs = 5000;
    int files = 0;
    for (int i = 1; i < argc; ++i) {
        for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
            std::ifstream file(entry.path(), std::ios::binary);
            const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
            LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
            ++files;
        }
    }
    std::mt19937 engine(0);
    for (int i = 0; i < kRandomInputs; ++i) {
        std::vector<std::uint8_t> bytes(engine() % 400);
        for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(engine());
        LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    }
    std::printf("%d files and %d random inputs passed\n", files, kRandomInputs);
}
