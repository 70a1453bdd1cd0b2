// The clock of a run: a stopwatch that books what passed to a stage.
#ifndef DIFFUSEVAE_CLOCK_H
#define DIFFUSEVAE_CLOCK_H

#include <chrono>

namespace diffusevae {

class Clock {
public:
    // Milliseconds since the last lap, or since construction.
    double elapsed() const { return since(std::chrono::steady_clock::now()); }

    // The same, and begins another lap.
    double lap() {
        const auto now = std::chrono::steady_clock::now();
        const double passed = since(now);
        last_ = now;
        return passed;
    }

private:
    double since(std::chrono::steady_clock::time_point now) const {
        return std::chrono::duration<double, std::milli>(now - last_).count();
    }

    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_CLOCK_H
