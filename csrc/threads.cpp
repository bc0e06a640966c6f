#include "threads.h"

#include <algorithm>
#include <cfenv>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace fgrpo {
namespace {

// Torch may have set flush-to-zero on the caller's thread but not on ours; the same bits need the same
// environment.
class DefaultFloatEnvironment {
  public:
    DefaultFloatEnvironment() {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultFloatEnvironment() { std::fesetenv(&saved_); }
    DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
    DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

  private:
    std::fenv_t saved_;
};

}  // namespace

int available_threads() {
#if defined(__linux__)
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof(cores), &cores) == 0) return std::max(1, CPU_COUNT(&cores));
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

std::size_t most_threads(int threads) {
    return static_cast<std::size_t>(threads == 0 ? available_threads() : std::max(threads, 1));
}

void parallel_for(std::size_t count, std::size_t grain, int threads,
                  const std::function<void(std::size_t, std::size_t)>& body) {
    if (threads < 0)
        throw std::invalid_argument("threads must be 0 (every core) or more, got " + std::to_string(threads));
    const std::size_t ranges = std::clamp<std::size_t>(count / grain, 1, most_threads(threads));
    const auto run = [&](std::size_t range) {
        const DefaultFloatEnvironment environment;
        body(count * range / ranges, count * (range + 1) / ranges);
    };
    // Starting a thread costs about 20 microseconds; a pool that lives on would not survive a fork().
    std::vector<std::thread> workers;
    workers.reserve(ranges - 1);
    std::size_t next = 1;
    try {
        for (; next < ranges; ++next) workers.emplace_back(run, next);
    } catch (const std::system_error&) {
        // The system gives no more threads: the caller's thread does what is left.
    }
    run(0);
    for (; next < ranges; ++next) run(next);
    for (std::thread& worker : workers) worker.join();
}

}  // namespace fgrpo
