#include "inpaint.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "arrays.h"
#include "checks.h"
#include "error.h"
#include "text.h"

namespace diffusevae {
namespace {

constexpr const char *kVerb = "inpaint", *kImages = "images", *kMasks = "masks", *kKnownNoise = "known_noise";

struct Shape {
    int64_t channels, height, width;
};

std::string text_of(const Shape& shape) { return shape_text({shape.channels, shape.height, shape.width}); }

Shape sizes_of(const Dimensions& sample) {
    return {std::get<int64_t>(sample[0]), std::get<int64_t>(sample[1]), std::get<int64_t>(sample[2])};
}

// ---- what a bundle has ---------------------------------------------------------------------------------------------------

// The inputs that are a picture and its mask, where there is one of each.
struct Pair {
    const InputSpec *image = nullptr, *mask = nullptr;

    explicit operator bool() const { return image != nullptr; }
};

Pair image_and_mask(const Manifest& manifest) {
    Pair pair;
    int64_t images = 0, masks = 0;
    for (const InputSpec& input : manifest.inputs) {
        if (input.picture == "image") pair.image = &input, ++images;
        if (input.picture == "mask") pair.mask = &input, ++masks;
    }
    return images == 1 && masks == 1 ? pair : Pair{};
}

bool takes_images(const PipelineSpec& pipeline) { return pipeline.image == kX || pipeline.encodes_state(); }

Shape made_shape(const PipelineSpec& pipeline) {
    const std::vector<int64_t> shape = pipeline.image_shape();
    return {shape[0], shape[1], shape[2]};
}

Shape taken_shape(const Manifest& manifest) {
    const PipelineSpec& pipeline = manifest.pipeline;
    const Pair pair = image_and_mask(manifest);
    if (pair) return sizes_of(pair.image->sample());
    if (!takes_images(pipeline)) {
        std::vector<std::string> graphs;
        for (const GraphSpec& graph : manifest.graphs) graphs.push_back(graph.key);
        refuse_argument("inpaint needs an image and a mask among its inputs, a state that is the image, or an encoder to it, which "
                        "this bundle lacks: it takes " + (manifest.inputs.empty() ? "no inputs" : takes(manifest))
                        + ", and holds the graphs " + joined(graphs) + ". Build a bundle from a checkpoint that has it.");
    }
    const std::optional<TensorSpec>& encoded = pipeline.encoder_image;
    if (!encoded || (pipeline.image == kX && !pipeline.encodes_state())) return made_shape(pipeline);
    return sizes_of(Dimensions(encoded->shape.begin() + 1, encoded->shape.end()));
}

// ---- arrays --------------------------------------------------------------------------------------------------------------

bool fits(const std::vector<int64_t>& shape, const std::vector<int64_t>& sample) {
    return shape.size() == 4 && shape[0] >= 1 && std::equal(sample.begin(), sample.end(), shape.begin() + 1);
}

// Refuses what is neither uint8 nor float32 of this size; the shape with the samples in front. wanted: for messages; mask: one
// sample, and the channel of bytes, may lack their dimension.
std::vector<int64_t> shape_of_picture(const diffusevae_array& array, const Shape& size, bool mask, const std::string& wanted,
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

std::string four_digits(float number) {
    char text[32];
    std::snprintf(text, sizeof text, "%.4g", double(number));
    return text;
}

void take_images(const diffusevae_array& array, const Shape& size, Holed& into) {
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

void take_masks(const diffusevae_array& array, const Shape& size, Holed& into) {
    const Shape one{1, size.height, size.width};
    const TensorSpec spec{kMasks, kFloat32, {kBatch, 1, size.height, size.width}, Range({0.0, 1.0})};
    const std::string h = std::to_string(size.height), w = std::to_string(size.width);
    const std::string wanted = "uint8 [N, " + h + ", " + w + ", 1], or float32 [N, 1, " + h + ", " + w + "] or one sample [1, " + h
                               + ", " + w + "] in [0, 1]";
    const std::vector<int64_t> shape = shape_of_picture(array, one, true, wanted, ", N > 0.");
    if (array.dtype == DIFFUSEVAE_FLOAT32) {
        const float* const values = static_cast<const float*>(array.data);
        check_values(spec, values, shape);
        into.mask.assign(values, values + memory_size(shape));
        return;
    }
    const uint8_t* const bytes = static_cast<const uint8_t*>(array.data);
    check_array(kMasks, bytes, 1, shape);
    const uint8_t* const end = bytes + memory_size(shape);
    if (*std::max_element(bytes, end) == 1)
        refuse_argument("masks is uint8 with no value above 1; expected 0 and 255. Pass 255 times it.");
    for (const uint8_t* at = bytes; at != end; ++at) into.mask.push_back(*at >= 128 ? 1.0f : 0.0f);
}

// 1 - mask at the state's size, by its nearest value above and to the left, as torch's `interpolate`.
std::vector<float> kept(const Holed& holed, const StateSpec& state) {
    std::vector<float> keep;
    for (int64_t n = 0; n < holed.masks(); ++n)
        for (int64_t y = 0; y < state.height; ++y)
            for (int64_t x = 0; x < state.width; ++x) {
                const int64_t row = y * holed.height / state.height, column = x * holed.width / state.width;
                keep.push_back(1.0f - holed.mask[size_t((n * holed.height + row) * holed.width + column)]);
            }
    return keep;
}

// ---- requests ------------------------------------------------------------------------------------------------------------

// What says how many images there are, and in what time: that is not for this verb.
void refuse_options(const Manifest& manifest, const diffusevae_sample_options& given) {
    const std::pair<const char*, bool> options[] = {
        {"n", given.n != DIFFUSEVAE_UNSET},
        {"budget_ms", given.budget_ms != DIFFUSEVAE_UNSET_NUMBER},
        {"at_most", given.at_most != 0},
        {"anytime", given.anytime != 0},
    };
    for (const auto& [name, there] : options)
        if (there)
            refuse_argument("inpaint has no option " + in_quotes(name) + ", and this bundle has no such input: it takes "
                            + takes(manifest) + ".");
}

const diffusevae_array& needed(const NamedArrays& arrays, const char* name) {
    const diffusevae_array* const array = find(arrays, name);
    if (array == nullptr)
        refuse_argument("inpaint: found no " + std::string(name) + " among inputs; expected images and masks. Pass both by name.");
    return *array;
}

diffusevae_array array_of(const std::string& name, const std::vector<float>& values, const std::vector<int64_t>& shape) {
    diffusevae_array array{name.c_str(), DIFFUSEVAE_FLOAT32, int32_t(shape.size()), {}, const_cast<float*>(values.data())};
    std::copy(shape.begin(), shape.end(), array.shape);
    return array;
}

// A sample of a network that takes image and mask.
Request conditioned(const Manifest& manifest, const Pair& pair, const NamedArrays& arrays, Holed& holed,
                    diffusevae_sample_options given) {
    std::vector<std::string> beside;
    for (const std::string& name : {pair.image->name, pair.mask->name, std::string(kKnownNoise)})
        if (find(arrays, name) != nullptr) beside.push_back(name);
    if (!beside.empty())
        refuse_argument("inpaint hands images and masks to this bundle's network as " + pair.image->name + " and "
                        + pair.mask->name + "; expected no " + joined(beside) + " beside them. Leave them out.");
    for (const float pixel : holed.pixels) holed.picture.push_back(2.0f * pixel - 1.0f);
    std::vector<diffusevae_array> inputs;
    for (const diffusevae_array* array : arrays) inputs.push_back(*array);
    inputs.push_back(array_of(pair.image->name, holed.picture, {holed.count, holed.channels, holed.height, holed.width}));
    inputs.push_back(array_of(pair.mask->name, holed.mask, {holed.masks(), 1, holed.height, holed.width}));
    given.inputs = inputs.data();
    given.inputs_count = int64_t(inputs.size());
    return checked_request(manifest, given, {kVerb, {kImages, kMasks}});
}

// A sample that is kept to what is known.
Request blended(const Manifest& manifest, const NamedArrays& arrays, const Holed& holed, const diffusevae_sample_options& given) {
    const PipelineSpec& pipeline = manifest.pipeline;
    Blend blend;
    if (const diffusevae_array* noise = find(arrays, kKnownNoise)) {
        int64_t count = 0;
        blend.noise = given_noise(pipeline.state, *noise, count);
        agree_on_count({{kImages, holed.count}, {kKnownNoise, count, true}});
        blend.noise.shared = count == 1 && holed.count != 1;
    }
    bool lacking = false;
    for (const InputSpec* input : needed_inputs(manifest)) {
        if (find(arrays, input->name) != nullptr) continue;
        lacking = true;
        for (const CallSpec& call : pipeline.encode)
            if (port_of(call.outputs, input->name) != nullptr) blend.encoded.push_back(input);
    }
    blend.encodes = !pipeline.encode.empty() && (lacking || pipeline.encodes_state());
    blend.starts = !pipeline.state.start;
    Request request = checked_request(manifest, given, {kVerb, {kImages, kMasks, kKnownNoise}, blend.encoded, blend.starts});
    blend.keep = kept(holed, pipeline.state);
    request.blend = std::move(blend);
    return request;
}

}  // namespace

Request checked_inpaint(const Manifest& manifest, const diffusevae_sample_options& given, bool composite) {
    refuse_options(manifest, given);
    const NamedArrays arrays = named_arrays(manifest, given, {kImages, kMasks, kKnownNoise});
    const Shape shape = taken_shape(manifest), made = made_shape(manifest.pipeline);
    if (composite && text_of(shape) != text_of(made))
        refuse_argument("inpaint takes images of " + text_of(shape) + " on this bundle and makes some of " + text_of(made)
                        + "; expected equal sizes for what is known to be put back. Pass composite as false.");
    const auto holed = std::make_shared<Holed>();
    holed->composite = composite;
    take_images(needed(arrays, kImages), shape, *holed);
    take_masks(needed(arrays, kMasks), shape, *holed);
    agree_on_count({{kImages, holed->count}, {kMasks, holed->masks(), true}});
    diffusevae_sample_options own = given;
    own.n = holed->count;
    const Pair pair = image_and_mask(manifest);
    Request request = pair ? conditioned(manifest, pair, arrays, *holed, own) : blended(manifest, arrays, *holed, own);
    request.holed = holed;
    return request;
}

void set_levels(Blend& blend, const Schedule& schedule, const std::vector<int64_t>& timesteps) {
    for (const int64_t t : timesteps) {
        const double alpha_bar = schedule.alpha_bar[size_t(t)];
        blend.signal.push_back(float(std::sqrt(alpha_bar)));
        blend.sigma.push_back(float(std::sqrt(1.0 - alpha_bar)));
    }
}

void put_back(const Holed& holed, int64_t begin, int64_t n, uint8_t* images) {
    const int64_t plane = holed.height * holed.width;
    for (int64_t sample = begin; sample < begin + n; ++sample) {
        const float* const mask = holed.mask.data() + (holed.masks() == 1 ? 0 : sample * plane);
        for (int64_t i = 0; i < plane; ++i)
            for (int64_t channel = 0; channel < holed.channels; ++channel, ++images) {
                const double hole = double(mask[i]);
                const double known = double(holed.pixels[size_t((sample * holed.channels + channel) * plane + i)]);
                *images = uint8_t(std::nearbyint(hole * double(*images) + (1.0 - hole) * 255.0 * known));
            }
    }
}

}  // namespace diffusevae
