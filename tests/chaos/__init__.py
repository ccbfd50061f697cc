"""Faults on the real stack: crash points one by one, and a nemesis that kills and freezes.

`python -m tests.chaos` is the long way (`make chaos`); the short one is among the tests.
"""
