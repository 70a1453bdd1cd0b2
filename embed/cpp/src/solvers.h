// The solvers: noise levels along a chain to rows of coefficients. As engine/solver/, in the same float64 operations in the
// same order; each equation stands there beside its formula.
#ifndef DIFFUSEVAE_SOLVERS_H
#define DIFFUSEVAE_SOLVERS_H

#include <cstdint>
#include <string>
#include <vector>

namespace diffusevae {

// A row in float64, the fields of struct Row of the kernels' row.h in their order.
enum RowField {
    kPX, kPE, kPC, kPY, kPH1, kPH2, kPH3,
    kKX0, kKX, kKE, kKC, kKN, kKY, kKH1, kKH2, kKH3, kKG,
    kQX0, kQX, kQE, kQC, kQN, kQY, kQH1, kQH2, kQH3, kQG,
    kClip, kSN, kCIn, kPush, kRowWidth
};

struct Columns {
    std::vector<int64_t> timesteps;  // [R], as the network is given them
    std::vector<double> rows;        // [R, kRowWidth]

    explicit Columns(size_t calls) : timesteps(calls), rows(calls * kRowWidth) {}
    double* row(size_t i) { return rows.data() + i * kRowWidth; }
};

// The kept timesteps of a chain, noisiest first, and what a solver has to know besides.
struct Levels {
    std::vector<int64_t> timesteps;           // [S]
    std::vector<double> alpha_bar, previous;  // [S]: the level of x before a step, and after it; 1 where no noise is left
    std::string prediction = "eps";
    bool centred = false;
    std::string variance = "fixedlarge";
    std::vector<double> eta, noise_scale, eps_scale;  // [S]
    std::vector<double> guide_scale;                  // [S], what a guide's gradient is multiplied by; 0: no guide

    size_t steps() const { return timesteps.size(); }
    double beta(size_t i) const { return 1.0 - alpha_bar[i] / previous[i]; }
    double posterior_variance(size_t i) const { return beta(i) * (1.0 - previous[i]) / (1.0 - alpha_bar[i]); }
    bool guided(size_t i) const { return guide_scale[i] != 0.0; }
    bool final(size_t i) const { return previous[i] == 1.0; }
    // The coefficient of c that makes `of_x x` into `of_x (x - c) + c`; 0 without a centre.
    double around_centre(double of_x) const { return centred ? 1.0 - of_x : 0.0; }
};

// A solver, the options that it takes, and whether it can be derived for eps prediction alone.
struct Method {
    const char* name;
    Columns (*solve)(const Levels& levels);
    bool takes_eta, takes_guide, takes_regulariser, eps_only;
};

// The row of step i's level, x' = sqrt(a) x0 + sqrt(1 - a) n: x0 as predicted there, noised afresh.
void noise_again(const Levels& levels, size_t i, double* row);

extern const std::vector<Method> kSolvers;  // in the order of kMethods

}  // namespace diffusevae

#endif  // DIFFUSEVAE_SOLVERS_H
