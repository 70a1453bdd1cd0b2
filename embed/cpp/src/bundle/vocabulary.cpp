#include "bundle/vocabulary.h"

#include "bundle/schema.h"

namespace diffusevae {
namespace {

// int64 [batch, L], L fixed and with room for a token.
bool holds_tokens(const InputSpec& input) {
    const Dimensions sample = input.sample();
    const int64_t* const length = sample.size() == 1 ? std::get_if<int64_t>(&sample.front()) : nullptr;
    return input.dtype == "int64" && length != nullptr && *length >= kMinTokens;
}

}  // namespace

std::optional<TextSpec> parse_text(Fields& top, const std::vector<InputSpec>& inputs) {
    if (top.take("text", "an object or null").is_null()) return std::nullopt;
    std::vector<std::string> tokens;
    for (const InputSpec& input : inputs)
        if (holds_tokens(input)) tokens.push_back(input.name);
    if (tokens.empty())
        top.refuse("text", "null, since no input is int64 [batch, L] with L of " + std::to_string(kMinTokens) + " or more");
    return read<TextSpec>(top.object("text"), tokens);
}

}  // namespace diffusevae
