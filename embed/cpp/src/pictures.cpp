#include "pictures.h"

#include <algorithm>
#include <cstdio>

#include "checks.h"
#include "text.h"

namespace diffusevae {

std::string text_of(const PictureShape& shape) { return shape_text({shape.channels, shape.height, shape.width}); }

PictureShape sizes_of(const Dimensions& sample) {
    return {std::get<int64_t>(sample[0]), std::get<int64_t>(sample[1]), std::get<int64_t>(sample[2])};
}

bool takes_images(const PipelineSpec& pipeline) { return pipeline.image == kX || pipeline.encodes_state(); }

PictureShape made_shape(const PipelineSpec& pipeline) {
    const std::vector<int64_t> shape = pipeline.image_shape();
    return {shape[0], shape[1], shape[2]};
}

PictureShape image_shape(const PipelineSpec& pipeline) {
    const std::optional<TensorSpec>& encoded = pipeline.encoder_image;
    if (!encoded || (pipeline.image == kX && !pipeline.encodes_state())) return made_shape(pipeline);
    return sizes_of(Dimensions(encoded->shape.begin() + 1, encoded->shape.end()));
}

namespace {

bool fits(const std::vector<int64_t>& shape, const std::vector<int64_t>& sample) {
    return shape.size() == 4 && shape[0] >= 1 && std::equal(sample.begin(), sample.end(), shape.begin() + 1);
}

std::string four_digits(float number) {
    char text[32];
    std::snprintf(text, sizeof text, "%.4g", double(number));
    return text;
}

}  // namespace

std::vector<int64_t> shape_of_picture(const diffusevae_array& array, const PictureShape& size, bool mask, const std::string& wanted,
                                      const char* cure) {
    const std::vector<int64_t> found = shape_of(array);
    std::vector<int64_t> shape = found;
    const bool bytes = array.dtype == DIFFUSEVAE_UINT8;
    if (!bytes && array.dtype != DIFFUSEVAE_FLOAT32)
        refuse_argument(std::string(array.name) + " has dtype " + dtype_text(array) + "; expected " + wanted + ".");
    const std::vector<int64_t> last = {size.height, size.width, size.channels}, first = {size.channels, size.height, size.width};
    const size_t rank = shape.size();
    if (bytes && mask && rank >= 2 && shape != last && shape[rank - 2] == size.height && shape[rank - 1] == size.width)
        shape.push_back(1);
    if (shape.size() == 3 && (bytes || mask)) shape.insert(shape.begin(), 1);
    if (!fits(shape, bytes ? last : first))
        refuse_argument(std::string(array.name) + " has shape " + shape_text(found)
                        + (bytes ? " (uint8)" : mask ? "" : " (float32)") + "; expected " + wanted + cure);
    return shape;
}

void take_images(const diffusevae_array& array, const PictureShape& size, Holed& into) {
    const std::string c = std::to_string(size.channels), h = std::to_string(size.height), w = std::to_string(size.width);
    const std::string wanted = "uint8 [N, " + h + ", " + w + ", " + c + "] or [" + h + ", " + w + ", " + c + "], or float32 [N, " + c
                               + ", " + h + ", " + w + "] in [0, 1]";
    const std::vector<int64_t> shape = shape_of_picture(array, size, false, wanted, ". Resize them first.");
    const int64_t plane = size.height * size.width;
    into.count = shape[0];
    into.channels = size.channels;
    into.height = size.height;
    into.width = size.width;
    if (array.dtype == DIFFUSEVAE_FLOAT32) {
        const float* const values = static_cast<const float*>(array.data);
        check_finite_array(kImages, values, shape);
        into.pixels.assign(values, values + memory_size(shape));
        const auto [low, high] = std::minmax_element(into.pixels.begin(), into.pixels.end());
        if (*low < 0.0f || *high > 1.0f)
            refuse_argument("images runs from " + four_digits(*low) + " to " + four_digits(*high) + "; expected " + wanted
                            + ". Images in [-1, 1] become so with (images + 1) / 2.");
        return;
    }
    const uint8_t* bytes = static_cast<const uint8_t*>(array.data);
    check_array(kImages, bytes, 1, shape);
    into.pixels.resize(memory_size(shape));
    for (int64_t n = 0; n < into.count; ++n)
        for (int64_t i = 0; i < plane; ++i)
            for (int64_t channel = 0; channel < size.channels; ++channel)
                into.pixels[size_t((n * size.channels + channel) * plane + i)] = float(*bytes++) / 255.0f;
}

void refuse_options(const char* verb, const Manifest& manifest, const diffusevae_sample_options& given) {
    const std::pair<const char*, bool> options[] = {
        {"n", given.n != DIFFUSEVAE_UNSET},
        {"budget_ms", given.budget_ms != DIFFUSEVAE_UNSET_NUMBER},
        {"at_most", given.at_most != 0},
        {"anytime", given.anytime != 0},
    };
    for (const auto& [name, there] : options)
        if (there)
            refuse_argument(std::string(verb) + " has no option " + in_quotes(name) + ", and this bundle has no such input: it takes "
                            + takes(manifest) + ".");
}

const diffusevae_array& needed(const char* verb, const NamedArrays& arrays, const char* name, const std::string& wanted) {
    const diffusevae_array* const array = find(arrays, name);
    if (array == nullptr)
        refuse_argument(std::string(verb) + ": found no " + name + " among inputs; expected " + wanted);
    return *array;
}

diffusevae_array array_of(const std::string& name, const std::vector<float>& values, const std::vector<int64_t>& shape) {
    diffusevae_array array{name.c_str(), DIFFUSEVAE_FLOAT32, int32_t(shape.size()), {}, const_cast<float*>(values.data())};
    std::copy(shape.begin(), shape.end(), array.shape);
    return array;
}

}  // namespace diffusevae
