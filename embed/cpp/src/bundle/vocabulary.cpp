#include "bundle/vocabulary.h"

#include <algorithm>

#include "bundle/reader.h"
#include "bundle/schema.h"
#include "checks.h"
#include "text.h"

namespace diffusevae {
namespace {

// int64 [batch, L], L fixed and with room for a token.
bool holds_tokens(const InputSpec& input) {
    const Dimensions sample = input.sample();
    const int64_t* const length = sample.size() == 1 ? std::get_if<int64_t>(&sample.front()) : nullptr;
    return input.dtype == "int64" && length != nullptr && *length >= kMinTokens;
}

[[noreturn]] void refuse(const std::string& where, const std::string& found, const std::string& expected) {
    const std::string cure = "give the vocabulary that the model was trained with, --vocabulary vocab.txt, and ";
    refuse(Origin{where, "", cure + kRebuild}, "", found, expected);
}

// The lines of a vocabulary's file: UTF-8, none of them empty or with spaces.
std::vector<std::string_view> tokens_of(std::string_view data, const std::string& where) {
    for (size_t at = 0; at < data.size();) {
        const Character character = character_at(data, at);
        if (!character.sound) refuse(where, "a byte that is no UTF-8 at " + std::to_string(at), "text in UTF-8");
        at += character.bytes;
    }
    if (!data.empty() && data.back() == '\n') data.remove_suffix(1);
    std::vector<std::string_view> tokens;
    for (size_t at = 0; at <= data.size();) {
        const size_t end = std::min(data.find('\n', at), data.size());
        const std::string_view token = data.substr(at, end - at);
        if (token.empty() || token.find_first_of(" \t\r\v\f") != std::string_view::npos)
            refuse(where, in_quotes(token) + " in line " + std::to_string(tokens.size() + 1), "one token a line, without spaces");
        tokens.push_back(token);
        at = end + 1;
    }
    return tokens;
}

}  // namespace

std::vector<std::string> TextSpec::special() const {
    std::vector<std::string> tokens;
    for (const std::optional<std::string>& token : {begin, end, std::optional(pad), std::optional(unknown)})
        if (token && std::find(tokens.begin(), tokens.end(), *token) == tokens.end()) tokens.push_back(*token);
    return tokens;
}

std::optional<TextSpec> parse_text(Fields& top, const std::vector<InputSpec>& inputs) {
    if (top.take("text", "an object or null").is_null()) return std::nullopt;
    std::vector<std::string> tokens;
    for (const InputSpec& input : inputs)
        if (holds_tokens(input)) tokens.push_back(input.name);
    if (tokens.empty())
        top.refuse("text", "null, since no input is int64 [batch, L] with L of " + std::to_string(kMinTokens) + " or more");
    return read<TextSpec>(top.object("text"), tokens);
}

Vocabulary Vocabulary::parse(std::string data, const TextSpec& spec, const InputSpec& taken, const std::string& where) {
    if (data.size() > size_t(kMaxVocabularyBytes))
        refuse(where, std::to_string(data.size()) + " bytes", "at most " + std::to_string(kMaxVocabularyBytes));
    Vocabulary made(spec, size_t(std::get<int64_t>(taken.sample()[0])), std::make_shared<const std::string>(std::move(data)));
    const std::vector<std::string_view> tokens = tokens_of(*made.data_, where);
    const int64_t count = int64_t(tokens.size());
    for (int64_t number = 0; number < count; ++number) {
        const std::string_view token = tokens[size_t(number)];
        const auto [first, fresh] = made.ids_.emplace(token, number);
        if (!fresh)
            refuse(where, in_quotes(token) + " in the lines " + std::to_string(first->second + 1) + " and "
                              + std::to_string(number + 1), "each token once");
    }
    const std::vector<std::string> special = spec.special();
    for (const std::string& token : special)
        if (!made.id(token)) refuse(where, "no line " + token, "one for each of " + joined(special));
    const Range everything(std::pair(0.0, double(count)));
    const auto [low, high] = *(taken.range ? taken.range : everything);
    if (low > 0 || high < double(count - 1))
        refuse(where, std::to_string(count) + " tokens, whose ids are 0 .. " + std::to_string(count - 1),
               "ids in " + brief(low) + " .. " + brief(high) + ", as the input " + taken.name + " takes them");
    return made;
}

std::optional<int64_t> Vocabulary::id(std::string_view token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

void Vocabulary::add_row(std::vector<int64_t> pieces, std::vector<int64_t>& rows) const {
    const size_t around = (spec_.begin ? 1 : 0) + (spec_.end ? 1 : 0), end = rows.size() + length_;
    pieces.resize(std::min(pieces.size(), length_ - around));  // MIN_TOKENS leaves room for one
    if (spec_.begin) rows.push_back(known(*spec_.begin));
    rows.insert(rows.end(), pieces.begin(), pieces.end());
    if (spec_.end) rows.push_back(known(*spec_.end));
    rows.resize(end, known(spec_.pad));
}

std::optional<Vocabulary> read_vocabulary(const Bundle& bundle) {
    std::optional<std::string> data = bundle.read_text();
    if (!data) return std::nullopt;
    const TextSpec& spec = *bundle.manifest().text;
    return Vocabulary::parse(std::move(*data), spec, *bundle.manifest().input(spec.input), bundle.path_of(spec));
}

}  // namespace diffusevae
