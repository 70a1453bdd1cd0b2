"""Everything of a chain that is computed before it runs.

schedule.py     noise levels of the trained timesteps
timesteps.py    the timesteps that a short chain keeps
levels.py       what a solver is given and what it returns
prediction.py   what the network's output says of x0 and eps
ddim.py ddpm.py dpmpp_2m.py unipc_2.py ipndm.py plms.py   the solvers
table.py        the step table: METHODS, and rows of coefficients
check.py        rows that no executor can run
noise.py        seeds and their noise
feeds.py        a table as inputs of the whole-sampler graph
"""
