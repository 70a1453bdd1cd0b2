// Sampling from C++17: RAII, exceptions and vectors over diffusevae.h.
//
//     diffusevae::Sampler sampler("model.bundle");
//     diffusevae::SampleOptions options;
//     options.n = 4;
//     options.seed = 7;
//     options.inputs["label"] = diffusevae::Array::of(std::vector<int64_t>{3});   // what the bundle declares, by name
//     const diffusevae::Batch batch = sampler.sample(options);                    // batch.images: uint8 [4, H, W, C]
//
// What options mean, which arrays have which shape and what threads may do is said in diffusevae.h; here everything that
// was not set stays std::nullopt or an empty vector. Every failure is an exception derived from diffusevae::Error, but for
// std::bad_alloc where this header finds no room for its own vectors.
#ifndef DIFFUSEVAE_HPP
#define DIFFUSEVAE_HPP

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>

#include "diffusevae_types.hpp"

namespace diffusevae {
inline namespace api {

// ---- the sampler ---------------------------------------------------------------------------------------------------------

// One thread at a time; clone() gives another thread its own over the same weights. A moved-from Sampler can only be
// destroyed or assigned to.
class Sampler {
public:
    explicit Sampler(const std::string& path, const OpenOptions& options = {}) {
        const Opening opening(options);
        diffusevae_sampler* opened = nullptr;
        check(diffusevae_open(path.c_str(), &opening.c, &opened));
        adopt(opened);
    }

    Sampler clone() const {
        diffusevae_sampler* twin = nullptr;
        check(diffusevae_clone(handle_.get(), &twin));
        return Sampler(twin);
    }

    const Info& info() const noexcept { return info_; }

    Batch sample(const SampleOptions& options = {}) {
        Call call(options);
        return run(options, call, call.n(), [&](diffusevae_result* to) { return diffusevae_sample(handle_.get(), &call.c, to); });
    }

    // Fills in the part of each image that its mask marks; which shapes they have is said at diffusevae_inpaint. composite: what is
    // known is put back into Batch::images. Options: no n, and no budget of time; inputs may hold "known_noise".
    Batch inpaint(const Array& images, const Array& masks, const SampleOptions& options = {}, bool composite = true) {
        static const std::string names[] = {"images", "masks"};
        Call call(options, {images.named(names[0]), masks.named(names[1])});
        const int64_t n = images.shape().size() == 4 ? images.shape()[0] : 1;
        return run(options, call, n, [&](diffusevae_result* to) {
            return diffusevae_inpaint(handle_.get(), &call.c, composite ? 1 : 0, to);
        });
    }

    // One sample of each of the images, as a stage of a cascade takes them: which shapes they have, and what becomes of them, is said
    // at diffusevae_upscale. Options: no n, and no budget of time.
    Batch upscale(const Array& images, const SampleOptions& options = {}, std::optional<int64_t> noise_level = std::nullopt) {
        static const std::string name = "images";
        Call call(options, {images.named(name)});
        const int64_t n = images.shape().size() == 4 ? images.shape()[0] : 1;
        return run(options, call, n, [&](diffusevae_result* to) {
            return diffusevae_upscale(handle_.get(), &call.c, noise_level.value_or(DIFFUSEVAE_UNSET), to);
        });
    }

    // Throws what upscale would throw at these options and images of this shape, and runs nothing.
    void check_upscale(const Array& images, const SampleOptions& options = {},
                       std::optional<int64_t> noise_level = std::nullopt) const {
        static const std::string name = "images";
        const Call call(options, {images.named(name)});
        check(diffusevae_check_upscale(handle_.get(), &call.c, noise_level.value_or(DIFFUSEVAE_UNSET)));
    }

    // Within a callback: the images that the x0 makes which it is looking at, uint8 [step.n, height, width, channels].
    std::vector<uint8_t> preview(const StepInfo& step) {
        ArrayInfo images = *info_.output("images");
        images.shape[0] = step.n;
        Array pixels(images.dtype, images.shape);
        diffusevae_array c = pixels.named(images.name);
        check(diffusevae_preview(handle_.get(), &c));
        return pixels.values<uint8_t>();
    }

    // Stops the run in progress before its next row; from any thread.
    void cancel() noexcept { diffusevae_cancel(handle_.get()); }

    StepTable step_table(const SampleOptions& options = {}) const {
        Call call(options);
        diffusevae_step_table c;
        diffusevae_step_table_init(&c);
        check(diffusevae_get_step_table(handle_.get(), &call.c, &c));
        StepTable table;
        table.timesteps.resize(size_t(c.calls));
        table.rows.resize(size_t(c.calls) * DIFFUSEVAE_ROW_FIELDS);
        table.weights.resize(size_t(c.calls * c.lanes));
        table.nets.resize(size_t(c.calls));
        c.capacity = c.calls;
        c.timesteps = table.timesteps.data();
        c.rows = table.rows.data();
        c.weights = table.weights.data();
        c.nets = table.nets.data();
        check(diffusevae_get_step_table(handle_.get(), &call.c, &c));
        table.lanes = c.lanes;
        table.k_noise = c.k_noise;
        table.k_start = c.k_start;
        table.k_centre = c.k_centre;
        table.setting = Setting(c.setting);
        return table;
    }

private:
    friend class Cascade;

    struct Free {
        void operator()(diffusevae_sampler* sampler) const { diffusevae_free(sampler); }
    };

    // The options of opening as the C interface takes them; they point into the caller's.
    struct Opening {
        explicit Opening(const OpenOptions& options) {
            diffusevae_open_options_init(&c);
            c.backend = options.backend.c_str();
            c.precision = options.precision.c_str();
            c.threads = options.threads.value_or(DIFFUSEVAE_UNSET);
            c.max_batch = options.max_batch;
            for (const std::string& store : options.allow_links) stores.push_back(store.c_str());
            c.allow_links = stores.empty() ? nullptr : stores.data();
            c.allow_links_count = int64_t(stores.size());
            c.height = options.height.value_or(DIFFUSEVAE_UNSET);
            c.width = options.width.value_or(DIFFUSEVAE_UNSET);
            c.overlap = options.overlap.value_or(DIFFUSEVAE_UNSET_NUMBER);
        }
        Opening(const Opening&) = delete;
        Opening& operator=(const Opening&) = delete;

        diffusevae_open_options c;
        std::vector<const char*> stores;
    };

    // Options as the C interface takes them; they point into the caller's.
    struct Call {
        explicit Call(const SampleOptions& options, std::vector<diffusevae_array> arrays = {})
            : inputs(std::move(arrays)), callback(options.callback) {
            diffusevae_sample_options_init(&c);
            c.n = options.n.value_or(DIFFUSEVAE_UNSET);
            c.has_seed = options.seed ? 1 : 0;
            c.seed = options.seed.value_or(0);
            list(options.seeds, c.seeds, c.seeds_count);
            c.steps = options.steps.value_or(DIFFUSEVAE_UNSET);
            c.setting = text(options.setting);
            list(options.timesteps, c.timesteps, c.timesteps_count);
            c.spacing = text(options.spacing);
            c.rho = options.rho.value_or(DIFFUSEVAE_UNSET_NUMBER);
            c.method = text(options.method);
            c.eta = options.eta.value_or(DIFFUSEVAE_UNSET_NUMBER);
            list(options.etas, c.etas, c.etas_count);
            c.t_start = options.t_start.value_or(DIFFUSEVAE_UNSET);
            c.temperature = options.temperature.value_or(DIFFUSEVAE_UNSET_NUMBER);
            c.noise_scale = options.noise_scale.value_or(DIFFUSEVAE_UNSET_NUMBER);
            list(options.noise_scales, c.noise_scales, c.noise_scales_count);
            c.eps_scale = options.eps_scale.value_or(DIFFUSEVAE_UNSET_NUMBER);
            list(options.eps_scales, c.eps_scales, c.eps_scales_count);
            c.guidance = options.guidance.value_or(DIFFUSEVAE_UNSET_NUMBER);
            if (options.guidance_interval) {
                c.guidance_interval[0] = options.guidance_interval->first;
                c.guidance_interval[1] = options.guidance_interval->second;
            }
            c.variance = text(options.variance);
            c.quantize_denoised = options.quantize_denoised ? 1 : 0;
            c.guide_scale = options.guide_scale.value_or(DIFFUSEVAE_UNSET_NUMBER);
            c.guide_mode = text(options.guide_mode);
            if (options.guide_interval) {
                c.guide_interval[0] = options.guide_interval->first;
                c.guide_interval[1] = options.guide_interval->second;
            }
            c.regularise = text(options.regularise);
            if (options.regularise_interval) {
                c.regularise_interval[0] = options.regularise_interval->first;
                c.regularise_interval[1] = options.regularise_interval->second;
            }
            c.clip = options.clip ? 1 : 0;
            c.prior = text(options.prior);
            c.budget_ms = options.budget_ms.value_or(DIFFUSEVAE_UNSET_NUMBER);
            c.at_most = options.at_most ? 1 : 0;
            c.anytime = options.anytime ? 1 : 0;
            for (const auto& [name, strength] : options.edits) edits.push_back({name.c_str(), strength});
            list(edits, c.edits, c.edits_count);
            for (const std::string& one : options.texts) {
                if (one.find('\0') != std::string::npos)
                    throw ArgumentError("texts holds one with a zero byte, where C ends it; expected none. Leave it out.");
                texts.push_back(one.c_str());
            }
            list(texts, c.texts, c.texts_count);
            for (const auto& [name, array] : options.inputs) inputs.push_back(array.named(name));
            c.inputs = inputs.empty() ? nullptr : inputs.data();
            c.inputs_count = int64_t(inputs.size());
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
            int64_t most = std::max({int64_t(1), c.seeds_count, c.texts_count});
            for (const diffusevae_array& input : inputs) {
                const int32_t samples = std::strcmp(input.name, "noise") == 0 ? 1 : 0;  // its dimension of samples
                if (input.rank > samples) most = std::max(most, input.shape[samples]);
            }
            return most;
        }

        template <class Value>
        static void list(const std::vector<Value>& values, const Value*& data, int64_t& count) {
            data = values.empty() ? nullptr : values.data();
            count = int64_t(values.size());
        }

        static const char* text(const std::optional<std::string>& word) { return word ? word->c_str() : nullptr; }

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
        std::vector<diffusevae_array> inputs;
        std::vector<diffusevae_edit> edits;
        std::vector<const char*> texts;
        std::function<bool(const StepInfo&)> callback;
        std::exception_ptr thrown;
    };

    // A batch with room for n samples, and the arrays by which the library fills it.
    struct Room {
        Room(const SampleOptions& options, const Info& info, int64_t n) : info_(info) {
            // Leading spacings have more rows than steps, and one method calls the network once more than it steps.
            sizes_ = {{"batch", n}, {"rows", info.timesteps + 1}};
            for (const auto& [name, array] : options.inputs) learn(name, array);
            batch.n = n;
            batch.height = info.image_height;
            batch.width = info.image_width;
            batch.channels = info.image_channels;
            vector("images", batch.images);
            vector("x", batch.x);
            vector("seeds", batch.seeds);
            vector("timesteps", batch.timesteps);
            vector("step_ms", batch.step_ms);
            for (const std::string& name : options.values) add(name, named(name), batch.values);
            for (const std::string& name : options.pixels) {
                ArrayInfo pixels = named(name);
                pixels.dtype = DIFFUSEVAE_UINT8;
                if (pixels.shape.size() > 2) {  // the channels last
                    std::rotate(pixels.shape.begin() + 1, pixels.shape.begin() + 2, pixels.shape.end());
                    std::rotate(pixels.dimensions.begin() + 1, pixels.dimensions.begin() + 2, pixels.dimensions.end());
                }
                add(name, pixels, batch.pixels);
            }
        }

        Batch batch;
        std::vector<diffusevae_array> outputs;

    private:
        // The sizes of an input's free dimensions.
        void learn(const std::string& name, const Array& array) {
            for (const ArrayInfo& input : info_.inputs)
                for (size_t i = 1; input.name == name && i < input.shape.size() && i < array.shape().size(); ++i)
                    if (input.shape[i] < 0) sizes_[input.dimensions[i]] = array.shape()[i];
        }

        ArrayInfo named(const std::string& name) const {
            const ArrayInfo* found = info_.output(name);
            if (found) return *found;
            ArrayInfo unknown;  // the library refuses it, and says what there is
            unknown.name = name;
            unknown.shape = {1};
            unknown.dimensions = {""};
            return unknown;
        }

        std::vector<int64_t> shape_of(const ArrayInfo& info) const {
            std::vector<int64_t> shape = info.shape;
            for (size_t i = 0; i < shape.size(); ++i)
                if (shape[i] < 0) shape[i] = sizes_.count(info.dimensions[i]) ? sizes_.at(info.dimensions[i]) : 1;
            return shape;
        }

        void add(const std::string& name, const ArrayInfo& info, std::map<std::string, Array>& into) {
            into[name] = Array(info.dtype, shape_of(info));
            outputs.push_back(into.at(name).named(name));
        }

        template <class Value>
        void vector(const char* name, std::vector<Value>& into) {
            const std::vector<int64_t> shape = shape_of(*info_.output(name));
            int64_t size = 1;
            for (const int64_t dimension : shape) {
                if (dimension > 0 && size > PTRDIFF_MAX / int64_t(sizeof(Value)) / dimension)
                    throw ArgumentError("n is " + std::to_string(batch.n) + "; expected fewer: more images than any memory "
                                        "holds.");
                size *= dimension;
            }
            into.resize(size_t(size));
            diffusevae_array c{};
            c.name = name;
            c.dtype = DtypeOf<Value>::value;
            c.rank = int32_t(shape.size());
            std::copy(shape.begin(), shape.end(), c.shape);
            static Value none;
            c.data = into.empty() ? &none : into.data();
            outputs.push_back(c);
        }

        const Info& info_;
        std::map<std::string, int64_t> sizes_;
    };

    explicit Sampler(diffusevae_sampler* handle) { adopt(handle); }

    // What a call makes of n images; body: hands the result to the C interface.
    template <class Body>
    Batch run(const SampleOptions& options, const Call& call, int64_t n, const Body& body) {
        Room room(options, info_, n);
        diffusevae_result result;
        diffusevae_result_init(&result);
        result.outputs = room.outputs.data();
        result.outputs_count = int64_t(room.outputs.size());
        const diffusevae_status status = body(&result);
        if (call.thrown) std::rethrow_exception(call.thrown);
        check(status);
        room.batch.timesteps.resize(size_t(result.rows));
        room.batch.step_ms.resize(size_t(result.rows));
        room.batch.setting = Setting(result.setting);
        room.batch.timings = result.timings;
        if (options.budget_ms) room.batch.deadline = result.deadline;
        return std::move(room.batch);
    }

    void adopt(diffusevae_sampler* handle) {
        handle_.reset(handle);
        diffusevae_info c;
        diffusevae_info_init(&c);
        check(diffusevae_describe(handle, &c));
        info_.image_channels = c.image_channels;
        info_.image_height = c.image_height;
        info_.image_width = c.image_width;
        info_.timesteps = c.timesteps;
        info_.threads = c.threads;
        info_.max_batch = c.max_batch;
        info_.weight_bytes = c.weight_bytes;
        info_.guided = c.guided != 0;
        info_.has_prior = c.has_prior != 0;
        info_.has_guides = c.has_guides != 0;
        info_.has_regulariser = c.has_regulariser != 0;
        info_.name = c.name;
        info_.family = c.family;
        info_.start = c.start ? c.start : "";
        info_.backend = c.backend;
        info_.precision = c.precision;
        info_.isa = c.isa;
        info_.defaults = Setting(c.defaults);
        info_.fitted.assign(c.fitted, c.fitted + c.fitted_count);
        info_.directions.assign(c.directions, c.directions + c.directions_count);
        info_.text_input = c.text_input ? c.text_input : "";
        for (int64_t i = 0; i < c.inputs; ++i) info_.inputs.push_back(described(diffusevae_input, handle, i));
        for (int64_t i = 0; i < c.outputs; ++i) info_.outputs.push_back(described(diffusevae_output, handle, i));
    }

    template <class Describe>
    static ArrayInfo described(const Describe& describe, const diffusevae_sampler* handle, int64_t index) {
        diffusevae_array_info c;
        diffusevae_array_info_init(&c);
        check(describe(handle, index, &c));
        return ArrayInfo(c);
    }

    std::unique_ptr<diffusevae_sampler, Free> handle_;
    Info info_;
};

}  // namespace api
}  // namespace diffusevae

#include "diffusevae_cascade.hpp"

#endif  // DIFFUSEVAE_HPP
