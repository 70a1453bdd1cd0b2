"""The command `diffusevae`: main.py has its subcommands, the other files what needs more room."""
