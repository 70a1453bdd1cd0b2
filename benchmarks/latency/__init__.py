"""Latency: the engine beside other runtimes (`run`), its own operations (`layers`), and two commits of it (`compare`)."""
