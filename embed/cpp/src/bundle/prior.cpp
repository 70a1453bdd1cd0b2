#include "bundle/prior.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "diffusevae/kernels.h"
#include "diffusevae/philox.h"
#include "bundle/safetensors.h"
#include "text.h"

namespace diffusevae {
namespace {

constexpr double kSumTolerance = 1e-4;
const char* const kFit =
    "fit it again with: diffusevae fit-prior BUNDLE --images FILE --components K --out FILE";
const char* const kTensors[] = {"weights", "means", "scale_tril"};

[[noreturn]] void refuse(const std::string& where, const std::string& found, const std::string& expected) {
    refuse(Origin{where, "a prior", kFit}, "", found, expected);
}

std::vector<float> floats(const StoredTensor& tensor) {
    std::vector<float> values(tensor.data.size() / sizeof(float));  // little-endian, as every machine that this runs on
    if (!values.empty()) std::memcpy(values.data(), tensor.data.data(), values.size() * sizeof(float));
    return values;
}

std::string shape_text(const char* name, const std::vector<int64_t>& shape) {
    std::vector<std::string> sizes;
    for (const int64_t size : shape) sizes.push_back(std::to_string(size));
    return std::string(name) + " [" + joined(sizes) + "]";
}

using Shape = std::vector<int64_t>;
using Tensors = std::map<std::string, StoredTensor>;

// [K, D] of the means, once the other two tensors go with them.
std::pair<int64_t, int64_t> checked_shapes(const Tensors& tensors, const std::string& where) {
    const Shape& means = tensors.at("means").shape;
    const int64_t components = means.size() == 2 ? means[0] : 0, width = means.size() == 2 ? means[1] : 0;
    const bool fits = tensors.at("weights").shape == Shape{components}
                      && tensors.at("scale_tril").shape == Shape{components, width, width};
    if (components == 0 || width == 0 || !fits) {
        std::vector<std::string> shapes;
        for (const char* name : kTensors) shapes.push_back(shape_text(name, tensors.at(name).shape));
        refuse(where, joined(shapes), "[K], [K, D] and [K, D, D]");
    }
    return {components, width};
}

void check_weights(const std::vector<float>& weights, const std::string& where) {
    double total = 0;
    for (const float weight : weights) total += double(weight);
    const float least = *std::min_element(weights.begin(), weights.end());
    if (!(least > 0) || std::fabs(total - 1) > kSumTolerance)
        refuse(where, "weights of at least " + short_number(double(least)) + " with the sum " + short_number(total),
               "positive ones with the sum 1");
}

void check_factors(const std::vector<float>& factors, size_t width, const std::string& where) {
    for (size_t i = 0; i < factors.size(); ++i) {
        const size_t row = i / width % width, column = i % width;
        if (row == column && !(factors[i] > 0))
            refuse(where, "a diagonal of scale_tril that is not positive", "Cholesky factors");
        if (row < column && factors[i] != 0)
            refuse(where, "values above the diagonal of scale_tril", "lower triangular matrices");
    }
}

// Rounded down to whole 2^-32ths once, in float64, so that every comparison is one of integers.
std::vector<uint64_t> thresholds_of(const std::vector<float>& weights) {
    std::vector<double> ends;
    double total = 0;
    for (const float weight : weights) ends.push_back(total += double(weight));
    std::vector<uint64_t> thresholds;
    for (const double end : ends) thresholds.push_back(uint64_t(std::floor(end / total * 4294967296.0)));
    return thresholds;
}

}  // namespace

Prior Prior::parse(std::string_view bytes, const std::string& where) {
    const Tensors tensors = parse_safetensors(bytes, {where, "a prior", kFit});
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors) names.push_back(name);
    if (names != std::vector<std::string>{"means", "scale_tril", "weights"})
        refuse(where, "the tensors " + in_quotes(joined(names)), "weights, means, scale_tril");
    const auto [components, width] = checked_shapes(tensors, where);
    std::map<std::string, std::vector<float>> values;
    for (const char* name : kTensors) {
        values[name] = floats(tensors.at(name));
        if (!std::all_of(values[name].begin(), values[name].end(), [](float value) { return std::isfinite(value); }))
            refuse(where, std::string("NaN or infinity in ") + name, "finite numbers");
    }
    check_weights(values["weights"], where);
    check_factors(values["scale_tril"], size_t(width), where);
    std::vector<uint64_t> thresholds = thresholds_of(values["weights"]);
    return Prior(std::move(thresholds), std::move(values["means"]), std::move(values["scale_tril"]), width);
}

void Prior::draw(const uint64_t* seeds, int64_t count, float* z) const {
    std::vector<float> units(size_t(count * width_));
    dv_normal(seeds, count, kStreamZ, 0, width_, units.data());
    dv_mixture(seeds, count, thresholds_.data(), components(), means_.data(), scale_tril_.data(), width_, units.data(), z);
}

std::optional<Prior> read_prior(const Bundle& bundle) {
    const std::optional<std::string> data = bundle.read_prior();
    if (!data) return std::nullopt;
    const PriorSpec& spec = *bundle.manifest().prior;
    const std::string where = bundle.path_of(spec);
    Prior prior = Prior::parse(*data, where);
    if (prior.components() != spec.components)
        refuse(where, std::to_string(prior.components()) + " components",
               std::to_string(spec.components) + ", as the manifest says");
    Shape sample;
    for (const Dimension& dimension : bundle.manifest().drawn()->sample()) sample.push_back(std::get<int64_t>(dimension));
    const std::optional<int64_t> width = bytes_of(sample, 1);
    if (prior.width() != width)
        refuse(where, "a prior of width " + std::to_string(prior.width()),
               (width ? std::to_string(*width) : "a number beyond any memory") + ", the input's");
    return prior;
}

bool resolve_prior(const std::optional<std::string>& asked, bool has_prior) {
    if (!asked) return has_prior;
    if (*asked != "bundle" && *asked != "standard")
        throw Error(DIFFUSEVAE_ARGUMENT, "prior: found " + in_quotes(*asked) + ", expected nothing or one of bundle, "
                                         "standard." + did_you_mean(*asked, {"bundle", "standard"}));
    if (*asked == "bundle" && !has_prior)
        throw Error(DIFFUSEVAE_ARGUMENT,
                    "prior: found 'bundle', but this bundle holds no fitted prior; expected 'standard' or nothing. Fit one with: "
                    "diffusevae fit-prior BUNDLE --images FILE --out FILE, and build the bundle again with --latent-prior FILE");
    return *asked == "bundle";
}

}  // namespace diffusevae
