// The number of threads that this process may use: what affinity and the container's CPU quota allow, not what the host has.
#ifndef DIFFUSEVAE_THREADS_H
#define DIFFUSEVAE_THREADS_H

#include <cstdint>
#include <optional>
#include <string>

namespace diffusevae {

// The count to use: default_threads() for nothing, else the count asked for; Error (ARGUMENT) for anything but 1 up to four
// times the machine's processors (at least 16).
int resolve_threads(std::optional<int64_t> asked);

// min(affinity, CPU quota of the control group and all above it), at least 1. A quota of 1.5 processors counts as 1: a
// second thread would be stopped for half of each period. root: where proc and sys are looked for.
int default_threads(const std::string& root = "/", std::optional<int> affinity = std::nullopt);

// The smallest CPU quota, in processors, over this process's control groups (v1 and v2); infinity without one.
double cpu_quota(const std::string& root);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_THREADS_H
