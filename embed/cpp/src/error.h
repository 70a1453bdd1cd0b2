// The exceptions of the library's own functions: one family: a status of diffusevae.h and a sentence that says what
// was found, what was expected and what to do. The C interface catches it and hands both to the caller.
#ifndef DIFFUSEVAE_ERROR_H
#define DIFFUSEVAE_ERROR_H

#include <stdexcept>
#include <string>

#include "diffusevae.h"

namespace diffusevae {

class Error : public std::runtime_error {
public:
    Error(diffusevae_status status, const std::string& sentence) : std::runtime_error(sentence), status_(status) {}
    diffusevae_status status() const { return status_; }

private:
    diffusevae_status status_;
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_ERROR_H
