// How does one request run? See sampler.h; engine/sampler.py and engine/runner.py are the same in Python.
#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "checks.h"
#include "clock.h"
#include "diffusevae/kernels.h"
#include "error.h"
#include "threads.h"

namespace diffusevae {

namespace {

constexpr int64_t kMaxBatch = int64_t(1) << 20;

// One run at a time: a second one would overwrite the buffers of the first.
class Exclusive {
public:
    explicit Exclusive(std::atomic_flag& busy) : busy_(busy) {
        if (busy_.test_and_set(std::memory_order_acquire))
            throw Error(DIFFUSEVAE_BUSY,
                        "This sampler is running already, in another thread or below the callback that called it; expected "
                        "one request at a time. Give each thread its own with diffusevae_clone.");
    }
    ~Exclusive() { busy_.clear(std::memory_order_release); }
    Exclusive(const Exclusive&) = delete;
    Exclusive& operator=(const Exclusive&) = delete;

private:
    std::atomic_flag& busy_;
};

int64_t checked_max_batch(int64_t max_batch) {
    if (max_batch < 1 || max_batch > kMaxBatch)
        refuse_argument("max_batch is " + std::to_string(max_batch) + "; expected 1 .. " + std::to_string(kMaxBatch) + ".");
    return max_batch;
}

std::optional<int64_t> given(int64_t number) {
    return number == DIFFUSEVAE_UNSET ? std::nullopt : std::optional<int64_t>(number);
}

Schedule schedule_of(const ScheduleSpec& spec) { return Schedule(spec.beta_1, spec.beta_T, spec.T); }

Shape shape_of(const Model& model) { return Shape{model.channels, model.image_size, model.image_size}; }

int formulation_of(const Model& model) { return int(model.formulation.value_or(0)); }

}  // namespace

Opened::Opened(const std::string& path, const diffusevae_open_options& options)
    : max_batch(checked_max_batch(options.max_batch)),
      threads(resolve_threads(given(options.threads))),
      bundle(Bundle::open(path)),
      schedule(schedule_of(bundle.manifest().schedule)),
      prior(read_prior(bundle)),
      shape(shape_of(model())),
      backend(open_backend(bundle, options.backend ? options.backend : "native",
                           BackendRequest{options.precision ? options.precision : "auto", threads})) {}

Sampler::Sampler(const std::string& path, const diffusevae_open_options& options)
    : Sampler(std::make_shared<const Opened>(path, options), Graphs{}) {
    if (opened_->model().conditional()) graphs_.vae_decoder = opened_->backend->load("vae_decoder");
    graphs_.timestep_table = opened_->backend->load("timestep_table");
    graphs_.denoiser = opened_->backend->load("denoiser");
}

Sampler::Sampler(std::shared_ptr<const Opened> opened, Graphs graphs)
    : opened_(std::move(opened)), graphs_(std::move(graphs)), work_(0, opened_->shape) {}

std::unique_ptr<Sampler> Sampler::clone() const {
    Graphs graphs{graphs_.vae_decoder ? graphs_.vae_decoder->clone() : nullptr, graphs_.timestep_table->clone(),
                  graphs_.denoiser->clone()};
    return std::unique_ptr<Sampler>(new Sampler(opened_, std::move(graphs)));
}

// ---- what it is ----------------------------------------------------------------------------------------------------------

void Sampler::describe(diffusevae_info& info) const {
    const Manifest& manifest = opened_->bundle.manifest();
    const Model& model = manifest.model;
    info.image_size = model.image_size;
    info.channels = model.channels;
    info.z_dim = model.z_dim.value_or(0);
    info.timesteps = manifest.schedule.T;
    info.formulation = formulation_of(model);
    info.conditional = model.conditional() ? 1 : 0;
    info.z_conditioned = model.z_conditioned ? 1 : 0;
    info.has_prior = opened_->prior ? 1 : 0;
    info.threads = opened_->threads;
    info.max_batch = opened_->max_batch;
    info.weight_bytes = graphs_.timestep_table->weight_bytes() + graphs_.denoiser->weight_bytes()
                        + (graphs_.vae_decoder ? graphs_.vae_decoder->weight_bytes() : 0);
    info.name = manifest.name.c_str();
    info.backend = opened_->backend->name();
    info.precision = opened_->backend->precision();
    info.isa = opened_->backend->isa();
    info.defaults = recorded_setting(manifest).in_c();
}

StepTable Sampler::table_of(const Setting& setting) const {
    return build_step_table(opened_->schedule, formulation_of(opened_->model()), setting);
}

void Sampler::step_table(const diffusevae_sample_options& options, diffusevae_step_table& into) const {
    const bool draws = opened_->model().z_dim && !options.z;
    const Setting setting = resolve_setting(opened_->bundle.manifest(), options, draws);
    const StepTable table = table_of(setting);
    const int64_t steps = table.steps();
    if ((into.timesteps || into.rows) && into.capacity < steps)
        refuse_argument("capacity of the step table is " + std::to_string(into.capacity) + "; this chain has "
                        + std::to_string(steps) + " steps. Make room for them.");
    if (into.timesteps) check_array("timesteps of the step table", into.timesteps, sizeof(int64_t), {steps});
    if (into.rows) check_array("rows of the step table", into.rows, sizeof(float), {steps, kRowFields});
    if (into.timesteps) std::copy(table.timesteps.begin(), table.timesteps.end(), into.timesteps);
    if (into.rows) std::copy(table.rows.begin(), table.rows.end(), into.rows);
    into.steps = steps;
    into.k_noise = table.start.k_noise;
    into.k_image = table.start.k_image;
    into.start_k_cond = table.start.k_cond;
    into.setting = setting.in_c();
}

// ---- a run ---------------------------------------------------------------------------------------------------------------

void Sampler::sample(const diffusevae_sample_options& options, diffusevae_result& result) {
    const Exclusive alone(busy_);
    cancelled_.store(false, std::memory_order_relaxed);
    Clock total;
    result.timings = diffusevae_timings{};
    const Request request = checked_request(opened_->bundle.manifest(), options);
    const StepTable table = table_of(request.setting);
    const int64_t steps = table.steps();
    check_steps(request, steps, result);
    check_room(opened_->bundle.manifest(), request.n, result);
    if (result.step_ms) std::fill_n(result.step_ms, steps, 0.0);
    for (int64_t begin = 0; begin < request.n; begin += opened_->max_batch)
        run_chunk(request, table, begin, std::min(opened_->max_batch, request.n - begin), result);
    if (result.timesteps) std::copy(table.timesteps.begin(), table.timesteps.end(), result.timesteps);
    result.n = request.n;
    result.steps = steps;
    result.setting = request.setting.in_c();
    result.timings.total_ms = total.lap();
}

void Sampler::run_chunk(const Request& request, const StepTable& table, int64_t begin, int64_t n,
                        diffusevae_result& result) {
    diffusevae_timings& timings = result.timings;
    Clock clock;
    work_.prepare(n, request.setting.guided(), opened_->model().conditional(), request.callback || table.needs_x0_prev());
    const std::vector<uint64_t> seeds = request.seeds.part(begin, n);
    const float* x_T = start(request, seeds, begin);
    timings.noise_ms += clock.lap();
    if (graphs_.vae_decoder) decode();
    timings.vae_ms += clock.lap();
    embed(table);
    timings.table_ms += clock.lap();
    start_state(table.start, x_T, request.x_T_shared, work_);
    timings.update_ms += clock.lap();
    run_chain(chain_of(request, table, seeds, begin), work_, timings, result.step_ms);
    clock.lap();
    store(seeds, begin, result);
    timings.post_ms += clock.lap();
    timings.chunks += 1;
}

// z into the workspace, and where x_T lies: the caller's, or drawn where the state will be.
const float* Sampler::start(const Request& request, const std::vector<uint64_t>& seeds, int64_t begin) {
    const int64_t n = work_.n, count = work_.shape.count(), z_dim = opened_->model().z_dim.value_or(0);
    work_.z.assign(memory_size({work_.lanes, z_dim}), 0.0f);  // lanes without condition have no latent either
    if (request.z) {
        std::copy_n(request.z + begin * z_dim, n * z_dim, work_.z.begin());
    } else if (request.setting.draws_from_bundle()) {
        opened_->prior->draw(seeds.data(), n, work_.z.data());
    } else {
        draw_latent(seeds, z_dim, work_.z.data());
    }
    if (request.x_T) return request.x_T + (request.x_T_shared ? 0 : begin * count);
    draw_initial(seeds, count, work_.x.data());
    return work_.x.data();
}

// The condition in [-1, 1]: cond = 2 * decoder(z) - 1.
void Sampler::decode() {
    const Shape& s = work_.shape;
    const int64_t z_dim = *opened_->model().z_dim;
    graphs_.vae_decoder->run({{"z", work_.z.data(), {work_.n, z_dim}},
                              {"image", work_.cond.data(), {work_.n, s.channels, s.height, s.width}}});
    check_finite(work_.cond, "vae_decoder");
    const size_t state = size_t(work_.n * s.count());
    for (size_t i = 0; i < state; ++i) work_.cond[i] = work_.cond[i] * 2.0f - 1.0f;
}

// The timestep table's rows: [S, 1, R], kept from run to run; [S, lanes, R] for a model conditioned on z.
void Sampler::embed(const StepTable& table) {
    const Model& model = opened_->model();
    const int64_t steps = table.steps(), lanes = work_.lanes, width = model.row_width;
    if (!model.z_conditioned && embedded_ == table.timesteps) return;
    embedded_.clear();
    const Array timesteps("timesteps", table.timesteps.data(), {steps});
    if (model.z_conditioned) {
        rows_.resize(memory_size({steps, lanes, width}));
        graphs_.timestep_table->run({timesteps, {"z", work_.z.data(), {lanes, *model.z_dim}},
                                     {"rows", rows_.data(), {steps, lanes, width}}});
    } else {
        rows_.resize(memory_size({steps, width}));
        graphs_.timestep_table->run({timesteps, {"rows", rows_.data(), {steps, width}}});
    }
    check_finite(rows_, "timestep_table");
    if (!model.z_conditioned) embedded_ = table.timesteps;
}

Chain Sampler::chain_of(const Request& request, const StepTable& table, const std::vector<uint64_t>& seeds,
                        int64_t begin) const {
    const int64_t count = work_.shape.count(), width = opened_->model().row_width;
    const int64_t noise_sample = request.noise_shared ? 0 : count;
    // n alone may be any number: only where noise was given is it known that n images lie in memory.
    const int64_t noise_step = request.noise && !request.noise_shared ? request.n * count : count;
    return Chain{table, *graphs_.denoiser, rows_.data(), opened_->model().z_conditioned ? work_.lanes : 1, width,
                 seeds.data(), request.noise ? request.noise + begin * noise_sample : nullptr, noise_step, noise_sample,
                 float(request.setting.guidance), opened_->threads, begin, request.callback, request.user, cancelled_,
                 where()};
}

// A finished chunk into the caller's arrays, rounded to pixels.
void Sampler::store(const std::vector<uint64_t>& seeds, int64_t begin, diffusevae_result& result) const {
    const int64_t n = work_.n, count = work_.shape.count(), z_dim = opened_->model().z_dim.value_or(0);
    const auto pixels = [&](const std::vector<float>& from, uint8_t* to) {
        dv_to_uint8(from.data(), n, work_.shape.channels, work_.shape.pixels(), to + begin * count);
    };
    if (result.images) pixels(work_.x, result.images);
    if (result.recon) pixels(work_.cond, result.recon);
    if (result.x) std::copy_n(work_.x.begin(), n * count, result.x + begin * count);
    if (result.z) std::copy_n(work_.z.begin(), n * z_dim, result.z + begin * z_dim);
    if (result.seeds) std::copy_n(seeds.begin(), n, result.seeds + begin);
}

// The output of a small graph behind the NaN guard; the denoiser's is part of the update.
void Sampler::check_finite(const std::vector<float>& values, const char* role) const {
    if (std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) return;
    throw Error(DIFFUSEVAE_NUMERICS, std::string("The graph '") + role + "' (" + where()
                                         + ") returned NaN or infinity before the first step; every value was expected to "
                                           "be finite. Check the z you passed, and build the bundle again from its "
                                           "checkpoint if it is ordinary.");
}

std::string Sampler::where() const {
    return std::string(opened_->backend->name()) + ", precision " + opened_->backend->precision();
}

}  // namespace diffusevae
