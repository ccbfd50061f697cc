"""Datasets: the lines a job may learn from. One code for the CLI, the API and the scheduler."""
