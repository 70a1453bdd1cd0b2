#include "bundle/directions.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "bundle/manifest.h"
#include "bundle/reader.h"
#include "bundle/safetensors.h"
#include "bundle/schema.h"
#include "checks.h"
#include "text.h"

namespace diffusevae {
namespace {

const char* const kFit = "fit them again with: diffusevae fit-directions BUNDLE --images FILE";
const char* const kTensor = "directions";

[[noreturn]] void refuse(const std::string& where, const std::string& found, const std::string& expected) {
    refuse(Origin{where, "directions", kFit}, "", found, expected);
}

}  // namespace

std::vector<std::string> parse_names(Fields& fields, const char* key) {
    const std::string expected = "a list of 1.." + std::to_string(kMaxDirections) + " different printable texts";
    std::vector<std::string> names;
    for (const Value& value : fields.items(key, expected)) {
        if (!is_text(value)) fields.refuse(key, expected);
        names.push_back(*value.text());
    }
    if (std::set<std::string>(names.begin(), names.end()).size() < names.size() || int64_t(names.size()) > kMaxDirections)
        fields.refuse(key, expected);
    return names;
}

std::optional<DirectionsSpec> parse_directions(Fields& top, const std::vector<InputSpec>& inputs) {
    if (top.take("directions", "an object or null").is_null()) return std::nullopt;
    std::vector<std::string> drawn;
    for (const InputSpec& input : inputs)
        if (input.draw == std::string(kNormal)) drawn.push_back(input.name);
    if (drawn.empty()) top.refuse("directions", "null, since no input is drawn");
    return read<DirectionsSpec>(top.object("directions"), drawn);
}

void check_directions(const Manifest& manifest, const Origin& origin) {
    if (!manifest.directions) return;
    const std::vector<CallSpec>& encode = manifest.pipeline.encode;
    const std::string digest = encode.empty() ? "" : manifest.graph(encode.front().graph)->sha256;
    if (manifest.directions->of != digest)
        refuse(origin, "directions.of", in_quotes(manifest.directions->of) + " (str)",
               digest.empty() ? "null: the pipeline encodes nothing" : digest + ", the SHA-256 of the first graph of encode");
}

std::optional<Directions> read_directions(const Bundle& bundle) {
    const std::optional<std::string> data = bundle.read_directions();
    if (!data) return std::nullopt;
    const DirectionsSpec& spec = *bundle.manifest().directions;
    const std::string where = bundle.path_of(spec);
    const auto tensors = parse_safetensors(*data, {where, "directions", kFit});
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors) names.push_back(name);
    if (names != std::vector<std::string>{kTensor}) refuse(where, "the tensors " + in_quotes(joined(names)), kTensor);
    std::vector<int64_t> sample;
    for (const Dimension& dimension : bundle.manifest().drawn()->sample()) sample.push_back(std::get<int64_t>(dimension));
    const std::vector<int64_t> expected = {int64_t(spec.names.size()), bytes_of(sample, 1).value_or(-1)};
    const StoredTensor& tensor = tensors.at(kTensor);
    if (tensor.shape != expected)
        refuse(where, std::string(kTensor) + " F32 " + shape_text(tensor.shape),
               "F32 " + shape_text(expected) + ", the names of the manifest and the width of the input");
    Directions directions{std::vector<float>(tensor.data.size() / sizeof(float)), expected[1]};
    std::memcpy(directions.vectors.data(), tensor.data.data(), tensor.data.size());  // little-endian, as this machine is
    if (!std::all_of(directions.vectors.begin(), directions.vectors.end(), [](float value) { return std::isfinite(value); }))
        refuse(where, std::string("NaN or infinity in ") + kTensor, "finite numbers");
    return directions;
}

Edits checked_edits(const std::optional<DirectionsSpec>& spec, const diffusevae_sample_options& given) {
    Edits edits;
    if (!count_beside("edits", given.edits, "edits_count", given.edits_count)) return edits;
    if (!spec)
        refuse_argument("edits: found some, but this bundle holds no directions; expected none. Fit some with: diffusevae "
                        "fit-directions BUNDLE --images FILE");
    for (int64_t i = 0; i < given.edits_count; ++i) {
        const diffusevae_edit& edit = given.edits[i];
        const std::string name = edit.name ? edit.name : "";
        const auto at = std::find(spec->names.begin(), spec->names.end(), name);
        if (at == spec->names.end())
            refuse_argument("edits: found " + in_quotes(name) + ", expected some of " + joined(spec->names)
                            + ", the directions of this bundle." + did_you_mean(name, spec->names));
        check_number(("the strength of " + name).c_str(), edit.strength, -kMaxStrength, kMaxStrength);
        const size_t index = size_t(at - spec->names.begin());
        for (const auto& [other, strength] : edits)
            if (other == index) refuse_argument("edits: found " + in_quotes(name) + " twice, expected each name once.");
        edits.emplace_back(index, float(edit.strength));
    }
    std::sort(edits.begin(), edits.end());
    return edits;
}

void move(const Directions& directions, const Edits& edits, float* z, int64_t count) {
    const size_t width = size_t(directions.width);
    for (const auto& [index, strength] : edits) {
        if (strength == 0) continue;  // as in Python, where -0 stays what it is
        const float* const direction = directions.vectors.data() + index * width;
        for (size_t i = 0; i < size_t(count) * width; ++i) {
            const float step = strength * direction[i % width];
            z[i] = z[i] + step;
        }
    }
}

}  // namespace diffusevae
