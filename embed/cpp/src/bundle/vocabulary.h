// The vocabulary of a bundle that may be given text: the tokens whose ids an input holds, one a line of a file.
// engine/bundle/vocabulary.py is the same in Python.
#ifndef DIFFUSEVAE_BUNDLE_VOCABULARY_H
#define DIFFUSEVAE_BUNDLE_VOCABULARY_H

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "bundle/fields.h"
#include "bundle/files.h"
#include "bundle/inputs.h"

namespace diffusevae {

class Bundle;

// How text becomes an input of token ids, and the file that holds the vocabulary.
struct TextSpec : FileSpec {
    std::string input;
    bool lowercase = false;                 // capitals and accents are dropped before the vocabulary is asked
    std::optional<std::string> begin, end;  // tokens around each text, or none
    std::string pad, unknown;               // behind it, and in place of words that the vocabulary has no pieces for

    std::vector<std::string> special() const;  // each once
};

class Vocabulary {
public:
    // The bytes of the file, every token checked; Error (BUNDLE) otherwise. taken: the input of the ids; where: the file.
    static Vocabulary parse(std::string data, const TextSpec& spec, const InputSpec& taken, const std::string& where);

    const TextSpec& spec() const { return spec_; }
    size_t length() const { return length_; }  // of the input
    std::optional<int64_t> id(std::string_view token) const;
    int64_t known(std::string_view token) const { return ids_.at(token); }  // of a special token

    // Appends the ids of a text's pieces between those of begin and end, cut and padded to the length.
    void add_row(std::vector<int64_t> pieces, std::vector<int64_t>& rows) const;

private:
    Vocabulary(TextSpec spec, size_t length, std::shared_ptr<const std::string> data)
        : spec_(std::move(spec)), length_(length), data_(std::move(data)) {}

    TextSpec spec_;
    size_t length_;
    std::shared_ptr<const std::string> data_;  // where the tokens lie
    std::unordered_map<std::string_view, int64_t> ids_;
};

std::optional<TextSpec> parse_text(Fields& top, const std::vector<InputSpec>& inputs);

// That of a bundle, if it has one.
std::optional<Vocabulary> read_vocabulary(const Bundle& bundle);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_VOCABULARY_H
