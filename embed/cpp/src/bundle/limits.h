// Limits of a manifest. Written by embed/cpp/generate_limits.py from engine/bundle/limits.py: change them there.
#ifndef DIFFUSEVAE_BUNDLE_LIMITS_H
#define DIFFUSEVAE_BUNDLE_LIMITS_H

#include <cstdint>

namespace diffusevae {

constexpr int64_t kFormatVersion = 3;
constexpr int64_t kMaxCalls = 64;
constexpr int64_t kMaxChannels = 65536;
constexpr int64_t kMaxClip = 1000000;
constexpr int64_t kMaxComponents = 65536;
constexpr int64_t kMaxDigits = 20;
constexpr int64_t kMaxDimension = 2147483648;
constexpr int64_t kMaxEngineBytes = 1099511627776;
constexpr int64_t kMaxGraphBytes = 2147483647;
constexpr int64_t kMaxGuidance = 100;
constexpr int64_t kMaxInputs = 32;
constexpr int64_t kMaxLanes = 4;
constexpr int64_t kMaxManifestBytes = 4194304;
constexpr int64_t kMaxOpset = 1000;
constexpr int64_t kMaxRank = 8;
constexpr int64_t kMaxSide = 65536;
constexpr int64_t kMaxT = 1000000;
constexpr int64_t kMaxTemperature = 100;
constexpr int64_t kMaxText = 200;

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_LIMITS_H
