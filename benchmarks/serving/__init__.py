"""Serving: a Triton server under load (`run`), and the C++ library beside Python (`embedding`)."""
