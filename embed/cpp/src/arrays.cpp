#include "arrays.h"

#include <algorithm>

#include "checks.h"
#include "tensor.h"
#include "text.h"

namespace diffusevae {
namespace {

template <class Value>
void check_range(const TensorSpec& spec, const Value* values, size_t count) {
    if (!spec.range) return;
    const auto [low, high] = std::minmax_element(values, values + count);
    if (double(*low) < spec.range->first || double(*high) > spec.range->second)
        refuse_argument(spec.name + " runs from " + brief(double(*low)) + " to " + brief(double(*high))
                        + "; expected values in " + brief(spec.range->first) + " .. " + brief(spec.range->second)
                        + ", as this bundle takes them.");
}

}  // namespace

std::string takes(const Manifest& manifest) {
    std::vector<std::string> texts;
    for (const InputSpec& input : manifest.inputs) texts.push_back(input.text());
    return texts.empty() ? "none" : joined(texts);
}

NamedArrays named_arrays(const Manifest& manifest, const diffusevae_sample_options& given, const std::vector<std::string>& others) {
    count_beside("inputs", given.inputs, "inputs_count", given.inputs_count);
    NamedArrays arrays;
    std::vector<std::string> known = {"x_T", "noise"};
    known.insert(known.end(), others.begin(), others.end());
    for (const InputSpec& input : manifest.inputs) known.push_back(input.name);
    for (int64_t i = 0; i < given.inputs_count; ++i) {
        const diffusevae_array& array = given.inputs[i];
        if (!array.name) refuse_argument("inputs[" + std::to_string(i) + "] has no name; expected one of " + joined(known) + ".");
        if (std::find(known.begin(), known.end(), array.name) == known.end())
            refuse_argument("inputs has an array " + in_quotes(array.name) + ", and this bundle has no such input: it takes "
                            + takes(manifest) + "." + did_you_mean(array.name, known));
        if (find(arrays, array.name) != nullptr)
            refuse_argument("inputs has the array " + in_quotes(array.name) + " twice; expected each name once.");
        arrays.push_back(&array);
    }
    return arrays;
}

const diffusevae_array* find(const NamedArrays& arrays, const std::string& name) {
    for (const diffusevae_array* array : arrays)
        if (name == array->name) return array;
    return nullptr;
}

std::vector<int64_t> shape_of(const diffusevae_array& array) {
    if (array.rank < 1 || array.rank > DIFFUSEVAE_MAX_RANK)
        refuse_argument(std::string(array.name) + " has rank " + std::to_string(array.rank) + "; expected 1 .. "
                        + std::to_string(DIFFUSEVAE_MAX_RANK) + ".");
    return std::vector<int64_t>(array.shape, array.shape + array.rank);
}

std::string dtype_text(const diffusevae_array& array) {
    return name_of(Dtype(array.dtype)) + (" (" + std::to_string(array.dtype) + ")");
}

std::vector<int64_t> checked_shape(const diffusevae_array& array, Dtype dtype, const Dimensions& expected) {
    const std::vector<int64_t> shape = shape_of(array);
    const std::string wanted = std::string(name_of(dtype)) + " [" + text_of(expected) + "]";
    if (array.dtype != int32_t(dtype))
        refuse_argument(std::string(array.name) + " has dtype " + dtype_text(array) + "; expected " + wanted + ".");
    bool fits = shape.size() == expected.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) {
        const int64_t* fixed = std::get_if<int64_t>(&expected[i]);
        fits = shape[i] >= 1 && (fixed == nullptr || *fixed == shape[i]);
    }
    if (!fits) refuse_argument(std::string(array.name) + " has shape " + shape_text(shape) + "; expected " + wanted + ".");
    return shape;
}

void check_values(const TensorSpec& spec, const float* values, const std::vector<int64_t>& shape) {
    check_finite_array(spec.name, values, shape);
    check_range(spec, values, memory_size(shape));
}

void check_values(const TensorSpec& spec, const int64_t* values, const std::vector<int64_t>& shape) {
    check_array(spec.name, values, sizeof(int64_t), shape);
    check_range(spec, values, memory_size(shape));
}

}  // namespace diffusevae
