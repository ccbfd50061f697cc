"""What the engine and the service cost, measured side by side on one machine: `make bench`.

workload.py says what is trained, measure.py starts fresh processes and reads their peak memory;
alone.py, swapped.py, fused.py and floor.py are what runs in them; engine.py, memory.py and
service.py ask for them in turn; figures.py, tables.py, plot.py and report.py write it down.
"""
