#include "inpaint.h"

#include <algorithm>
#include <cmath>

#include "arrays.h"
#include "checks.h"
#include "error.h"
#include "pictures.h"
#include "text.h"

namespace diffusevae {
namespace {

constexpr const char *kVerb = "inpaint", *kMasks = "masks", *kKnownNoise = "known_noise";

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

PictureShape taken_shape(const Manifest& manifest) {
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
    return image_shape(pipeline);
}

// ---- arrays --------------------------------------------------------------------------------------------------------------

void take_masks(const diffusevae_array& array, const PictureShape& size, Holed& into) {
    const PictureShape one{1, size.height, size.width};
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
    refuse_options(kVerb, manifest, given);
    const NamedArrays arrays = named_arrays(manifest, given, {kImages, kMasks, kKnownNoise});
    const PictureShape shape = taken_shape(manifest), made = made_shape(manifest.pipeline);
    if (composite && text_of(shape) != text_of(made))
        refuse_argument("inpaint takes images of " + text_of(shape) + " on this bundle and makes some of " + text_of(made)
                        + "; expected equal sizes for what is known to be put back. Pass composite as false.");
    const auto holed = std::make_shared<Holed>();
    holed->composite = composite;
    const std::string wanted = "images and masks. Pass both by name.";
    take_images(needed(kVerb, arrays, kImages, wanted), shape, *holed);
    take_masks(needed(kVerb, arrays, kMasks, wanted), shape, *holed);
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
