/* The C interface from C99.  plain BUNDLE N SEED STEPS [BACKEND]  writes the images' bytes to stdout. */
#include <diffusevae.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char* what) {
    fprintf(stderr, "%s: %s\n", what, diffusevae_error());
    return 1;
}

int main(int argc, char** argv) {
    diffusevae_sampler* sampler = NULL;
    diffusevae_open_options opening;
    diffusevae_sample_options options;
    diffusevae_result result;
    diffusevae_info info;
    diffusevae_array images = {"images", DIFFUSEVAE_UINT8, 4, {0}, NULL};
    size_t bytes;

    if (argc < 5) return 2;
    diffusevae_open_options_init(&opening);
    if (argc > 5) opening.backend = argv[5];
    if (diffusevae_open(argv[1], &opening, &sampler) != DIFFUSEVAE_OK) return fail("open");
    diffusevae_info_init(&info);
    if (diffusevae_describe(sampler, &info) != DIFFUSEVAE_OK) return fail("describe");

    diffusevae_sample_options_init(&options);
    options.n = atoi(argv[2]);
    options.has_seed = 1;
    options.seed = strtoull(argv[3], NULL, 10);
    options.steps = atoi(argv[4]);
    diffusevae_result_init(&result);
    images.shape[0] = options.n;
    images.shape[1] = info.image_height;
    images.shape[2] = info.image_width;
    images.shape[3] = info.image_channels;
    bytes = (size_t)(options.n * info.image_height * info.image_width * info.image_channels);
    images.data = malloc(bytes);
    if (images.data == NULL) return 1;
    result.outputs = &images;
    result.outputs_count = 1;
    if (diffusevae_sample(sampler, &options, &result) != DIFFUSEVAE_OK) return fail("sample");
    if (fwrite(images.data, 1, bytes, stdout) != bytes) return 1;

    free(images.data);
    diffusevae_free(sampler);
    return 0;
}
