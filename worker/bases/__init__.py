"""Bases on a worker's disk: made once by `base add`, fetched by digest, verified, loaded."""
