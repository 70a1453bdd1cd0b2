// The checks of a program: ports, tensors, blobs, then every operation in order; messages name fields as programs spell them.
#include "program.h"

#include <algorithm>

#include "operation_check.h"

namespace diffusevae {
namespace native {
namespace {

constexpr int32_t kMostPorts = 64, kMostTensors = 1 << 14, kMostOps = 1 << 14, kMostBlobs = 1 << 17;

std::string entry(const char* list, size_t i, const char* field) {
    return std::string(list) + "[" + std::to_string(i) + "]." + field;
}

void check_ports(Program& p) {
    for (size_t i = 0; i < p.ports.size(); ++i) {
        const dv_native_port& port = p.ports[i];
        const auto name = [i](const char* field) { return entry("ports", i, field); };
        const bool map = port.kind == DV_NATIVE_PORT_MAP, table = port.kind == DV_NATIVE_PORT_TABLE;
        const bool tokens = port.kind == DV_NATIVE_PORT_TOKENS, ids = port.kind == DV_NATIVE_PORT_IDS;
        in_range(port.kind, DV_NATIVE_PORT_MAP, DV_NATIVE_PORT_IDS, name("kind"));
        in_range(port.is_output, 0, ids ? 0 : 1, name("output"));
        const bool row_of_maps = map && port.is_output == 0 && port.height == 1 && port.width == 1;
        in_range(port.channels, 1, ids ? 1 : row_of_maps ? kMostRow : map || tokens ? kMostChannels : kMostEntries, name("channels"));
        in_range(port.height, 1, map || tokens || ids ? kMostSide : 1, name("height"));
        in_range(port.width, 1, map || ids ? kMostSide : 1, name("width"));
        in_range(port.rows, table ? DV_NATIVE_ROWS_STEPS : 0, table ? DV_NATIVE_ROWS_PAIRS : 0, name("rows"));
        if (port.kind != DV_NATIVE_PORT_ROW && port.kind != DV_NATIVE_PORT_STEPS) continue;
        in_range(port.is_output, 0, 0, name("output"));
        int32_t& only = port.kind == DV_NATIVE_PORT_ROW ? p.row_port : p.steps_port;
        if (only != DV_NATIVE_NONE) refuse(name("kind"), "the second port of its kind", "at most one");
        only = int32_t(i);
    }
}

void check_tensors(const Program& p) {
    for (size_t i = 0; i < p.tensors.size(); ++i) {
        const dv_native_tensor& t = p.tensors[i];
        const auto name = [i](const char* field) { return entry("tensors", i, field); };
        in_range(t.rows, DV_NATIVE_ROWS_NONE, DV_NATIVE_ROWS_PAIRS, name("rows"));
        const int32_t most = t.rows == DV_NATIVE_ROWS_NONE ? kMostSide : 1;
        in_range(t.channels, 1, kMostChannels, name("channels"));
        in_range(t.height, 1, most, name("height"));
        in_range(t.width, 1, most, name("width"));
    }
}

void check_blobs(const Program& p) {
    for (size_t i = 0; i < p.blobs.size(); ++i) {
        const dv_native_blob& blob = p.blobs[i];
        in_range(blob.dtype, DV_NATIVE_F32, DV_NATIVE_I8, entry("blobs", i, "dtype"));
        in_range(blob.size, 0, p.weights_size, entry("blobs", i, "size"));
        in_range(blob.offset, 0, p.weights_size - blob.size, entry("blobs", i, "offset"));
        if (blob.offset % 64 != 0) refuse(entry("blobs", i, "offset"), std::to_string(blob.offset), "a multiple of 64");
    }
}

template <class T>
std::vector<T> copied(const T* from, int32_t count, int32_t least, int32_t most, const char* name) {
    in_range(count, least, most, std::string(name) + ": their number");
    if (count > 0 && from == nullptr) refuse(name, "a null pointer", "an array");
    return std::vector<T>(from, from + count);
}

}  // namespace

void refuse(const std::string& field, const std::string& found, const std::string& expected) {
    throw Failure(DV_NATIVE_BAD_PROGRAM, field + ": found " + found + ", expected " + expected);
}

void in_range(int64_t value, int64_t least, int64_t most, const std::string& field) {
    if (value >= least && value <= most) return;
    refuse(field, std::to_string(value),
           least == most ? std::to_string(least) : std::to_string(least) + ".." + std::to_string(most));
}

ConvShape conv_shape(const Program& p, const dv_native_op& op) {
    ConvShape s{};
    s.sources = count_of(op.sources);
    int64_t channels = 0, blocks = 0;
    for (int32_t i = 0; i < s.sources; ++i) {
        channels += p.tensor(op.sources[i]).channels;
        blocks += blocks_of(p.tensor(op.sources[i]).channels);
    }
    s.channels = int32_t(channels);
    s.map_blocks = int32_t(blocks);
    s.k_blocks = op.activation == DV_NATIVE_GEGLU ? (s.map_blocks + 1) / 2 : s.map_blocks;
    if (op.int8 == 1) s.k_blocks = (s.k_blocks + 1) / 2;
    s.height = p.tensor(op.sources[0]).height;
    s.width = p.tensor(op.sources[0]).width;
    const bool to_port = op.output == DV_NATIVE_NONE;
    s.outputs = to_port ? p.port(op.output_port).channels : p.tensor(op.output).channels;
    s.out_height = to_port ? p.port(op.output_port).height : p.tensor(op.output).height;
    s.out_width = to_port ? p.port(op.output_port).width : p.tensor(op.output).width;
    s.taps = op.upsample == 1 ? 4 : op.kernel * op.kernel;
    s.phases = op.upsample == 1 ? 4 : 1;
    s.n_blocks = to_port ? (s.outputs + kLanes - 1) / kLanes : 2 * blocks_of(s.outputs);
    s.skips = count_of(op.skip_sources);
    for (int32_t i = 0; i < s.skips; ++i) s.skip_blocks += blocks_of(p.tensor(op.skip_sources[i]).channels);
    return s;
}

Program checked(const dv_native_program& given) {
    in_range(given.version, DV_NATIVE_VERSION, DV_NATIVE_VERSION, "version");
    in_range(given.weights_size, 0, INT64_MAX, "weights: their size");
    const uintptr_t start = reinterpret_cast<uintptr_t>(given.weights);
    if (start == 0 || start % 64 != 0) refuse("weights", "memory at " + std::to_string(start), "a multiple of 64 bytes");
    Program p{copied(given.ports, given.ports_count, 1, kMostPorts, "ports"),
              copied(given.tensors, given.tensors_count, 0, kMostTensors, "tensors"),
              copied(given.ops, given.ops_count, 1, kMostOps, "ops"),
              copied(given.blobs, given.blobs_count, 0, kMostBlobs, "blobs"),
              static_cast<const uint8_t*>(given.weights),
              given.weights_size,
              false,
              DV_NATIVE_NONE,
              DV_NATIVE_NONE,
              {},
              {}};
    check_ports(p);
    check_tensors(p);
    check_blobs(p);
    p.writer.assign(p.tensors.size(), DV_NATIVE_NONE);
    p.of_rows = std::any_of(p.ops.begin(), p.ops.end(), [](const dv_native_op& op) { return is_of_rows(op.kind); });
    std::vector<char> written(p.ports.size(), 0);
    for (int32_t i = 0; i < given.ops_count; ++i) check_operation(p, i, written);
    for (size_t i = 0; i < p.ports.size(); ++i)
        if (p.ports[i].is_output == 1 && written[i] == 0)
            refuse(entry("ports", i, "output"), "an output that no operation writes", "one operation that writes it");
    return p;
}

}  // namespace native
}  // namespace diffusevae
