// Compile without contraction (-ffp-contract=off), and keep the order of the operations.
#include "guides.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <string_view>

#include "bundle/guides.h"
#include "diffusevae/row.h"
#include "error.h"

namespace diffusevae {
namespace {

// The sum of squares in float64, added up in pairs of blocks in the order of numpy's sum.
double sum_of_squares(const float* x, int64_t count) {
    constexpr int64_t kBlock = 128, kSums = 8;
    const auto square = [x](int64_t at) { return double(x[at]) * double(x[at]); };
    if (count > kBlock) {
        const int64_t half = count / 2 - count / 2 % kSums;
        return sum_of_squares(x, half) + sum_of_squares(x + half, count - half);
    }
    int64_t at = 0;
    double sum = 0.0;
    if (count >= kSums) {
        double sums[kSums];
        for (; at < kSums; ++at) sums[at] = square(at);
        for (; at < count - count % kSums; ++at) sums[at % kSums] += square(at);
        sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
    for (; at < count; ++at) sum += square(at);
    return sum;
}

bool is_finite(const Tensor& tensor, int64_t sample) {
    const size_t count = tensor.sample_size() / sizeof(float);
    const float* const first = tensor.floats() + size_t(sample) * count;
    return std::all_of(first, first + count, [](float value) { return std::isfinite(value); });
}

}  // namespace

void Guides::begin(const StepTable& table, const Call& call) {
    std::set<size_t> taken;
    for (int64_t i = 0; i < table.calls(); ++i)
        if (table.guided(i)) taken.insert(guide_of(guides_, table.timesteps[size_t(i)]));
    const auto kept = [&](size_t index) { return !guides_[index].rows || tables_.count(index) != 0; };
    if (timesteps_ == table.timesteps && std::all_of(taken.begin(), taken.end(), kept)) return;
    timesteps_.clear();
    tables_.clear();
    Tensor timesteps;
    timesteps.prepare(Dtype::kInt64, {table.calls()});
    std::memcpy(timesteps.data(), table.timesteps.data(), timesteps.size());
    for (const size_t index : taken) {
        if (!guides_[index].rows) continue;
        Tensors made;
        call(*guides_[index].rows, [&](const std::string&) -> const Tensor& { return timesteps; }, made);
        tables_[index] = std::move(made[kRows]);
    }
    timesteps_ = table.timesteps;
}

const float* Guides::gradient(const GuidedRow& row, const Find& value, const Call& call, const std::string& where) {
    const size_t index = guide_of(guides_, row.table.timesteps[size_t(row.i)]);
    const GuideSpec& guide = guides_[index];
    if (guide.rows) {
        const Tensor& table = tables_.at(index);
        own_row_.prepare(Dtype::kFloat32, {1, table.shape()[1]});
        std::memcpy(own_row_.data(), static_cast<const char*>(table.data()) + size_t(row.i) * own_row_.size(), own_row_.size());
    }
    call(guide.step, [&](const std::string& name) -> const Tensor& { return name == kRows ? own_row_ : value(name); }, made_);
    check(row, guide, where);
    scale(row, guide);
    return made_.at(kG).floats();
}

void Guides::check(const GuidedRow& row, const GuideSpec& guide, const std::string& where) const {
    for (int64_t sample = 0; sample < row.x.samples(); ++sample)
        for (const auto& [port, name] : guide.step.outputs) {
            if (is_finite(made_.at(name), sample)) continue;
            throw Error(DIFFUSEVAE_NUMERICS,
                        "The guide '" + guide.step.graph + "' (" + where + ") returned NaN or infinity at step "
                            + std::to_string(row.i + 1) + " of " + std::to_string(row.table.calls()) + " (timestep "
                            + std::to_string(row.table.timesteps[size_t(row.i)]) + ") for sample "
                            + std::to_string(row.first + sample) + "; every value was expected to be finite. Pass a smaller "
                              "guide_scale if the images before it had run away; if it persists at guide_scale=0.001, build the "
                              "bundle again from the classifier's file.");
        }
}

void Guides::scale(const GuidedRow& row, const GuideSpec& guide) {
    float* const g = made_.at(kG).floats();
    const int64_t n = row.x.samples(), count = int64_t(row.x.sample_size() / sizeof(float));
    const float spread = row.table.row(row.i)[kSN];
    for (int64_t at = 0; spread != 0.0f && at < n * count; ++at) {  // sigma^2 at each element, as the network has learned it
        const float share = exponential(spread * row.v[at]);
        g[at] = (share * share) * g[at];
    }
    const std::string_view mode = row.mode;
    if (mode == kConstant) return;
    const float* const mean = mode == kByNorm ? row.mean() : nullptr;
    for (int64_t sample = 0; sample < n; ++sample) {
        float* const own = g + sample * count;
        float factor;
        if (mode == kByEntropy) {
            factor = float(std::log(double(guide.classes))) / std::max(made_.at(kEntropy).floats()[sample], float(kLeastEntropy));
        } else {
            const double length = std::sqrt(sum_of_squares(own, count));
            factor = float(std::sqrt(sum_of_squares(mean + sample * count, count)) / std::max(length, kLeastNorm));
        }
        for (int64_t at = 0; at < count; ++at) own[at] = own[at] * factor;
    }
}

}  // namespace diffusevae
