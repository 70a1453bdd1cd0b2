// What goes wrong, and is survived.  hardships BUNDLE FOLDER [BACKEND], the folder holding damaged bundles.
//
// Run under the sanitizers too. Prints the number of checks, or the first that failed.
#include <diffusevae.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

namespace {

std::atomic<int> checks{0};

void expect(bool holds, const std::string& what) {
    ++checks;
    if (holds) return;
    std::fprintf(stderr, "FAILED: %s (last error: %s)\n", what.c_str(), diffusevae_error());
    std::exit(1);
}

void expect_status(diffusevae_status found, diffusevae_status expected, const std::string& what) {
    expect(found == expected, what + ": found " + diffusevae_status_name(found) + ", expected "
                                  + diffusevae_status_name(expected));
    if (expected != DIFFUSEVAE_OK) expect(std::strlen(diffusevae_error()) > 20, what + ": a sentence");
}

diffusevae_sampler* open(const std::string& path, const char* backend) {
    diffusevae_open_options options;
    diffusevae_open_options_init(&options);
    options.backend = backend;
    diffusevae_sampler* sampler = nullptr;
    expect_status(diffusevae_open(path.c_str(), &options, &sampler), DIFFUSEVAE_OK, "opening a good bundle");
    return sampler;
}

// Three samples, with room for their images.
struct Run {
    diffusevae_sample_options options;
    diffusevae_result result;
    diffusevae_array images{"images", DIFFUSEVAE_UINT8, 4, {}, nullptr};
    std::vector<uint8_t> pixels;

    explicit Run(const diffusevae_sampler* sampler) {
        diffusevae_info info;
        diffusevae_info_init(&info);
        expect_status(diffusevae_describe(sampler, &info), DIFFUSEVAE_OK, "describe");
        diffusevae_sample_options_init(&options);
        options.n = 3;
        options.has_seed = 1;
        options.seed = 7;
        options.steps = 4;
        const int64_t shape[] = {3, info.image_height, info.image_width, info.image_channels};
        std::copy(shape, shape + 4, images.shape);
        pixels.resize(size_t(shape[0] * shape[1] * shape[2] * shape[3]));
        diffusevae_result_init(&result);
    }

    diffusevae_status on(diffusevae_sampler* sampler) {
        images.data = pixels.data();
        result.outputs = &images;
        result.outputs_count = 1;
        return diffusevae_sample(sampler, &options, &result);
    }
};

void check_same(diffusevae_sampler* sampler, const std::vector<uint8_t>& golden, const std::string& when) {
    Run run(sampler);
    expect_status(run.on(sampler), DIFFUSEVAE_OK, "sampling " + when);
    expect(run.pixels == golden, "the same images " + when);
}

void null_pointers() {
    diffusevae_sampler* sampler = nullptr;
    diffusevae_result result;
    diffusevae_result_init(&result);
    expect_status(diffusevae_open(nullptr, nullptr, &sampler), DIFFUSEVAE_ARGUMENT, "opening null");
    expect_status(diffusevae_open("x", nullptr, nullptr), DIFFUSEVAE_ARGUMENT, "opening to null");
    expect_status(diffusevae_sample(nullptr, nullptr, &result), DIFFUSEVAE_ARGUMENT, "sampling null");
    expect_status(diffusevae_clone(nullptr, &sampler), DIFFUSEVAE_ARGUMENT, "cloning null");
    diffusevae_cancel(nullptr);
    diffusevae_free(nullptr);
}

void damaged_bundles(const std::string& folder, const char* backend) {
    int refused = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        diffusevae_open_options options;
        diffusevae_open_options_init(&options);
        options.backend = backend;
        diffusevae_sampler* sampler = nullptr;
        expect_status(diffusevae_open(entry.path().c_str(), &options, &sampler), DIFFUSEVAE_BUNDLE, entry.path());
        expect(sampler == nullptr, "no sampler of " + entry.path().string());
        ++refused;
    }
    expect(refused > 0, "damaged bundles in " + folder);
}

void wrong_options(diffusevae_sampler* sampler) {
    const auto refused = [&](const char* what, auto change) {
        Run run(sampler);
        change(run);
        expect_status(run.on(sampler), DIFFUSEVAE_ARGUMENT, what);
    };
    refused("n 0", [](Run& run) { run.options.n = 0; });
    refused("steps 0", [](Run& run) { run.options.steps = 0; });
    refused("steps beyond T", [](Run& run) { run.options.steps = 1 << 30; });
    refused("an unknown method", [](Run& run) { run.options.method = "ddmi"; });
    refused("room for fewer images", [](Run& run) { run.images.shape[0] = 2; });
    refused("images of another shape", [](Run& run) { run.images.shape[3] += 1; });
    refused("images of another dtype", [](Run& run) { run.images.dtype = DIFFUSEVAE_INT64; });
    refused("images of another rank", [](Run& run) { run.images.rank = 9; });
    refused("an output that there is not", [](Run& run) { run.images.name = "imgaes"; });
    refused("an output without a name", [](Run& run) { run.images.name = nullptr; });
    refused("an input without a name", [](Run& run) {
        static const diffusevae_array nameless{nullptr, DIFFUSEVAE_FLOAT32, 1, {3}, nullptr};
        run.options.inputs = &nameless;
        run.options.inputs_count = 1;
    });
    refused("an input of no rank", [](Run& run) {
        static const diffusevae_array flat{"x_T", DIFFUSEVAE_FLOAT32, 0, {3}, nullptr};
        run.options.inputs = &flat;
        run.options.inputs_count = 1;
    });
    refused("more inputs than there are", [](Run& run) { run.options.inputs_count = 2; });
    refused("a struct of another size", [](Run& run) { run.options.size = 3; });
}

void cancelled_runs(diffusevae_sampler* sampler, const std::vector<uint8_t>& golden) {
    Run stopped(sampler);
    stopped.options.callback = [](const diffusevae_step* step, void*) -> int32_t { return step->step == 1; };
    expect_status(stopped.on(sampler), DIFFUSEVAE_CANCELLED, "a callback that stops the run");
    check_same(sampler, golden, "after a callback stopped a run");

    std::atomic<bool> done{false};
    std::thread canceller([&] {
        while (!done) {
            diffusevae_cancel(sampler);
            std::this_thread::yield();
        }
    });
    for (int i = 0; i < 20; ++i) {
        Run run(sampler);
        const diffusevae_status status = run.on(sampler);
        expect(status == DIFFUSEVAE_OK || status == DIFFUSEVAE_CANCELLED, "a run that another thread cancels");
    }
    done = true;
    canceller.join();
    check_same(sampler, golden, "after another thread cancelled");
}

void nested_run(diffusevae_sampler* sampler) {
    Run run(sampler);
    run.options.user = sampler;
    run.options.callback = [](const diffusevae_step*, void* user) -> int32_t {
        diffusevae_sampler* same = static_cast<diffusevae_sampler*>(user);
        Run inner(same);
        expect_status(inner.on(same), DIFFUSEVAE_BUSY, "a run inside a run");
        return 0;
    };
    expect_status(run.on(sampler), DIFFUSEVAE_OK, "the run around a refused one");
}

void threads(diffusevae_sampler* sampler, const std::vector<uint8_t>& golden) {
    std::vector<std::thread> workers;
    for (int t = 0; t < 4; ++t) {
        diffusevae_sampler* clone = nullptr;
        expect_status(diffusevae_clone(sampler, &clone), DIFFUSEVAE_OK, "cloning");
        workers.emplace_back([clone, &golden] {
            for (int i = 0; i < 3; ++i) check_same(clone, golden, "in a thread");
            diffusevae_free(clone);
        });
    }
    for (std::thread& worker : workers) worker.join();
}

// Budgets of time that are none, and clones that measure, share and keep what they measured at once.
void budgets(diffusevae_sampler* sampler) {
    const auto asked = [](diffusevae_sampler* one, double milliseconds, int at_most, int anytime, diffusevae_deadline* told = nullptr) {
        Run run(one);
        run.options.steps = DIFFUSEVAE_UNSET;
        run.options.budget_ms = milliseconds;
        run.options.at_most = at_most;
        run.options.anytime = anytime;
        const diffusevae_status status = run.on(one);
        if (told) *told = run.result.deadline;
        return status;
    };
    for (const double none : {0.0, -1.0, std::nan(""), double(INFINITY), -double(INFINITY)})
        expect_status(asked(sampler, none, 0, 0), DIFFUSEVAE_ARGUMENT, "a budget that is none");
    expect_status(asked(sampler, DIFFUSEVAE_UNSET_NUMBER, 1, 0), DIFFUSEVAE_ARGUMENT, "at_most without a budget");
    expect_status(asked(sampler, 9.0, 0, 2), DIFFUSEVAE_ARGUMENT, "anytime that is no flag");
    diffusevae_info info;
    diffusevae_info_init(&info);
    expect_status(diffusevae_describe(sampler, &info), DIFFUSEVAE_OK, "describe");
    if (info.fitted_count == 0)
        return expect_status(asked(sampler, 9.0, 0, 0), DIFFUSEVAE_ARGUMENT, "a budget without fitted settings");
    std::vector<std::thread> workers;
    for (int t = 0; t < 3; ++t) {
        diffusevae_sampler* clone = nullptr;
        expect_status(diffusevae_clone(sampler, &clone), DIFFUSEVAE_OK, "cloning");
        workers.emplace_back([clone, &asked] {
            diffusevae_deadline told;
            expect_status(asked(clone, 1e9, 0, 1, &told), DIFFUSEVAE_OK, "a budget that all keep");
            expect(told.kept == 1 && told.done == told.calls && told.expected_ms > 0, "what became of it");
            expect_status(asked(clone, 1e-9, 0, 0), DIFFUSEVAE_DEADLINE, "a budget that none keeps");
            expect_status(asked(clone, 1e-9, 1, 1, &told), DIFFUSEVAE_OK, "the fastest, cut short");
            expect(told.kept == 0 && told.done == 1 && told.calls > 1, "one call");
            diffusevae_free(clone);
        });
    }
    for (std::thread& worker : workers) worker.join();
}

void outlived_original(const std::string& path, const char* backend, const std::vector<uint8_t>& golden) {
    diffusevae_sampler* first = open(path, backend);
    diffusevae_sampler* second = nullptr;
    expect_status(diffusevae_clone(first, &second), DIFFUSEVAE_OK, "cloning");
    diffusevae_free(first);
    check_same(second, golden, "in a clone whose original is freed");
    diffusevae_free(second);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    const char* backend = argc > 3 ? argv[3] : nullptr;
    diffusevae_sampler* sampler = open(argv[1], backend);
    Run golden(sampler);
    expect_status(golden.on(sampler), DIFFUSEVAE_OK, "sampling");
    null_pointers();
    damaged_bundles(argv[2], backend);
    wrong_options(sampler);
    cancelled_runs(sampler, golden.pixels);
    nested_run(sampler);
    threads(sampler, golden.pixels);
    budgets(sampler);
    check_same(sampler, golden.pixels, "after everything");
    diffusevae_free(sampler);
    outlived_original(argv[1], backend, golden.pixels);
    // Where the stand-in of TensorRT is linked in, it knows what was not given back.
    const auto leaks = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "stand_in_leaks"));
    if (leaks != nullptr) expect(leaks() == 0, "everything given back to the device");
    std::printf("%d checks\n", checks.load());
}
