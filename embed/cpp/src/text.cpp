#include "text.h"

#include <algorithm>
#include <charconv>

namespace diffusevae {
namespace {

constexpr size_t kShown = 80;      // characters of a value in a message
constexpr double kNearEnough = 0.6;  // share of two words that a hint needs to be common

// What no terminal should get: Unicode's controls, format characters, separators but the space, surrogates, private use
// and noncharacters. Unassigned ones pass, since every new Unicode version assigns some.
constexpr uint32_t kHidden[][2] = {
    {0x0, 0x1F},         {0x7F, 0xA0},        {0xAD, 0xAD},        {0x600, 0x605},      {0x61C, 0x61C},
    {0x6DD, 0x6DD},      {0x70F, 0x70F},      {0x890, 0x891},      {0x8E2, 0x8E2},      {0x1680, 0x1680},
    {0x180E, 0x180E},    {0x2000, 0x200F},    {0x2028, 0x202F},    {0x205F, 0x2064},    {0x2066, 0x206F},
    {0x3000, 0x3000},    {0xD800, 0xF8FF},    {0xFDD0, 0xFDEF},    {0xFEFF, 0xFEFF},    {0xFFF9, 0xFFFB},
    {0x110BD, 0x110BD},  {0x110CD, 0x110CD},  {0x13430, 0x13438},  {0x1BCA0, 0x1BCA3},  {0x1D173, 0x1D17A},
    {0xE0001, 0xE0001},  {0xE0020, 0xE007F},  {0xF0000, 0x10FFFF},
};

bool is_hidden(uint32_t code) {
    if ((code & 0xFFFEu) == 0xFFFEu) return true;  // the last two of every plane
    return std::any_of(std::begin(kHidden), std::end(kHidden),
                       [&](const uint32_t (&range)[2]) { return range[0] <= code && code <= range[1]; });
}

std::string escaped(const Character& c) {
    if (c.code == '\n') return "\\n";
    if (c.code == '\r') return "\\r";
    if (c.code == '\t') return "\\t";
    static const char* const kDigits = "0123456789abcdef";
    const size_t digits = !c.sound || c.code < 0x100 ? 2 : c.code < 0x10000 ? 4 : 8;
    std::string text = digits == 2 ? "\\x" : digits == 4 ? "\\u" : "\\U";
    for (size_t i = digits; i-- > 0;) text += kDigits[c.code >> (4 * i) & 15];
    return text;
}

// Length of the longest common subsequence.
size_t common(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1, 0);
    for (const char letter : a) {
        size_t diagonal = 0;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t above = row[j];
            row[j] = letter == b[j - 1] ? diagonal + 1 : std::max(above, row[j - 1]);
            diagonal = above;
        }
    }
    return row.back();
}

}  // namespace

Character character_at(std::string_view text, size_t at) {
    constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};  // by bytes: what fits into fewer is no character
    const auto byte = [&](size_t i) { return uint32_t(static_cast<unsigned char>(text[i])); };
    const uint32_t first = byte(at);
    if (first < 0x80) return {first, 1, true};
    const size_t bytes = first < 0xC2 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 1;
    if (bytes == 1 || at + bytes > text.size()) return {first, 1, false};
    uint32_t code = first & (0xFFu >> (bytes + 1));
    for (size_t i = 1; i < bytes; ++i) {
        if ((byte(at + i) & 0xC0u) != 0x80u) return {first, 1, false};
        code = code << 6 | (byte(at + i) & 0x3Fu);
    }
    const bool half = code >= 0xD800 && code < 0xE000;  // of a surrogate pair
    if (code < kLeast[bytes] || code > 0x10FFFF || half) return {first, 1, false};
    return {code, bytes, true};
}

size_t characters(std::string_view utf8) {
    size_t count = 0;
    for (size_t at = 0; at < utf8.size(); at += character_at(utf8, at).bytes) ++count;
    return count;
}

std::string cut(std::string text, size_t size) {
    if (characters(text) <= size) return text;
    size_t end = 0;
    for (size_t count = 0; count < size - 3; ++count) end += character_at(text, end).bytes;
    return text.substr(0, end) + "...";
}

bool is_printable(std::string_view utf8) {
    for (size_t at = 0; at < utf8.size();) {
        const Character c = character_at(utf8, at);
        if (!c.sound || is_hidden(c.code)) return false;
        at += c.bytes;
    }
    return true;
}

std::string in_quotes(std::string_view utf8, size_t size) {
    std::string text = "'";
    for (size_t at = 0, count = 0; at < utf8.size() && count <= size; ++count) {
        const Character c = character_at(utf8, at);
        if (!c.sound || is_hidden(c.code)) {
            text += escaped(c);
        } else {
            if (c.code == '\\' || c.code == '\'') text += '\\';
            text += utf8.substr(at, c.bytes);
        }
        at += c.bytes;
    }
    return cut(text + "'", size);
}

std::string short_number(double value) {
    char digits[32];
    return std::string(digits, std::to_chars(digits, digits + sizeof digits, value, std::chars_format::general, 6).ptr);
}

std::string size_text(int64_t height, int64_t width) { return std::to_string(height) + " x " + std::to_string(width); }

std::string lower(std::string text) {
    for (char& c : text)
        if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
    return text;
}

std::string joined(const std::vector<std::string>& words, const char* separator) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : separator) + word;
    return text;
}

std::string in_quotes(const std::vector<std::string>& words) {
    std::vector<std::string> shown;
    for (const std::string& word : words) shown.push_back(in_quotes(word));
    return joined(shown);
}

std::string nearest(std::string_view word, const std::vector<std::string>& choices) {
    word = word.substr(0, kShown);
    double best = kNearEnough;
    std::string found;
    for (const std::string& choice : choices) {
        const size_t both = std::max<size_t>(1, word.size() + choice.size());
        const double near = 2.0 * double(common(word, choice)) / double(both);
        if (near >= best && (near > best || found.empty())) {
            best = near;
            found = choice;
        }
    }
    return found;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& choices) {
    const std::string found = nearest(word, choices);
    return found.empty() ? "" : " Did you mean " + in_quotes(found) + "?";
}

}  // namespace diffusevae
