// Which latents does a sample start from? Those of a Gaussian mixture fitted to what the VAE really encodes to, if there is
// one. A sample's z is a function of its seed alone, the same bits as engine/latent_prior.py computes:
//
//     k   the first component with word / 2^32 < w_1 + ... + w_k, word the first Philox word of (seed, kStreamPrior)
//     u   the standard normals that are z itself where latents are drawn from N(0, I)
//     z   mean_k + scale_tril_k @ u, each row summed from the left in float32, the mean last
#ifndef DIFFUSEVAE_LATENT_PRIOR_H
#define DIFFUSEVAE_LATENT_PRIOR_H

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle.h"

namespace diffusevae {

class LatentPrior {
public:
    // Error (BUNDLE) names the first tensor of these bytes (safetensors) that cannot be part of a mixture.
    static LatentPrior parse(std::string_view bytes, const std::string& where);

    int64_t components() const { return int64_t(thresholds_.size()); }
    int64_t z_dim() const { return width_; }

    // The component of a seed.
    size_t choose(uint64_t seed) const;
    // A latent for each seed, z [count, z_dim]: the same in any batch.
    void draw(const uint64_t* seeds, int64_t count, float* z) const;

private:
    LatentPrior(std::vector<uint64_t> thresholds, std::vector<float> means, std::vector<float> scale_tril, int64_t width)
        : thresholds_(std::move(thresholds)), means_(std::move(means)), scale_tril_(std::move(scale_tril)), width_(width) {}

    std::vector<uint64_t> thresholds_;  // a word below the k-th chooses component k or an earlier one; the last is 2^32
    std::vector<float> means_, scale_tril_;
    int64_t width_;
};

// The latent prior of a bundle, nothing where it has none; Error (BUNDLE) when the file is not what the manifest says.
std::optional<LatentPrior> read_prior(const Bundle& bundle);

// Whether to draw from the bundle's prior: "bundle", "standard", or nothing for the bundle's own where it has one.
bool resolve_prior(const std::optional<std::string>& asked, bool has_prior);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_LATENT_PRIOR_H
