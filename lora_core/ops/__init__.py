"""The arithmetic of a fused step. Each fast path has its plain counterpart in `reference.py`,
which is the tests' oracle."""
