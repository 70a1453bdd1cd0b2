// The clock of a run: a stopwatch that books what passed to a stage.
#ifndef DIFFUSEVAE_CLOCK_H
#define DIFFUSEVAE_CLOCK_H

#include <chrono>

namespace diffusevae {

class Clock {
public:
    // Milliseconds since the last call, or since construction.
    double lap() {
        const auto now = std::chrono::steady_clock::now();
        const double passed = std::chrono::duration<double, std::milli>(now - last_).count();
        last_ = now;
        return passed;
    }

private:
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_CLOCK_H
