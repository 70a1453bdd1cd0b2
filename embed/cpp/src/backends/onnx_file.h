// ONNX files that keep their weights to themselves: one that names other files would load bytes that were not verified.
#ifndef DIFFUSEVAE_BACKENDS_ONNX_FILE_H
#define DIFFUSEVAE_BACKENDS_ONNX_FILE_H

#include <string>
#include <string_view>

namespace diffusevae {

// Error (BUNDLE) when the ONNX file `data` names weights outside itself, or is not built like a protobuf message.
// Whether the rest is a sound graph is for the runtime to say.
void check_self_contained(std::string_view data, const std::string& where);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BACKENDS_ONNX_FILE_H
