// engine/stages.py, engine/augmentation.py and the verbs upscale and refine are the same in Python.
#include "stages.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>

#include "bundle/constants.h"
#include "checks.h"
#include "diffusevae/kernels.h"
#include "error.h"
#include "pictures.h"
#include "text.h"

namespace diffusevae {
namespace {

constexpr const char* kVerb = "upscale";

[[noreturn]] void refuse_cascade(const std::string& sentence) { throw Error(DIFFUSEVAE_BUNDLE, sentence); }

PictureShape taken_shape(const Manifest& manifest) {
    if (const InputSpec* const picture = upscaled_input(manifest)) return sizes_of(picture->sample());
    if (!takes_images(manifest.pipeline))
        refuse_cascade(manifest.name + ": found no way for it to take an image, expected exactly one input that is a picture, a state "
                       "that is the image, or an encoder to it; choose another bundle for a stage after the first");
    return image_shape(manifest.pipeline);
}

void check_fits(const Manifest& before, const Manifest& after) {
    const PictureShape made = made_shape(before.pipeline), taken = taken_shape(after);
    if (made.channels != taken.channels)
        refuse_cascade(after.name + ": found that it takes images of " + std::to_string(taken.channels) + " channels, expected "
                       + std::to_string(made.channels) + ", as " + before.name + " makes them; choose bundles of the same channels");
    if (made.height > taken.height || made.width > taken.width)
        refuse_cascade(after.name + ": found that it takes images of " + size_text(taken.height, taken.width)
                       + ", expected at least the " + size_text(made.height, made.width) + " that " + before.name
                       + " makes: a cascade enlarges; give them in the other order");
}

// The sizes of one sample, nothing where they are free.
std::vector<std::optional<int64_t>> fixed_sizes(const TensorSpec& spec) {
    std::vector<std::optional<int64_t>> sizes;
    for (size_t i = 1; i < spec.shape.size(); ++i) {
        const int64_t* const size = std::get_if<int64_t>(&spec.shape[i]);
        sizes.push_back(size ? std::optional<int64_t>(*size) : std::nullopt);
    }
    return sizes;
}

std::string limits_text(const TensorSpec& spec) { return brief(spec.range->first) + " .. " + brief(spec.range->second); }

// An input of earlier stages as this one takes it too.
void share(TensorSpec& found, const InputSpec& spec, const Manifest& manifest) {
    if (found.dtype != spec.dtype || fixed_sizes(found) != fixed_sizes(spec))
        refuse_cascade(manifest.name + ": found that it takes " + spec.text() + ", expected " + found.text()
                       + ", as a stage before it has it: a caller gives one for both; choose bundles that agree");
    if (!spec.range) return;
    if (!found.range) {
        found.range = spec.range;
        return;
    }
    const std::pair<double, double> both(std::max(found.range->first, spec.range->first),
                                         std::min(found.range->second, spec.range->second));
    if (both.first > both.second)
        refuse_cascade(manifest.name + ": found that it takes " + spec.name + " in " + limits_text(spec)
                       + ", expected values that the stages before it take too, in " + limits_text(found)
                       + "; choose bundles that agree");
    found.range = both;
}

// Inputs of one name are one input, which a caller gives for all stages.
void check_shared(const std::vector<const Bundle*>& stages) {
    std::map<std::string, TensorSpec> named;
    for (size_t stage = 0; stage < stages.size(); ++stage) {
        const Manifest& manifest = stages[stage]->manifest();
        for (const InputSpec& spec : manifest.inputs) {
            const bool made = &spec == upscaled_input(manifest) || (manifest.augmentation && manifest.augmentation->input == spec.name);
            if (stage > 0 && made) continue;
            const auto [at, first] = named.emplace(spec.name, spec);
            if (!first) share(at->second, spec, manifest);
        }
    }
}

// The folder of a bundle with the folder that it is in, also where it was opened as "."; links are not followed.
std::filesystem::path place_of(const Bundle& bundle) {
    std::filesystem::path place = std::filesystem::absolute(bundle.path()).lexically_normal();
    return place.has_filename() ? place : place.parent_path();
}

// A path as a word of a POSIX shell.
std::string quoted(const std::filesystem::path& path) {
    const std::string plain = path.string();
    const auto is_safe = [](unsigned char c) { return std::isalnum(c) != 0 || std::string("@%+=:,./-_").find(char(c)) != std::string::npos; };
    if (!plain.empty() && std::all_of(plain.begin(), plain.end(), is_safe)) return plain;
    std::string word = "'";
    for (const char c : plain) word += c == '\'' ? std::string("'\"'\"'") : std::string(1, c);
    return word + "'";
}

// ---- the picture -----------------------------------------------------------------------------------------------------------

// The images at the size that the bundle takes.
void take_enlarged(const diffusevae_array& array, const Manifest& manifest, Holed& into) {
    const PictureShape taken = taken_shape(manifest);
    const std::vector<int64_t> shape = shape_of(array);
    const size_t rank = shape.size(), last = array.dtype == DIFFUSEVAE_UINT8 ? 1 : 0;
    PictureShape found = taken;
    if (rank >= 3) {
        found.height = shape[rank - 2 - last];
        found.width = shape[rank - 1 - last];
    }
    if (rank < 3 || found.height < 1 || found.width < 1 || found.height > taken.height || found.width > taken.width)
        refuse_argument("images has shape " + shape_text(shape) + "; expected images of at most "
                        + size_text(taken.height, taken.width) + ", which " + manifest.name + " takes. Make them smaller.");
    take_images(array, found, into);
    std::vector<float> small = std::move(into.pixels);
    const int64_t planes = into.count * taken.channels;
    into.pixels = std::vector<float>(memory_size({planes, taken.height, taken.width}));
    dv_enlarge(small.data(), planes, found.height, found.width, taken.height, taken.width, into.pixels.data());
    into.height = taken.height;
    into.width = taken.width;
}

int64_t checked_level(const Manifest& manifest, int64_t noise_level) {
    if (noise_level == DIFFUSEVAE_UNSET) return 0;
    const int64_t most = manifest.schedule.T - 1;
    if (noise_level < 0 || noise_level > most)
        refuse_argument("noise_level is " + std::to_string(noise_level) + "; expected 0 (none) .. " + std::to_string(most)
                        + ", a timestep of this bundle's schedule. Choose a smaller one, of which more of the picture is left.");
    return noise_level;
}

// low' = sqrt(alpha_bar) low + sqrt(1 - alpha_bar) n of pictures in [-1, 1] (Ho et al. 2021, Cascaded Diffusion Models, section
// 4.2), in place.
void augment(std::vector<float>& picture, const Schedule& schedule, const std::vector<uint64_t>& seeds, int64_t level) {
    if (level == 0) return;
    const double alpha_bar = schedule.alpha_bar[size_t(level)];
    const float signal = float(std::sqrt(alpha_bar)), sigma = float(std::sqrt(1.0 - alpha_bar));
    std::vector<float> noise(picture.size());
    draw_augmentation(seeds, int64_t(picture.size() / seeds.size()), noise.data());
    for (size_t i = 0; i < picture.size(); ++i) picture[i] = signal * picture[i] + sigma * noise[i];
}

std::vector<float> signed_of(const std::vector<float>& pixels) {
    std::vector<float> picture;
    picture.reserve(pixels.size());
    for (const float pixel : pixels) picture.push_back(2.0f * pixel - 1.0f);
    return picture;
}

// The level among the inputs, where the network is told it and the caller did not.
void add_level(const Manifest& manifest, const NamedArrays& arrays, int64_t noise_level, Holed& holed,
               std::vector<diffusevae_array>& inputs) {
    if (!manifest.augmentation) return;
    const std::string& name = manifest.augmentation->input;
    if (find(arrays, name) != nullptr) {
        if (noise_level != DIFFUSEVAE_UNSET)
            refuse_argument(std::string(kVerb) + " was given noise_level and " + name + ", which it sets; expected one of the two. Leave "
                            + name + " out.");
        return;
    }
    const int64_t level = checked_level(manifest, noise_level);
    const bool whole = manifest.input(name)->dtype == "int64";
    holed.level = {level};
    holed.level_number = {float(level)};
    diffusevae_array array = array_of(name, holed.level_number, {1});
    if (whole) {
        array.dtype = DIFFUSEVAE_INT64;
        array.data = holed.level.data();
    }
    inputs.push_back(array);
}

// ---- requests --------------------------------------------------------------------------------------------------------------

// A sample of the one picture that the bundle takes. It is noised after the checks: it may well leave the range of a picture.
Request of_picture(const Manifest& manifest, const Schedule& schedule, const InputSpec& picture, int64_t level,
                   std::vector<diffusevae_array> inputs, diffusevae_sample_options given, Holed& holed) {
    holed.picture = signed_of(holed.pixels);
    inputs.push_back(array_of(picture.name, holed.picture, {holed.count, holed.channels, holed.height, holed.width}));
    given.inputs = inputs.data();
    given.inputs_count = int64_t(inputs.size());
    Request request = checked_request(manifest, given, {kVerb, {kImages}});
    augment(holed.picture, schedule, request.seeds.part(0, holed.count), level);
    return request;
}

// A chain from the image, which stands for the pipeline's start value where there is one.
Request of_start(const Manifest& manifest, const Schedule& schedule, int64_t level, const std::vector<diffusevae_array>& inputs,
                 const NamedArrays& arrays, diffusevae_sample_options given, Holed& holed) {
    const PipelineSpec& pipeline = manifest.pipeline;
    Blend blend;
    std::set<std::string> replaced;
    if (pipeline.state.start) replaced.insert(*pipeline.state.start);
    bool lacking = false;
    for (const InputSpec* input : needed_inputs(manifest, replaced)) {
        if (find(arrays, input->name) != nullptr || (manifest.augmentation && manifest.augmentation->input == input->name)) continue;
        lacking = true;
        for (const CallSpec& call : pipeline.encode)
            if (port_of(call.outputs, input->name) != nullptr) blend.encoded.push_back(input);
    }
    blend.encodes = !pipeline.encode.empty() && (lacking || pipeline.encodes_state());
    blend.starts = true;
    blend.replaces = pipeline.state.start.has_value();
    given.inputs = inputs.data();
    given.inputs_count = int64_t(inputs.size());
    Request request = checked_request(manifest, given, {kVerb, {kImages}, blend.encoded, true, replaced});
    if (!blend.replaces && !request.setting.t_start)
        refuse_argument("upscale on a bundle without a start value has nothing to start from: found no t_start, expected one. Pass "
                        "t_start, for example t_start=400, and steps.");
    if (level != 0) {
        std::vector<float> picture = signed_of(holed.pixels);
        augment(picture, schedule, request.seeds.part(0, holed.count), level);
        for (size_t i = 0; i < picture.size(); ++i) holed.pixels[i] = (picture[i] + 1.0f) / 2.0f;
    }
    request.blend = std::move(blend);
    return request;
}

}  // namespace

const InputSpec* upscaled_input(const Manifest& manifest) {
    const InputSpec* found = nullptr;
    for (const InputSpec& input : manifest.inputs) {
        if (!input.picture) continue;
        if (found != nullptr || input.picture != "image") return nullptr;
        found = &input;
    }
    return found;
}

Request checked_stage(const Manifest& manifest, const Schedule& schedule, const diffusevae_sample_options& given,
                      int64_t noise_level, bool noised) {
    refuse_options(kVerb, manifest, given);
    const NamedArrays arrays = named_arrays(manifest, given, {kImages});
    const auto holed = std::make_shared<Holed>();
    std::vector<diffusevae_array> inputs;
    for (const diffusevae_array* array : arrays) inputs.push_back(*array);
    const int64_t asked = checked_level(manifest, noise_level), level = noised ? asked : 0;
    add_level(manifest, arrays, noise_level, *holed, inputs);
    const InputSpec* const picture = upscaled_input(manifest);
    if (picture != nullptr && find(arrays, picture->name) != nullptr)
        refuse_argument(std::string(kVerb) + " takes " + picture->name + " from the images; expected none beside them. Leave "
                        + picture->name + " out.");
    take_enlarged(needed(kVerb, arrays, kImages, "some. Pass them by name."), manifest, *holed);
    diffusevae_sample_options own = given;
    own.n = holed->count;
    Request request = picture != nullptr ? of_picture(manifest, schedule, *picture, level, std::move(inputs), own, *holed)
                                         : of_start(manifest, schedule, level, inputs, arrays, own, *holed);
    request.holed = holed;
    return request;
}

void check_stages(const std::vector<const Bundle*>& stages) {
    if (stages.size() < 2 || stages.size() > size_t(kMaxStages))
        refuse_cascade("found a cascade of " + std::to_string(stages.size()) + " bundles, expected 2 .. " + std::to_string(kMaxStages)
                       + "; give several, or one that names the next: diffusevae cascade BUNDLE NEXT");
    for (size_t i = 1; i < stages.size(); ++i) check_fits(stages[i - 1]->manifest(), stages[i]->manifest());
    check_shared(stages);
}

std::string next_folder(const std::vector<const Bundle*>& stages) {
    const std::optional<NextSpec>& next = stages.back()->manifest().next;
    if (!next) return "";
    const std::filesystem::path here = place_of(*stages.back());
    const std::string cut = "end it there with: diffusevae cascade " + quoted(here) + " --remove";
    for (const Bundle* stage : stages)
        if (place_of(*stage).filename() == next->bundle)
            refuse_cascade(here.string() + ": found " + next->bundle + " as the next bundle, which comes before it, expected one that does "
                           "not lead back; " + cut);
    if (stages.size() >= size_t(kMaxStages))
        refuse_cascade(stages[0]->path() + ": found a cascade of more than " + std::to_string(kMaxStages)
                       + " bundles, expected at most so many; " + cut);
    return (here.parent_path() / next->bundle).string();
}

void check_next(const Bundle& before, const Bundle& after) {
    const std::string& expected = before.manifest().next->source;
    const std::string& found = after.manifest().source.sha256;
    if (found != expected)
        refuse_cascade(after.path() + ": found a bundle of the checkpoint " + found + ", expected " + expected + ", which "
                       + place_of(before).filename().string() + " names as its next; put that bundle there, or name another with: "
                       "diffusevae cascade " + quoted(place_of(before)) + " NEXT");
    check_fits(before.manifest(), after.manifest());
}

void recorded_options(const Manifest& before, const Manifest& after, diffusevae_stage_options& into) {
    if (!before.next || before.next->source != after.source.sha256) return;
    const NextSpec& next = *before.next;
    into.steps = next.steps.value_or(DIFFUSEVAE_UNSET);
    into.t_start = next.t_start.value_or(DIFFUSEVAE_UNSET);
    into.noise_level = next.noise_level.value_or(DIFFUSEVAE_UNSET);
    into.guidance = next.guidance.value_or(DIFFUSEVAE_UNSET_NUMBER);
}

}  // namespace diffusevae
