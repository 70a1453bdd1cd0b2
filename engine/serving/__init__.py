"""What every server does alike, Triton's and our own over HTTP: read settings, group samples, answer, choose a backend."""
