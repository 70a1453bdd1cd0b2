// A checked request: a setting, seeds, the arrays that a caller gave for n samples, and where the results go.
#ifndef DIFFUSEVAE_REQUEST_H
#define DIFFUSEVAE_REQUEST_H

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "backends/graph.h"
#include "bundle/directions.h"
#include "bundle/manifest.h"
#include "diffusevae.h"
#include "noise.h"
#include "outputs.h"
#include "setting.h"

namespace diffusevae {

// A declared input that was given: [n, ...], or one sample for all.
struct GivenInput {
    const InputSpec* spec;
    const void* data;
    std::vector<int64_t> shape;  // data's
    bool shared;
};

// What a run does after a row: goes on, stops with an error, or leaves out the rows after it and takes this row's x0.
enum class After { kGoOn, kStop, kFinish };

// Called after every row of every chunk.
using Watch = std::function<After(const diffusevae_step&)>;

// Arrays are the caller's; null where this library draws them.
struct Request {
    Setting setting;
    int64_t n;
    Seeds seeds;
    std::vector<GivenInput> inputs;
    const InputSpec* drawn;  // the input that is drawn, or null
    Edits edits;             // of the input that is drawn or given in its place
    const float* x_T;        // [n or 1, C, H, W]
    bool x_T_shared;
    const float* noise;      // [noise_rows, n or 1, C, H, W]
    bool noise_shared;
    int64_t noise_rows;
    Sizes sizes;             // of the free dimensions of the inputs, by name
    Watch watch;             // or none
};

// The inputs of `manifest` that a run needs: what feeds rows, step, after, centre and start, through the calls before.
std::vector<const InputSpec*> needed_inputs(const Manifest& manifest);

// Checks everything that a caller gave and settles n; Error (ARGUMENT) otherwise.
Request checked_request(const Manifest& manifest, const diffusevae_sample_options& given);

// The setting alone, as a step table needs it.
Setting checked_setting(const Manifest& manifest, const diffusevae_sample_options& given);

// Refuses (ARGUMENT) noise for another number of rows than will run.
void check_rows(const Request& request, int64_t rows);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_REQUEST_H
