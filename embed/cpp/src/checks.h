// Small checks of what a caller passed; each refusal is an Error (ARGUMENT) that says what was found, what was expected and
// what to do.
#ifndef DIFFUSEVAE_CHECKS_H
#define DIFFUSEVAE_CHECKS_H

#include <cstdint>
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

// Refuses what is neither 0 nor 1.
void check_flag(const char* name, int32_t flag);

// Refuses a number of things below 1.
int64_t counted(const std::string& name, int64_t count);

// The count that comes with an array; nothing where there is no array.
std::optional<int64_t> count_beside(const char* array, const void* data, const char* name, int64_t count);

// Refuses an array that is null, not aligned as its elements are, or longer than memory can be.
void check_array(const std::string& name, const void* data, size_t element, const std::vector<int64_t>& shape);

// The same of float32, all finite.
void check_finite_array(const std::string& name, const float* data, const std::vector<int64_t>& shape);

// a * b * ... without overflow as a size in memory; Error (NO_MEMORY) where it is none.
size_t memory_size(const std::vector<int64_t>& factors);

// "[4, 3, 32, 32]"
std::string shape_text(const std::vector<int64_t>& shape);

// Numbers of images by who says so; `shared`: 1 fits any number.
struct Count {
    std::string name;
    std::optional<int64_t> count;
    bool shared = false;
};

// The one number that all agree on, or nothing when none says.
std::optional<int64_t> agree_on_count(const std::vector<Count>& counts);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_CHECKS_H
