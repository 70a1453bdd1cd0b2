"""Backend `native`: our own CPU engine.

backend.py   the backend; isa.py: which instruction set it runs on
graph.py     a program, loaded; program.py and weights.py read its two files
chain.py     the loop in one call; loop.py: its arrays
"""
