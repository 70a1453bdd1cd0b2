// How does the loop go? One comment a line of the algorithm in run_chain.
#include "chain.h"

#include <algorithm>

#include "checks.h"
#include "clock.h"
#include "diffusevae/kernels.h"
#include "error.h"

namespace diffusevae {

namespace {

std::string step_text(const Chain& chain, int64_t i) {
    return "step " + std::to_string(i + 1) + " of " + std::to_string(chain.table.steps()) + " (timestep "
           + std::to_string(chain.table.timesteps[size_t(i)]) + ")";
}

constexpr const char* kReady = ". No batch was made; the sampler is ready for the next call.";

// The arrays of the denoiser; only the place of the row changes from step to step.
Arrays denoiser_arrays(const Chain& chain, Workspace& work) {
    const Shape& s = work.shape;
    Arrays arrays = {{"row", chain.embeddings, {chain.row_count, chain.row_width}},
                     {"x", work.x.data(), {work.lanes, s.channels, s.height, s.width}},
                     {"eps", work.eps.data(), {work.lanes, s.channels, s.height, s.width}}};
    if (!work.cond.empty()) arrays.push_back({"cond", work.cond.data(), {work.lanes, s.channels, s.height, s.width}});
    return arrays;
}

// eps of every lane: with the condition, and with guidance without it too, in one batch.
void ask(const Chain& chain, int64_t i, Workspace& work, Arrays& arrays) {
    const int64_t state = work.n * work.shape.count();
    if (work.lanes > work.n) std::copy_n(work.x.begin(), state, work.x.begin() + state);
    arrays[0].data = const_cast<float*>(chain.embeddings + i * chain.row_count * chain.row_width);
    chain.denoiser.run(arrays);
}

// One row over all samples, in place; whether every guided eps was finite. Operands whose coefficients are 0 are not read.
bool update(const Chain& chain, int64_t i, Workspace& work) {
    const float* row = chain.table.row(i);
    const bool noisy = row[kSigma] != 0.0f;
    const bool centred = row[kPCond] != 0.0f || row[kKCond] != 0.0f;
    dv_update_args args{};
    args.row = row;
    args.x = args.out = work.x.data();
    args.eps = work.eps.data();
    args.eps_uncond = work.lanes > work.n ? work.eps.data() + work.n * work.shape.count() : nullptr;
    args.cond = centred ? work.cond.data() : nullptr;
    args.x0_prev = row[kKPrev] != 0.0f ? work.x0_prev.data() : nullptr;
    args.x0_out = work.x0.empty() ? nullptr : work.x0.data();
    args.noise = noisy && chain.noise ? chain.noise + i * chain.noise_step : nullptr;
    args.noise_stride = chain.noise_sample;
    args.seeds = noisy && !chain.noise ? chain.seeds : nullptr;
    args.samples = work.n;
    args.count = work.shape.count();
    args.step = uint32_t(i);
    args.guidance = chain.guidance;
    args.threads = chain.threads;
    return dv_update(&args) == 1;
}

// Show a finished step to the caller; stop when they say so.
void report(const Chain& chain, int64_t i, const Workspace& work) {
    const diffusevae_step seen{sizeof(diffusevae_step), i, chain.table.steps(), chain.table.timesteps[size_t(i)],
                               chain.first, work.n, work.x.data(), work.x0.data()};
    if (chain.callback(&seen, chain.user) != 0)
        throw Error(DIFFUSEVAE_CANCELLED, "The callback stopped the run after " + step_text(chain, i) + kReady);
}

std::string not_finite(const Chain& chain, int64_t i) {
    return "The graph 'denoiser' (" + chain.where + ") returned NaN or infinity at " + step_text(chain, i)
           + "; every value was expected to be finite. Open the bundle in another precision; if it persists, check the z, "
             "x_T and noise you passed, and build the bundle again from its checkpoint.";
}

void scale_and_add(float* x, float k, const float* source, int64_t count) {
    for (int64_t i = 0; i < count; ++i) x[i] = x[i] + k * source[i];
}

}  // namespace

void Workspace::prepare(int64_t samples, bool guided, bool conditional, bool keep_x0) {
    n = samples;
    lanes = guided ? 2 * samples : samples;
    const size_t state = memory_size({lanes, shape.count()}), half = memory_size({n, shape.count()});
    x.resize(state);
    eps.resize(state);
    cond.resize(conditional ? state : 0);
    if (conditional) std::fill(cond.begin() + std::ptrdiff_t(half), cond.end(), 0.0f);
    x0.resize(keep_x0 ? half : 0);
    x0_prev.resize(keep_x0 ? half : 0);
}

void start_state(const StartRow& start, const float* x_T, bool shared, Workspace& work) {
    const int64_t count = work.shape.count();
    const float k_noise = float(start.k_noise);
    for (int64_t sample = 0; sample < work.n; ++sample) {
        float* x = work.x.data() + sample * count;
        const float* from = x_T + (shared ? 0 : sample * count);
        for (int64_t i = 0; i < count; ++i) x[i] = from[i] * k_noise;
    }
    if (work.cond.empty()) return;
    for (const double k : {start.k_image, start.k_cond})
        if (k != 0.0) scale_and_add(work.x.data(), float(k), work.cond.data(), work.n * count);
}

void run_chain(const Chain& chain, Workspace& work, diffusevae_timings& timings, double* step_ms) {
    Arrays arrays = denoiser_arrays(chain, work);
    Clock clock;
    for (int64_t i = 0; i < chain.table.steps(); ++i) {
        if (chain.cancelled.load(std::memory_order_relaxed))
            throw Error(DIFFUSEVAE_CANCELLED, "diffusevae_cancel stopped the run before " + step_text(chain, i) + kReady);
        clock.lap();
        // eps = eps_theta(x_t, t, cond), and without the condition where guidance needs it
        ask(chain, i, work, arrays);
        const double network_ms = clock.lap();
        // eps = eps_c + w (eps_c - eps_u);  x_0 = clip(p . (x, eps, cond));
        // x_{t-1} = k . (x_0, x_0 of the step before, x, eps, cond) + sigma * noise,  noise ~ N(0, I)
        const bool finite = update(chain, i, work);
        timings.update_ms += clock.lap();
        timings.network_ms += network_ms;
        timings.first_step_ms += i == 0 ? network_ms : 0.0;
        timings.network_calls += 1;
        if (step_ms) step_ms[i] += network_ms;
        if (!finite) throw Error(DIFFUSEVAE_NUMERICS, not_finite(chain, i));
        if (chain.callback) report(chain, i, work);
        std::swap(work.x0, work.x0_prev);
    }
}

}  // namespace diffusevae
