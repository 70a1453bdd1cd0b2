"""Backend `native`: our own CPU engine. backend.py is the graph, program.py and weights.py read its two files."""
