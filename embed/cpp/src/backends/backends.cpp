// The backends that there are, and those that were compiled in: one line each in kBackends.
#include "checks.h"
#include "bundle/engines.h"
#include "bundle/graphs.h"
#include "bundle/reader.h"
#include "error.h"
#include "backends/graph.h"
#include "text.h"

namespace diffusevae {

namespace {

struct Entry {
    const char* name;
    std::unique_ptr<Backend> (*open)(const Bundle&, const BackendRequest&);  // null where not compiled in
    const char* option;                                                      // of CMake, that compiles it in
    bool any_size;                                                           // whether graphs run in other sizes than their own
};

constexpr Entry kBackends[] = {
    {"native", open_native, "", true},
#ifdef DIFFUSEVAE_WITH_OPENVINO
    {"openvino", open_openvino, "-DDIFFUSEVAE_OPENVINO=ON", true},
#else
    {"openvino", nullptr, "-DDIFFUSEVAE_OPENVINO=ON", true},
#endif
#ifdef DIFFUSEVAE_WITH_TENSORRT
    {"tensorrt", open_tensorrt, "-DDIFFUSEVAE_TENSORRT=ON", false},
#else
    {"tensorrt", nullptr, "-DDIFFUSEVAE_TENSORRT=ON", false},
#endif
};

[[noreturn]] void refuse_missing(const std::string& what, const Entry& entry, const char* or_else) {
    throw Error(DIFFUSEVAE_BACKEND, what + ": found a library that was compiled without it, expected one with it; configure with "
                                        + entry.option + ", or " + or_else);
}

const Entry& entry_of(const std::string& name) {
    std::vector<std::string> names;
    for (const Entry& entry : kBackends) {
        if (name == entry.name) return entry;
        names.push_back(entry.name);
    }
    refuse_argument("backend: found " + in_quotes(name) + ", expected one of " + joined(names) + "."
                    + did_you_mean(name, names));
}

void check_size(const Bundle& bundle, const Entry& entry) {
    const Canvas* const canvas = bundle.canvas();
    if (canvas == nullptr || canvas->tiled() || canvas->own_size() || entry.any_size) return;
    const PipelineSpec& spec = bundle.manifest().pipeline;
    const std::vector<int64_t> image = spec.image_shape();
    const int64_t factor = image[1] / spec.state.height;
    throw Error(DIFFUSEVAE_BACKEND, "size: found " + size_text(image[1], image[2]) + " with backend '" + entry.name
                                        + "', whose plans take " + size_text(factor * canvas->height, factor * canvas->width)
                                        + " alone; expected tiles of that size, or a backend that runs any. Pass overlap=0.5 "
                                          "too, or choose native, openvino or onnxruntime.");
}

}  // namespace

std::unique_ptr<Backend> open_backend(const Bundle& bundle, const std::string& name, const BackendRequest& request) {
    const Entry& entry = entry_of(name);
    if (!entry.open) refuse_missing("backend '" + name + "'", entry, "choose native");
    const std::vector<std::string>& listed = bundle.manifest().backends;
    if (std::find(listed.begin(), listed.end(), name) == listed.end())
        throw Error(DIFFUSEVAE_BACKEND, bundle.path() + ": found backend '" + name
                                            + "', expected one that the bundle lists: " + joined(listed)
                                            + "; choose one, or " + kRebuild + " --backends " + name);
    check_size(bundle, entry);
    std::vector<std::string> precisions = {"auto"};
    precisions.insert(precisions.end(), kPrecisions.begin(), kPrecisions.end());
    known("precision", request.precision, precisions);  // refuses another word
    return entry.open(bundle, request);
}

Backend& open_runner(Runners& open, const Bundle& bundle, const EngineSpec& engine, int threads) {
    const std::string what = bundle.path() + ", graph '" + engine.graph + "'";
    for (const std::string& name : engine.runs_on)
        for (const Entry& entry : kBackends) {
            if (name != entry.name) continue;
            if (!entry.open)
                refuse_missing(what + ": backend '" + name + "', which runs it for '" + engine.backend + "'", entry,
                               "sample in Python");
            std::unique_ptr<Backend>& runner = open[name];
            if (!runner) runner = entry.open(bundle, {"f32", threads});
            return *runner;
        }
    throw Error(DIFFUSEVAE_BACKEND, what + ": found that " + joined(engine.runs_on) + " runs it for '" + engine.backend
                                        + "', expected openvino among them, which this library has; " + kRebuild
                                        + " --backends onnxruntime openvino native");
}

}  // namespace diffusevae
