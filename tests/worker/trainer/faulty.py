"""A trainer child that is the real one, but for jobs that ask for trouble by their `warmup_ratio`.

Started as `python -m tests.worker.trainer.faulty FD`.
"""

import errno
import os
import signal
import socket
import sys
import threading

from worker.trainer.child import Child

#: warmup_ratio -> what befalls the trainer at the job's fifth step
CRASH, HANG, DISK, LAST, NAN = 0.0101, 0.0102, 0.0103, 0.0104, 0.0105


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


class Faulty(Child):
    """Dies, hangs, or finds its disk full, at the fifth step of a job that is marked for it."""

    def _report(self, report):
        mark = self._trainer._get(report.job_id).job.warmup_ratio
        if report.step == 5 and mark == CRASH:
            os.kill(os.getpid(), signal.SIGKILL)
        if report.step == 5 and mark == HANG:
            threading.Event().wait()
        if report.step == 5 and mark == NAN:
            self._trainer._get(report.job_id).weights.master.data.fill_(float("nan"))
        if report.finished and mark == LAST:
            self._trainer.export = full
        super()._report(report)
        vars(self._trainer).pop("export", None)

    def _checkpoint(self, key):
        if self._trainer._get(key).job.warmup_ratio == DISK:
            full()
        super()._checkpoint(key)


if __name__ == "__main__":
    Faulty(socket.socket(fileno=int(sys.argv[1]))).run()
