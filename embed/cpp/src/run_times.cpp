#include "run_times.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "bundle/constants.h"

namespace diffusevae {
namespace {

void keep(std::deque<double>& window, double value) {
    window.push_back(value);
    if (int64_t(window.size()) > kWindow) window.pop_front();
}

// The element of this rank, counted from 0, among the sorted values.
double ranked(std::vector<double>& values, size_t rank) {
    std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(rank), values.end());
    return values[rank];
}

double median(const std::deque<double>& window) {
    std::vector<double> values(window.begin(), window.end());
    const size_t half = values.size() / 2;
    const double upper = ranked(values, half);
    return values.size() % 2 == 1 ? upper : (ranked(values, half - 1) + upper) / 2;
}

}  // namespace

void RunTimes::add(int64_t calls, double loop_ms, double total_ms) {
    keep(fixed_, total_ms - loop_ms);
    keep(call_, loop_ms / double(calls));
    pace_.fixed = median(fixed_);
    pace_.call = median(call_);
    keep(multiple_, total_ms / pace_.usual(calls));
    std::vector<double> values(multiple_.begin(), multiple_.end());
    pace_.quantile = ranked(values, std::min(values.size() - 1, size_t(std::ceil(kQuantile * double(values.size())))));
}

}  // namespace diffusevae
