// What runs of one size took on this machine, and the time that nearly all of them keep; engine/deadline.py is the same in Python.
#ifndef DIFFUSEVAE_RUN_TIMES_H
#define DIFFUSEVAE_RUN_TIMES_H

#include <cstdint>
#include <deque>

namespace diffusevae {

// A run of K calls usually takes fixed + K call milliseconds.
struct Pace {
    double fixed = 0.0, call = 0.0;
    double quantile = 0.0;  // of the multiple of that which a run took

    double usual(int64_t calls) const { return fixed + double(calls) * call; }  // half of all runs keep it
    double kept(int64_t calls) const { return usual(calls) * quantile; }        // kQuantile of all runs keep it
};

// The last kWindow runs of one number of samples and lanes.
class RunTimes {
public:
    // Books a run of so many calls, of whose milliseconds `loop_ms` passed between its first call and its last update.
    void add(int64_t calls, double loop_ms, double total_ms);
    const Pace& pace() const { return pace_; }

private:
    std::deque<double> fixed_, call_, multiple_;
    Pace pace_;
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_RUN_TIMES_H
