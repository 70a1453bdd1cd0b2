// Bundles one behind the other, each of which goes on with the images of the one before it; part of diffusevae.hpp.
//
//     diffusevae::Cascade cascade("faces.bundle");   // follows the names that `diffusevae cascade` wrote
//     diffusevae::SampleOptions options;
//     options.seed = 7;
//     const diffusevae::CascadeBatch batch = cascade.sample(options);   // batch.last().images: those of the last stage
#ifndef DIFFUSEVAE_CASCADE_HPP
#define DIFFUSEVAE_CASCADE_HPP

#include <atomic>

#include "diffusevae.hpp"

namespace diffusevae {
inline namespace api {

// Options of a stage after the first, over those that the bundle before it records.
struct StageOptions : SampleOptions {
    std::optional<int64_t> noise_level;  // a timestep: the noise on the picture that the stage takes; 0 is none
};

struct CascadeBatch {
    std::vector<Batch> stages;     // of every stage; their seeds are each stage's own
    std::vector<uint64_t> seeds;   // [n], of the cascade: those of the first stage

    const Batch& last() const { return stages.back(); }

    // Those of all stages, summed.
    Timings timings() const {
        Timings sum{};
        for (const Batch& stage : stages) {
            const Timings& one = stage.timings;
            sum.before_ms += one.before_ms;
            sum.rows_ms += one.rows_ms;
            sum.noise_ms += one.noise_ms;
            sum.network_ms += one.network_ms;
            sum.first_step_ms += one.first_step_ms;
            sum.update_ms += one.update_ms;
            sum.after_ms += one.after_ms;
            sum.post_ms += one.post_ms;
            sum.total_ms += one.total_ms;
            sum.network_calls += one.network_calls;
            sum.chunks += one.chunks;
        }
        return sum;
    }
};

// One thread at a time, as a Sampler; with the images of Python's Cascade, bit for bit, on the same backend and instruction set. A
// callback is not told which stage it hears of: give each of the later options its own where that matters.
class Cascade {
public:
    // The bundle and those that it and its followers name. BundleError where one is missing, another than was named, or does not fit.
    // ArgumentError for height, width or overlap, which are one bundle's: open its stages as Samplers, and hand those over.
    explicit Cascade(const std::string& path, const OpenOptions& options = {}) {
        if (options.height || options.width || options.overlap)
            throw ArgumentError("found height, width or overlap for a cascade, expected none: its stages make several sizes. Open each "
                                "stage as a Sampler, and give the cascade those.");
        stages_.emplace_back(path, options);
        const Sampler::Opening opening(options);
        for (;;) {
            diffusevae_sampler* next = nullptr;
            const std::vector<const diffusevae_sampler*> handles = this->handles();
            check(diffusevae_open_next(handles.data(), int64_t(handles.size()), &opening.c, &next));
            if (next == nullptr) break;
            stages_.push_back(Sampler(next));
        }
        check_stages();
    }

    // These, from the smallest images to the largest.
    explicit Cascade(std::vector<Sampler> stages) : stages_(std::move(stages)) {
        if (stages_.empty()) throw ArgumentError("found a cascade of no bundles; expected two or more.");
        check_stages();
    }

    Cascade clone() const {
        std::vector<Sampler> twins;
        for (const Sampler& stage : stages_) twins.push_back(stage.clone());
        return Cascade(std::move(twins));
    }

    size_t size() const noexcept { return stages_.size(); }
    Sampler& operator[](size_t stage) { return stages_[stage]; }
    const Sampler& operator[](size_t stage) const { return stages_[stage]; }

    // Samples through all stages. first: options of the first; what is in its inputs and texts goes to every stage that takes it, and its
    // callback hears of all stages, one after the other. later: of each stage after it, or none. Sample k has one seed, the first
    // stage's, from which those of the others come. ArgumentError for an input that no stage takes, and for a budget of time; and, before
    // any stage runs, for what a later one would refuse, but for the names of its outputs (values, pixels).
    CascadeBatch sample(const SampleOptions& first = {}, const std::vector<StageOptions>& later = {}) {
        cancelled_->store(false, std::memory_order_relaxed);
        check_options(first, later);
        SampleOptions own = first;
        keep_taken(own.inputs, 0);
        if (stages_[0].info().text_input.empty()) own.texts.clear();
        const std::vector<StageOptions> plan = this->plan(first, later, Sampler::Call(own).n());
        own.callback = watched(first.callback);
        CascadeBatch batch;
        check_cancelled(0);
        batch.stages.push_back(stages_[0].sample(own));
        batch.seeds = batch.stages[0].seeds;
        for (size_t stage = 1; stage < stages_.size(); ++stage) {
            const Batch& before = batch.stages.back();
            const Array images = Array::of(before.images, {before.n, before.height, before.width, before.channels});
            StageOptions options = plan[stage - 1];
            draw_from(options, batch.seeds, stage);
            check_cancelled(stage);
            batch.stages.push_back(stages_[stage].upscale(images, options, options.noise_level));
        }
        check_cancelled(stages_.size());
        return batch;
    }

    // Stops the run in progress; from any thread: before its stage's next row or, where it comes just as a stage begins, before the
    // stage after that. sample() then throws Cancelled.
    void cancel() noexcept {
        cancelled_->store(true, std::memory_order_relaxed);
        for (Sampler& stage : stages_) stage.cancel();
    }

private:
    std::vector<const diffusevae_sampler*> handles() const {
        std::vector<const diffusevae_sampler*> handles;
        for (const Sampler& stage : stages_) handles.push_back(stage.handle_.get());
        return handles;
    }

    void check_stages() const {
        const std::vector<const diffusevae_sampler*> handles = this->handles();
        check(diffusevae_check_stages(handles.data(), int64_t(handles.size())));
    }

    // Whether a stage declares an input and does not make it itself.
    bool is_asked(size_t stage, const std::string& name) const {
        const auto [picture, level] = made_inputs(stage);
        if (stage > 0 && (name == picture || name == level)) return false;
        for (const ArrayInfo& input : stages_[stage].info().inputs)
            if (input.name == name) return true;
        return false;
    }

    // The options of the stages after the first, complete but for the seeds, and checked for n images.
    std::vector<StageOptions> plan(const SampleOptions& first, const std::vector<StageOptions>& later, int64_t n) const {
        std::vector<StageOptions> plan = later.empty() ? std::vector<StageOptions>(stages_.size() - 1) : later;
        for (size_t stage = 1; stage < stages_.size(); ++stage) {
            StageOptions& options = plan[stage - 1];
            complete(options, first, stage);
            if (n > 0) check_stage(options, stage, n);  // else the first stage refuses it
            options.callback = watched(options.callback);
        }
        return plan;
    }

    void check_stage(const StageOptions& options, size_t stage, int64_t n) const {
        const Info& before = stages_[stage - 1].info();
        const Array images(DIFFUSEVAE_UINT8, {n, before.image_height, before.image_width, before.image_channels});
        try {
            stages_[stage].check_upscale(images, options, options.noise_level);
        } catch (const ArgumentError& error) {
            throw ArgumentError("stage " + std::to_string(stage + 1) + ": " + error.what());
        }
    }

    // A callback that stops a cancelled cascade too; none where there is none.
    std::function<bool(const StepInfo&)> watched(const std::function<bool(const StepInfo&)>& callback) const {
        if (!callback) return nullptr;
        return [callback, cancelled = cancelled_.get()](const StepInfo& step) {
            return callback(step) || cancelled->load(std::memory_order_relaxed);
        };
    }

    void check_cancelled(size_t done) const {
        if (!cancelled_->load(std::memory_order_relaxed)) return;
        throw Cancelled("cancel() stopped the cascade with " + std::to_string(done) + " of " + std::to_string(stages_.size())
                        + " stages done. It can sample again.");
    }

    void check_options(const SampleOptions& first, const std::vector<StageOptions>& later) const {
        if (!later.empty() && later.size() != stages_.size() - 1)
            throw ArgumentError("found options of " + std::to_string(later.size()) + " stages; expected those of the "
                                + std::to_string(stages_.size() - 1) + " after the first, or none.");
        if (first.budget_ms)
            throw ArgumentError("budget_ms chooses among one bundle's settings; expected none for a cascade. Leave it out.");
        for (const auto& [name, array] : first.inputs) {
            bool taken = name == "x_T" || name == "noise";
            for (size_t stage = 0; stage < stages_.size(); ++stage) taken = taken || is_asked(stage, name);
            if (!taken) throw ArgumentError("no stage of this cascade takes " + name + "; expected an input of one. Leave it out.");
        }
        bool reads = first.texts.empty();
        for (const Sampler& stage : stages_) reads = reads || !stage.info().text_input.empty();
        if (!reads) throw ArgumentError("no stage of this cascade reads texts; expected none. Leave them out.");
    }

    // Those of the inputs that a stage declares, with what belongs to the first alone.
    void keep_taken(std::map<std::string, Array>& inputs, size_t stage) const {
        for (auto at = inputs.begin(); at != inputs.end();) {
            const bool kept = is_asked(stage, at->first) || (stage == 0 && (at->first == "x_T" || at->first == "noise"));
            at = kept ? std::next(at) : inputs.erase(at);
        }
    }

    // Options of a stage with what is recorded or shared where they do not say.
    void complete(StageOptions& options, const SampleOptions& first, size_t stage) const {
        diffusevae_stage_options recorded;
        diffusevae_stage_options_init(&recorded);
        check(diffusevae_get_stage_options(stages_[stage - 1].handle_.get(), stages_[stage].handle_.get(), &recorded));
        const auto fill = [](std::optional<int64_t>& into, int64_t value) {
            if (!into && value != DIFFUSEVAE_UNSET) into = value;
        };
        if (options.timesteps.empty()) {  // which say themselves how many steps there are, and from where
            fill(options.steps, recorded.steps);
            fill(options.t_start, recorded.t_start);
        }
        fill(options.noise_level, recorded.noise_level);
        if (!options.guidance && recorded.guidance != DIFFUSEVAE_UNSET_NUMBER) options.guidance = recorded.guidance;
        share(options, first, stage);
        if (!options.callback) options.callback = first.callback;
    }

    // The seeds of a stage, where its options have none, from those of the cascade.
    static void draw_from(StageOptions& options, const std::vector<uint64_t>& seeds, size_t stage) {
        if (options.seed || !options.seeds.empty()) return;
        options.seeds.resize(seeds.size());
        check(diffusevae_stage_seeds(seeds.data(), int64_t(seeds.size()), int64_t(stage), options.seeds.data()));
    }

    // The first stage's inputs and texts that this one takes and was not given.
    void share(StageOptions& options, const SampleOptions& first, size_t stage) const {
        const std::string& reads = stages_[stage].info().text_input;
        const bool told = !options.texts.empty() || options.inputs.count(reads) != 0;
        for (const auto& [name, array] : first.inputs)
            if (is_asked(stage, name) && !(told && name == reads)) options.inputs.emplace(name, array);
        if (!reads.empty() && !told && options.inputs.count(reads) == 0) options.texts = first.texts;
    }

    // The names of the inputs that a stage makes itself: the picture and its noise level, "" where there is none.
    std::pair<std::string, std::string> made_inputs(size_t stage) const {
        diffusevae_stage_inputs c;
        diffusevae_stage_inputs_init(&c);
        check(diffusevae_get_stage_inputs(stages_[stage].handle_.get(), &c));
        return {c.picture ? c.picture : "", c.level ? c.level : ""};
    }

    std::vector<Sampler> stages_;
    // Of the whole: a stage forgets, when it begins, that it was cancelled. It stays where it is when the Cascade moves.
    std::unique_ptr<std::atomic<bool>> cancelled_ = std::make_unique<std::atomic<bool>>(false);
};

}  // namespace api
}  // namespace diffusevae

#endif  // DIFFUSEVAE_CASCADE_HPP
