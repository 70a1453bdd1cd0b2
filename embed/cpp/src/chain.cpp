#include "chain.h"

#include <algorithm>

#include "checks.h"
#include "clock.h"
#include "diffusevae/kernels.h"
#include "diffusevae/row.h"
#include "error.h"
#include "noise.h"

namespace diffusevae {
namespace {

// Up to this many samples, one call on all lanes replaces one a lane; as in engine/backends/workspace.py.
constexpr int64_t kFoldLimit = 8;
constexpr const char* kReady = ". No batch was made; the sampler is ready for the next call.";

std::string step_text(const Chain& chain, int64_t i) {
    return "step " + std::to_string(i + 1) + " of " + std::to_string(chain.table.calls()) + " (timestep "
           + std::to_string(chain.table.timesteps[size_t(i)]) + ")";
}

[[noreturn]] void fail_not_finite(const Chain& chain, int64_t i) {
    const std::string& name = chain.table.regularised(i) ? chain.second_name : chain.graph_name;
    throw Error(DIFFUSEVAE_NUMERICS, "The graph '" + name + "' (" + chain.where + ") returned NaN or infinity at "
                                         + step_text(chain, i)
                                         + "; every value was expected to be finite. Open the bundle in another precision; if "
                                           "it persists, check the inputs, x_T and noise you passed, and build the bundle "
                                           "again from its checkpoint.");
}

[[noreturn]] void fail_cancelled(const Chain& chain, int64_t i) {
    throw Error(DIFFUSEVAE_CANCELLED, "diffusevae_cancel stopped the run before " + step_text(chain, i) + kReady);
}

float* pointer(std::vector<float>& buffer) { return buffer.empty() ? nullptr : buffer.data(); }

bool copies_input(const StepTable& table) { return table.lanes > 1 || table.any({kCIn}, 1.0f); }

// ---- in one call -------------------------------------------------------------------------------------------------------

// Asked before each row, and between the tiles of a large batch.
int32_t is_cancelled(void* user) {
    return static_cast<const std::atomic<bool>*>(user)->load(std::memory_order_relaxed) ? 1 : 0;
}

// Noise of this chunk as one array, [R, n, ...]: a copy where it lies inside that of a larger batch.
const float* contiguous_noise(const Chain& chain, int64_t n, int64_t count, std::vector<float>& copy) {
    const ChainNoise& noise = chain.noise;
    if (!noise.start || noise.row_stride == (noise.sample_stride == 0 ? count : n * count)) return noise.start;
    copy.resize(memory_size({chain.table.calls(), n, count}));
    for (int64_t i = 0; i < chain.table.calls(); ++i) std::copy_n(noise.of(i), n * count, copy.data() + i * n * count);
    return copy.data();
}

bool run_in_one_call(const Chain& chain, Workspace& work, diffusevae_timings& timings, std::vector<double>& step_ms) {
    const StepTable& table = chain.table;
    // Noise that is laid out in blocks is not drawn inside that call.
    if (chain.layout.in_blocks() && !chain.noise.start && table.any({kKN, kQN})) return false;
    std::vector<float> noise;
    const float* const given = contiguous_noise(chain, work.n, int64_t(work.x.sample_size() / sizeof(float)), noise);
    Loop loop{chain.x_port,
              chain.row_port,
              chain.e_port,
              chain.v_port,
              chain.constants,
              table.calls(),
              table.lanes,
              work.n,
              chain.row_count,
              chain.embeddings,
              table.rows.data(),
              table.weights.data(),
              work.x.floats(),
              pointer(work.x_in),
              work.e.data(),
              pointer(work.v),
              chain.centre,
              pointer(work.y),
              pointer(work.h),
              given ? nullptr : chain.seeds,
              given,
              chain.noise.sample_stride == 0,
              is_cancelled,
              const_cast<std::atomic<bool>*>(&chain.cancelled),
              {}};
    const LoopEnd end = chain.graph.run_loop(loop);
    if (end == LoopEnd::kUnavailable) return false;
    if (end == LoopEnd::kStopped) fail_cancelled(chain, loop.failed);
    if (end == LoopEnd::kNotFinite) fail_not_finite(chain, loop.failed);
    for (size_t i = 0; i < loop.step_ms.size(); ++i) {
        step_ms[i] += loop.step_ms[i];
        timings.network_ms += loop.step_ms[i];
    }
    timings.first_step_ms += loop.step_ms.front();
    timings.update_ms += loop.update_ms;
    timings.network_calls += table.calls();
    return true;
}

// ---- row by row --------------------------------------------------------------------------------------------------------

class Rows {
public:
    Rows(const Chain& chain, Workspace& work)
        : chain_(chain), work_(work), count_(int64_t(work.x.sample_size() / sizeof(float))), state_(work.n * count_) {
        for (int64_t depth = 0; depth < 3 && !work.h.empty(); ++depth) history_[depth] = work.h.data() + depth * state_;
    }

    // x <- keep (signal known + c + sigma n) + (1 - keep) x before row i, but for one that takes a step once more.
    void blend_in(int64_t i) {
        const float* const row = chain_.table.row(i);
        if (row[kPY] != 0.0f || row[kKY] != 0.0f) return;
        const ChainBlend& blend = *chain_.blend;
        const int64_t channels = work_.shape[1], plane = count_ / channels;
        const float signal = blend.signal[i], sigma = blend.sigma[i];
        const float *noise = blend.noise.of(i), *known = blend.known, *centre = chain_.centre;
        if (!noise) {
            work_.fresh.resize(size_t(state_));
            draw_known(chain_.seeds, work_.n, i, chain_.layout, work_.fresh.data());
        }
        float* x = work_.x.floats();
        for (int64_t sample = 0; sample < work_.n; ++sample) {
            const float* const keep = blend.keep + sample * blend.keep_stride;
            const float* n = noise ? noise + sample * blend.noise.sample_stride : work_.fresh.data() + sample * count_;
            for (int64_t channel = 0; channel < channels; ++channel)
                for (int64_t at = 0; at < plane; ++at, ++x) {
                    float held = signal * *known++ + sigma * *n++;
                    if (centre) held = held + *centre++;
                    *x = keep[at] * held + (1.0f - keep[at]) * *x;
                }
        }
    }

    // e of every lane that row i has a weight for; the number of calls that it took.
    int64_t evaluate(int64_t i) {
        const int64_t lanes = chain_.table.active_lanes(i);
        float* const x = network_input(lanes, chain_.table.row(i)[kCIn]);
        if (chain_.table.regularised(i)) {
            chain_.second(i, x, work_.e.data(), pointer(work_.v));
            return 1;
        }
        if (lanes == 1 || work_.n <= kFoldLimit) {
            ask(i, x, 0, lanes * work_.n);
            return 1;
        }
        for (int64_t lane = 0; lane < lanes; ++lane) ask(i, x, lane * work_.n, work_.n);
        return lanes;
    }

    // The gradient g that row i takes.
    void guide(int64_t i) {
        const auto mean = [&] {
            const auto row = mean_row(chain_.table.row(i));
            work_.mean.resize(size_t(state_));
            dv_update_args args = operands(i);
            args.row = row.data();
            args.out = work_.mean.data();
            dv_update(&args);
            return static_cast<const float*>(work_.mean.data());
        };
        gradient_ = chain_.guide(i, pointer(work_.v), mean);
    }

    // One row over all samples, in place; whether every e was finite. Operands whose coefficients are 0 are not read.
    bool update(int64_t i) {
        const float* const row = chain_.table.row(i);
        dv_update_args args = operands(i);
        args.out = work_.x.floats();
        args.y_out = pointer(work_.y);
        args.push_out = history_[2];
        args.g = chain_.table.guided(i) ? gradient_ : nullptr;
        args.noise = chain_.noise.of(i);
        args.noise_stride = chain_.noise.sample_stride;
        if (!args.noise && chain_.layout.in_blocks() && (row[kKN] != 0.0f || row[kQN] != 0.0f)) {
            work_.noise.resize(size_t(state_));
            draw_step(chain_.seeds, work_.n, i, chain_.layout, work_.noise.data());
            args.noise = work_.noise.data();
            args.noise_stride = count_;
        }
        args.seeds = args.noise ? nullptr : chain_.seeds;
        args.x0_out = chain_.watch && !chain_.quantize ? work_.x0.floats() : nullptr;
        args.step = uint32_t(i);
        const bool finite = chain_.quantize ? quantized(row, args) : dv_update(&args) == 1;
        if (row[kPush] != 0.0f) std::rotate(history_, history_ + 2, history_ + 3);
        return finite;
    }

    // Show a finished row to the watcher; stop when it says so. Whether it wants this row's x0 for the result.
    bool report(int64_t i) const {
        const diffusevae_step seen{sizeof(diffusevae_step), i, chain_.table.calls(), chain_.table.timesteps[size_t(i)],
                                   chain_.first, work_.n, work_.x.floats(), work_.x0.floats()};
        const After answer = chain_.watch(seen);
        if (answer == After::kStop)
            throw Error(DIFFUSEVAE_CANCELLED, "The callback stopped the run after " + step_text(chain_, i) + kReady);
        return answer == After::kFinish;
    }

private:
    // What row i reads, but for its noise and a gradient.
    dv_update_args operands(int64_t i) const {
        dv_update_args args{};
        args.row = chain_.table.row(i);
        args.x = work_.x.floats();
        args.e = work_.e.data();
        args.weights = chain_.table.weight(i);
        args.lanes = int32_t(chain_.table.active_lanes(i));
        args.c = chain_.centre;
        args.v = pointer(work_.v);
        args.y = pointer(work_.y);
        args.h1 = history_[0];
        args.h2 = history_[1];
        args.h3 = history_[2];
        args.samples = work_.n;
        args.count = count_;
        args.threads = chain_.threads;
        return args;
    }

    // A row whose x0 goes through `quantize` before anything is made of it; the network's e stays what it is.
    bool quantized(const float* row, dv_update_args args) {
        const Halves halves = halves_of(row);
        float *const x0 = work_.x0.floats(), *const out = args.out, *const y_out = args.y_out, *const push_out = args.push_out;
        args.row = halves.first.data();
        args.out = x0;
        args.y_out = args.push_out = nullptr;
        if (dv_update(&args) != 1) return false;
        chain_.quantize(work_.x0);
        args.row = halves.second.data();
        args.g = x0;
        args.out = out;
        args.y_out = y_out;
        args.push_out = push_out;
        const bool finite = dv_update(&args) == 1;
        if (row[kPush] == kPushX0) std::copy_n(x0, state_, push_out);
        return finite;
    }

    // c_in x, once a lane; x itself where that is the same.
    float* network_input(int64_t lanes, float c_in) {
        if (lanes == 1 && c_in == 1.0f) return work_.x.floats();
        for (int64_t lane = 0; lane < lanes; ++lane)
            for (int64_t i = 0; i < state_; ++i) work_.x_in[size_t(lane * state_ + i)] = work_.x.floats()[i] * c_in;
        return work_.x_in.data();
    }

    // One call of the step's graph for `size` entries of the lanes, from `begin` on.
    void ask(int64_t i, float* x, int64_t begin, int64_t size) {
        std::vector<int64_t> shape = work_.shape;
        shape[0] = size;
        Arrays arrays = {Array(chain_.x_port, Dtype::kFloat32, x + begin * count_, shape),
                         Array(chain_.e_port, Dtype::kFloat32, work_.e.data() + begin * count_, shape)};
        if (chain_.v_port) arrays.emplace_back(chain_.v_port, Dtype::kFloat32, work_.v.data() + begin * count_, shape);
        for (Array constant : chain_.constants) {
            size_t bytes = bytes_of(constant.dtype);
            for (size_t d = 1; d < constant.rank; ++d) bytes *= size_t(constant.shape[d]);
            constant.data = static_cast<char*>(constant.data) + size_t(begin) * bytes;
            constant.shape[0] = size;
            arrays.push_back(constant);
        }
        if (chain_.row_port) {
            const bool shared = chain_.row_count == 1;
            const float* const row = chain_.embeddings + (i * chain_.row_count + (shared ? 0 : begin)) * chain_.row_width;
            arrays.emplace_back(chain_.row_port, Dtype::kFloat32, row, std::vector<int64_t>{shared ? 1 : size, chain_.row_width});
        }
        chain_.graph.run(arrays);
    }

    const Chain& chain_;
    Workspace& work_;
    const int64_t count_, state_;
    float* history_[3] = {nullptr, nullptr, nullptr};  // h1, h2, h3
    const float* gradient_ = nullptr;                  // of a row that is guided
};

}  // namespace

std::string where_of(const Backend& backend) {
    return std::string(backend.name()) + ", precision " + backend.precision();
}

ChainNoise::ChainNoise(const GivenNoise& given, int64_t n, int64_t begin, const StateSpec& state)
    : start(given.values), row_stride(0), sample_stride(0) {
    if (!start) return;  // n alone may be any number: only where noise was given do so many images lie in memory
    const int64_t count = state.channels * state.height * state.width;
    sample_stride = given.shared ? 0 : count;
    row_stride = given.shared || n == 1 ? count : n * count;
    start += given.shared ? 0 : begin * count;
}

void Workspace::prepare(int64_t samples, const StepTable& table, bool shows_x0, bool second) {
    n = samples;
    shape[0] = samples;
    x.prepare(Dtype::kFloat32, shape);
    const size_t state = x.size() / sizeof(float);
    const size_t lanes = memory_size({table.lanes, int64_t(x.size())}) / sizeof(float);
    e.resize(lanes);
    v.resize(second ? lanes : 0);
    x_in.resize(copies_input(table) ? lanes : 0);
    if (shows_x0) x0.prepare(Dtype::kFloat32, shape);
    y.resize(table.uses_y() ? state : 0);
    h.resize(table.any({kPush}) ? memory_size({3, int64_t(x.size())}) / sizeof(float) : 0);
}

void run_chain(const Chain& chain, Workspace& work, diffusevae_timings& timings, std::vector<double>& step_ms) {
    if (!chain.watch && !chain.quantize && !chain.guide && !chain.second && !chain.blend && run_in_one_call(chain, work, timings, step_ms)) return;
    Rows rows(chain, work);
    Clock clock;
    for (int64_t i = 0; i < chain.table.calls(); ++i) {
        if (chain.cancelled.load(std::memory_order_relaxed)) fail_cancelled(chain, i);
        clock.lap();
        if (chain.blend) rows.blend_in(i);
        timings.update_ms += clock.lap();
        // e_l = network(c_in x, what lane l is bound to, the embedding of t) in every lane with a weight
        timings.network_calls += rows.evaluate(i);
        // g = grad log p(y | x) of the row's guide, scaled
        if (chain.table.guided(i)) rows.guide(i);
        const double network_ms = clock.lap();
        // e = sum of w_l e_l;  x_0 = limit(p . (x, e, c, y, h));  x' = k . (x_0, x, e, c, exp(s_n v) noise, y, h, g)
        const bool finite = rows.update(i);
        timings.update_ms += clock.lap();
        timings.network_ms += network_ms;
        timings.first_step_ms += i == 0 ? network_ms : 0.0;
        step_ms[size_t(i)] += network_ms;
        if (!finite) fail_not_finite(chain, i);
        if (chain.watch && rows.report(i)) {
            std::copy_n(work.x0.floats(), work.x.size() / sizeof(float), work.x.floats());
            return;
        }
    }
}

}  // namespace diffusevae
