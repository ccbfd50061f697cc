"""One worker for each GPU: which devices there are, and a parent that passes on signals."""

import os
import signal
import sys
import threading

from worker.every_device import devices, run

#: says that it is up by a file, then waits to be told to stop
WAITS = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[2])))
pathlib.Path(sys.argv[1]).touch()
signal.pause()
"""


def test_the_devices_are_what_the_driver_shows(tmp_path):
    assert devices(tmp_path) == ["cpu"]
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert devices(tmp_path) == ["cuda:0", "cuda:1"]


def commands(folder, *codes):
    return [
        [sys.executable, "-c", WAITS, str(folder / f"up{index}"), str(code)]
        for index, code in enumerate(codes)
    ]


def stop_when_up(folder, count):
    """SIGTERM to this process once so many children wait."""
    while len(list(folder.glob("up*"))) < count:
        threading.Event().wait(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_reaches_every_child_and_the_worst_code_is_told(tmp_path):
    threading.Thread(target=stop_when_up, args=(tmp_path, 2)).start()
    before = signal.getsignal(signal.SIGTERM)
    assert run(commands(tmp_path, 0, 3)) == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_when_one_ends_the_others_are_stopped(tmp_path):
    waiting = commands(tmp_path, 0)
    wait_then_fail = (
        "import pathlib, sys\n"
        f"while not pathlib.Path({str(tmp_path / 'up0')!r}).exists(): pass\n"
        "sys.exit(7)"
    )
    assert run([*waiting, [sys.executable, "-c", wait_then_fail]]) == 7
