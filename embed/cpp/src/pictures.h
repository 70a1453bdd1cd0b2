// Pictures among a caller's arrays, for the verbs that take some: their sizes, and their pixels in [0, 1].
#ifndef DIFFUSEVAE_PICTURES_H
#define DIFFUSEVAE_PICTURES_H

#include <cstdint>
#include <string>
#include <vector>

#include "arrays.h"
#include "bundle/manifest.h"
#include "diffusevae.h"
#include "request.h"

namespace diffusevae {

constexpr const char* kImages = "images";

struct PictureShape {
    int64_t channels, height, width;
};

std::string text_of(const PictureShape& shape);
PictureShape sizes_of(const Dimensions& sample);

// Whether images can become the state: it is the image, or `encode` makes it of one.
bool takes_images(const PipelineSpec& pipeline);

// Of the images that a pipeline makes, and of those that verbs take: the encoder's, but where the state itself is the image.
PictureShape made_shape(const PipelineSpec& pipeline);
PictureShape image_shape(const PipelineSpec& pipeline);

// Refuses what is neither uint8 nor float32 of this size; the shape with the samples in front. wanted: for messages; mask: one
// sample, and the channel of bytes, may lack their dimension.
std::vector<int64_t> shape_of_picture(const diffusevae_array& array, const PictureShape& size, bool mask,
                                      const std::string& wanted, const char* cure);

// The pixels of images of this size, with their number.
void take_images(const diffusevae_array& array, const PictureShape& size, Holed& into);

// Refuses options that say how many images there are, and in what time: that is not for a verb on images.
void refuse_options(const char* verb, const Manifest& manifest, const diffusevae_sample_options& given);

// The array of this name; wanted: what to pass, for messages.
const diffusevae_array& needed(const char* verb, const NamedArrays& arrays, const char* name, const std::string& wanted);

// Values as an array of a request; both must outlive it.
diffusevae_array array_of(const std::string& name, const std::vector<float>& values, const std::vector<int64_t>& shape);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_PICTURES_H
