"""Parts of tools/reproduce.py: the tables, their checks, costs, trainings and results."""
