#include "sampler.h"

#include <algorithm>
#include <functional>

#include "backends/tiles.h"
#include "checks.h"
#include "clock.h"
#include "error.h"
#include "inpaint.h"
#include "request.h"
#include "stages.h"
#include "steps.h"
#include "text.h"
#include "threads.h"
#include "wordpiece.h"

namespace diffusevae {

namespace {

constexpr int64_t kMaxBatch = int64_t(1) << 20;

// One run at a time: a second one would overwrite the buffers of the first.
class Exclusive {
public:
    explicit Exclusive(std::atomic_flag& busy) : busy_(busy) {
        if (busy_.test_and_set(std::memory_order_acquire))
            throw Error(DIFFUSEVAE_BUSY,
                        "This sampler is running already, in another thread or below the callback that called it; expected "
                        "one request at a time. Give each thread its own with diffusevae_clone.");
    }
    ~Exclusive() { busy_.clear(std::memory_order_release); }
    Exclusive(const Exclusive&) = delete;
    Exclusive& operator=(const Exclusive&) = delete;

private:
    std::atomic_flag& busy_;
};

int64_t checked_max_batch(int64_t max_batch) {
    if (max_batch < 1 || max_batch > kMaxBatch)
        refuse_argument("max_batch is " + std::to_string(max_batch) + "; expected 1 .. " + std::to_string(kMaxBatch) + ".");
    return max_batch;
}

std::optional<int64_t> given(int64_t number) {
    return number == DIFFUSEVAE_UNSET ? std::nullopt : std::optional<int64_t>(number);
}

// A graph of the bundle, on windows of its canvas where there are some.
std::unique_ptr<Graph> load(const Bundle& bundle, Backend& backend, const std::string& name) {
    std::unique_ptr<Graph> graph = backend.load(name);
    const Canvas* const canvas = bundle.canvas();
    if (canvas == nullptr || !canvas->tiled() || canvas->ports.count(name) == 0) return graph;
    return on_canvas(std::move(graph), bundle.spec(name), *canvas);
}

Bundle opened_bundle(const std::string& path, const diffusevae_open_options& options) {
    Bundle bundle = Bundle::open(path, stores_of(options.allow_links, options.allow_links_count));
    const bool high = options.height != DIFFUSEVAE_UNSET, wide = options.width != DIFFUSEVAE_UNSET;
    const bool overlaps = options.overlap != DIFFUSEVAE_UNSET_NUMBER;
    if (high != wide || (overlaps && !high))
        refuse_argument("found some of height, width and overlap, expected both height and width, with an overlap or without: "
                        "with one, a larger picture is computed in tiles, of which the next one covers that share. Set both.");
    if (high)
        bundle.resize(options.height, options.width, overlaps ? std::optional<double>(options.overlap) : std::nullopt);
    return bundle;
}

Graphs loaded(const Opened& opened) {
    Graphs graphs;
    const Manifest& manifest = opened.bundle.manifest();
    std::vector<std::string> names = graphs_to_load(manifest.pipeline);
    if (manifest.guide && manifest.guide->scale != 0.0 && opened.backend->runs_guides())
        for (const std::string& name : graphs_of_guides(manifest.pipeline)) names.push_back(name);
    if (manifest.regularise && manifest.regularise->mode != kOff && opened.backend->runs_regulariser())
        for (const std::string& name : graphs_of_regulariser(manifest.pipeline)) names.push_back(name);
    for (const std::string& name : names)
        if (graphs.count(name) == 0) graphs[name] = load(opened.bundle, *opened.backend, name);
    return graphs;
}

std::vector<int64_t> calls_of(const Manifest& manifest) {
    std::vector<int64_t> calls;
    if (manifest.fitted)
        for (const Defaults& setting : manifest.fitted->settings) calls.push_back(setting.steps);
    return calls;
}

std::vector<const char*> names_of(const Manifest& manifest) {
    std::vector<const char*> names;
    if (manifest.directions)
        for (const std::string& name : manifest.directions->names) names.push_back(name.c_str());
    return names;
}

// The bundle's own size where what was opened is of another, in which not every graph runs; nothing where it is of that.
std::optional<std::string> own_size_alone(const Opened& opened) {
    const Canvas* const canvas = opened.bundle.canvas();
    if (canvas == nullptr || canvas->own_size()) return std::nullopt;
    const int64_t factor = opened.bundle.manifest().pipeline.image_shape()[1] / canvas->whole_height;
    return size_text(factor * canvas->height, factor * canvas->width);
}

// Refuses guides where none can run: on a backend without them, in another size, beside a codebook.
void check_guides(const Opened& opened, const Setting& setting) {
    const std::string found = "guide_scale is " + brief(setting.guide_scale);
    if (!opened.backend->runs_guides())
        refuse_argument(found + ", but backend '" + opened.backend->name() + "' runs no guides yet; pass guide_scale=0, or choose "
                        "native or openvino.");
    if (const auto own = own_size_alone(opened))
        refuse_argument(found + ", but the bundle's guides take images of " + *own + " alone; pass guide_scale=0, or leave size out.");
    if (setting.quantize_denoised)
        refuse_argument(found + " beside quantize_denoised, which no row can take both of; leave one of the two out.");
}

// Refuses a regulariser where it cannot run: on a backend whose loop has one network, and in another size.
void check_regulariser(const Opened& opened, const Setting& setting) {
    const std::string found = "regularise is " + in_quotes(setting.regularise);
    if (!opened.backend->runs_regulariser())
        refuse_argument(found + ", but backend '" + opened.backend->name() + "' runs no second network in its loop yet; pass "
                        "regularise='off', or choose native or openvino.");
    if (const auto own = own_size_alone(opened))
        refuse_argument(found + ", but the bundle's regulariser takes images of " + *own + " alone; pass regularise='off', or leave "
                        "size out.");
}

size_t checked_index(int64_t index, size_t count, const char* what) {
    if (index < 0 || uint64_t(index) >= count)
        refuse_argument("index is " + std::to_string(index) + "; this bundle has " + std::to_string(count) + " " + what
                        + ", counted from 0.");
    return size_t(index);
}

}  // namespace

Opened::Opened(const std::string& path, const diffusevae_open_options& options)
    : max_batch(checked_max_batch(options.max_batch)),
      threads(resolve_threads(given(options.threads))),
      bundle(opened_bundle(path, options)),
      schedule(bundle.manifest().schedule),
      prior(read_prior(bundle)),
      directions(read_directions(bundle)),
      vocabulary(read_vocabulary(bundle)),
      names(names_of(bundle.manifest())),
      outputs(outputs_of(bundle.manifest())),
      fitted(calls_of(bundle.manifest())),
      backend(open_backend(bundle, options.backend ? options.backend : "native",
                           BackendRequest{options.precision ? options.precision : "auto", threads})) {}

Graphs LaterGraphs::clones(const Bundle& bundle, Backend& backend, const std::vector<std::string>& names) {
    const std::lock_guard<std::mutex> turn(lock_);
    Graphs graphs;
    for (const std::string& name : names) {
        std::unique_ptr<Graph>& loaded = loaded_[name];
        if (!loaded) loaded = load(bundle, backend, name);
        graphs[name] = loaded->clone();
    }
    return graphs;
}

Sampler::Sampler(const std::string& path, const diffusevae_open_options& options)
    : opened_(std::make_shared<const Opened>(path, options)), pipeline_(opened_->parts(), loaded(*opened_)) {}

Sampler::Sampler(const Sampler& twin, Graphs graphs)
    : opened_(twin.opened_), pipeline_(opened_->parts(), std::move(graphs)), times_(twin.times_), later_(twin.later_),
      process_(twin.process_) {}

std::unique_ptr<Sampler> Sampler::clone() const {
    Graphs graphs;
    for (const auto& [name, graph] : pipeline_.graphs()) graphs[name] = graph->clone();
    return std::unique_ptr<Sampler>(new Sampler(*this, std::move(graphs)));
}

// ---- what it is --------------------------------------------------------------------------------------------------------

void Sampler::describe(diffusevae_info& info) const {
    const PipelineSpec& pipeline = manifest().pipeline;
    const std::vector<int64_t> image = pipeline.image_shape();
    info.image_channels = image[0];
    info.image_height = image[1];
    info.image_width = image[2];
    info.state_channels = pipeline.state.channels;
    info.state_height = pipeline.state.height;
    info.state_width = pipeline.state.width;
    info.timesteps = opened_->schedule.T;
    info.inputs = int64_t(manifest().inputs.size());
    info.outputs = int64_t(opened_->outputs.size());
    info.guided = pipeline.guided() ? 1 : 0;
    info.has_start = pipeline.state.start ? 1 : 0;
    info.has_prior = opened_->prior ? 1 : 0;
    info.has_guides = pipeline.guides.empty() ? 0 : 1;
    info.has_regulariser = pipeline.regulariser ? 1 : 0;
    info.threads = opened_->threads;
    info.max_batch = opened_->max_batch;
    info.weight_bytes = 0;
    for (const auto& [name, graph] : pipeline_.graphs()) info.weight_bytes += graph->weight_bytes();
    info.name = manifest().name.c_str();
    info.family = manifest().family.c_str();
    info.start = pipeline.state.start ? pipeline.state.start->c_str() : nullptr;
    info.backend = opened_->backend->name();
    info.precision = opened_->backend->precision();
    info.isa = opened_->backend->isa();
    info.defaults = recorded_setting(manifest()).in_c();
    info.fitted = opened_->fitted.empty() ? nullptr : opened_->fitted.data();
    info.fitted_count = int64_t(opened_->fitted.size());
    info.directions = opened_->names.empty() ? nullptr : opened_->names.data();
    info.directions_count = int64_t(opened_->names.size());
    info.text_input = manifest().text ? manifest().text->input.c_str() : nullptr;
}

void Sampler::describe_input(int64_t index, diffusevae_array_info& info) const {
    const std::vector<InputSpec>& inputs = manifest().inputs;
    diffusevae::describe_input(inputs[checked_index(index, inputs.size(), "inputs")], info);
}

void Sampler::describe_output(int64_t index, diffusevae_array_info& info) const {
    const std::vector<OutputSpec>& outputs = opened_->outputs;
    diffusevae::describe_output(outputs[checked_index(index, outputs.size(), "outputs")], info);
}

void Sampler::step_table(const diffusevae_sample_options& options, diffusevae_step_table& into) const {
    if (budget_of(options))
        refuse_argument("budget_ms chooses the setting when a run begins; expected none for a step table. Leave it out.");
    const Setting setting = checked_setting(manifest(), options);
    const StepTable table = build_step_table(opened_->schedule, manifest(), setting);
    const int64_t calls = table.calls();
    if ((into.timesteps || into.rows || into.weights || into.nets) && into.capacity < calls)
        refuse_argument("capacity of the step table is " + std::to_string(into.capacity) + "; this chain has "
                        + std::to_string(calls) + " rows. Make room for them.");
    if (into.timesteps) check_array("timesteps of the step table", into.timesteps, sizeof(int64_t), {calls});
    if (into.rows) check_array("rows of the step table", into.rows, sizeof(float), {calls, kRowWidth});
    if (into.weights) check_array("weights of the step table", into.weights, sizeof(float), {calls, table.lanes});
    if (into.nets) check_array("nets of the step table", into.nets, sizeof(int64_t), {calls});
    if (into.timesteps) std::copy(table.timesteps.begin(), table.timesteps.end(), into.timesteps);
    if (into.rows) std::copy(table.rows.begin(), table.rows.end(), into.rows);
    if (into.weights) std::copy(table.weights.begin(), table.weights.end(), into.weights);
    for (int64_t i = 0; into.nets && i < calls; ++i) into.nets[i] = table.regularised(i) ? 1 : 0;
    into.calls = calls;
    into.lanes = table.lanes;
    into.k_noise = table.start.k_noise;
    into.k_start = table.start.k_start;
    into.k_centre = table.start.k_centre;
    into.setting = setting.in_c();
}

// ---- a run -------------------------------------------------------------------------------------------------------------

std::vector<Wanted> Sampler::wanted(const Request& request, int64_t rows, const diffusevae_result& result) const {
    std::set<std::string> inputs;
    for (const GivenInput& input : request.inputs) inputs.insert(input.spec->name);
    for (const InputSpec* input : {request.drawn, request.fresh})
        if (input) inputs.insert(input->name);
    if (request.blend) {
        for (const InputSpec* input : request.blend->encoded) inputs.insert(input->name);
        if (request.blend->replaces) inputs.insert(*manifest().pipeline.state.start);
    }
    Sizes sizes = request.sizes;
    sizes[kBatch] = request.n;
    sizes[kRows] = rows;
    return wanted_outputs(opened_->outputs, values_there(manifest().pipeline, inputs), sizes, result);
}

void Sampler::sample(const diffusevae_sample_options& given, diffusevae_result& result) {
    const Exclusive alone(busy_);
    cancelled_.store(false, std::memory_order_relaxed);
    const Clock began;
    const WithTokens asked(opened_->vocabulary, manifest(), opened_->bundle.path(), given);
    const diffusevae_sample_options& options = asked.options();
    if (const std::optional<Budget> budget = budget_of(options)) return run_within(*budget, began, options, result);
    const Request request = checked_request(manifest(), options);
    run(request, build_step_table(opened_->schedule, manifest(), request.setting), result);
}

void Sampler::inpaint(const diffusevae_sample_options& options, bool composite, diffusevae_result& result) {
    const Exclusive alone(busy_);
    cancelled_.store(false, std::memory_order_relaxed);
    const WithTokens asked(opened_->vocabulary, manifest(), opened_->bundle.path(), options);
    Request request = checked_inpaint(manifest(), asked.options(), composite);
    const StepTable table = build_step_table(opened_->schedule, manifest(), request.setting);
    if (request.blend) {
        set_levels(*request.blend, opened_->schedule, table.timesteps);
        load_encoders(*request.blend);
    }
    run(request, table, result);
}

void Sampler::upscale(const diffusevae_sample_options& options, int64_t noise_level, diffusevae_result& result) {
    const Exclusive alone(busy_);
    cancelled_.store(false, std::memory_order_relaxed);
    const WithTokens asked(opened_->vocabulary, manifest(), opened_->bundle.path(), options);
    const Request request = checked_stage(manifest(), opened_->schedule, asked.options(), noise_level);
    const StepTable table = build_step_table(opened_->schedule, manifest(), request.setting);
    if (request.blend) load_encoders(*request.blend);
    run(request, table, result);
}

void Sampler::check_upscale(const diffusevae_sample_options& options, int64_t noise_level) const {
    const WithTokens asked(opened_->vocabulary, manifest(), opened_->bundle.path(), options);
    const Request request = checked_stage(manifest(), opened_->schedule, asked.options(), noise_level, false);
    const StepTable table = build_step_table(opened_->schedule, manifest(), request.setting);
    if (table.takes_guide()) check_guides(*opened_, request.setting);
    if (!table.nets.empty()) check_regulariser(*opened_, request.setting);
    check_rows(request, table.calls());
}

void Sampler::load_later(const std::vector<std::string>& names) {
    own_process();
    const std::vector<std::string> missing = pipeline_.missing(names);
    if (!missing.empty()) pipeline_.take(later_->clones(opened_->bundle, *opened_->backend, missing));
}

void Sampler::load_encoders(const Blend& blend) {
    if (blend.encodes) load_later(graphs_of_encode(manifest().pipeline));
}

void Sampler::run(const Request& asked, const StepTable& table, diffusevae_result& result) {
    Clock total;
    Request request = asked;
    if (asked.watch)
        request.watch = [&](const diffusevae_step& seen) {
            const std::unique_ptr<const diffusevae_step*, void (*)(const diffusevae_step**)> shown(
                &(shown_ = &seen), [](const diffusevae_step** place) { *place = nullptr; });
            return asked.watch(seen);
        };
    const int64_t rows = table.calls();
    if (table.takes_guide()) {
        check_guides(*opened_, request.setting);
        load_later(graphs_of_guides(manifest().pipeline));
    }
    if (!table.nets.empty()) {
        check_regulariser(*opened_, request.setting);
        load_later(graphs_of_regulariser(manifest().pipeline));
    }
    check_rows(request, rows);
    const std::vector<Wanted> into = wanted(request, rows, result);
    std::vector<double> step_ms(size_t(rows), 0.0);
    result.timings = diffusevae_timings{};
    for (int64_t begin = 0; begin < request.n; begin += opened_->max_batch) {
        pipeline_.run(request, table, begin, std::min(opened_->max_batch, request.n - begin), into, cancelled_,
                      result.timings, step_ms);
        result.timings.chunks += 1;
    }
    for (const Wanted& one : into) {
        if (one.spec->name == kTimesteps)
            std::copy(table.timesteps.begin(), table.timesteps.end(), static_cast<int64_t*>(one.array->data));
        if (one.spec->name == "step_ms") std::copy(step_ms.begin(), step_ms.end(), static_cast<double*>(one.array->data));
        one.array->shape[0] = one.spec->shape[0] == Dimension(kBatch) ? request.n : rows;
    }
    result.n = request.n;
    result.rows = rows;
    result.setting = request.setting.in_c();
    result.timings.total_ms = total.lap();
}

void Sampler::preview(diffusevae_array& images) {
    if (!shown_)
        refuse_argument("diffusevae_preview was called while no callback of this sampler is looking at a step; expected a call "
                        "from within one.");
    diffusevae_result wants{};
    wants.outputs = &images;
    wants.outputs_count = 1;
    const Wanted one = wanted_outputs(opened_->outputs, {"images"}, {{kBatch, shown_->n}}, wants)[0];
    pipeline_.preview(static_cast<uint8_t*>(one.array->data));
    images.shape[0] = shown_->n;
}

// ---- within a budget of time -------------------------------------------------------------------------------------------

void Sampler::run_within(const Budget& budget, const Clock& began, const diffusevae_sample_options& options,
                         diffusevae_result& result) {
    const std::vector<Defaults>& settings = settings_within(manifest(), opened_->bundle.path(), options);
    diffusevae_sample_options given = options;
    given.steps = settings[0].steps;
    Request request = checked_request(manifest(), given);
    StepTable table = build_step_table(opened_->schedule, manifest(), request.setting);
    wanted(request, table.calls(), result);  // results without room are refused before anything is measured
    const Setting& asked = request.setting;
    const Times::Size size{request.n, table.lanes, asked.guidance_interval, asked.quantize_denoised};
    const Defaults& chosen = choose(budget, settings, pace_of(size, request, given, settings), request.n);
    if (&chosen != &settings[0]) {
        given.steps = chosen.steps;
        request.setting = checked_setting(manifest(), given);
        table = build_step_table(opened_->schedule, manifest(), request.setting);
    }
    const int64_t calls = table.calls();
    Watcher watcher(request.watch, began, budget.milliseconds, calls);
    if (budget.anytime) request.watch = std::ref(watcher);
    run(request, table, result);
    const int64_t done = watcher.done();
    const Pace pace = done == calls ? times_->add(size, calls, result.timings) : *times_->pace(size);
    const double took = began.elapsed();
    result.deadline = {budget.milliseconds, pace.kept(calls), took, calls, done, took <= budget.milliseconds ? 1 : 0};
}

void Sampler::own_process() {
    if (process_ == getpid()) return;
    times_ = std::make_shared<Times>();
    later_ = std::make_shared<LaterGraphs>();
    process_ = getpid();
}

Pace Sampler::pace_of(const Times::Size& size, const Request& like, const diffusevae_sample_options& options,
                      const std::vector<Defaults>& settings) {
    own_process();
    if (const std::optional<Pace> known = times_->pace(size)) return *known;
    const auto [fewest, most] = ends_of(settings);
    RunTimes times;
    Request probe = like;
    probe.watch = nullptr;
    diffusevae_sample_options given = options;
    for (int64_t i = 0; i < 1 + 2 * kProbes; ++i) {
        given.steps = i % 2 == 1 || i == 0 ? fewest->steps : most->steps;
        probe.setting = checked_setting(manifest(), given);
        const StepTable table = build_step_table(opened_->schedule, manifest(), probe.setting);
        diffusevae_result unused{};
        run(probe, table, unused);
        const diffusevae_timings& took = unused.timings;  // the first run of a shape may pay for a runtime's preparation
        if (i > 0) times.add(table.calls(), took.network_ms + took.update_ms, took.total_ms);
    }
    return times_->measured(size, std::move(times));
}

}  // namespace diffusevae
