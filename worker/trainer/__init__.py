"""The trainer child process: owns the device, the base and all slots; has no credentials.

link.py     the supervising side (imports no torch)
child.py    the child's side: the loop
load.py     the base from its folder onto the device
"""
