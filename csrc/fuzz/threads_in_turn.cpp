// Linked into the fuzz targets in place of threads.cpp: the same ranges of work, without the threads, which
// would take most of the time, and without a least size, which small inputs would never reach. The last range
// comes first: none may rely on the one before it. Real threads are tested by csrc/tests/test_threads.cpp.
#include <algorithm>
#include <stdexcept>

#include "threads.h"

namespace fgrpo {

int available_threads() { return 3; }

std::size_t most_threads(int threads) {
    return static_cast<std::size_t>(threads == 0 ? available_threads() : std::max(threads, 1));
}

void parallel_for(std::size_t count, std::size_t, int threads,
                  const std::function<void(std::size_t, std::size_t)>& body) {
    if (threads < 0) throw std::invalid_argument("threads must be 0 or more");
    const std::size_t ranges = std::clamp<std::size_t>(count, 1, most_threads(threads));
    for (std::size_t range = ranges; range-- > 0;) {
        body(count * range / ranges, count * (range + 1) / ranges);
    }
}

}  // namespace fgrpo
