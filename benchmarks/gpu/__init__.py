"""The GPU check: plans built for this machine's GPU, golden vectors and whole chains compared, launches timed (`check`)."""
