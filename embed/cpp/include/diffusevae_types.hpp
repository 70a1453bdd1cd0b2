// Errors, arrays, options and results of diffusevae.hpp.
#ifndef DIFFUSEVAE_TYPES_HPP
#define DIFFUSEVAE_TYPES_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
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
using DeadlineError = ErrorOf<DIFFUSEVAE_DEADLINE>;

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
        case DIFFUSEVAE_DEADLINE: throw DeadlineError(diffusevae_error());
    }
    throw Error(status, diffusevae_error());
}

inline std::string version() { return diffusevae_version(); }

// ---- arrays --------------------------------------------------------------------------------------------------------------

template <class Value> struct DtypeOf;
template <> struct DtypeOf<float> { static constexpr diffusevae_dtype value = DIFFUSEVAE_FLOAT32; };
template <> struct DtypeOf<int64_t> { static constexpr diffusevae_dtype value = DIFFUSEVAE_INT64; };
template <> struct DtypeOf<uint8_t> { static constexpr diffusevae_dtype value = DIFFUSEVAE_UINT8; };
template <> struct DtypeOf<uint64_t> { static constexpr diffusevae_dtype value = DIFFUSEVAE_UINT64; };
template <> struct DtypeOf<double> { static constexpr diffusevae_dtype value = DIFFUSEVAE_FLOAT64; };

// An array of its own: dtype, shape, and its elements in C order.
class Array {
public:
    Array() = default;

    // These elements in this shape; without one they are one dimension.
    template <class Value>
    static Array of(const std::vector<Value>& values, std::vector<int64_t> shape = {}) {
        if (shape.empty()) shape = {int64_t(values.size())};
        Array array(DtypeOf<Value>::value, shape);
        if (array.bytes_.size() != values.size() * sizeof(Value))
            throw ArgumentError("an array of " + std::to_string(values.size()) + " elements was given a shape of another "
                                "number; expected one that goes with them.");
        if (!values.empty()) std::memcpy(array.bytes_.data(), values.data(), array.bytes_.size());
        return array;
    }

    // Zeros.
    Array(diffusevae_dtype dtype, std::vector<int64_t> shape) : dtype_(dtype), shape_(std::move(shape)) {
        size_t size = element_size(dtype_);
        for (const int64_t dimension : shape_) {
            if (dimension < 0 || (dimension > 0 && size > size_t(PTRDIFF_MAX) / size_t(dimension)))
                throw ArgumentError("an array would be larger than any memory holds; expected a smaller one.");
            size *= size_t(dimension);
        }
        bytes_.resize(size);
    }

    diffusevae_dtype dtype() const noexcept { return dtype_; }
    const std::vector<int64_t>& shape() const noexcept { return shape_; }
    size_t size() const { return bytes_.size() / element_size(dtype_); }
    bool empty() const noexcept { return bytes_.empty(); }

    // The elements; ArgumentError where they are of another type.
    template <class Value>
    const Value* data() const {
        if (DtypeOf<Value>::value != dtype_)
            throw ArgumentError("found an array of another dtype; expected that of the elements it is asked for.");
        return reinterpret_cast<const Value*>(bytes_.data());
    }

    template <class Value>
    std::vector<Value> values() const {
        const Value* begin = data<Value>();
        return std::vector<Value>(begin, begin + size());
    }

    // As the C interface takes it, under a name; both must outlive the result.
    diffusevae_array named(const std::string& name) const {
        if (shape_.size() > DIFFUSEVAE_MAX_RANK)
            throw ArgumentError(name + " has " + std::to_string(shape_.size()) + " dimensions; expected at most "
                                + std::to_string(DIFFUSEVAE_MAX_RANK) + ".");
        diffusevae_array c{};
        c.name = name.c_str();
        c.dtype = dtype_;
        c.rank = int32_t(shape_.size());
        std::copy(shape_.begin(), shape_.end(), c.shape);
        c.data = const_cast<char*>(bytes_.data());
        return c;
    }

    static size_t element_size(diffusevae_dtype dtype) {
        return dtype == DIFFUSEVAE_UINT8 ? 1 : dtype == DIFFUSEVAE_FLOAT32 ? sizeof(float) : sizeof(int64_t);
    }

private:
    diffusevae_dtype dtype_ = DIFFUSEVAE_FLOAT32;
    std::vector<int64_t> shape_;
    std::vector<char> bytes_;
};

// What is known of an input or output before there is one.
struct ArrayInfo {
    std::string name;
    diffusevae_dtype dtype = DIFFUSEVAE_FLOAT32;
    std::vector<int64_t> shape;            // -1 where a dimension is free
    std::vector<std::string> dimensions;   // names of the free ones, "" where it is fixed
    bool drawn = false, has_null = false, is_image = false;
    std::optional<std::pair<double, double>> range;

    ArrayInfo() = default;
    explicit ArrayInfo(const diffusevae_array_info& c)
        : name(c.name), dtype(diffusevae_dtype(c.dtype)), shape(c.shape, c.shape + c.rank), drawn(c.drawn != 0),
          has_null(c.has_null != 0), is_image(c.is_image != 0) {
        for (int32_t i = 0; i < c.rank; ++i) dimensions.push_back(c.dimensions[i] ? c.dimensions[i] : "");
        if (c.bounded) range = {c.low, c.high};
    }
};

// ---- what goes in --------------------------------------------------------------------------------------------------------

struct OpenOptions {
    std::string backend = "native";
    std::string precision = "auto";
    std::optional<int64_t> threads;  // nullopt: what affinity and the container's CPU quota allow
    int64_t max_batch = 64;
    std::vector<std::string> allow_links;  // folders where links among the bundle's files may end, beside the bundle's own
    std::optional<int64_t> height, width;  // of images of another size than the bundle's own: computed as a whole, or with
    std::optional<double> overlap;         // the share of a tile that the next one covers, 0 .. 0.9, in tiles
};

using StepInfo = diffusevae_step;

struct SampleOptions {
    std::optional<int64_t> n;  // nullopt: what seeds and inputs say, else 1
    std::optional<uint64_t> seed;
    std::vector<uint64_t> seeds;

    std::optional<int64_t> steps;
    std::optional<std::string> setting;  // "fitted" or "plain"; none: the fitted one where there is one
    std::vector<int64_t> timesteps;
    std::optional<std::string> spacing;
    std::optional<double> rho;
    std::optional<std::string> method;
    std::optional<double> eta;
    std::vector<double> etas;  // one a step in place of eta; so for the scales below
    std::optional<int64_t> t_start;

    std::optional<double> temperature;
    std::optional<double> noise_scale;
    std::vector<double> noise_scales;
    std::optional<double> eps_scale;
    std::vector<double> eps_scales;
    std::optional<double> guidance;
    std::optional<std::pair<int64_t, int64_t>> guidance_interval;  // low and high, both included; none: every row is guided
    std::optional<std::string> variance;
    bool quantize_denoised = false;
    std::optional<double> guide_scale;  // of the guides' gradient; 0 runs none
    std::optional<std::string> guide_mode;
    std::optional<std::pair<int64_t, int64_t>> guide_interval;  // low and high, both included: the rows that run a guide
    std::optional<std::string> regularise;  // off, after or before: where the bundle's second network comes in
    std::optional<std::pair<int64_t, int64_t>> regularise_interval;
    bool clip = true;
    std::optional<std::string> prior;
    std::map<std::string, double> edits;  // strengths by direction, which the drawn input is moved along
    std::vector<std::string> texts;       // in place of the input Info::text_input: one for all samples, or one each

    std::optional<double> budget_ms;  // in place of what stands down to t_start
    bool at_most = false, anytime = false;

    std::map<std::string, Array> inputs;  // what the bundle declares, "x_T" and "noise", by name
    std::vector<std::string> values;      // of the pipeline, to be in Batch::values
    std::vector<std::string> pixels;      // image values of the pipeline, to be in Batch::pixels

    // Called after every row of the step table; true stops the run (Cancelled). What it throws leaves sample() as it is.
    std::function<bool(const StepInfo&)> callback;
};

// ---- what comes out ------------------------------------------------------------------------------------------------------

struct Setting {
    int64_t steps = 0;
    std::vector<int64_t> timesteps;  // where they were listed; otherwise there is a spacing
    std::optional<std::string> spacing;
    double rho = 7;
    std::string method;
    std::optional<double> eta;  // this and the scales below: one number, or a list
    std::vector<double> etas;
    std::optional<int64_t> t_start;
    double temperature = 1;
    std::optional<double> noise_scale;
    std::vector<double> noise_scales;
    std::optional<double> eps_scale;
    std::vector<double> eps_scales;
    double guidance = 0;
    std::optional<std::pair<int64_t, int64_t>> guidance_interval;
    std::string variance;
    bool quantize_denoised = false;
    double guide_scale = 0;
    std::string guide_mode = "constant";
    std::optional<std::pair<int64_t, int64_t>> guide_interval;
    std::string regularise = "off";
    std::optional<std::pair<int64_t, int64_t>> regularise_interval;
    bool clip = true;
    std::optional<std::string> prior;

    Setting() = default;
    explicit Setting(const diffusevae_setting& c)
        : steps(c.steps), timesteps(c.timesteps, c.timesteps + c.timesteps_count), rho(c.rho), method(c.method),
          etas(c.etas, c.etas + c.etas_count), temperature(c.temperature),
          noise_scales(c.noise_scales, c.noise_scales + c.noise_scales_count),
          eps_scales(c.eps_scales, c.eps_scales + c.eps_scales_count), guidance(c.guidance), variance(c.variance),
          quantize_denoised(c.quantize_denoised != 0), guide_scale(c.guide_scale), guide_mode(c.guide_mode),
          regularise(c.regularise), clip(c.clip != 0) {
        if (c.spacing) spacing = c.spacing;
        if (c.eta != DIFFUSEVAE_UNSET_NUMBER) eta = c.eta;
        if (c.t_start != DIFFUSEVAE_UNSET) t_start = c.t_start;
        if (c.noise_scale != DIFFUSEVAE_UNSET_NUMBER) noise_scale = c.noise_scale;
        if (c.eps_scale != DIFFUSEVAE_UNSET_NUMBER) eps_scale = c.eps_scale;
        if (c.guidance_interval[0] != DIFFUSEVAE_UNSET) guidance_interval = {c.guidance_interval[0], c.guidance_interval[1]};
        if (c.guide_interval[0] != DIFFUSEVAE_UNSET) guide_interval = {c.guide_interval[0], c.guide_interval[1]};
        if (c.regularise_interval[0] != DIFFUSEVAE_UNSET)
            regularise_interval = {c.regularise_interval[0], c.regularise_interval[1]};
        if (c.prior) prior = c.prior;
    }
};

struct Info {
    int64_t image_channels = 0, image_height = 0, image_width = 0;
    int64_t timesteps = 0, threads = 0, max_batch = 0, weight_bytes = 0;
    bool guided = false, has_prior = false, has_guides = false, has_regulariser = false;
    std::string name, family, start, backend, precision, isa;  // start: the value to start from, "" where there is none
    std::vector<ArrayInfo> inputs, outputs;
    std::vector<std::string> directions;  // that SampleOptions::edits may name
    std::string text_input;               // that SampleOptions::texts become, "" where the bundle holds no vocabulary
    Setting defaults;
    std::vector<int64_t> fitted;  // the calls of each setting fitted to the bundle, the best first

    const ArrayInfo* output(const std::string& its_name) const {
        for (const ArrayInfo& one : outputs)
            if (one.name == its_name) return &one;
        return nullptr;
    }
};

using Timings = diffusevae_timings;
using Deadline = diffusevae_deadline;

struct Batch {
    int64_t n = 0, height = 0, width = 0, channels = 0;
    std::vector<uint8_t> images;          // [n, height, width, channels]
    std::vector<float> x;                 // [n, ...], the state after the last row
    std::map<std::string, Array> values;  // by name, what options.values asked for
    std::map<std::string, Array> pixels;  // uint8 [n, H, W, C] each, what options.pixels asked for
    std::vector<uint64_t> seeds;          // [n]
    std::vector<int64_t> timesteps;       // [R]
    std::vector<double> step_ms;          // [R]
    Setting setting;
    Timings timings{};
    std::optional<Deadline> deadline;     // of a run with a budget of time

    // The pixels of one image, [height, width, channels].
    const uint8_t* image(int64_t i) const { return images.data() + i * height * width * channels; }
};

struct StepTable {
    std::vector<int64_t> timesteps;  // [R]
    std::vector<float> rows;         // [R, DIFFUSEVAE_ROW_FIELDS]
    std::vector<float> weights;      // [R, lanes]
    std::vector<int64_t> nets;       // [R], 1 where the regulariser is called
    int64_t lanes = 1;
    double k_noise = 0, k_start = 0, k_centre = 0;
    Setting setting;
};

}  // namespace api
}  // namespace diffusevae

#endif  // DIFFUSEVAE_TYPES_HPP
