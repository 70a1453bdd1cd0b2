// A checked request: a setting, seeds, the arrays that a caller gave for n samples, and where the results go.
#ifndef DIFFUSEVAE_REQUEST_H
#define DIFFUSEVAE_REQUEST_H

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
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

// Noise of the rows, float32 [rows, n or 1, C, H, W]; null where the seeds' own streams are drawn.
struct GivenNoise {
    const float* values = nullptr;
    bool shared = false;
    int64_t rows = 0;
};

// Images that a verb was given, those with a hole with their mask.
struct Holed {
    int64_t count = 0;                          // n
    int64_t channels = 0, height = 0, width = 0;
    std::vector<float> pixels;                  // [n, C, H, W] in [0, 1]
    std::vector<float> mask;                    // [n or 1, 1, H, W] in [0, 1], 1 where there is a hole
    std::vector<float> picture;                 // 2 pixels - 1, where a network takes it
    bool composite = false;                     // what is known is put back into the images
    std::vector<int64_t> level;                 // [1]: the noise level of the picture, where a network is told it
    std::vector<float> level_number;            // the same for an input of float32

    int64_t masks() const { return int64_t(mask.size()) / (height * width); }
};

// What x is replaced by where it is known: before each step, and not after the last,
//     x <- keep (signal known + c + sigma n) + (1 - keep) x
// with fresh noise n, and the centre c where there is one. The known state is made of the images of a Holed. Without `keep`
// nothing is blended: the chain starts from that state alone.
struct Blend {
    bool encodes = false;                       // images go through `encode`, to inputs or to the state
    std::vector<const InputSpec*> encoded;      // the inputs that are made of them
    bool starts = false;                        // the known state is what the start's k_start multiplies
    bool replaces = false;                      // and stands for the pipeline's start value, which nothing makes then
    std::vector<float> keep;                    // [n or 1, 1, h, w], 1 where the state is known
    std::vector<float> signal, sigma;           // [R]: sqrt(alpha_bar) and sqrt(1 - alpha_bar) of x before each row
    GivenNoise noise;
};

// What a request is for: its name in messages, and what it has beside what a sample is asked with.
struct Verb {
    const char* name = "sample";
    std::vector<std::string> arrays = {};             // by name, among the inputs
    std::vector<const InputSpec*> encoded = {};       // made of images
    bool starts_from_image = false;
    std::set<std::string> given = {};                 // values of the pipeline that nothing need make
};

// What a run does after a row: goes on, stops with an error, or leaves out the rows after it and takes this row's x0.
enum class After { kGoOn, kStop, kFinish };

// Called after every row of every chunk.
using Watch = std::function<After(const diffusevae_step&)>;

// Arrays are the caller's, or lie in `holed`; null where this library draws them.
struct Request {
    Setting setting{};
    int64_t n = 1;
    Seeds seeds{};
    std::vector<GivenInput> inputs;
    const InputSpec* drawn = nullptr;     // the input that is drawn, or null
    const InputSpec* fresh = nullptr;     // the one that is drawn anew for every row, or null
    Edits edits;                          // of the input that is drawn, encoded or given in its place
    const float* x_T = nullptr;           // [n or 1, C, H, W]
    bool x_T_shared = false;
    GivenNoise noise;
    std::shared_ptr<const Holed> holed;   // or none
    std::optional<Blend> blend;
    Sizes sizes;                          // of the free dimensions of the inputs, by name
    Watch watch;                          // or none
};

// The inputs of `manifest` that a run needs: what feeds rows, step, after, centre and start, through the calls before; values
// that are given need not be made. guided: whether guides run, and are fed.
std::vector<const InputSpec*> needed_inputs(const Manifest& manifest, const std::set<std::string>& given = {}, bool guided = false);

// Noise of the rows as an array of this bundle's state; Error (ARGUMENT) otherwise. count: its samples.
GivenNoise given_noise(const StateSpec& state, const diffusevae_array& array, int64_t& count);

// Checks everything that a caller gave and settles n; Error (ARGUMENT) otherwise.
Request checked_request(const Manifest& manifest, const diffusevae_sample_options& given, const Verb& verb = {});

// The setting alone, as a step table needs it.
Setting checked_setting(const Manifest& manifest, const diffusevae_sample_options& given, const Verb& verb = {});

// Refuses (ARGUMENT) noise, or inputs with something for each step, for another number of rows than will run.
void check_rows(const Request& request, int64_t rows);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_REQUEST_H
