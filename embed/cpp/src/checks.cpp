// The sentences are those of engine/checks.py in spirit.
#include "checks.h"

#include <cmath>
#include <cstdio>
#include <cstring>

#include "error.h"
#include "text.h"

namespace diffusevae {

namespace {

// The product, or nothing where it is beyond what a pointer can reach.
std::optional<size_t> product(const std::vector<int64_t>& factors) {
    int64_t total = 1;
    for (const int64_t factor : factors)
        if (__builtin_mul_overflow(total, factor, &total)) return std::nullopt;
    if (total < 0 || uint64_t(total) > uint64_t(PTRDIFF_MAX)) return std::nullopt;
    return size_t(total);
}

// An exponent of all ones: NaN or infinity. Bits instead of isfinite(), so that the loop vectorises.
bool finite(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7F800000u) != 0x7F800000u;
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text;
    for (const int64_t dim : shape) text += (text.empty() ? "" : ", ") + std::to_string(dim);
    return "[" + text + "]";
}

void refuse_argument(const std::string& sentence) { throw Error(DIFFUSEVAE_ARGUMENT, sentence); }

std::string brief(double number) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", number);
    return text;
}

const char* known(const char* what, const std::string& word, const std::vector<std::string>& choices) {
    for (const std::string& choice : choices)
        if (choice == word) return choice.c_str();
    refuse_argument(std::string(what) + " is " + in_quotes(word) + "; expected one of " + joined(choices) + "."
                    + did_you_mean(word, choices));
}

void check_number(const char* name, double value, double low, double high) {
    if (std::isfinite(value) && value >= low && value <= high) return;
    const std::string wanted = std::isfinite(high)  ? "a number in " + brief(low) + " .. " + brief(high)
                               : std::isfinite(low) ? "a number of at least " + brief(low)
                                                    : "a finite number";
    refuse_argument(std::string(name) + " is " + brief(value) + "; expected " + wanted + ".");
}

void check_flag(const char* name, int32_t flag) {
    if (flag != 0 && flag != 1)
        refuse_argument(std::string(name) + " is " + std::to_string(flag) + "; expected 0 or 1.");
}

int64_t counted(const std::string& name, int64_t count) {
    if (count < 1) refuse_argument(name + " is " + std::to_string(count) + "; expected at least 1.");
    return count;
}

std::optional<int64_t> count_beside(const char* array, const void* data, const char* name, int64_t count) {
    if (data) return counted(name, count);
    if (count != 0)
        refuse_argument(std::string(name) + " is " + std::to_string(count) + ", but " + array
                        + " is a null pointer; expected both or neither.");
    return std::nullopt;
}

void check_array(const std::string& name, const void* data, size_t element, const std::vector<int64_t>& shape) {
    const std::string array = name + " " + shape_text(shape);
    const std::optional<size_t> elements = product(shape);
    if (!elements || !product({int64_t(*elements), int64_t(element)}))
        refuse_argument(array + " would be larger than any memory; expected sizes that an array can have.");
    if (!data) refuse_argument(array + " is a null pointer; expected an array.");
    if (reinterpret_cast<uintptr_t>(data) % element != 0)
        refuse_argument(array + " begins at an address that is no multiple of " + std::to_string(element)
                        + "; expected an array that is aligned as its elements are.");
}

void check_finite_array(const std::string& name, const float* data, const std::vector<int64_t>& shape) {
    check_array(name, data, sizeof(float), shape);
    const size_t count = *product(shape);
    size_t bad = 0;
    for (size_t i = 0; i < count; ++i) bad += finite(data[i]) ? 0 : 1;
    if (bad > 0)
        refuse_argument(name + " holds " + std::to_string(bad)
                        + " values that are NaN or infinite; expected finite numbers.");
}

size_t memory_size(const std::vector<int64_t>& factors) {
    const std::optional<size_t> size = product(factors);
    if (!size)
        throw Error(DIFFUSEVAE_NO_MEMORY, "found a request for an array " + shape_text(factors)
                                              + ", larger than any memory; expected a smaller one: lower max_batch "
                                                "or steps.");
    return *size;
}

std::optional<int64_t> agree_on_count(const std::vector<Count>& counts) {
    std::optional<int64_t> agreed;
    bool contradictory = false;
    std::string said;
    for (const Count& one : counts) {
        if (!one.count || (one.shared && *one.count == 1)) continue;
        contradictory = contradictory || (agreed && *agreed != *one.count);
        agreed = *one.count;
        said += (said.empty() ? "" : ", ") + one.name + " says " + std::to_string(*one.count);
    }
    if (contradictory)
        refuse_argument("The number of images is contradictory: " + said + ". Make them agree, or leave out n.");
    return agreed;
}

}  // namespace diffusevae
