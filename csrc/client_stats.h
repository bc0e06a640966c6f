// What aggregate_with_stats() learns of each client, from codes that have just been added up and are in the cache.
#pragma once

#include <span>

#include "order.h"

namespace fgrpo {

// Adds to stats[k] what the values from `first` on, which starts a tile, say of terms[k]; `mean` is their sum, at most
// a tile.
void add_client_stats(std::span<const Weighted> terms, std::size_t first, std::span<const float> mean,
                      ClientStats* stats);

}  // namespace fgrpo
