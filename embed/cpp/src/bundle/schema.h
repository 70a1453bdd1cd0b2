// How the fields of a manifest are read. Written by embed/cpp/generate_schema.py from engine/bundle: change it there.
#ifndef DIFFUSEVAE_BUNDLE_SCHEMA_H
#define DIFFUSEVAE_BUNDLE_SCHEMA_H

#include "bundle/manifest.h"

namespace diffusevae {

inline void take(Fields& fields, TensorSpec& into) {
    into.name = fields.text("name");
    into.dtype = fields.choice("dtype", {"float32", "int64", "uint8"});
    into.shape = parse_shape(fields, "shape");
    into.range = parse_range(fields, "range");
}

inline void take(Fields& fields, InputSpec& into) {
    into.name = fields.text("name");
    into.dtype = fields.choice("dtype", {"float32", "int64"});
    into.shape = parse_shape(fields, "shape");
    into.range = parse_range(fields, "range");
    if (!fields.take_null("draw")) into.draw = fields.choice("draw", {"normal", "each_step"});
    if (!fields.take_null("picture")) into.picture = fields.choice("picture", {"image", "mask"});
}

inline void take(Fields& fields, FileSpec& into) {
    into.file = parse_file_name(fields, "file");
    into.size = fields.integer("size", 1, 1099511627776);
    into.sha256 = fields.sha256("sha256");
}

inline void take(Fields& fields, Parity&) {
    fields.text("reference");
    fields.number("max_relative_error", 0.0, 1000000000.0);
    parse_batches(fields, "batches");
    parse_runtimes(fields, "runtimes");
}

inline void take(Fields& fields, GraphSpec& into, const std::vector<std::string>& precisions) {
    into.file = parse_file_name(fields, "file");
    into.size = fields.integer("size", 1, 2147483647);
    into.sha256 = fields.sha256("sha256");
    if (!fields.take_null("weights")) into.weights = nested<FileSpec>(fields, "weights");
    into.precision = fields.choice("precision", precisions);
    fields.integer("opset", 1, 1000);
    into.inputs = parse_tensors(fields, "inputs");
    into.outputs = parse_tensors(fields, "outputs");
    nested<Parity>(fields, "parity");
    into.compute = parse_compute(fields, "compute");
}

inline void take(Fields& fields, StateSpec& into) {
    into.channels = fields.integer("channels", 1, 65536);
    into.height = fields.integer("height", 1, 65536);
    into.width = fields.integer("width", 1, 65536);
    if (!fields.take_null("clip")) into.clip = fields.number("clip", 1e-06, 1000000.0);
    if (!fields.take_null("centre")) into.centre = fields.text("centre");
    if (!fields.take_null("start")) into.start = fields.text("start");
}

inline void take(Fields& fields, ScheduleSpec& into) {
    into.recipe = fields.choice("recipe", {"linear", "scaled_linear", "cosine", "table"});
    into.T = fields.integer("T", 1, 1000000);
}

inline void take(Fields& fields, Defaults& into, int64_t T, int64_t last) {
    into.steps = fields.integer("steps", 1, T);
    if (!fields.take_null("timesteps")) into.timesteps = fields.falling("timesteps", 0, last);
    if (!fields.take_null("spacing")) into.spacing = fields.choice("spacing", kSpacings);
    into.rho = fields.number("rho", 1.0, 100.0);
    into.method = fields.choice("method", kMethods);
    into.eta = fields.numbers("eta", 0.0, 1.0);
    if (!fields.take_null("t_start")) into.t_start = fields.integer_or_null("t_start", 0, last);
    into.temperature = fields.number("temperature", 0.0, 100.0);
    into.noise_scale = fields.numbers("noise_scale", 0.0, 100.0);
    into.eps_scale = fields.numbers("eps_scale", 0.0, 100.0);
    into.guidance = fields.number("guidance", -100.0, 100.0);
}

inline void take(Fields& fields, Source& into) {
    into.file = fields.text("file");
    into.sha256 = fields.sha256("sha256");
    into.weights = fields.choice("weights", {"ema", "online"});
    if (!fields.take_null("other_file")) into.other_file = fields.text("other_file");
    if (!fields.take_null("other_sha256")) into.other_sha256 = fields.sha256("other_sha256");
}

inline void take(Fields& fields, Fitted& into) {
    into.of = fields.sha256("of");
    fields.free("record");
}

inline void take(Fields& fields, StartRow&, int64_t measures, int64_t starts) {
    fields.series("mean", -10.0, 10.0, measures);
    fields.series("spread", 0.001, 10.0, measures);
    fields.series("psnr", 0.0, 100.0, starts);
}

inline void take(Fields& fields, Starts& into, int64_t last) {
    into.of = fields.sha256("of");
    into.t_starts = fields.falling("t_starts", 0, last);
    fields.free("record");
}

inline void take(Fields& fields, EngineSpec& into, const std::vector<std::string>& graphs) {
    into.backend = fields.choice("backend", {"native", "tensorrt_rtx", "tensorrt"});
    into.precision = fields.choice("precision", kPrecisions);
    into.graph = fields.choice("graph", graphs);
    into.source_sha256 = fields.sha256("source_sha256");
    into.made_with = parse_versions(fields, "made_with");
    into.targets = parse_targets(fields, "targets");
    fields.free("options");
    fields.free("record");
}

inline void take(Fields& fields, PriorSpec& into, const std::vector<std::string>& drawn) {
    into.file = parse_file_name(fields, "file");
    into.size = fields.integer("size", 1, 2147483647);
    into.sha256 = fields.sha256("sha256");
    into.input = fields.choice("input", drawn);
    fields.choice("kind", {"gaussian_mixture"});
    into.components = fields.integer("components", 1, 65536);
}

inline void take(Fields& fields, DirectionsSpec& into, const std::vector<std::string>& drawn) {
    into.file = parse_file_name(fields, "file");
    into.size = fields.integer("size", 1, 2147483647);
    into.sha256 = fields.sha256("sha256");
    into.input = fields.choice("input", drawn);
    into.names = parse_names(fields, "names");
    into.of = fields.sha256("of");
    fields.free("record");
}

inline void take(Fields& fields, TextSpec& into, const std::vector<std::string>& tokens) {
    into.file = parse_file_name(fields, "file");
    into.size = fields.integer("size", 1, 16777216);
    into.sha256 = fields.sha256("sha256");
    into.input = fields.choice("input", tokens);
    fields.choice("kind", {"wordpiece"});
    into.lowercase = fields.boolean("lowercase");
    if (!fields.take_null("begin")) into.begin = fields.text("begin");
    if (!fields.take_null("end")) into.end = fields.text("end");
    into.pad = fields.text("pad");
    into.unknown = fields.text("unknown");
}

inline void take(Fields& fields, AugmentationSpec& into) {
    into.input = fields.text("input");
}

inline void take(Fields& fields, NextSpec& into) {
    into.bundle = parse_neighbour(fields, "bundle");
    into.source = fields.sha256("source");
    if (!fields.take_null("steps")) into.steps = fields.integer_or_null("steps", 1, 1000000);
    if (!fields.take_null("t_start")) into.t_start = fields.integer_or_null("t_start", 0, 999999);
    if (!fields.take_null("noise_level")) into.noise_level = fields.integer_or_null("noise_level", 0, 999999);
    if (!fields.take_null("guidance")) into.guidance = fields.number("guidance", -100.0, 100.0);
}

inline void take(Fields& fields, GuideDefaults& into) {
    into.scale = fields.number("scale", -1000000.0, 1000000.0);
    into.mode = fields.choice("mode", kModes);
    if (!fields.take_null("interval")) into.interval = parse_interval(fields, "interval");
}

inline void take(Fields& fields, RegulariseDefaults& into) {
    into.mode = fields.choice("mode", kRegularise);
    if (!fields.take_null("interval")) into.interval = parse_interval(fields, "interval");
}

inline void take(Fields& fields, Manifest& into) {
    into.name = fields.text("name");
    into.family = fields.label("family");
    fields.free("architecture");
    into.prediction = fields.choice("prediction", kPredictions);
    into.variance = fields.choice("variance", kVariances);
    into.source = parse_source(fields, "source");
    into.backends = parse_backends(fields, "backends");
    parse_versions(fields, "built_with");
}

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_SCHEMA_H
