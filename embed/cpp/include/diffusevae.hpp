// How does a C++17 program sample from a bundle? RAII, exceptions and vectors over diffusevae.h, in this one header.
//
//     diffusevae::Sampler sampler("model.bundle");
//     diffusevae::SampleOptions options;
//     options.n = 4;
//     options.seed = 7;
//     const diffusevae::Batch batch = sampler.sample(options);   // batch.images: uint8 [4, H, W, C]
//
// What options mean, which arrays have which shape and what threads may do is said in diffusevae.h; here everything that
// was not set stays std::nullopt or an empty vector. Every failure is an exception derived from diffusevae::Error, but for
// std::bad_alloc where this header finds no room for its own vectors.
#ifndef DIFFUSEVAE_HPP
#define DIFFUSEVAE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "diffusevae.h"

namespace diffusevae {
inline namespace api {

// ---- errors --------------------------------------------------------------------------------------------------------------

class Error : public std::runtime_error {
public:
    Error(diffusevae_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
    diffusevae_status status() const noexcept { return status_; }

private:
    diffusevae_status status_;
};

template <diffusevae_status kStatus>
class ErrorOf : public Error {
public:
    explicit ErrorOf(const std::string& text) : Error(kStatus, text) {}
};

using ArgumentError = ErrorOf<DIFFUSEVAE_ARGUMENT>;
using BundleError = ErrorOf<DIFFUSEVAE_BUNDLE>;
using BackendError = ErrorOf<DIFFUSEVAE_BACKEND>;
using NumericsError = ErrorOf<DIFFUSEVAE_NUMERICS>;
using Cancelled = ErrorOf<DIFFUSEVAE_CANCELLED>;
using BusyError = ErrorOf<DIFFUSEVAE_BUSY>;
using MemoryError = ErrorOf<DIFFUSEVAE_NO_MEMORY>;
using InternalError = ErrorOf<DIFFUSEVAE_INTERNAL>;

// Throws the exception of a status other than OK, with this thread's error text.
inline void check(diffusevae_status status) {
    switch (status) {
        case DIFFUSEVAE_OK: return;
        case DIFFUSEVAE_ARGUMENT: throw ArgumentError(diffusevae_error());
        case DIFFUSEVAE_BUNDLE: throw BundleError(diffusevae_error());
        case DIFFUSEVAE_BACKEND: throw BackendError(diffusevae_error());
        case DIFFUSEVAE_NUMERICS: throw NumericsError(diffusevae_error());
        case DIFFUSEVAE_CANCELLED: throw Cancelled(diffusevae_error());
        case DIFFUSEVAE_BUSY: throw BusyError(diffusevae_error());
        case DIFFUSEVAE_NO_MEMORY: throw MemoryError(diffusevae_error());
        case DIFFUSEVAE_INTERNAL: throw InternalError(diffusevae_error());
    }
    throw Error(status, diffusevae_error());
}

inline std::string version() { return diffusevae_version(); }

// ---- what goes in --------------------------------------------------------------------------------------------------------

struct OpenOptions {
    std::string backend = "native";
    std::string precision = "auto";
    std::optional<int64_t> threads;  // nullopt: what affinity and the container's CPU quota allow
    int64_t max_batch = 64;
};

using StepInfo = diffusevae_step;

struct SampleOptions {
    std::optional<int64_t> n;  // nullopt: what seeds, z, x_T or noise say, else 1
    std::optional<uint64_t> seed;
    std::vector<uint64_t> seeds;

    std::optional<int64_t> steps;
    std::optional<std::string> method;
    std::optional<std::string> spacing;
    std::optional<double> eta;
    std::optional<int64_t> t_start;

    std::optional<double> temperature;
    std::optional<double> guidance;
    std::optional<std::string> variance;
    bool clip = true;
    std::optional<std::string> prior;

    std::vector<float> z;      // [n, z_dim]
    std::vector<float> x_T;    // [n or 1, C, H, W]
    std::vector<float> noise;  // [S, n or 1, C, H, W]

    // Called after every step; true stops the run (Cancelled). What it throws leaves sample() as it is.
    std::function<bool(const StepInfo&)> callback;
};

// ---- what comes out ------------------------------------------------------------------------------------------------------

struct Setting {
    int64_t steps = 0;
    std::string method, spacing, variance;
    std::optional<std::string> prior;
    std::optional<int64_t> t_start;
    double eta = 0, temperature = 1, guidance = 0;
    bool clip = true;

    Setting() = default;
    explicit Setting(const diffusevae_setting& c)
        : steps(c.steps), method(c.method), spacing(c.spacing), variance(c.variance), eta(c.eta), temperature(c.temperature),
          guidance(c.guidance), clip(c.clip != 0) {
        if (c.prior) prior = c.prior;
        if (c.t_start != DIFFUSEVAE_UNSET) t_start = c.t_start;
    }
};

struct Info {
    int64_t image_size = 0, channels = 0, z_dim = 0, timesteps = 0, threads = 0, max_batch = 0, weight_bytes = 0;
    int formulation = 0;  // 0: unconditional
    bool conditional = false, z_conditioned = false, has_prior = false;
    std::string name, backend, precision, isa;
    Setting defaults;

    size_t image_values() const { return size_t(channels) * size_t(image_size) * size_t(image_size); }
};

using Timings = diffusevae_timings;

struct Batch {
    int64_t n = 0, height = 0, width = 0, channels = 0;
    std::vector<uint8_t> images;     // [n, height, width, channels]
    std::vector<uint8_t> recon;      // the same, or empty for an unconditional model
    std::vector<float> z;            // [n, z_dim], or empty
    std::vector<float> x;            // [n, channels, height, width]
    std::vector<uint64_t> seeds;     // [n]
    std::vector<int64_t> timesteps;  // [S]
    std::vector<double> step_ms;     // [S]
    Setting setting;
    Timings timings{};

    // The pixels of one image, [height, width, channels].
    const uint8_t* image(int64_t i) const { return images.data() + i * height * width * channels; }
};

struct StepTable {
    std::vector<int64_t> timesteps;  // [S]
    std::vector<float> rows;         // [S, DIFFUSEVAE_ROW_FIELDS]
    double k_noise = 0, k_image = 0, start_k_cond = 0;
    Setting setting;
};

// ---- the sampler ---------------------------------------------------------------------------------------------------------

// One thread at a time; clone() gives another thread its own over the same weights. A moved-from Sampler can only be
// destroyed or assigned to.
class Sampler {
public:
    explicit Sampler(const std::string& path, const OpenOptions& options = {}) {
        diffusevae_open_options c;
        diffusevae_open_options_init(&c);
        c.backend = options.backend.c_str();
        c.precision = options.precision.c_str();
        c.threads = options.threads.value_or(DIFFUSEVAE_UNSET);
        c.max_batch = options.max_batch;
        diffusevae_sampler* opened = nullptr;
        check(diffusevae_open(path.c_str(), &c, &opened));
        adopt(opened);
    }

    Sampler clone() const {
        diffusevae_sampler* twin = nullptr;
        check(diffusevae_clone(handle_.get(), &twin));
        return Sampler(twin);
    }

    const Info& info() const noexcept { return info_; }

    Batch sample(const SampleOptions& options = {}) {
        Call call(options, info_, steps_of_noise(options));
        Batch batch = room_for(call.n(), options.steps.value_or(info_.defaults.steps));
        diffusevae_result result;
        diffusevae_result_init(&result);
        result.capacity = batch.n;
        result.images = filled(batch.images);
        result.recon = filled(batch.recon);
        result.z = filled(batch.z);
        result.x = filled(batch.x);
        result.seeds = filled(batch.seeds);
        result.steps_capacity = int64_t(batch.timesteps.size());
        result.timesteps = filled(batch.timesteps);
        result.step_ms = filled(batch.step_ms);
        const diffusevae_status status = diffusevae_sample(handle_.get(), &call.c, &result);
        if (call.thrown) std::rethrow_exception(call.thrown);
        check(status);
        batch.timesteps.resize(size_t(result.steps));
        batch.step_ms.resize(size_t(result.steps));
        batch.setting = Setting(result.setting);
        batch.timings = result.timings;
        return batch;
    }

    // Stops the run in progress before its next step; from any thread.
    void cancel() noexcept { diffusevae_cancel(handle_.get()); }

    StepTable step_table(const SampleOptions& options = {}) const {
        Call call(options, info_, 0);
        diffusevae_step_table c;
        diffusevae_step_table_init(&c);
        check(diffusevae_get_step_table(handle_.get(), &call.c, &c));
        StepTable table;
        table.timesteps.resize(size_t(c.steps));
        table.rows.resize(size_t(c.steps) * DIFFUSEVAE_ROW_FIELDS);
        c.capacity = c.steps;
        c.timesteps = table.timesteps.data();
        c.rows = table.rows.data();
        check(diffusevae_get_step_table(handle_.get(), &call.c, &c));
        table.k_noise = c.k_noise;
        table.k_image = c.k_image;
        table.start_k_cond = c.start_k_cond;
        table.setting = Setting(c.setting);
        return table;
    }

private:
    struct Free {
        void operator()(diffusevae_sampler* sampler) const { diffusevae_free(sampler); }
    };

    // Options as the C interface takes them; they point into the caller's.
    struct Call {
        Call(const SampleOptions& options, const Info& info, int64_t noise_steps) : callback(options.callback) {
            diffusevae_sample_options_init(&c);
            c.n = options.n.value_or(DIFFUSEVAE_UNSET);
            c.has_seed = options.seed ? 1 : 0;
            c.seed = options.seed.value_or(0);
            c.seeds = filled(options.seeds);
            c.seeds_count = int64_t(options.seeds.size());
            c.steps = options.steps.value_or(DIFFUSEVAE_UNSET);
            c.method = text(options.method);
            c.spacing = text(options.spacing);
            c.eta = options.eta.value_or(DIFFUSEVAE_UNSET_NUMBER);
            c.t_start = options.t_start.value_or(DIFFUSEVAE_UNSET);
            c.temperature = options.temperature.value_or(DIFFUSEVAE_UNSET_NUMBER);
            c.guidance = options.guidance.value_or(DIFFUSEVAE_UNSET_NUMBER);
            c.variance = text(options.variance);
            c.clip = options.clip ? 1 : 0;
            c.prior = text(options.prior);
            c.z = filled(options.z);
            c.z_count = parts("z", options.z.size(), size_t(std::max<int64_t>(info.z_dim, 1)));
            c.x_T = filled(options.x_T);
            c.x_T_count = parts("x_T", options.x_T.size(), info.image_values());
            c.noise_steps = options.noise.empty() ? 0 : noise_steps;
            c.noise = noise_steps > 0 ? filled(options.noise) : nullptr;
            if (c.noise) c.noise_count = parts("noise", options.noise.size(), info.image_values() * size_t(noise_steps));
            if (callback) {
                c.callback = step;
                c.user = this;
            }
        }
        Call(const Call&) = delete;
        Call& operator=(const Call&) = delete;

        // The number of images; the library checks that all that say one agree.
        int64_t n() const {
            if (c.n != DIFFUSEVAE_UNSET) return std::max<int64_t>(c.n, 0);
            return std::max<int64_t>({1, c.seeds_count, c.z_count, c.x_T_count, c.noise_count});
        }

        static int32_t step(const diffusevae_step* seen, void* user) noexcept {
            Call& call = *static_cast<Call*>(user);
            try {
                return call.callback(*seen) ? 1 : 0;
            } catch (...) {  // carried around the C interface and thrown again by sample()
                call.thrown = std::current_exception();
                return 1;
            }
        }

        diffusevae_sample_options c;
        std::function<bool(const StepInfo&)> callback;
        std::exception_ptr thrown;
    };

    explicit Sampler(diffusevae_sampler* handle) { adopt(handle); }

    void adopt(diffusevae_sampler* handle) {
        handle_.reset(handle);
        diffusevae_info c;
        diffusevae_info_init(&c);
        check(diffusevae_describe(handle, &c));
        info_.image_size = c.image_size;
        info_.channels = c.channels;
        info_.z_dim = c.z_dim;
        info_.timesteps = c.timesteps;
        info_.threads = c.threads;
        info_.max_batch = c.max_batch;
        info_.weight_bytes = c.weight_bytes;
        info_.formulation = c.formulation;
        info_.conditional = c.conditional != 0;
        info_.z_conditioned = c.z_conditioned != 0;
        info_.has_prior = c.has_prior != 0;
        info_.name = c.name;
        info_.backend = c.backend;
        info_.precision = c.precision;
        info_.isa = c.isa;
        info_.defaults = Setting(c.defaults);
    }

    // How many slices the noise must have: as many as the chain has steps.
    int64_t steps_of_noise(const SampleOptions& options) const {
        return options.noise.empty() ? 0 : int64_t(step_table(options).timesteps.size());
    }

    Batch room_for(int64_t n, int64_t steps) const {
        const int64_t most = PTRDIFF_MAX / int64_t(sizeof(uint64_t) * std::max(info_.image_values(), size_t(info_.z_dim)));
        if (n > most)
            throw ArgumentError("n is " + std::to_string(n) + "; expected at most " + std::to_string(most)
                                + ": more images than any memory holds.");
        Batch batch;
        batch.n = n;
        batch.height = batch.width = info_.image_size;
        batch.channels = info_.channels;
        const size_t count = size_t(n), values = count * info_.image_values();
        batch.images.resize(values);
        batch.recon.resize(info_.conditional ? values : 0);
        batch.z.resize(count * size_t(info_.z_dim));
        batch.x.resize(values);
        batch.seeds.resize(count);
        batch.timesteps.resize(size_t(std::clamp<int64_t>(steps, 0, info_.timesteps)));
        batch.step_ms.resize(batch.timesteps.size());
        return batch;
    }

    static const char* text(const std::optional<std::string>& word) { return word ? word->c_str() : nullptr; }

    template <class Values>
    static auto filled(Values& values) -> decltype(values.data()) {
        return values.empty() ? nullptr : values.data();
    }

    static int64_t parts(const char* name, size_t size, size_t part) {
        if (size % part != 0)
            throw ArgumentError(std::string(name) + " holds " + std::to_string(size) + " numbers; expected a multiple of "
                                + std::to_string(part) + ".");
        return int64_t(size / part);
    }

    std::unique_ptr<diffusevae_sampler, Free> handle_;
    Info info_;
};

}  // namespace api
}  // namespace diffusevae

#endif  // DIFFUSEVAE_HPP
