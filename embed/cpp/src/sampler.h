// How does a bundle become images? The Sampler takes one request at a time through VAE, step table and chain.
//
// VAE:     z ~ N(0, I), or the bundle's prior  ->  recon = decoder(z)  ->  cond = 2 * recon - 1
// DDPM:    x_T ~ N(0, I)  ->  chain.h, conditioned on cond  ->  image
//
// A large request runs in chunks of max_batch: every sample has its own seed, so the result is the same and memory stays
// bounded.
#ifndef DIFFUSEVAE_SAMPLER_H
#define DIFFUSEVAE_SAMPLER_H

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle/reader.h"
#include "chain.h"
#include "backends/graph.h"
#include "bundle/prior.h"
#include "request.h"

namespace diffusevae {

// What all clones share: decided when the bundle is opened, and never changed.
struct Opened {
    Opened(const std::string& path, const diffusevae_open_options& options);

    const Model& model() const { return bundle.manifest().model; }

    int64_t max_batch;  // cheap to check, hence before the bundle is read
    int threads;
    Bundle bundle;
    Schedule schedule;
    std::optional<LatentPrior> prior;
    Shape shape;
    std::unique_ptr<Backend> backend;
};

class Sampler {
public:
    Sampler(const std::string& path, const diffusevae_open_options& options);

    // Another one over the same weights, with states and buffers of its own; also while this one runs.
    std::unique_ptr<Sampler> clone() const;

    // Throws Error: BUSY when it is running already, CANCELLED, NUMERICS, BACKEND, ARGUMENT; it is ready again after any.
    void sample(const diffusevae_sample_options& options, diffusevae_result& result);

    // Stops the run in progress before its next step; from any thread.
    void cancel() noexcept { cancelled_.store(true, std::memory_order_relaxed); }

    void describe(diffusevae_info& info) const;
    void step_table(const diffusevae_sample_options& options, diffusevae_step_table& into) const;

private:
    struct Graphs {
        std::unique_ptr<Graph> vae_decoder, timestep_table, denoiser;  // no decoder for an unconditional model
    };

    Sampler(std::shared_ptr<const Opened> opened, Graphs graphs);

    StepTable table_of(const Setting& setting) const;
    void run_chunk(const Request& request, const StepTable& table, int64_t begin, int64_t n, diffusevae_result& result);
    const float* start(const Request& request, const std::vector<uint64_t>& seeds, int64_t begin);
    void decode();
    void embed(const StepTable& table);
    void store(const std::vector<uint64_t>& seeds, int64_t begin, diffusevae_result& result) const;
    Chain chain_of(const Request& request, const StepTable& table, const std::vector<uint64_t>& seeds, int64_t begin) const;
    void check_finite(const std::vector<float>& values, const char* role) const;
    std::string where() const;

    std::shared_ptr<const Opened> opened_;
    Graphs graphs_;
    Workspace work_;
    std::vector<int64_t> embedded_;  // the timesteps that rows_ belong to, where they depend on nothing else
    std::vector<float> rows_;        // [S, 1 or lanes, R]
    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::atomic<bool> cancelled_{false};
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_SAMPLER_H
