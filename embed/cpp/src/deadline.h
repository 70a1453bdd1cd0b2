// Sampling within a budget of time: which fitted setting this machine keeps. engine/deadline.py explains the rule, and is the
// same in Python.
#ifndef DIFFUSEVAE_DEADLINE_H
#define DIFFUSEVAE_DEADLINE_H

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bundle/manifest.h"
#include "clock.h"
#include "diffusevae.h"
#include "request.h"
#include "run_times.h"

namespace diffusevae {

// Milliseconds from call to images, and what to do where they do not suffice.
struct Budget {
    double milliseconds;
    bool at_most, anytime;
};

// Nothing without a budget; Error (ARGUMENT) for what is none.
std::optional<Budget> budget_of(const diffusevae_sample_options& given);

// The settings that a budget chooses among, the best first. Error (ARGUMENT) where there are none, or another is asked for.
const std::vector<Defaults>& settings_within(const Manifest& manifest, const std::string& path,
                                             const diffusevae_sample_options& given);

// The settings of the fewest and of the most calls.
std::pair<const Defaults*, const Defaults*> ends_of(const std::vector<Defaults>& settings);

// The best of the settings that keeps the budget; Error (DEADLINE) where none does. n: number of images.
const Defaults& choose(const Budget& budget, const std::vector<Defaults>& settings, const Pace& pace, int64_t n);

// Run times by size: clones run the same weights in as many threads, and share them.
class Times {
public:
    // Samples, lanes, and what else makes a call longer: guidance_interval and quantize_denoised.
    using Size = std::tuple<int64_t, int64_t, std::optional<std::pair<int64_t, int64_t>>, bool>;

    std::optional<Pace> pace(const Size& size) const;
    // The runs that were measured first; those of another clone, if it was faster, stay.
    Pace measured(const Size& size, RunTimes times);
    Pace add(const Size& size, int64_t calls, const diffusevae_timings& timings);

private:
    mutable std::mutex lock_;
    std::map<Size, RunTimes> times_;
};

// Ends a chain where another call would end after the budget; the last prediction is the image then.
class Watcher {
public:
    Watcher(Watch watch, const Clock& began, double budget_ms, int64_t calls)
        : watch_(std::move(watch)), began_(began), budget_ms_(budget_ms), done_(calls) {}

    After operator()(const diffusevae_step& seen);
    int64_t done() const { return done_; }  // calls that every sample had

private:
    const Watch watch_;
    const Clock& began_;
    const double budget_ms_;
    double last_ = 0.0;
    int64_t done_;
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_DEADLINE_H
