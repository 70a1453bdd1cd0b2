// A program of the native engine as JSON, made into the flat structs of native.h.
//
// kernels/native/README.md says what an operation computes. Here fields have types, every name resolves and no field is left
// over; ranges, shapes, sizes of weights and order are dv_native_open's to judge, for C++ and Python alike.
#ifndef DIFFUSEVAE_NATIVE_PROGRAM_H
#define DIFFUSEVAE_NATIVE_PROGRAM_H

#include <string>
#include <string_view>
#include <vector>

#include "diffusevae/native.h"
#include "bundle/canvas.h"
#include "bundle/graphs.h"
#include "backends/weights.h"

namespace diffusevae {

struct NativeProgram {
    std::vector<std::string> port_names;
    std::vector<dv_native_port> ports;
    std::vector<dv_native_tensor> tensors;
    std::vector<dv_native_op> ops;
    std::vector<dv_native_blob> blobs;

    // The number of a port, DV_NATIVE_NONE where there is none of this name.
    int32_t port(std::string_view name) const;
    // What dv_native_open takes; program and weights must outlive the call, the weights the handle too.
    dv_native_program flat(const Weights& weights) const;
};

// The structs of a program and of the weights that lie beside it; Error (BUNDLE) names the field.
NativeProgram parse_program(std::string_view data, const Blobs& blobs, const std::string& graph,
                            const std::string& precision, const std::string& where);

// Make it a program for another size of the state: its ports that lie over it, and all maps made of them, grow alike. Whether
// the result is a program is dv_native_open's to judge. Whether anything changed.
bool resize(NativeProgram& program, const Canvas& canvas, const std::string& graph);

// Refuses a program whose ports are not the graph's inputs and outputs as the manifest has them.
void check_ports(const NativeProgram& program, const GraphSpec& spec, const std::string& where);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_PROGRAM_H
