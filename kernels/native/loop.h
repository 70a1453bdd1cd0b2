// The loop of a sampler over one program: a row of the step table is the network, then dv_update.
#ifndef DIFFUSEVAE_NATIVE_LOOP_H
#define DIFFUSEVAE_NATIVE_LOOP_H

#include "interpreter.h"

namespace diffusevae {
namespace native {

// Throws Failure for bad arguments, a row that is not finite, a stop, and the end of a slice.
void run_steps(Interpreter& interpreter, dv_native_steps& steps);

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_LOOP_H
