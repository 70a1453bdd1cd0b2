// What diffusevae.hpp hands through.  wrapper BUNDLE OUT: a bundle that draws z and starts from recon; one run's x goes to OUT.
//
// Run under the sanitizers too. Prints the number of checks, or the first that failed.
#include <diffusevae.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <thread>
#include <type_traits>

namespace {

int checks = 0;

void expect(bool holds, const std::string& what) {
    ++checks;
    if (holds) return;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
    std::exit(1);
}

// The exception of this type that `body` throws must hold `part` in its text.
template <class Expected, class Body>
void expect_thrown(const std::string& part, const Body& body) {
    try {
        body();
    } catch (const Expected& error) {
        const diffusevae::Error& base = error;
        expect(std::string(base.what()).find(part) != std::string::npos, part + " in: " + base.what());
        return;
    }
    expect(false, "an exception: " + part);
}

size_t image_values(const diffusevae::Info& info) {
    return size_t(info.image_channels * info.image_height * info.image_width);
}

diffusevae::SampleOptions short_run() {
    diffusevae::SampleOptions options;
    options.n = 3;
    options.seed = 7;
    options.steps = 4;
    options.method = "ddpm";
    return options;
}

void results(diffusevae::Sampler& sampler) {
    const diffusevae::Info& info = sampler.info();
    const diffusevae::Batch batch = sampler.sample(short_run());
    const size_t values = 3 * image_values(info);
    expect(info.backend == "native" && !info.isa.empty() && info.guided && info.weight_bytes > 0, "info");
    expect(info.inputs.size() == 1 && info.inputs[0].name == "z" && info.inputs[0].drawn, "inputs");
    expect(info.inputs[0].shape[0] == -1 && info.inputs[0].dimensions[0] == "batch" && !info.inputs[0].range, "z's shape");
    expect(info.start == "recon" && info.output("recon") && info.output("recon")->is_image, "the start value");
    expect(batch.n == 3 && batch.height == info.image_height && batch.channels == info.image_channels, "the batch's sizes");
    expect(batch.images.size() == values && batch.x.size() == values && batch.values.empty(), "images");
    expect(batch.seeds == std::vector<uint64_t>{7, 8, 9}, "seeds");
    expect(batch.timesteps.size() == 4 && batch.timesteps.back() == 0 && batch.step_ms.size() == 4, "steps");
    expect(batch.setting.method == "ddpm" && *batch.setting.spacing == "uniform" && !batch.setting.t_start, "the setting");
    expect(batch.setting.prior == "standard" && batch.timings.total_ms > 0, "prior and timings");
    expect(batch.image(1) == batch.images.data() + values / 3, "the second image");
    diffusevae::SampleOptions listed;
    listed.timesteps = {400, 150, 25, 9, 3};
    listed.etas = {1.0, 0.5, 0.0, 0.0, 0.0};
    listed.t_start = 400;
    listed.noise_scale = 0.84;
    const diffusevae::Batch lists = sampler.sample(listed);
    expect(lists.timesteps == listed.timesteps && lists.setting.timesteps == listed.timesteps, "listed timesteps");
    expect(lists.setting.etas == listed.etas && !lists.setting.eta && !lists.setting.spacing, "listed eta");
    expect(lists.setting.noise_scale == 0.84 && lists.setting.eps_scale == 1.0 && lists.setting.steps == 5, "scales");
    diffusevae::SampleOptions guided = short_run();
    guided.guidance = 1.5;
    guided.guidance_interval = {200, 800};
    guided.spacing = "leading";  // whose rows are more than its steps
    guided.steps = 48;
    const diffusevae::Batch within = sampler.sample(guided);
    expect(within.setting.guidance_interval == guided.guidance_interval && !within.setting.quantize_denoised, "an interval");
    expect(within.timesteps.size() == 50, "leading rows");
    diffusevae::SampleOptions asking = short_run();
    asking.values = {"z", "recon"};
    asking.pixels = {"recon"};
    const diffusevae::Batch more = sampler.sample(asking);
    const std::vector<int64_t> image = {3, info.image_height, info.image_width, info.image_channels};
    expect(more.values.at("z").shape() == std::vector<int64_t>{3, info.inputs[0].shape[1]}, "z");
    expect(more.values.at("recon").size() == values && more.pixels.at("recon").shape() == image, "recon");
    expect(more.pixels.at("recon").values<uint8_t>().size() == values && more.x == batch.x, "recon's pixels");
    expect_thrown<diffusevae::ArgumentError>("another dtype", [&] { more.values.at("z").data<double>(); });
    diffusevae::SampleOptions merged = short_run();
    merged.method = "ddim";
    merged.spacing = "quad";
    merged.steps = 60;  // fewer timesteps are left: duplicates are merged
    expect(sampler.sample(merged).timesteps.size() < 60, "merged steps");
}

// Given arrays are those that a run without them draws, or their number says n.
void given_arrays(diffusevae::Sampler& sampler) {
    using diffusevae::Array;
    const diffusevae::Info& info = sampler.info();
    const size_t values = image_values(info);
    const auto filled = [&](float value, std::vector<int64_t> before) {
        before.insert(before.end(), {info.image_channels, info.image_height, info.image_width});
        size_t size = 1;
        for (const int64_t dimension : before) size *= size_t(dimension);
        return Array::of(std::vector<float>(size, value), before);
    };
    diffusevae::SampleOptions asking = short_run();
    asking.values = {"z"};
    const diffusevae::Batch drawn = sampler.sample(asking);
    diffusevae::SampleOptions options = short_run();
    options.inputs["z"] = drawn.values.at("z");
    expect(sampler.sample(options).x == drawn.x && drawn.x.size() == 3 * values, "z given again");
    options.n.reset();
    options.seed.reset();
    options.seeds = drawn.seeds;
    options.inputs["x_T"] = filled(0.25f, {1});
    options.inputs["noise"] = filled(0.5f, {4, 1});
    const diffusevae::Batch given = sampler.sample(options);
    expect(given.n == 3 && given.x != drawn.x && !given.setting.prior, "x_T and noise for all");
    options.inputs["x_T"] = filled(0.25f, {3});
    options.inputs["noise"] = filled(0.5f, {4, 3});
    expect(sampler.sample(options).x == given.x, "x_T and noise for each");
    options.inputs["noise"] = filled(0.5f, {3, 3});
    expect_thrown<diffusevae::ArgumentError>("noise holds 3 steps; this run has 4", [&] { sampler.sample(options); });
    options.inputs.erase("noise");
    options.inputs["z"] = Array::of(std::vector<float>(3));
    expect_thrown<diffusevae::ArgumentError>("z has shape [3]; expected float32 [N, ", [&] { sampler.sample(options); });
    options.inputs["z"] = Array::of(std::vector<int64_t>(3));
    expect_thrown<diffusevae::ArgumentError>("z has dtype int64", [&] { sampler.sample(options); });
    options.inputs.erase("z");
    options.inputs["lable"] = Array::of(std::vector<int64_t>{1});
    expect_thrown<diffusevae::ArgumentError>("an array 'lable', and this bundle has no such input", [&] { sampler.sample(options); });
    expect_thrown<diffusevae::ArgumentError>("of another number", [] { Array::of(std::vector<float>(3), {2, 2}); });
}

void refusals(diffusevae::Sampler& sampler, const std::string& path) {
    const auto refused = [&](const char* part, auto change) {
        diffusevae::SampleOptions options = short_run();
        change(options);
        expect_thrown<diffusevae::ArgumentError>(part, [&] { sampler.sample(options); });
    };
    refused("n is 0", [](auto& options) { options.n = 0; });
    refused("n is -5", [](auto& options) { options.n = -5; });
    refused("more images than any memory", [](auto& options) { options.n = INT64_MAX; });
    refused("recno", [](auto& options) { options.values = {"recno"}; });
    refused("steps is -1", [](auto& options) { options.steps = -1; });
    refused("steps is 100000", [](auto& options) { options.steps = 100000; });
    refused("eta is 2", [](auto& options) { options.eta = 2; });
    refused("steps is 4, but timesteps lists 1", [](auto& options) { options.timesteps = {5}; });
    refused("eps_scale[0] is -1", [](auto& options) { options.eps_scales = {-1.0, 1.0, 1.0, 1.0}; });
    refused("temperature is -1", [](auto& options) { options.temperature = -1; });
    refused("has no codebook", [](auto& options) { options.quantize_denoised = true; });
    refused("this bundle has no guide", [](auto& options) { options.guide_scale = 1.5; });
    refused("guide_mode is 'loud'", [](auto& options) { options.guide_mode = "loud"; });
    refused("guide_interval is (3, 9), but guide_scale is 0", [](auto& options) { options.guide_interval = {3, 9}; });
    refused("variance is 'none'", [](auto& options) { options.variance = "none"; });
    refused("t_start is 5000", [](auto& options) { options.t_start = 5000; });
    refused("seeds and seed", [](auto& options) { options.seeds = {1, 2, 3}; });
    refused("contradictory", [](auto& options) { options.seed.reset(), options.seeds = {1, 2}; });
    refused("no fitted prior", [](auto& options) { options.prior = "bundle"; });
    refused("holds no vocabulary: this bundle takes z float32", [](auto& options) { options.texts = {"a"}; });
    expect_thrown<diffusevae::BundleError>("expected a bundle", [&] { diffusevae::Sampler missing(path + ".nowhere"); });
    diffusevae::OpenOptions options;
    options.precision = "fp16";
    expect_thrown<diffusevae::BackendError>("precision 'fp16'", [&] { diffusevae::Sampler other(path, options); });
    options = {};
    options.threads = 0;
    expect_thrown<diffusevae::ArgumentError>("threads: found 0", [&] { diffusevae::Sampler other(path, options); });
    options = {};
    options.allow_links = {"/", path + ".nowhere"};
    expect_thrown<diffusevae::ArgumentError>("allow_links: found", [&] { diffusevae::Sampler other(path, options); });
    options.allow_links.pop_back();
    expect(diffusevae::Sampler(path, options).info().max_batch == 64, "links may end anywhere");
}

void callbacks(diffusevae::Sampler& sampler) {
    diffusevae::SampleOptions options = short_run();
    int64_t seen = 0;
    options.callback = [&](const diffusevae::StepInfo& step) {
        seen += step.step;
        return false;
    };
    sampler.sample(options);
    expect(seen == 12, "four steps of two chunks");
    options.callback = [](const diffusevae::StepInfo& step) { return step.step == 2; };
    expect_thrown<diffusevae::Cancelled>("after step 3 of 4", [&] { sampler.sample(options); });
    options.callback = [&](const diffusevae::StepInfo&) { return sampler.cancel(), false; };
    expect_thrown<diffusevae::Cancelled>("before step 2", [&] { sampler.sample(options); });
    options.callback = [&](const diffusevae::StepInfo&) { return sampler.sample().n > 0; };
    expect_thrown<diffusevae::BusyError>("running already", [&] { sampler.sample(options); });
    bool thrown = false;
    options.callback = [](const diffusevae::StepInfo&) -> bool { throw std::out_of_range("my own"); };
    try {
        sampler.sample(options);
    } catch (const std::out_of_range& error) {
        thrown = std::string(error.what()) == "my own";
    }
    expect(thrown, "a callback's exception leaves sample() as it is");
}

// Settings of 6 and 3 calls are fitted to the bundle.
void budgets(diffusevae::Sampler& sampler) {
    diffusevae::SampleOptions options;
    options.n = 1;
    options.budget_ms = 1e9;
    const diffusevae::Batch batch = sampler.sample(options);
    expect(sampler.info().fitted == std::vector<int64_t>{6, 3}, "fitted settings");
    expect(batch.timesteps == std::vector<int64_t>{900, 700, 500, 300, 100, 20} && batch.step_ms.size() == 6, "the best");
    expect(batch.deadline && batch.deadline->calls == 6 && batch.deadline->done == 6 && batch.deadline->kept == 1, "the promise");
    options.budget_ms = 1e-9;
    expect_thrown<diffusevae::DeadlineError>("no fitted setting keeps here: found 3 calls", [&] { sampler.sample(options); });
    options.at_most = true;
    expect(sampler.sample(options).timesteps == std::vector<int64_t>{400, 150, 25}, "the fastest");
    options.anytime = true;
    const diffusevae::Batch late = sampler.sample(options);
    expect(late.deadline->done == 1 && late.deadline->kept == 0, "one call of three");
    options.budget_ms.reset();
    expect_thrown<diffusevae::ArgumentError>("at_most is given without a budget", [&] { sampler.sample(options); });
    diffusevae::SampleOptions watched = short_run();
    std::vector<uint8_t> shown;
    watched.callback = [&](const diffusevae::StepInfo& step) {
        const std::vector<uint8_t> images = sampler.preview(step);
        if (step.step == 3) shown.insert(shown.end(), images.begin(), images.end());
        return false;
    };
    expect(sampler.sample(watched).images == shown && !sampler.sample(short_run()).deadline, "the last preview");
}

// What is known stays as it was given, and clones that encode for the first time at once make the same.
void inpainting(diffusevae::Sampler& sampler) {
    using diffusevae::Array;
    const diffusevae::Info& info = sampler.info();
    const int64_t height = info.image_height, width = info.image_width, channels = info.image_channels;
    const std::vector<uint8_t> given = sampler.sample(short_run()).images;
    const Array images = Array::of(given, {3, height, width, channels});
    std::vector<uint8_t> hole(size_t(height * width), 0);
    std::fill(hole.begin(), hole.begin() + height * width / 2, uint8_t(255));
    const Array mask = Array::of(hole, {height, width});
    diffusevae::SampleOptions options = short_run();
    expect_thrown<diffusevae::ArgumentError>("inpaint has no option 'n'", [&] { sampler.inpaint(images, mask, options); });
    options.n.reset();
    std::vector<diffusevae::Batch> made(2);
    std::vector<std::thread> workers;
    for (diffusevae::Batch& batch : made)
        workers.emplace_back([&, own = sampler.clone()]() mutable { batch = own.inpaint(images, mask, options); });
    for (std::thread& worker : workers) worker.join();
    const diffusevae::Batch filled = sampler.inpaint(images, mask, options);
    expect(made[0].images == filled.images && made[1].x == filled.x, "clones that encode at once");
    bool held = true;
    for (size_t i = 0; i < given.size(); ++i)
        held = held && (hole[i / size_t(channels) % hole.size()] != 0 || filled.images[i] == given[i]);
    expect(filled.n == 3 && held && filled.images != given, "what is known");
    const diffusevae::Batch raw = sampler.inpaint(images, mask, options, false);
    expect(raw.x == filled.x && raw.images != filled.images, "what the chain made");
    const std::vector<uint8_t> first(given.begin(), given.begin() + std::ptrdiff_t(image_values(info)));
    expect(sampler.inpaint(Array::of(first, {height, width, channels}), mask, options).n == 1, "one image");
    const auto noise = [&](int64_t rows) { return Array(DIFFUSEVAE_FLOAT32, {rows, 1, channels, height, width}); };
    options.inputs["known_noise"] = noise(4);
    expect(sampler.inpaint(images, mask, options).x != filled.x, "known_noise");
    options.inputs["known_noise"] = noise(5);
    expect_thrown<diffusevae::ArgumentError>("known_noise holds 5 steps; this run has 4", [&] { sampler.inpaint(images, mask, options); });
    expect_thrown<diffusevae::ArgumentError>("masks has shape [3, ", [&] { sampler.inpaint(images, images, options); });
}

void ownership(diffusevae::Sampler& sampler, const std::string& path) {
    static_assert(!std::is_copy_constructible_v<diffusevae::Sampler>, "clone() says what a copy costs");
    static_assert(std::is_nothrow_move_constructible_v<diffusevae::Sampler>, "a move is one of pointers");
    const diffusevae::Batch batch = sampler.sample(short_run());
    diffusevae::Sampler moved = sampler.clone();
    std::thread thread(
        [&, own = sampler.clone()]() mutable { expect(own.sample(short_run()).x == batch.x, "in a thread"); });
    thread.join();
    moved = diffusevae::Sampler(path);
    expect(moved.sample(short_run()).x == batch.x, "another one");
    const diffusevae::StepTable table = moved.step_table(short_run());
    expect(table.timesteps == batch.timesteps && table.rows.size() == 4 * DIFFUSEVAE_ROW_FIELDS, "the step table");
    expect(table.lanes == 1 && table.weights == std::vector<float>(4, 1.0f), "its weights");
    expect(table.k_noise == 1.0 && table.setting.method == "ddpm", "its start and setting");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    diffusevae::OpenOptions options;
    options.max_batch = 2;
    options.threads = 2;
    diffusevae::Sampler sampler(argv[1], options);
    results(sampler);
    given_arrays(sampler);
    refusals(sampler, argv[1]);
    callbacks(sampler);
    budgets(sampler);
    inpainting(sampler);
    ownership(sampler, argv[1]);
    diffusevae::SampleOptions request = short_run();
    request.guidance = 0.5;
    request.temperature = 0.75;
    request.variance = "fixedsmall";
    request.clip = false;
    const diffusevae::Batch batch = sampler.sample(request);
    std::ofstream(argv[2], std::ios::binary)
        .write(reinterpret_cast<const char*>(batch.x.data()), std::streamsize(batch.x.size() * sizeof(float)));
    std::printf("%d checks\n", checks);
}
