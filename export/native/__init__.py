"""Native programs: a network lowered to fused operations with packed weights, int8 chosen layer by layer."""
