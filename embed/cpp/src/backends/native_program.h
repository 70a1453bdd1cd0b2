// Is this a program of the native engine? Its JSON, checked field by field, becomes the flat structs of native.h.
//
// kernels/native/README.md says what an operation computes. Every name must resolve, every number lie in its range and
// every packed weight have exactly the size that its layer needs; dv_native_open then checks shapes and order by itself.
#ifndef DIFFUSEVAE_NATIVE_PROGRAM_H
#define DIFFUSEVAE_NATIVE_PROGRAM_H

#include <string>
#include <string_view>
#include <vector>

#include "diffusevae/native.h"
#include "bundle/graphs.h"
#include "backends/weights.h"

namespace diffusevae {

struct NativeProgram {
    std::vector<std::string> port_names;
    std::vector<dv_native_port> ports;
    std::vector<dv_native_tensor> tensors;
    std::vector<dv_native_op> ops;

    // The number of a port, DV_NATIVE_NONE where there is none of this name.
    int32_t port(std::string_view name) const;
    // What dv_native_open takes; program and weights must outlive the call, the weights the handle too.
    dv_native_program flat(const Weights& weights) const;
};

// Checks the bytes of a program against the weights that lie beside it; Error (BUNDLE) names the field.
NativeProgram parse_program(std::string_view data, const Blobs& blobs, const std::string& role,
                            const std::string& precision, const std::string& where);

// Refuses a program whose ports are not the graph's inputs and outputs as the manifest has them.
void check_ports(const NativeProgram& program, const GraphSpec& spec, const std::string& where);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_PROGRAM_H
