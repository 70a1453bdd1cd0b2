// A bundle, opened: one request at a time, checked and taken through the pipeline in chunks of max_batch. Every sample has its
// own seed, so the result is the same and memory stays bounded.
#ifndef DIFFUSEVAE_SAMPLER_H
#define DIFFUSEVAE_SAMPLER_H

#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backends/graph.h"
#include "bundle/directions.h"
#include "bundle/prior.h"
#include "bundle/reader.h"
#include "bundle/vocabulary.h"
#include "clock.h"
#include "deadline.h"
#include "outputs.h"
#include "pipeline.h"
#include "schedule.h"

namespace diffusevae {

// What all clones share: decided when the bundle is opened, and never changed.
struct Opened {
    Opened(const std::string& path, const diffusevae_open_options& options);

    Parts parts() const { return {bundle, *backend, prior, directions, threads}; }

    int64_t max_batch;  // cheap to check, hence before the bundle is read
    int threads;
    Bundle bundle;
    Schedule schedule;
    std::optional<Prior> prior;
    std::optional<Directions> directions;
    std::optional<Vocabulary> vocabulary;
    std::vector<const char*> names;  // of the directions
    std::vector<OutputSpec> outputs;
    std::vector<int64_t> fitted;  // calls of each setting
    std::unique_ptr<Backend> backend;
};

// Graphs that only some requests need, those of `encode` and guides that the bundle does not use of itself, loaded for the first of
// these: clones share their weights.
class LaterGraphs {
public:
    Graphs clones(const Bundle& bundle, Backend& backend, const std::vector<std::string>& names);

private:
    std::mutex lock_;
    Graphs loaded_;
};

class Sampler {
public:
    Sampler(const std::string& path, const diffusevae_open_options& options);

    // Another one over the same weights, with states and buffers of its own; also while this one runs.
    std::unique_ptr<Sampler> clone() const;

    // Throws Error: BUSY when it is running already, CANCELLED, NUMERICS, BACKEND, ARGUMENT, DEADLINE; it is ready again after
    // any.
    void sample(const diffusevae_sample_options& options, diffusevae_result& result);
    void inpaint(const diffusevae_sample_options& options, bool composite, diffusevae_result& result);
    void upscale(const diffusevae_sample_options& options, int64_t noise_level, diffusevae_result& result);
    // Refuses what upscale would, but for outputs, and runs nothing.
    void check_upscale(const diffusevae_sample_options& options, int64_t noise_level) const;

    // Stops the run in progress before its next row; from any thread.
    void cancel() noexcept { cancelled_.store(true, std::memory_order_relaxed); }

    // The images that the x0 makes which a callback is looking at; to be called from it.
    void preview(diffusevae_array& images);

    const Bundle& bundle() const { return opened_->bundle; }
    void describe(diffusevae_info& info) const;
    void describe_input(int64_t index, diffusevae_array_info& info) const;
    void describe_output(int64_t index, diffusevae_array_info& info) const;
    void step_table(const diffusevae_sample_options& options, diffusevae_step_table& into) const;

private:
    Sampler(const Sampler& twin, Graphs graphs);

    const Manifest& manifest() const { return opened_->bundle.manifest(); }
    std::vector<Wanted> wanted(const Request& request, int64_t rows, const diffusevae_result& result) const;
    // Graphs of calls that a request makes and others do not.
    void load_later(const std::vector<std::string>& names);
    // The graphs of `encode`, for a request of images that go through them.
    void load_encoders(const Blend& blend);
    void run(const Request& request, const StepTable& table, diffusevae_result& result);
    void run_within(const Budget& budget, const Clock& began, const diffusevae_sample_options& options,
                    diffusevae_result& result);
    // What clones share and lock is left to the parent in a child of fork(), where it might be locked for ever.
    void own_process();
    // That of requests of this size; measured now where there is none.
    Pace pace_of(const Times::Size& size, const Request& like, const diffusevae_sample_options& options,
                 const std::vector<Defaults>& settings);

    std::shared_ptr<const Opened> opened_;
    Pipeline pipeline_;
    std::shared_ptr<Times> times_ = std::make_shared<Times>();
    std::shared_ptr<LaterGraphs> later_ = std::make_shared<LaterGraphs>();
    pid_t process_ = getpid();                // that both belong to
    const diffusevae_step* shown_ = nullptr;  // to a callback, now
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::atomic<bool> cancelled_{false};
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_SAMPLER_H
