// How Python makes token ids of text: checked here, and of no use to C++, whose callers give the ids themselves.
#ifndef DIFFUSEVAE_BUNDLE_VOCABULARY_H
#define DIFFUSEVAE_BUNDLE_VOCABULARY_H

#include <optional>
#include <string>
#include <vector>

#include "bundle/fields.h"
#include "bundle/files.h"
#include "bundle/inputs.h"

namespace diffusevae {

// The input of the ids, and the file that holds the vocabulary.
struct TextSpec : FileSpec {
    std::string input;
};

std::optional<TextSpec> parse_text(Fields& top, const std::vector<InputSpec>& inputs);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_VOCABULARY_H
