"""How does the engine get into other programs? cpp/ is a C++ library of its own, triton/ a model for Triton's server."""
