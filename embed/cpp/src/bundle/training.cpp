#include "bundle/training.h"

#include "bundle/schema.h"
#include "text.h"

namespace diffusevae {
namespace {

std::vector<double> parse_betas(Fields& fields, int64_t T) {
    const std::string expected = "a list of T = " + std::to_string(T) + " numbers between 0 and 1";
    const List& list = fields.items("betas", expected);
    std::vector<double> betas;
    for (const Value& value : list) {
        const double* beta = std::get_if<double>(&value.any());
        if (beta == nullptr || !(*beta > 0 && *beta < 1) || int64_t(list.size()) != T) fields.refuse("betas", expected);
        betas.push_back(*beta);
    }
    return betas;
}

}  // namespace

ScheduleSpec parse_schedule(Fields fields) {
    ScheduleSpec schedule;
    take(fields, schedule);
    std::map<std::string, double>& numbers = schedule.numbers;
    for (const RecipeNumber& number : kRecipeNumbers)
        if (number.recipe == schedule.recipe) numbers[number.name] = fields.number(number.name, number.low, number.high);
    if (numbers.count("end") != 0 && numbers["end"] < numbers["start"])
        fields.refuse("end", "at least schedule.start = " + short_number(numbers["start"]));
    if (schedule.recipe == "table") schedule.betas = parse_betas(fields, schedule.T);
    fields.done();
    return schedule;
}

Source parse_source(Fields& fields, const char* key) {
    const Fields entry = fields.object(key);
    const Source source = read<Source>(entry);
    if (source.other_file.has_value() != source.other_sha256.has_value())
        entry.refuse("other_sha256", source.other_file ? kHexadecimal : "null, since source.other_file is null");
    return source;
}

}  // namespace diffusevae
