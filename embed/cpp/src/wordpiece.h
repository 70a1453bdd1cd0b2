// Text as the token ids that an input holds, as BERT makes them with WordPiece: spaces and punctuation part words, and of each
// word the longest pieces that the vocabulary has are taken from the left. engine/text.py is the same with a library.
#ifndef DIFFUSEVAE_WORDPIECE_H
#define DIFFUSEVAE_WORDPIECE_H

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/manifest.h"
#include "bundle/vocabulary.h"
#include "diffusevae.h"

namespace diffusevae {

// The ids of a text's pieces, without begin and end. Error (ARGUMENT) for what is no UTF-8, and for characters that are not in
// characters.h. name: of the text in messages.
std::vector<int64_t> pieces_of(const Vocabulary& vocabulary, std::string_view text, const std::string& name);

// A caller's options with the input of token ids in place of the texts, if there are some; Error (ARGUMENT) where that input is
// there too, or the bundle has no vocabulary. Must outlive what uses the options.
class WithTokens {
public:
    WithTokens(const std::optional<Vocabulary>& vocabulary, const Manifest& manifest, const std::string& path,
               const diffusevae_sample_options& given);
    WithTokens(const WithTokens&) = delete;
    WithTokens& operator=(const WithTokens&) = delete;

    const diffusevae_sample_options& options() const { return options_; }

private:
    diffusevae_sample_options options_;
    std::vector<int64_t> ids_;
    std::vector<diffusevae_array> inputs_;
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_WORDPIECE_H
