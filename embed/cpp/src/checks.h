// Is this what a sampler can take? Small checks of what a caller passed; each refusal is an Error (ARGUMENT) that says what
// was found, what was expected and what to do.
#ifndef DIFFUSEVAE_ARGUMENTS_H
#define DIFFUSEVAE_ARGUMENTS_H

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

namespace diffusevae {

[[noreturn]] void refuse_argument(const std::string& sentence);

// A number as short as a message needs it; "nan", "inf".
std::string brief(double number);

// The one of `choices` that equals `word`, as a text that lives as long as `choices`.
const char* known(const char* what, const std::string& word, const std::vector<std::string>& choices);

// Refuses what is not a finite number in low .. high; `high` may be infinite.
void check_number(const char* name, double value, double low, double high);

// Refuses an array that is null, not aligned as its elements are, or longer than memory can be.
void check_array(const char* name, const void* data, size_t element, std::initializer_list<int64_t> shape);

// The same of float32, all finite.
void check_finite_array(const char* name, const float* data, std::initializer_list<int64_t> shape);

// a * b * ... without overflow as a size in memory; Error (NO_MEMORY) where it is none.
size_t memory_size(std::initializer_list<int64_t> factors);

// Numbers of images by who says so; `shared`: 1 fits any number.
struct Count {
    const char* name;
    std::optional<int64_t> count;
    bool shared = false;
};

// The one number that all agree on, or nothing when none says.
std::optional<int64_t> agree_on_count(std::initializer_list<Count> counts);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_ARGUMENTS_H
