#include "bundle/fields.h"

#include <algorithm>
#include <optional>

#include "bundle/constants.h"
#include "text.h"

namespace diffusevae {
namespace {

constexpr size_t kMaxName = 60, kMaxFileName = 128, kSha256Digits = 64;

std::string text_expected() { return "a text of 1.." + std::to_string(kMaxText) + " printable characters"; }

bool is_letter_or_digit(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'); }

std::string hint(std::string_view word, const std::vector<std::string>& choices) {
    const std::string near = nearest(word, choices);
    return near.empty() ? "" : " (did you mean " + in_quotes(near) + "?)";
}

}  // namespace

bool is_file_name(std::string_view text) {
    return !text.empty() && text.size() <= kMaxFileName && is_letter_or_digit(text[0])
           && std::all_of(text.begin(), text.end(),
                          [](char c) { return is_letter_or_digit(c) || c == '.' || c == '_' || c == '-'; });
}

bool is_sha256(std::string_view text) {
    return text.size() == kSha256Digits && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

bool is_text(const Value& value) {
    const std::string* text = value.text();
    return text != nullptr && !text->empty() && characters(*text) <= size_t(kMaxText) && is_printable(*text);
}

bool is_at_least(const Value& value, int64_t low) {
    const std::optional<long double> number = value.number();
    return std::holds_alternative<Integer>(value.any()) && *number >= low;
}

Fields::Fields(const Value& value, const Origin& origin) : Fields(value, std::make_shared<const Origin>(origin), "") {}

Fields::Fields(const Value& value, std::shared_ptr<const Origin> origin, std::string field)
    : origin_(std::move(origin)), field_(std::move(field)), raw_(value.object()) {
    if (raw_ == nullptr) refuse_value(field_.empty() ? "top level" : field_, value, "an object");
}

std::string Fields::name_of(std::string_view key) const {
    const std::string name = is_printable(key) && characters(key) <= kMaxName ? std::string(key) : in_quotes(key);
    return field_.empty() ? name : field_ + "." + name;
}

std::vector<std::string> Fields::keys() const {
    std::vector<std::string> names;
    for (const size_t place : raw_->written) names.push_back(raw_->members[place].name);
    return names;
}

bool Fields::take_null(std::string_view key) {
    const Value* value = raw_->find(key);
    const bool null = value != nullptr && value->is_null();
    if (null) taken_.emplace(key);
    return null;
}

const Value& Fields::take(std::string_view key, const std::string& expected) {
    taken_.emplace(key);
    const Value* value = raw_->find(key);
    if (value == nullptr)
        throw Error(DIFFUSEVAE_BUNDLE,
                    origin_->where + ", " + name_of(key) + ": missing, expected " + expected + "; " + origin_->cure);
    return *value;
}

int64_t Fields::integer(std::string_view key, int64_t low, int64_t high) { return integer(key, low, high, ""); }

int64_t Fields::integer_or_null(std::string_view key, int64_t low, int64_t high) {
    return integer(key, low, high, ", or null");
}

int64_t Fields::integer(std::string_view key, int64_t low, int64_t high, const char* also) {
    const std::string expected = "an integer in " + std::to_string(low) + ".." + std::to_string(high) + also;
    const std::optional<int64_t> value = take(key, expected).integer();
    if (!value || *value < low || *value > high) refuse(key, expected);
    return *value;
}

double Fields::number(std::string_view key, double low, double high) {
    const std::string expected = "a number in " + short_number(low) + ".." + short_number(high);
    const std::optional<long double> value = take(key, expected).number();
    if (!value || *value < low || *value > high) refuse(key, expected);
    return double(*value);
}

Numbers Fields::numbers(std::string_view key, double low, double high) {
    const std::string expected =
        "a number in " + short_number(low) + ".." + short_number(high) + ", or a list of them, one a step";
    const auto checked = [&](const Value& value) {
        const std::optional<long double> number = value.number();
        if (!number || *number < low || *number > high) refuse(key, expected);
        return double(*number);
    };
    const Value& value = take(key, expected);
    Numbers found;
    if (const List* list = value.list()) {
        for (const Value& one : *list) found.list.push_back(checked(one));
        if (found.list.empty()) refuse(key, expected);
    } else {
        found.value = checked(value);
    }
    return found;
}

std::vector<double> Fields::series(std::string_view key, double low, double high, int64_t count) {
    const std::string expected =
        "a list of " + std::to_string(count) + " numbers in " + short_number(low) + ".." + short_number(high);
    const List* list = take(key, expected).list();
    if (list == nullptr || int64_t(list->size()) != count) refuse(key, expected);
    std::vector<double> found;
    for (const Value& one : *list) {
        const std::optional<long double> number = one.number();
        if (!number || *number < low || *number > high) refuse(key, expected);
        found.push_back(double(*number));
    }
    return found;
}

std::vector<int64_t> Fields::falling(std::string_view key, int64_t low, int64_t high) {
    const std::string expected =
        "a falling list of integers in " + std::to_string(low) + ".." + std::to_string(high) + ", or null";
    const List* list = take(key, expected).list();
    std::vector<int64_t> found;
    if (list == nullptr || list->empty()) refuse(key, expected);
    for (const Value& value : *list) {
        const std::optional<int64_t> one = value.integer();
        if (!one || *one < low || *one > high || (!found.empty() && *one >= found.back())) refuse(key, expected);
        found.push_back(*one);
    }
    return found;
}

bool Fields::boolean(std::string_view key) {
    const bool* value = take(key, "true or false").boolean();
    if (value == nullptr) refuse(key, "true or false");
    return *value;
}

std::string Fields::text(std::string_view key) { return text(key, text_expected()); }

std::string Fields::text(std::string_view key, const std::string& expected) {
    const Value& value = take(key, expected);
    if (!is_text(value)) refuse(key, expected);
    return *value.text();
}

std::string Fields::matching(std::string_view key, bool (*fits)(std::string_view), const char* expected) {
    const std::string* value = take(key, expected).text();
    if (value == nullptr || !fits(*value)) refuse(key, expected);
    return *value;
}

std::string Fields::file_name(std::string_view key) {
    return matching(key, is_file_name, "a plain file name inside the bundle (letters, digits, '.', '_', '-')");
}

std::string Fields::label(std::string_view key) {
    return matching(key, is_file_name, "a label of letters, digits, '.', '_' and '-'");
}

std::string Fields::sha256(std::string_view key) { return matching(key, is_sha256, kHexadecimal); }

std::string Fields::choice(std::string_view key, const std::vector<std::string>& choices) {
    const std::string expected = "one of " + in_quotes(choices);
    const std::string* value = take(key, expected).text();
    if (value == nullptr) refuse(key, expected);
    const bool known = std::find(choices.begin(), choices.end(), *value) != choices.end();
    if (!known) refuse(key, expected + hint(*value, choices));
    return *value;
}

const Value& Fields::free(std::string_view key) {
    const Value& value = take(key, "an object");
    if (value.object() == nullptr) refuse(key, "an object");
    return value;
}

const List& Fields::array(std::string_view key, const std::string& expected) {
    const List* list = take(key, expected).list();
    if (list == nullptr) refuse(key, expected);
    return *list;
}

const List& Fields::items(std::string_view key, const std::string& expected) {
    const List& list = array(key, expected);
    if (list.empty()) refuse(key, expected);
    return list;
}

std::vector<Fields> Fields::objects(std::string_view key, const std::string& expected, bool may_be_empty) {
    std::vector<Fields> found;
    const std::string name = name_of(key);
    for (const Value& value : may_be_empty ? array(key, expected) : items(key, expected))
        found.push_back(Fields(value, origin_, name + "[" + std::to_string(found.size()) + "]"));
    return found;
}

Fields Fields::object(std::string_view key) { return Fields(take(key, "an object"), origin_, name_of(key)); }

void Fields::done(const std::vector<std::string>& optional) const {
    for (const size_t place : raw_->written) {
        const Member& member = raw_->members[place];
        if (taken_.count(member.name) != 0) continue;
        std::set<std::string, std::less<>> known = taken_;
        known.insert(optional.begin(), optional.end());
        const std::vector<std::string> names(known.begin(), known.end());
        diffusevae::refuse(*origin_, name_of(member.name), "an unknown field",
                           "only " + joined(names) + hint(member.name, names));
    }
}

void Fields::refuse(std::string_view key, const std::string& expected) const {
    refuse_value(name_of(key), *raw_->find(key), expected);
}

void Fields::refuse_value(const std::string& name, const Value& found, const std::string& expected) const {
    diffusevae::refuse(*origin_, name, shown(found), expected);
}

}  // namespace diffusevae
