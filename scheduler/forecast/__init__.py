"""What a pool would do: the service's own planner (`scheduler/fill.py`) under a virtual clock, with
devices and tenants that are only numbers. Nothing fails here; what happens when things fail is
`scheduler/simulate`, which plays the ledger's moves and knows little of demand.
"""
