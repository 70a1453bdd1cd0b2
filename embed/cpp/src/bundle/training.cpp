#include "bundle/training.h"

#include "bundle/limits.h"
#include "text.h"

namespace diffusevae {
namespace {

constexpr double kLeastBeta = 1e-12, kMostBeta = 0.999999;

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

const std::vector<std::string> kMethods = {"ddim", "ddpm", "dpmpp_2m", "plms"};
const std::vector<std::string> kSpacings = {"uniform", "quad", "linspace", "trailing", "truncated"};
const char* const kLearnedRange = "learned_range";
const std::vector<std::string> kVariances = {"fixedlarge", "fixedsmall", kLearnedRange};
const std::vector<std::string> kPredictions = {"eps", "x0", "v"};

ScheduleSpec parse_schedule(Fields fields) {
    ScheduleSpec schedule;
    schedule.recipe = fields.choice("recipe", {"linear", "scaled_linear", "cosine", "table"});
    schedule.T = fields.integer("T", 1, kMaxT);
    if (schedule.recipe == "cosine") {
        schedule.s = fields.number("s", 0.0, 1.0);
        schedule.max_beta = fields.number("max_beta", kLeastBeta, kMostBeta);
    } else if (schedule.recipe == "table") {
        schedule.betas = parse_betas(fields, schedule.T);
    } else {
        schedule.start = fields.number("start", kLeastBeta, kMostBeta);
        schedule.end = fields.number("end", kLeastBeta, kMostBeta);
        if (schedule.end < schedule.start)
            fields.refuse("end", "at least schedule.start = " + short_number(schedule.start));
    }
    fields.done();
    return schedule;
}

Defaults parse_defaults(Fields fields, int64_t T) {
    Defaults defaults;
    defaults.steps = fields.integer("steps", 1, T);
    defaults.method = fields.choice("method", kMethods);
    if (!fields.is_null("spacing")) defaults.spacing = fields.choice("spacing", kSpacings);
    defaults.t_start = fields.nullable_integer("t_start", 0, T - 1);
    defaults.eta = fields.number("eta", 0.0, 1.0);
    defaults.temperature = fields.number("temperature", 0.0, double(kMaxTemperature));
    defaults.guidance = fields.number("guidance", double(-kMaxGuidance), double(kMaxGuidance));
    fields.take("spacing", "a spacing or null");
    fields.done();
    return defaults;
}

Source parse_source(Fields fields) {
    const bool has_other = !fields.is_null("other_file");
    Source source;
    source.file = fields.text("file");
    source.sha256 = fields.sha256("sha256");
    source.weights = fields.choice("weights", {"ema", "online"});
    if (has_other) {
        source.other_file = fields.text("other_file");
        source.other_sha256 = fields.sha256("other_sha256");
    }
    fields.take("other_file", "a file name or null");
    if (!fields.take("other_sha256", "a SHA-256 of 64 lower-case hexadecimal digits, or null").is_null() && !has_other)
        fields.refuse("other_sha256", "null, since source.other_file is null");
    fields.done();
    return source;
}

}  // namespace diffusevae
