// Arguments are checked before the first row of a slice; then nothing but its end, a stop or a value that is not finite ends
// the loop.
#include "loop.h"

#include <cstring>

#include "diffusevae/row.h"

namespace diffusevae {
namespace native {
namespace {

class Loop {
public:
    Loop(Interpreter& interpreter, dv_native_steps& steps)
        : i_(interpreter), p_(i_.layout().program), s_(steps), watch_(steps.slice, steps.stop, steps.stop_user) {
        check_sizes();
        check_ports();
        for (int32_t row = 0; row < s_.steps; ++row) check_row(row);
        ports_.assign(p_.ports.size(), nullptr);
        for (int32_t i = 0; i < s_.constants_count; ++i)
            ports_[size_t(s_.constant_ports[i])] = const_cast<float*>(s_.constants[i]);
        ports_[size_t(s_.e_port)] = s_.e;
        if (s_.v_port != DV_NATIVE_NONE) ports_[size_t(s_.v_port)] = s_.v;
        state_ = s_.samples * count_;
        for (int32_t i = 0; s_.h && i < 3; ++i) h_[i] = s_.h + i * state_;
        for (int64_t row = 0; row < s_.slice.rows; ++row) rotate(int32_t(row));
        s_.failed_step = -1;
        if (s_.slice.rows == 0 && s_.slice.samples == 0 && s_.update_ms) *s_.update_ms = 0.0;
    }

    void run() {
        while (s_.slice.rows < s_.steps) {
            const int32_t row = int32_t(s_.slice.rows);
            const double begin = now_ms();
            if (s_.step_ms && s_.slice.samples == 0) s_.step_ms[row] = 0.0;
            try {
                evaluate(row);
            } catch (const Failure& failure) {
                if (failure.status() == DV_NATIVE_CANCELLED) s_.failed_step = row;
                if (s_.step_ms && failure.status() == DV_NATIVE_PAUSED) s_.step_ms[row] += now_ms() - begin;
                throw;
            }
            const double answered = now_ms();
            const bool finite = update(row);
            if (s_.step_ms) s_.step_ms[row] += answered - begin;
            if (s_.update_ms) *s_.update_ms += now_ms() - answered;
            ++s_.slice.rows;
            if (finite) continue;
            s_.failed_step = row;
            throw Failure(DV_NATIVE_NOT_FINITE, "NaN or infinity at row " + std::to_string(row));
        }
    }

private:
    // ---- arguments ----------------------------------------------------------------------------------------------------

    void check_sizes() const {
        demand(s_.steps >= 1 && s_.samples >= 1 && s_.lanes >= 1, "steps, samples, lanes: expected 1 or more");
        demand(batch() <= INT32_MAX, "lanes * samples: expected at most 2^31 - 1");
        demand(s_.row_count == 1 || s_.row_count == batch(), "row_count: expected 1 or lanes * samples");
        demand(s_.slice.rows >= 0 && s_.slice.rows < s_.steps, "slice.rows: expected 0 or more, fewer than steps");
        demand(s_.x && s_.e && s_.rows && s_.weights, "x, e, rows and weights: expected no null pointer");
        demand(s_.constants_count >= 0 && (s_.constants_count == 0 || (s_.constant_ports && s_.constants)),
               "constants_count: expected 0 or more, with constant_ports and constants");
    }

    void check_ports() {
        std::vector<char> named(p_.ports.size(), 0);
        const auto name = [&](int32_t number) {
            demand(number >= 0 && size_t(number) < named.size() && named[size_t(number)]++ == 0,
                   [=] { return "ports: expected each port of the program named once, found number " + std::to_string(number); });
        };
        name(s_.x_port);
        name(s_.e_port);
        for (int32_t i = 0; i < s_.constants_count; ++i) {
            name(s_.constant_ports[i]);
            const dv_native_port& port = p_.port(s_.constant_ports[i]);
            const bool takes = port.kind == DV_NATIVE_PORT_MAP || port.kind == DV_NATIVE_PORT_TOKENS;
            demand(takes && port.is_output == 0 && s_.constants[i],
                   "constant_ports: expected input maps or tokens, each with its constants");
        }
        demand(s_.row_port == p_.row_port && (s_.row_port != DV_NATIVE_NONE) == (s_.embeddings != nullptr),
               "row_port: expected the program's own, with embeddings where there is one");
        demand((s_.v_port != DV_NATIVE_NONE) == (s_.v != nullptr), "v_port: expected v where there is one");
        if (s_.row_port != DV_NATIVE_NONE) name(s_.row_port);
        if (s_.v_port != DV_NATIVE_NONE) name(s_.v_port);
        for (const char once : named) demand(once == 1, "ports: expected each port of the program named once");
        const dv_native_port &x = p_.port(s_.x_port), &e = p_.port(s_.e_port);
        demand(x.kind == DV_NATIVE_PORT_MAP && e.kind == DV_NATIVE_PORT_MAP && x.is_output == 0 && e.is_output == 1,
               "x_port, e_port: expected maps, an input and an output");
        demand(x.channels == e.channels && x.height == e.height && x.width == e.width, "x_port, e_port: expected one shape");
        const dv_native_port& v = s_.v_port == DV_NATIVE_NONE ? e : p_.port(s_.v_port);
        demand(v.kind == DV_NATIVE_PORT_MAP && v.is_output == 1 && v.channels == e.channels && v.height == e.height
                   && v.width == e.width,
               "v_port: expected an output map of the shape of e");
        count_ = int64_t(x.channels) * x.height * x.width;
        row_width_ = s_.row_port == DV_NATIVE_NONE ? 0 : p_.port(s_.row_port).channels;
    }

    // A buffer that is there for every row that needs it.
    void check_row(int32_t number) const {
        const Row row = row_of(number);
        const auto has = [number](bool good, const char* what) {
            demand(good, [=] { return what + (" of row " + std::to_string(number)); });
        };
        has(!reads_g(row), "k_g, q_g: expected 0 without a guide, in the coefficients");
        has(s_.c || !reads_c(row), "c: expected a centre, for the coefficients");
        has(s_.v || !reads_v(row), "v_port: expected a second output, for s_n");
        has(s_.y || (!reads_y(row) && !sets_y(row)), "y: expected a buffer, for the coefficients");
        has(row.push == kPushNothing || row.push == kPushE || row.push == kPushX0, "push: expected 0, 1 or 2, in the coefficients");
        has(s_.h || (!reads_h1(row) && !reads_h2(row) && !reads_h3(row) && row.push == kPushNothing),
            "h: expected buffers, for the coefficients");
        has(s_.noise || s_.seeds || !reads_n(row), "noise, seeds: expected one of them, for the coefficients");
        has(s_.x_in || (active_lanes(number) == 1 && row.c_in == 1.0f), "x_in: expected a buffer, for the lanes or c_in");
    }

    // ---- a row --------------------------------------------------------------------------------------------------------

    int64_t batch() const { return int64_t(s_.lanes) * s_.samples; }

    Row row_of(int32_t number) const {
        Row row;
        std::memcpy(&row, s_.rows + int64_t(number) * kRowFields, sizeof row);
        return row;
    }

    const float* weights_of(int32_t number) const { return s_.weights + int64_t(number) * s_.lanes; }

    int32_t active_lanes(int32_t number) const {
        for (int32_t lane = 1; lane < s_.lanes; ++lane)
            if (weights_of(number)[lane] != 0.0f) return s_.lanes;
        return 1;
    }

    // c_in x, once a lane; x itself where that is the same.
    float* network_input(int32_t lanes, float c_in) const {
        if (lanes == 1 && c_in == 1.0f) return s_.x;
        const float* x = s_.x;
        float* x_in = s_.x_in;
        for (int64_t i = 0; i < state_; ++i) x_in[i] = c_in * x[i];
        for (int32_t lane = 1; lane < lanes; ++lane) std::memcpy(x_in + lane * state_, x_in, size_t(state_) * sizeof(float));
        return x_in;
    }

    void evaluate(int32_t number) {
        const int32_t lanes = active_lanes(number);
        const int64_t active = int64_t(lanes) * s_.samples;
        ports_[size_t(s_.x_port)] = network_input(lanes, row_of(number).c_in);
        int32_t row_count = 0;
        if (s_.row_port != DV_NATIVE_NONE) {
            row_count = s_.row_count == 1 ? 1 : int32_t(active);
            ports_[size_t(s_.row_port)] = const_cast<float*>(s_.embeddings + int64_t(number) * s_.row_count * row_width_);
        }
        i_.run(dv_native_call{ports_.data(), int32_t(ports_.size()), row_count, active, 0, {}}, watch_);
    }

    bool update(int32_t number) {
        dv_update_args a{};
        a.row = s_.rows + int64_t(number) * kRowFields;
        a.x = a.out = s_.x;
        a.e = s_.e;
        a.weights = weights_of(number);
        a.lanes = active_lanes(number);
        a.c = s_.c;
        a.v = s_.v;
        a.y = a.y_out = s_.y;
        a.h1 = h_[0], a.h2 = h_[1], a.h3 = a.push_out = h_[2];
        a.x0_out = s_.x0;
        a.noise = s_.noise ? s_.noise + number * (s_.noise_shared ? count_ : state_) : nullptr;
        a.noise_stride = s_.noise_shared ? 0 : count_;
        a.seeds = s_.noise ? nullptr : s_.seeds;
        a.samples = s_.samples;
        a.count = count_;
        a.step = uint32_t(s_.first_step + number);
        a.threads = i_.threads();
        const bool finite = dv_update(&a) == 1;
        rotate(number);
        return finite;
    }

    // After a push: h3 <- h2 <- h1 <- what h3's buffer now holds.
    void rotate(int32_t number) {
        if (row_of(number).push == kPushNothing) return;
        float* newest = h_[2];
        h_[2] = h_[1], h_[1] = h_[0], h_[0] = newest;
    }

    Interpreter& i_;
    const Program& p_;
    dv_native_steps& s_;
    Watch watch_;
    std::vector<void*> ports_;
    int64_t count_ = 0, row_width_ = 0, state_ = 0;
    float* h_[3] = {nullptr, nullptr, nullptr};
};

}  // namespace

void run_steps(Interpreter& interpreter, dv_native_steps& steps) { Loop(interpreter, steps).run(); }

}  // namespace native
}  // namespace diffusevae
