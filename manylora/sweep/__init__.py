"""Sweeps: which trials there are, which go on, and what is told of them. All of it is pure."""
