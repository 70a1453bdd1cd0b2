#include "bundle/following.h"

#include <algorithm>

#include "bundle/schema.h"

namespace diffusevae {

std::string parse_neighbour(Fields& fields, const char* key) {
    const char* const expected = "the name of a folder beside this bundle (letters, digits, '.', '_', '-')";
    const std::string* const name = fields.take(key, expected).text();
    if (name == nullptr || !is_file_name(*name)) fields.refuse(key, expected);
    return *name;
}

std::optional<NextSpec> parse_next(Fields& top) {
    if (!top.has("next") || top.take_null("next")) return std::nullopt;
    return read<NextSpec>(top.object("next"));
}

std::optional<AugmentationSpec> parse_augmentation(Fields& top, const std::vector<InputSpec>& inputs) {
    if (!top.has("augmentation") || top.take_null("augmentation")) return std::nullopt;
    Fields fields = top.object("augmentation");
    AugmentationSpec spec;
    take(fields, spec);
    const bool there = std::any_of(inputs.begin(), inputs.end(), [&](const InputSpec& input) {
        return input.name == spec.input && input.sample().empty() && !input.draw;
    });
    if (!there) fields.refuse("input", "an input of one number a sample, [batch], that is not drawn");
    fields.done();
    return spec;
}

}  // namespace diffusevae
