// What diffusevae.hpp hands through.  wrapper BUNDLE OUT: a conditional bundle; one run's x goes to OUT.
//
// Run under the sanitizers too. Prints the number of checks, or the first that failed.
#include <diffusevae.hpp>

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
    const size_t values = 3 * info.image_values();
    expect(info.backend == "native" && !info.isa.empty() && info.conditional && info.weight_bytes > 0, "info");
    expect(batch.n == 3 && batch.height == info.image_size && batch.channels == info.channels, "the batch's sizes");
    expect(batch.images.size() == values && batch.recon.size() == values && batch.x.size() == values, "images");
    expect(batch.z.size() == 3 * size_t(info.z_dim), "z");
    expect(batch.seeds == std::vector<uint64_t>{7, 8, 9}, "seeds");
    expect(batch.timesteps.size() == 4 && batch.timesteps.back() == 0 && batch.step_ms.size() == 4, "steps");
    expect(batch.setting.method == "ddpm" && batch.setting.spacing == "uniform" && !batch.setting.t_start, "the setting");
    expect(batch.setting.prior == "standard" && batch.timings.total_ms > 0, "prior and timings");
    expect(batch.image(1) == batch.images.data() + values / 3, "the second image");
    diffusevae::SampleOptions merged = short_run();
    merged.method = "ddim";
    merged.spacing = "quad";
    merged.steps = 60;  // fewer timesteps are left: duplicates are merged
    expect(sampler.sample(merged).timesteps.size() < 60, "merged steps");
}

// Given arrays are those that a run without them draws, or their number says n.
void given_arrays(diffusevae::Sampler& sampler) {
    const size_t values = sampler.info().image_values();
    const diffusevae::Batch drawn = sampler.sample(short_run());
    diffusevae::SampleOptions options = short_run();
    options.z = drawn.z;
    expect(sampler.sample(options).x == drawn.x, "z given again");
    options.n.reset();
    options.seed.reset();
    options.seeds = drawn.seeds;
    options.x_T.assign(values, 0.25f);
    options.noise.assign(4 * values, 0.5f);
    const diffusevae::Batch given = sampler.sample(options);
    expect(given.n == 3 && given.x != drawn.x && !given.setting.prior, "x_T and noise for all");
    options.x_T.assign(3 * values, 0.25f);
    options.noise.assign(12 * values, 0.5f);
    expect(sampler.sample(options).x == given.x, "x_T and noise for each");
    options.noise.pop_back();
    expect_thrown<diffusevae::ArgumentError>("noise holds", [&] { sampler.sample(options); });
    options.noise.clear();
    options.z.pop_back();
    expect_thrown<diffusevae::ArgumentError>("z holds", [&] { sampler.sample(options); });
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
    refused("steps is -1", [](auto& options) { options.steps = -1; });
    refused("steps is 100000", [](auto& options) { options.steps = 100000; });
    refused("eta is 2", [](auto& options) { options.eta = 2; });
    refused("temperature is -1", [](auto& options) { options.temperature = -1; });
    refused("variance is 'none'", [](auto& options) { options.variance = "none"; });
    refused("t_start is 5000", [](auto& options) { options.t_start = 5000; });
    refused("seeds and seed", [](auto& options) { options.seeds = {1, 2, 3}; });
    refused("contradictory", [](auto& options) { options.seed.reset(), options.seeds = {1, 2}; });
    refused("no latent prior", [](auto& options) { options.prior = "bundle"; });
    expect_thrown<diffusevae::BundleError>("expected a bundle", [&] { diffusevae::Sampler missing(path + ".nowhere"); });
    diffusevae::OpenOptions options;
    options.precision = "fp16";
    expect_thrown<diffusevae::BackendError>("precision 'fp16'", [&] { diffusevae::Sampler other(path, options); });
    options = {};
    options.threads = 0;
    expect_thrown<diffusevae::ArgumentError>("threads: found 0", [&] { diffusevae::Sampler other(path, options); });
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
