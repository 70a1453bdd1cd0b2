// The functions of diffusevae.h: structs of any age, null pointers, and the place where every exception ends.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>

#include "checks.h"
#include "diffusevae.h"
#include "error.h"
#include "sampler.h"
#include "stages.h"

#ifndef DIFFUSEVAE_VERSION
#error "DIFFUSEVAE_VERSION: define it as the version's text, as CMakeLists.txt does"
#endif

struct diffusevae_sampler {
    std::unique_ptr<diffusevae::Sampler> sampler;
};

namespace {

using diffusevae::Error;
using diffusevae::Sampler;
using diffusevae::refuse_argument;

thread_local char last_error[4096] = "";

diffusevae_status failed(diffusevae_status status, const char* text) {
    std::snprintf(last_error, sizeof last_error, "%s", text);
    return status;
}

// Runs `body`; whatever it throws becomes a status and a sentence.
template <class Body>
diffusevae_status guarded(const Body& body) {
    try {
        body();
        return DIFFUSEVAE_OK;
    } catch (const Error& error) {
        return failed(error.status(), error.what());
    } catch (const std::bad_alloc&) {
        return failed(DIFFUSEVAE_NO_MEMORY, "found no memory, expected some; lower max_batch or threads, or free some.");
    } catch (const std::length_error&) {
        return failed(DIFFUSEVAE_NO_MEMORY, "found a request larger than any memory, expected a smaller one; lower max_batch, n or steps.");
    } catch (const std::exception& error) {
        return failed(DIFFUSEVAE_INTERNAL, error.what());
    } catch (...) {  // nothing may cross the C interface, not even what a callback throws against its contract
        return failed(DIFFUSEVAE_INTERNAL, "found an exception of unknown type; expected none: a callback must not throw.");
    }
}

// What _init sets; `size` is set by initialised().
diffusevae_open_options defaults_of(const diffusevae_open_options*) {
    diffusevae_open_options options{};
    options.threads = options.height = options.width = DIFFUSEVAE_UNSET;
    options.max_batch = 64;
    options.overlap = DIFFUSEVAE_UNSET_NUMBER;
    return options;
}

diffusevae_sample_options defaults_of(const diffusevae_sample_options*) {
    diffusevae_sample_options options{};
    options.n = options.steps = options.t_start = DIFFUSEVAE_UNSET;
    options.rho = options.eta = options.temperature = options.noise_scale = options.eps_scale = options.guidance =
        DIFFUSEVAE_UNSET_NUMBER;
    options.guidance_interval[0] = options.guidance_interval[1] = DIFFUSEVAE_UNSET;
    options.guide_interval[0] = options.guide_interval[1] = DIFFUSEVAE_UNSET;
    options.regularise_interval[0] = options.regularise_interval[1] = DIFFUSEVAE_UNSET;
    options.budget_ms = options.guide_scale = DIFFUSEVAE_UNSET_NUMBER;
    options.clip = 1;
    return options;
}

diffusevae_array_info defaults_of(const diffusevae_array_info*) { return diffusevae_array_info{}; }
diffusevae_info defaults_of(const diffusevae_info*) { return diffusevae_info{}; }

diffusevae_stage_options defaults_of(const diffusevae_stage_options*) {
    diffusevae_stage_options options{};
    options.steps = options.t_start = options.noise_level = DIFFUSEVAE_UNSET;
    options.guidance = DIFFUSEVAE_UNSET_NUMBER;
    return options;
}

diffusevae_stage_inputs defaults_of(const diffusevae_stage_inputs*) { return diffusevae_stage_inputs{}; }

diffusevae_result defaults_of(const diffusevae_result*) {
    diffusevae_result result{};
    result.deadline.budget_ms = DIFFUSEVAE_UNSET_NUMBER;
    return result;
}

diffusevae_step_table defaults_of(const diffusevae_step_table*) { return diffusevae_step_table{}; }

template <class Struct>
Struct initialised() {
    Struct fresh = defaults_of(static_cast<const Struct*>(nullptr));
    fresh.size = sizeof(Struct);
    return fresh;
}

template <class Struct>
void initialise(Struct* given) {
    if (given) *given = initialised<Struct>();
}

// A caller's struct as this library has it: fields that the caller's header did not know hold what _init sets. So far every
// struct has had one size, which is the smallest there can be.
template <class Struct>
Struct taken(const Struct* given, const char* name) {
    if (!given) refuse_argument(std::string(name) + " is a null pointer; expected a struct.");
    if (given->size != sizeof(Struct))
        refuse_argument(std::string(name) + ".size is " + std::to_string(given->size) + "; expected "
                        + std::to_string(sizeof(Struct)) + ". Prepare the struct with diffusevae_" + name
                        + "_init, and compile against the header of this library (version " DIFFUSEVAE_VERSION ").");
    return *given;
}

template <class Struct>
Struct taken_or_default(const Struct* given, const char* name) {
    return given ? taken(given, name) : initialised<Struct>();
}

Sampler& opened(const diffusevae_sampler* sampler) {
    if (!sampler) refuse_argument("sampler is a null pointer; expected one from diffusevae_open or diffusevae_clone.");
    return *sampler->sampler;
}

// Hands a new sampler to the caller.
void hand_over(std::unique_ptr<Sampler> made, diffusevae_sampler** to) {
    *to = new diffusevae_sampler{std::move(made)};
}

std::vector<const diffusevae::Bundle*> bundles_of(const diffusevae_sampler* const* stages, int64_t count) {
    if (!stages || count < 1) refuse_argument("stages are none; expected those of a cascade, from its first on.");
    std::vector<const diffusevae::Bundle*> bundles;
    for (int64_t i = 0; i < count; ++i) bundles.push_back(&opened(stages[i]).bundle());
    return bundles;
}

// The bundle that the last of these names next, opened, or null where it names none.
std::unique_ptr<Sampler> opened_next(const std::vector<const diffusevae::Bundle*>& stages, const diffusevae_open_options& options) {
    const std::string folder = diffusevae::next_folder(stages);
    if (folder.empty()) return nullptr;
    std::unique_ptr<Sampler> next;
    try {
        next = std::make_unique<Sampler>(folder, options);
    } catch (const Error& error) {
        throw Error(error.status(), "the next bundle of " + stages.back()->path() + ": " + error.what());
    }
    diffusevae::check_next(*stages.back(), next->bundle());
    return next;
}

void check_out(diffusevae_sampler** to) {
    if (!to) refuse_argument("the place for the sampler is a null pointer; expected the address of a pointer.");
    *to = nullptr;
}

}  // namespace

extern "C" {

const char* diffusevae_error(void) { return last_error; }

const char* diffusevae_status_name(diffusevae_status status) {
    switch (status) {
        case DIFFUSEVAE_OK: return "OK";
        case DIFFUSEVAE_ARGUMENT: return "ARGUMENT";
        case DIFFUSEVAE_BUNDLE: return "BUNDLE";
        case DIFFUSEVAE_BACKEND: return "BACKEND";
        case DIFFUSEVAE_NUMERICS: return "NUMERICS";
        case DIFFUSEVAE_CANCELLED: return "CANCELLED";
        case DIFFUSEVAE_BUSY: return "BUSY";
        case DIFFUSEVAE_NO_MEMORY: return "NO_MEMORY";
        case DIFFUSEVAE_INTERNAL: return "INTERNAL";
        case DIFFUSEVAE_DEADLINE: return "DEADLINE";
    }
    return "UNKNOWN";
}

const char* diffusevae_version(void) { return DIFFUSEVAE_VERSION; }

void diffusevae_open_options_init(diffusevae_open_options* options) { initialise(options); }
void diffusevae_sample_options_init(diffusevae_sample_options* options) { initialise(options); }
void diffusevae_array_info_init(diffusevae_array_info* info) { initialise(info); }
void diffusevae_info_init(diffusevae_info* info) { initialise(info); }
void diffusevae_stage_inputs_init(diffusevae_stage_inputs* inputs) { initialise(inputs); }
void diffusevae_stage_options_init(diffusevae_stage_options* options) { initialise(options); }
void diffusevae_result_init(diffusevae_result* result) { initialise(result); }
void diffusevae_step_table_init(diffusevae_step_table* table) { initialise(table); }

diffusevae_status diffusevae_open(const char* path, const diffusevae_open_options* options, diffusevae_sampler** sampler) {
    return guarded([&] {
        check_out(sampler);
        if (!path) refuse_argument("path is a null pointer; expected a bundle's folder.");
        hand_over(std::make_unique<Sampler>(path, taken_or_default(options, "open_options")), sampler);
    });
}

diffusevae_status diffusevae_clone(const diffusevae_sampler* sampler, diffusevae_sampler** clone) {
    return guarded([&] {
        check_out(clone);
        hand_over(opened(sampler).clone(), clone);
    });
}

void diffusevae_free(diffusevae_sampler* sampler) { delete sampler; }

diffusevae_status diffusevae_describe(const diffusevae_sampler* sampler, diffusevae_info* info) {
    return guarded([&] {
        diffusevae_info described = taken(info, "info");
        opened(sampler).describe(described);
        *info = described;
    });
}

diffusevae_status diffusevae_input(const diffusevae_sampler* sampler, int64_t index, diffusevae_array_info* info) {
    return guarded([&] {
        diffusevae_array_info described = taken(info, "array_info");
        opened(sampler).describe_input(index, described);
        *info = described;
    });
}

diffusevae_status diffusevae_output(const diffusevae_sampler* sampler, int64_t index, diffusevae_array_info* info) {
    return guarded([&] {
        diffusevae_array_info described = taken(info, "array_info");
        opened(sampler).describe_output(index, described);
        *info = described;
    });
}

diffusevae_status diffusevae_sample(diffusevae_sampler* sampler, const diffusevae_sample_options* options,
                                    diffusevae_result* result) {
    return guarded([&] {
        diffusevae_result filled = taken(result, "result");
        opened(sampler).sample(taken_or_default(options, "sample_options"), filled);
        *result = filled;
    });
}

diffusevae_status diffusevae_inpaint(diffusevae_sampler* sampler, const diffusevae_sample_options* options, int32_t composite,
                                     diffusevae_result* result) {
    return guarded([&] {
        diffusevae_result filled = taken(result, "result");
        diffusevae::check_flag("composite", composite);
        opened(sampler).inpaint(taken_or_default(options, "sample_options"), composite != 0, filled);
        *result = filled;
    });
}

diffusevae_status diffusevae_upscale(diffusevae_sampler* sampler, const diffusevae_sample_options* options, int64_t noise_level,
                                     diffusevae_result* result) {
    return guarded([&] {
        diffusevae_result filled = taken(result, "result");
        opened(sampler).upscale(taken_or_default(options, "sample_options"), noise_level, filled);
        *result = filled;
    });
}

diffusevae_status diffusevae_check_upscale(const diffusevae_sampler* sampler, const diffusevae_sample_options* options,
                                           int64_t noise_level) {
    return guarded([&] { opened(sampler).check_upscale(taken_or_default(options, "sample_options"), noise_level); });
}

diffusevae_status diffusevae_open_next(const diffusevae_sampler* const* stages, int64_t count,
                                       const diffusevae_open_options* options, diffusevae_sampler** next) {
    return guarded([&] {
        check_out(next);
        if (auto made = opened_next(bundles_of(stages, count), taken_or_default(options, "open_options")))
            hand_over(std::move(made), next);
    });
}

diffusevae_status diffusevae_check_stages(const diffusevae_sampler* const* stages, int64_t count) {
    return guarded([&] { diffusevae::check_stages(bundles_of(stages, count)); });
}

diffusevae_status diffusevae_get_stage_options(const diffusevae_sampler* before, const diffusevae_sampler* after,
                                               diffusevae_stage_options* options) {
    return guarded([&] {
        taken(options, "stage_options");
        diffusevae_stage_options found = initialised<diffusevae_stage_options>();
        diffusevae::recorded_options(opened(before).bundle().manifest(), opened(after).bundle().manifest(), found);
        *options = found;
    });
}

diffusevae_status diffusevae_get_stage_inputs(const diffusevae_sampler* sampler, diffusevae_stage_inputs* inputs) {
    return guarded([&] {
        diffusevae_stage_inputs found = taken(inputs, "stage_inputs");
        const diffusevae::Manifest& manifest = opened(sampler).bundle().manifest();
        const diffusevae::InputSpec* const picture = diffusevae::upscaled_input(manifest);
        found.picture = picture ? picture->name.c_str() : nullptr;
        found.level = manifest.augmentation ? manifest.augmentation->input.c_str() : nullptr;
        *inputs = found;
    });
}

diffusevae_status diffusevae_stage_seeds(const uint64_t* seeds, int64_t n, int64_t stage, uint64_t* into) {
    return guarded([&] {
        if (n < 0 || stage < 0 || stage > UINT32_MAX) refuse_argument("n or stage is out of range; expected 0 or more.");
        diffusevae::check_array("seeds", seeds, sizeof(uint64_t), {n});
        diffusevae::check_array("seeds of the stage", into, sizeof(uint64_t), {n});
        for (int64_t i = 0; i < n; ++i) into[i] = diffusevae::stage_seed(seeds[i], uint32_t(stage));
    });
}

diffusevae_status diffusevae_preview(diffusevae_sampler* sampler, diffusevae_array* images) {
    return guarded([&] {
        if (!images) refuse_argument("images is a null pointer; expected an array.");
        opened(sampler).preview(*images);
    });
}

void diffusevae_cancel(diffusevae_sampler* sampler) {
    if (sampler) sampler->sampler->cancel();
}

diffusevae_status diffusevae_get_step_table(const diffusevae_sampler* sampler, const diffusevae_sample_options* options,
                                            diffusevae_step_table* table) {
    return guarded([&] {
        diffusevae_step_table filled = taken(table, "step_table");
        opened(sampler).step_table(taken_or_default(options, "sample_options"), filled);
        *table = filled;
    });
}

}  // extern "C"
