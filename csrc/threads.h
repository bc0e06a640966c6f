#pragma once

#include <cstddef>
#include <functional>

namespace fgrpo {

// Cores that this process may run on (its affinity mask).
int available_threads();

// How many threads parallel_for may use, where `threads` is what it is given; of what it refuses, 1.
std::size_t most_threads(int threads);

// Runs body(begin, end) over contiguous ranges that cover [0, count), on at most `threads` threads (0: all
// cores), each range `grain` or longer. The float environment inside is the default one. Returns when every
// range is done; body must not throw.
void parallel_for(std::size_t count, std::size_t grain, int threads,
                  const std::function<void(std::size_t, std::size_t)>& body);

}  // namespace fgrpo
