// Untrusted text as a message may show it, and the nearest known word.
#ifndef DIFFUSEVAE_TEXT_H
#define DIFFUSEVAE_TEXT_H

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace diffusevae {

struct Character {
    uint32_t code;
    size_t bytes;
    bool sound;  // false: one byte that begins no character of UTF-8
};

Character character_at(std::string_view text, size_t at);

// Number of characters of a well-formed UTF-8 text.
size_t characters(std::string_view utf8);

// Whether a well-formed UTF-8 text can be shown: no control and format characters, no separators but the space.
bool is_printable(std::string_view utf8);

// At most `size` characters of well-formed UTF-8, the last three then dots.
std::string cut(std::string text, size_t size);

// The text in quotes, everything that would garble a terminal escaped, cut to `size` characters.
std::string in_quotes(std::string_view utf8, size_t size = 80);
constexpr size_t kPath = 4096;  // that much of a path, which is of no use when it is cut

// "0.5", "1e-12": six digits, in any locale.
std::string short_number(double value);

// "20 x 40", of a height and a width.
std::string size_text(int64_t height, int64_t width);

// ASCII letters in lower case.
std::string lower(std::string text);

// "a, b, c", and "'a', 'b', 'c'".
std::string joined(const std::vector<std::string>& words, const char* separator = ", ");
std::string in_quotes(const std::vector<std::string>& words);

// The choice nearest to a word, or "" where none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& choices);

// " Did you mean 'x'?", or "" where no choice is near.
std::string did_you_mean(std::string_view word, const std::vector<std::string>& choices);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_TEXT_H
