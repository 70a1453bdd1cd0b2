#include "steps.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "checks.h"
#include "diffusevae/row.h"
#include "error.h"
#include "text.h"
#include "timesteps.h"

namespace diffusevae {
namespace {

static_assert(kRowWidth == kRowFields, "the fields of a row are those of the kernels");

constexpr double kNoLimit = std::numeric_limits<double>::infinity();
const char* const kNames[kRowWidth] = {
    "p_x", "p_e", "p_c", "p_y", "p_h1", "p_h2", "p_h3", "k_x0", "k_x", "k_e", "k_c", "k_n", "k_y", "k_h1", "k_h2", "k_h3",
    "k_g", "q_x0", "q_x", "q_e", "q_c", "q_n", "q_y", "q_h1", "q_h2", "q_h3", "q_g", "clip", "s_n",
    "c_in", "push"};

const Method& method_of(const std::string& name) {
    for (const Method& method : kSolvers)
        if (name == method.name) return method;
    throw Error(DIFFUSEVAE_INTERNAL, "method '" + name + "' is in the list, but nothing computes it");
}

// x_T = temperature noise, or at t_start a sample of q(x_t | start) (DDPM eq. 4); + the centre where there is one.
Start start_of(const Schedule& schedule, bool centred, const Setting& setting) {
    const double centre = centred ? 1.0 : 0.0;
    if (!setting.t_start) return {setting.temperature, 0.0, centre};
    const double a = schedule.alpha_bar[size_t(*setting.t_start)];
    return {setting.temperature * std::sqrt(1.0 - a), std::sqrt(a), centre};
}

// An entry of a scale by name: "eta", or "eta[3]" of a list.
std::string entry(const std::string& name, const Scale& scale, int64_t i) {
    return scale.list ? name + "[" + std::to_string(i) + "]" : name;
}

void check_scale(const std::string& name, const Scale& scale, double high) {
    for (int64_t i = 0; i < std::max<int64_t>(1, scale.list.count); ++i)
        check_number(entry(name, scale, i).c_str(), scale.at(i), 0.0, high);
}

void check(const Setting& setting, const Method& method, const std::string& prediction) {
    const Scale& eta = setting.eta;
    check_scale("eta", eta, 1.0);
    check_number("guide_scale", setting.guide_scale, -kNoLimit, kNoLimit);
    for (int64_t i = 0; i < std::max<int64_t>(1, eta.list.count); ++i)
        if (eta.at(i) != 0.0 && !method.takes_eta)
            refuse_argument(entry("eta", eta, i) + " is " + brief(eta.at(i)) + " with method '" + setting.method
                            + "'; only ddim and ddim_clipped take eta: leave it 0 or use method 'ddim'");
    if (setting.guide_scale != 0.0 && !method.takes_guide)
        refuse_argument("guide_scale is " + brief(setting.guide_scale) + " with method '" + setting.method + "'; only ddim_clipped and "
                        "ddpm take a guide: leave it 0 or use method 'ddim_clipped'");
    if (std::string_view(setting.regularise) != kOff && !method.takes_regulariser)
        refuse_argument("regularise is " + in_quotes(setting.regularise) + " with method '" + setting.method + "', whose steps look "
                        "back at earlier ones; only ddim, ddim_clipped, ddpm take a regulariser: leave it 'off' or use method 'ddim'");
    if (method.eps_only && prediction != "eps") {
        std::string others;
        for (const Method& other : kSolvers)
            if (!other.eps_only) others += (others.empty() ? "'" : " or '") + std::string(other.name) + "'";
        refuse_argument(std::string("method is '") + method.name + "', which is for eps prediction; this network predicts "
                        + prediction + ": use method " + others);
    }
    check_timesteps(setting);
    check_number("temperature", setting.temperature, 0.0, kNoLimit);
    check_scale("noise_scale", setting.noise_scale, kNoLimit);
    check_scale("eps_scale", setting.eps_scale, kNoLimit);
}

std::vector<double> each_step(const std::string& name, const Scale& scale, int64_t steps) {
    if (scale.list && scale.list.count != steps)
        refuse_argument(name + " lists " + std::to_string(scale.list.count) + " numbers; expected one, or "
                        + std::to_string(steps) + ", one a step");
    std::vector<double> each;
    for (int64_t i = 0; i < steps; ++i) each.push_back(scale.at(i));
    return each;
}

// Timesteps that an option is kept to.
struct Interval {
    const char *name, *option;
    std::optional<std::pair<int64_t, int64_t>> ends;
    bool used;  // whether the option is given at all
    const char* none = "0";  // what it is otherwise
};

// Whether the interval holds each row; refuses one that says nothing.
std::vector<bool> rows_within(const Interval& interval, const std::vector<int64_t>& timesteps, int64_t T) {
    if (!interval.ends) return std::vector<bool>(timesteps.size(), true);
    const auto [low, high] = *interval.ends;
    const std::string found = std::string(interval.name) + " is (" + std::to_string(low) + ", " + std::to_string(high) + ")";
    if (!(0 <= low && low <= high && high < T))
        refuse_argument(found + "; expected two timesteps of 0 .. " + std::to_string(T - 1) + ", the lower one first");
    const std::string option = interval.option;
    if (!interval.used)
        refuse_argument(found + ", but " + option + " is " + interval.none + "; expected " + option + " beside it. Pass " + option + ", or leave it out");
    std::vector<bool> within;
    for (const int64_t t : timesteps) within.push_back(low <= t && t <= high);
    if (std::find(within.begin(), within.end(), true) == within.end())
        refuse_argument(found + ", which holds none of this chain's timesteps, " + std::to_string(timesteps.front()) + " to "
                        + std::to_string(timesteps.back()) + "; widen it");
    return within;
}

Levels levels_of(const Schedule& schedule, const Manifest& manifest, const Setting& setting) {
    const std::vector<int64_t> kept = kept_timesteps(schedule.alpha_bar, setting);
    Levels levels;
    const double end = is_leading(setting) ? schedule.alpha_bar[0] : 1.0;  // 1 returns x0
    levels.timesteps.assign(kept.rbegin(), kept.rend());
    for (size_t i = 0; i < kept.size(); ++i) {
        const bool last = i + 1 == kept.size();
        levels.alpha_bar.push_back(schedule.alpha_bar[size_t(levels.timesteps[i])]);
        levels.previous.push_back(last ? end : schedule.alpha_bar[size_t(levels.timesteps[i + 1])]);
    }
    levels.prediction = manifest.prediction;
    levels.centred = manifest.pipeline.state.centre.has_value();
    levels.variance = setting.variance;
    levels.eta = each_step("eta", setting.eta, int64_t(kept.size()));
    levels.noise_scale = each_step("noise_scale", setting.noise_scale, int64_t(kept.size()));
    levels.eps_scale = each_step("eps_scale", setting.eps_scale, int64_t(kept.size()));
    const Interval guide{"guide_interval", "guide_scale", setting.guide_interval, setting.guide_scale != 0.0};
    for (const bool guided : rows_within(guide, levels.timesteps, schedule.T))
        levels.guide_scale.push_back(guided ? setting.guide_scale : 0.0);
    return levels;
}

// Whether the regulariser runs at the level that each step begins at.
std::vector<bool> regularised_steps(const Setting& setting, const std::vector<int64_t>& timesteps, int64_t T) {
    const std::string_view mode = setting.regularise;
    const bool after = mode == kAfter;
    if (after && timesteps.size() == 1)
        refuse_argument("regularise is 'after' with one step, and nothing comes after the last; expected two steps or more, or "
                        "regularise='before'");
    const std::vector<int64_t> there(timesteps.begin() + (after ? 1 : 0), timesteps.end());
    std::vector<bool> runs = rows_within({"regularise_interval", "regularise", setting.regularise_interval, mode != kOff, kOff}, there, T);
    if (after) runs.insert(runs.begin(), false);
    if (mode == kOff) runs.assign(timesteps.size(), false);
    return runs;
}

// The rows of a chain with the network that each of them calls; engine/solver/regulariser.py says what stands where.
struct Chained {
    Columns columns;
    std::vector<int64_t> nets;
};

Chained with_regulariser(const Method& method, const Levels& levels, const RegulariserSpec& spec, bool after,
                         const std::vector<bool>& runs) {
    Levels second = levels;
    second.prediction = spec.prediction;
    second.eps_scale.assign(levels.steps(), 1.0);
    Columns own = method.solve(levels);
    Columns steps = after ? own : method.solve(second);
    Chained chained{Columns(levels.steps() + size_t(std::count(runs.begin(), runs.end(), true))), {}};
    size_t at = 0;
    const auto add = [&](size_t step, int64_t net) {
        chained.columns.timesteps[at] = levels.timesteps[step];
        chained.nets.push_back(net);
        return chained.columns.row(at++);
    };
    for (size_t i = 0; i < levels.steps(); ++i) {
        if (runs[i]) noise_again(after ? second : levels, i, add(i, after ? 1 : 0));
        std::copy_n((runs[i] ? steps : own).row(i), kRowWidth, add(i, runs[i] && !after ? 1 : 0));
    }
    return chained;
}

[[noreturn]] void refuse_row(int64_t i, int field, float found, const std::string& expected) {
    refuse_argument("rows[" + std::to_string(i) + "]." + kNames[field] + " is " + brief(double(found)) + "; expected "
                    + expected);
}

void check_slots(int64_t i, const float* row, int pushed, bool written) {
    const int history[3][3] = {{kPH1, kKH1, kQH1}, {kPH2, kKH2, kQH2}, {kPH3, kKH3, kQH3}};
    for (int depth = 1; depth <= 3; ++depth)
        for (const int field : history[depth - 1])
            if (row[field] != 0.0f && pushed < depth)
                refuse_row(i, field, row[field], "0: h" + std::to_string(depth) + " is read before it is written, which takes "
                                                     + std::to_string(depth) + " pushes in earlier rows");
    for (const int field : {kPY, kKY, kQY})
        if (row[field] != 0.0f && !written)
            refuse_row(i, field, row[field], "0: y is read before it is written, which takes a q in an earlier row");
}

}  // namespace

int64_t StepTable::active_lanes(int64_t i) const {
    return std::any_of(weight(i) + 1, weight(i) + lanes, [](float w) { return w != 0.0f; }) ? lanes : 1;
}

bool StepTable::any(std::initializer_list<int> fields, float usual) const {
    for (int64_t i = 0; i < calls(); ++i)
        for (const int field : fields)
            if (row(i)[field] != usual) return true;
    return false;
}

bool StepTable::uses_y() const {
    return any({kPY, kKY, kQX0, kQX, kQE, kQC, kQN, kQY, kQH1, kQH2, kQH3, kQG});
}

std::array<float, kRowWidth> mean_row(const float* row) {
    std::array<float, kRowWidth> mean{};
    std::copy_n(row, kRowWidth, mean.begin());
    std::fill(mean.begin() + kQX0, mean.begin() + kQG + 1, 0.0f);
    mean[kKN] = mean[kKG] = mean[kSN] = mean[kPush] = 0.0f;
    return mean;
}

void check_table(const StepTable& table, bool guide) {
    int pushed = 0;
    bool written = false;
    for (int64_t i = 0; i < table.calls(); ++i) {
        const float* row = table.row(i);
        for (int field = 0; field < kRowWidth; ++field)
            if (field != kClip && !std::isfinite(row[field])) refuse_row(i, field, row[field], "a finite number");
        if (!(row[kClip] >= 0)) refuse_row(i, kClip, row[kClip], "0 or more, or infinity for no limit");
        if (row[kPush] != 0 && row[kPush] != 1 && row[kPush] != 2)
            refuse_row(i, kPush, row[kPush], "0 (nothing), 1 (e) or 2 (x0)");
        for (const int field : {kKG, kQG})
            if (row[field] != 0 && !guide) refuse_row(i, field, row[field], "0: there is no guide");
        check_slots(i, row, pushed, written);
        pushed += row[kPush] != 0 ? 1 : 0;
        written = written || std::any_of(row + kQX0, row + kQG + 1, [](float q) { return q != 0.0f; });
        for (int64_t lane = 0; lane < table.lanes; ++lane)
            if (!std::isfinite(table.weight(i)[lane]))
                refuse_argument("weights holds values that are NaN or infinite; expected finite numbers");
    }
}

Halves halves_of(const float* row) {
    Halves halves{};
    std::copy_n(row, kRowWidth, halves.second.begin());
    for (int field = kPX; field <= kPH3; ++field) {
        halves.first[size_t(field)] = row[field];
        halves.second[size_t(field)] = 0.0f;
    }
    halves.first[kClip] = row[kClip];
    halves.first[kCIn] = row[kCIn];
    halves.first[kKX0] = 1.0f;
    halves.second[kClip] = std::numeric_limits<float>::infinity();
    halves.second[kKG] = row[kKX0];
    halves.second[kQG] = row[kQX0];
    halves.second[kKX0] = halves.second[kQX0] = 0.0f;
    if (row[kPush] == kPushX0) halves.second[kPush] = 0.0f;
    return halves;
}

StepTable build_step_table(const Schedule& schedule, const Manifest& manifest, const Setting& setting) {
    const Method& method = method_of(setting.method);
    check(setting, method, manifest.prediction);
    const StateSpec& state = manifest.pipeline.state;
    const Levels levels = levels_of(schedule, manifest, setting);
    const std::vector<bool> runs = regularised_steps(setting, levels.timesteps, schedule.T);
    const std::optional<RegulariserSpec>& second = manifest.pipeline.regulariser;
    const bool regularised = std::find(runs.begin(), runs.end(), true) != runs.end();
    if (regularised && !second) refuse_argument("regularise is " + in_quotes(setting.regularise) + ", but there is no regulariser; expected 'off'");
    const bool after = std::string_view(setting.regularise) == kAfter;
    Chained chained = regularised ? with_regulariser(method, levels, *second, after, runs) : Chained{method.solve(levels), {}};
    Columns& columns = chained.columns;
    const size_t calls = columns.timesteps.size();
    const Interval guidance{"guidance_interval", "guidance", setting.guidance_interval, setting.guided()};
    const std::vector<bool> guided = rows_within(guidance, columns.timesteps, schedule.T);
    StepTable table{columns.timesteps, std::vector<float>(calls * kRowWidth), {}, setting.guided() ? 2 : 1,
                    start_of(schedule, levels.centred, setting), chained.nets};
    for (size_t i = 0; i < calls; ++i) {
        double* row = columns.row(i);
        row[kClip] = setting.clip && state.clip ? *state.clip : kNoLimit;
        row[kCIn] = 1.0;
        if (i + 1 == calls && levels.centred) row[kKC] -= 1.0;  // the image is x_0 without the centre it was carried around
        for (int field = 0; field < kRowWidth; ++field)
            table.rows[i * kRowWidth + size_t(field)] = float(row[field] + 0.0);  // no negative zeros
        if (setting.guided()) {
            const double w = guided[i] && !table.regularised(int64_t(i)) ? setting.guidance : 0.0;
            table.weights.insert(table.weights.end(), {float(1.0 + w), float(0.0 - w)});
        } else {
            table.weights.push_back(1.0f);
        }
    }
    check_table(table, setting.guide_scale != 0.0);
    return table;
}

}  // namespace diffusevae
