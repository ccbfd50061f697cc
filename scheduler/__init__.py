"""The scheduler: reads the ledger, decides by a pure function, writes what it decided.

A leaf: nobody imports it, and it reaches workers only through their queues.
"""
