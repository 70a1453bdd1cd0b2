"""Everything of a chain that is computed before it runs.

schedule.py   noise levels, and the timesteps that a short chain keeps
table.py      solvers as rows of coefficients
noise.py      seeds and their noise
feeds.py      the same as inputs of the whole-sampler graph
"""
