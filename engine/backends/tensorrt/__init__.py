"""Backends `tensorrt` and `tensorrt_rtx`: plans, and chains that stay on the device."""
