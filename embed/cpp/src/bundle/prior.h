// A fitted prior: the density that a drawn input comes from instead of N(0, I), a Gaussian mixture over what an encoder really
// encodes to. A sample's z is a function of its seed alone, the same bits as engine/bundle/prior.py computes:
//
//     k   the first component with word / 2^32 < w_1 + ... + w_k, word the first Philox word of (seed, kStreamPrior)
//     u   the standard normals that are z itself where it is drawn from N(0, I)
//     z   mean_k + scale_tril_k @ u, each row summed from the left in float32, the mean last
#ifndef DIFFUSEVAE_BUNDLE_PRIOR_H
#define DIFFUSEVAE_BUNDLE_PRIOR_H

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/reader.h"

namespace diffusevae {

class Prior {
public:
    // Error (BUNDLE) names the first tensor of these bytes (safetensors) that cannot be part of a mixture.
    static Prior parse(std::string_view bytes, const std::string& where);

    int64_t components() const { return int64_t(thresholds_.size()); }
    int64_t width() const { return width_; }

    // A draw for each seed, z [count, width]: the same in any batch.
    void draw(const uint64_t* seeds, int64_t count, float* z) const;

private:
    Prior(std::vector<uint64_t> thresholds, std::vector<float> means, std::vector<float> scale_tril, int64_t width)
        : thresholds_(std::move(thresholds)), means_(std::move(means)), scale_tril_(std::move(scale_tril)), width_(width) {}

    std::vector<uint64_t> thresholds_;  // a word below the k-th chooses component k or an earlier one; the last is 2^32
    std::vector<float> means_, scale_tril_;
    int64_t width_;
};

// The fitted prior of a bundle, nothing where it has none; Error (BUNDLE) when the file is not what the manifest says.
std::optional<Prior> read_prior(const Bundle& bundle);

// Whether to draw from the bundle's prior: "bundle", "standard", or nothing for the bundle's own where it has one.
bool resolve_prior(const std::optional<std::string>& asked, bool has_prior);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_PRIOR_H
