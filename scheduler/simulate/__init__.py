"""A deterministic simulation: the service's planner, its contact rule and its table of moves, under
a virtual clock, with workers, clients, broker and store that a seed lets fail in every way.

One seed and one commit are one run, always the same.
"""
