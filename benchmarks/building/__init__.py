"""What building a bundle of a published size costs, and that the bundle samples.

    measured   one command line in a process of its own: its time, its processor time and the most memory that it held
    run        the command: each model in turn, with random weights
"""
