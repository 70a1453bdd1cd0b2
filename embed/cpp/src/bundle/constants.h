// Limits, names and words of a manifest. Written by embed/cpp/generate_schema.py from engine/bundle: change it there.
#ifndef DIFFUSEVAE_BUNDLE_CONSTANTS_H
#define DIFFUSEVAE_BUNDLE_CONSTANTS_H

#include <cstdint>
#include <string>
#include <vector>

namespace diffusevae {

constexpr int64_t kFormatVersion = 3;
constexpr int64_t kMaxT = 1000000;
constexpr int64_t kMaxManifestBytes = 4194304;
constexpr int64_t kMaxDimension = 2147483648;
constexpr int64_t kMaxRank = 8;
constexpr int64_t kMaxInputs = 32;
constexpr int64_t kMaxSide = 65536;
constexpr int64_t kMaxCalls = 64;
constexpr int64_t kMaxText = 200;
constexpr int64_t kMaxDirections = 4096;
constexpr double kMaxStrength = 1000.0;
constexpr int64_t kMaxVocabularyBytes = 16777216;
constexpr int64_t kMinTokens = 3;
constexpr int64_t kMaxStarts = 1024;
constexpr int64_t kMaxStages = 8;
constexpr int64_t kMaxGuides = 16;
constexpr double kMaxGuideScale = 1000000.0;
constexpr int64_t kMaxClasses = 16777216;
constexpr int64_t kMaxDigits = 20;
constexpr const char* kFormat = "diffusevae-bundle";
constexpr const char* kManifestFile = "manifest.json";
constexpr const char* kHexadecimal = "a SHA-256 of 64 lower-case hexadecimal digits";
constexpr const char* kBatch = "batch";
constexpr const char* kSteps = "steps";
constexpr const char* kX = "x";
constexpr const char* kX0 = "x0";
constexpr const char* kE = "e";
constexpr const char* kVariance = "variance";
constexpr const char* kRows = "rows";
constexpr const char* kTimesteps = "timesteps";
constexpr const char* kImage = "image";
constexpr const char* kSampler = "sampler";
inline const std::vector<std::string> kPrecisions = {"f32", "bf16", "fp16", "int8"};
inline const std::vector<std::string> kReserved = {"x", "x0", "x_T", "noise", "timesteps", "rows", "e", "image", "images",
    "seeds", "weights", "start", "coefficients", "n", "steps", "setting", "seed", "spacing", "rho", "method", "eta",
    "t_start", "temperature", "noise_scale", "eps_scale", "guidance", "guidance_interval", "variance", "quantize_denoised",
    "clip", "prior", "callback", "stop", "progress", "budget_ms", "at_most", "anytime", "stream", "a", "b", "mode", "part",
    "step_ms", "edits", "preserve", "what", "value", "self", "masks", "known_noise", "composite", "text", "noise_level",
    "stages", "size", "guide_scale", "guide_mode", "guide_interval", "regularise", "regularise_interval"};
constexpr const char* kNormal = "normal";
constexpr const char* kEachStep = "each_step";
inline const std::vector<std::string> kMethods = {"ddim", "ddim_clipped", "ddpm", "dpmpp_2m", "sde_dpmpp_2m", "unipc_2",
    "ipndm", "plms"};
inline const std::vector<std::string> kPredictions = {"eps", "x0", "v"};
constexpr const char* kLearnedRange = "learned_range";
inline const std::vector<std::string> kVariances = {"fixedlarge", "fixedsmall", "learned_range"};
constexpr const char* kShared = "native";
inline const std::vector<std::string> kRunners = {"onnxruntime", "openvino"};
constexpr int64_t kMeasures = 5;
inline const std::vector<std::string> kSettings = {"fitted", "plain"};
constexpr double kQuantile = 0.995;
constexpr int64_t kWindow = 512;
constexpr int64_t kProbes = 5;
inline const std::vector<std::string> kSpacings = {"uniform", "quad", "linspace", "trailing", "truncated", "karras",
    "logsnr", "leading", "leading_quad"};
inline const std::vector<std::string> kLeading = {"leading", "leading_quad"};
constexpr double kRho = 7.0;
constexpr double kLeastRho = 1.0;
constexpr double kMostRho = 100.0;
constexpr int64_t kBlockBits = 14;
constexpr int64_t kStreamBits = 4;
constexpr int64_t kMaxBlocks = 16384;
constexpr double kLeastWeight = 0.01;
constexpr double kMostWeight = 0.5;
constexpr double kMostOverlap = 0.9;
constexpr int64_t kAtOnce = 8;
constexpr int64_t kMaxWord = 100;
constexpr const char* kContinues = "##";
inline const std::vector<std::string> kOptional = {"next", "augmentation", "guide", "regularise"};
constexpr const char* kG = "g";
constexpr const char* kEntropy = "entropy";
inline const std::vector<std::string> kModes = {"constant", "entropy", "norm"};
constexpr const char* kConstant = "constant";
constexpr const char* kByEntropy = "entropy";
constexpr const char* kByNorm = "norm";
constexpr double kLeastEntropy = 1e-06;
constexpr double kLeastNorm = 1e-30;
inline const std::vector<std::string> kRegularise = {"off", "after", "before"};
constexpr const char* kOff = "off";
constexpr const char* kAfter = "after";
constexpr const char* kBefore = "before";
struct RecipeNumber { const char *recipe, *name; double low, high; };
constexpr RecipeNumber kRecipeNumbers[] = {{"linear", "start", 1e-12, 0.999999}, {"linear", "end", 1e-12, 0.999999},
    {"scaled_linear", "start", 1e-12, 0.999999}, {"scaled_linear", "end", 1e-12, 0.999999}, {"cosine", "s", 0.0, 1.0},
    {"cosine", "max_beta", 1e-12, 0.999999}};
struct EngineFile { const char *backend, *label; };
constexpr EngineFile kEngineFiles[] = {{"native", "program"}, {"native", "weights"}, {"tensorrt_rtx", "plan"}, {"tensorrt",
    "plan"}};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_CONSTANTS_H
