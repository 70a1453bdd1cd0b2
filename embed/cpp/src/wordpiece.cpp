#include "wordpiece.h"

#include <algorithm>
#include <cstdio>
#include <iterator>

#include "arrays.h"
#include "bundle/constants.h"
#include "characters.h"
#include "checks.h"
#include "text.h"

namespace diffusevae {
namespace {

// The run that holds a character, or null.
template <class Run, size_t kCount>
const Run* run_of(const Run (&runs)[kCount], uint32_t code) {
    const Run* const behind = std::upper_bound(std::begin(runs), std::end(runs), code,
                                               [](uint32_t value, const Run& run) { return value < run.first; });
    return behind != std::begin(runs) && code <= (behind - 1)->last ? behind - 1 : nullptr;
}

// Without capital and accents; 0: nothing stays.
uint32_t folded(uint32_t code) {
    const FoldRun* const run = run_of(kFolds, code);
    if (run == nullptr || (code - run->first) % run->stride != 0) return code;
    return run->to + (code - run->first) / run->stride * run->slope;
}

void append(std::string& text, uint32_t code) {
    if (code < 0x80) {
        text += char(code);
    } else {
        const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        text += char((0xFF00u >> (more + 1) & 0xFFu) | code >> 6 * more);
        for (int i = more; i-- > 0;) text += char(0x80u | (code >> 6 * i & 0x3Fu));
    }
}

// A Hangul syllable is written in two or three letters, which Unicode numbers by arithmetic (section 3.12 of the standard).
constexpr uint32_t kSyllables = 0xAC00, kSyllablesEnd = 0xD7A4, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
constexpr uint32_t kVowelCount = 21, kTailCount = 28;

void append_syllable(std::string& text, uint32_t code) {
    const uint32_t index = code - kSyllables, tail = index % kTailCount;
    append(text, kLeads + index / kTailCount / kVowelCount);
    append(text, kVowels + index / kTailCount % kVowelCount);
    if (tail != 0) append(text, kTails + tail);
}

[[noreturn]] void refuse_character(const std::string& name, std::string_view character, uint32_t code, const std::string& input) {
    char number[16];
    std::snprintf(number, sizeof number, "U+%04X", unsigned(code));
    refuse_argument(name + " holds " + in_quotes(character) + " (" + number + "), of a script that this library has no rules for; "
                    "expected Latin, Greek, Cyrillic, Chinese, Japanese or Korean. Give " + input + " itself, with the ids that "
                    "engine.text makes in Python.");
}

// Cuts one text into pieces.
class Cutter {
public:
    Cutter(const Vocabulary& vocabulary, const std::string& name)
        : vocabulary_(vocabulary), name_(name), lowercase_(vocabulary.spec().lowercase),
          unknown_(vocabulary.known(vocabulary.spec().unknown)) {}

    void take(std::string_view text) {
        const std::vector<std::string> special = vocabulary_.spec().special();
        for (size_t at = 0; at < text.size();) {
            const Character character = character_at(text, at);
            if (!character.sound)
                refuse_argument(name_ + " holds a byte that is no UTF-8 at " + std::to_string(at) + "; expected UTF-8.");
            const std::string* longest = nullptr;  // "[SEP]" in a text is that token, also within a word
            for (const std::string& token : special)
                if (text.compare(at, token.size(), token) == 0 && (longest == nullptr || token.size() > longest->size()))
                    longest = &token;
            if (longest != nullptr) {
                end_word();
                ids_.push_back(vocabulary_.known(*longest));
                at += longest->size();
            } else {
                take(character.code, text.substr(at, character.bytes));
                at += character.bytes;
            }
        }
        end_word();
    }

    std::vector<int64_t> ids() && { return std::move(ids_); }

private:
    void take(uint32_t code, std::string_view character) {
        const KindRun* const run = run_of(kKinds, code);
        if (run == nullptr) refuse_character(name_, character, code, vocabulary_.spec().input);
        if (run->kind == CharacterKind::kDropped) return;
        const bool part = run->kind == CharacterKind::kLetter;
        if (!part) end_word();
        if (run->kind == CharacterKind::kSpace) return;
        const uint32_t kept = lowercase_ ? folded(code) : code;
        if (lowercase_ && code >= kSyllables && code < kSyllablesEnd) {
            append_syllable(word_, code);
        } else if (kept != 0) {
            append(word_, kept);
        }
        if (!part) end_word();
    }

    void end_word() {
        if (!word_.empty()) cut_word();
        word_.clear();
    }

    void cut_word() {
        const size_t before = ids_.size();
        if (characters(word_) > size_t(kMaxWord)) return ids_.push_back(unknown_);
        for (size_t at = 0; at < word_.size();) {
            size_t end = word_.size();
            std::optional<int64_t> id;
            while (!(id = vocabulary_.id(piece(at, end))) && end > at + 1) --end;  // half a character is in no vocabulary
            if (!id) {
                ids_.resize(before);
                return ids_.push_back(unknown_);
            }
            ids_.push_back(*id);
            at = end;
        }
    }

    std::string piece(size_t begin, size_t end) const {
        return (begin == 0 ? "" : kContinues) + word_.substr(begin, end - begin);
    }

    const Vocabulary& vocabulary_;
    const std::string& name_;
    const bool lowercase_;
    const int64_t unknown_;
    std::string word_;
    std::vector<int64_t> ids_;
};

}  // namespace

std::vector<int64_t> pieces_of(const Vocabulary& vocabulary, std::string_view text, const std::string& name) {
    Cutter cutter(vocabulary, name);
    cutter.take(text);
    return std::move(cutter).ids();
}

WithTokens::WithTokens(const std::optional<Vocabulary>& vocabulary, const Manifest& manifest, const std::string& path,
                       const diffusevae_sample_options& given)
    : options_(given) {
    const std::optional<int64_t> count = count_beside("texts", given.texts, "texts_count", given.texts_count);
    if (!count) return;
    if (!vocabulary)
        refuse_argument("text: found one, but " + path + " holds no vocabulary: this bundle takes "
                        + (manifest.inputs.empty() ? "no inputs" : takes(manifest)) + ". Leave text out; a model of token ids "
                        "gets a vocabulary with: diffusevae build CKPT --vocabulary vocab.txt");
    const std::string& input = vocabulary->spec().input;
    count_beside("inputs", given.inputs, "inputs_count", given.inputs_count);
    if (given.inputs != nullptr) inputs_.assign(given.inputs, given.inputs + given.inputs_count);
    for (const diffusevae_array& array : inputs_)
        if (array.name != nullptr && array.name == input)
            refuse_argument("text: found it beside " + input + ", which it becomes; expected one of the two.");
    for (int64_t i = 0; i < *count; ++i) {
        const std::string name = "texts[" + std::to_string(i) + "]";
        if (given.texts[i] == nullptr) refuse_argument(name + " is a null pointer; expected a text, or one a sample.");
        vocabulary->add_row(pieces_of(*vocabulary, given.texts[i], name), ids_);
    }
    inputs_.push_back({input.c_str(), DIFFUSEVAE_INT64, 2, {*count, int64_t(vocabulary->length())}, ids_.data()});
    options_.inputs = inputs_.data();
    options_.inputs_count = int64_t(inputs_.size());
}

}  // namespace diffusevae
