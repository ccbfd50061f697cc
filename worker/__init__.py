"""The worker: one Celery process per device that supervises jobs, and beside it one trainer child
that owns the device, the base and all slots. Only what runs in the child imports torch.

A leaf: nobody imports it; commands load their part by name.
"""
