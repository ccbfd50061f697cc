"""What a step may take: rows of one forward, and memory. It cuts steps, admits jobs, and gives way
when memory runs out all the same; none of that changes a job's result.

How much a step takes is `memory.py`'s to say; whose turn it is, `trainer.py`'s.
"""

from __future__ import annotations

from functools import partial

from lora_core import memory
from lora_core.array_forward import ArrayForward
from lora_core.errors import MemoryLimitError, SpecError
from lora_core.forward import Forward
from lora_core.inject import targets
from lora_core.job import TrainingJob
from lora_core.segments import ALIGN, Segment, micro_batches

AnyForward = Forward | ArrayForward
#: sequences and their length of the steps that memory is measured on
_PROBES = ((8, 32), (48, 32), (3, 512))


class Budget:
    """Rows (`tokens`) and bytes (`limit`) of a trainer. `costs` is None until they are measured or
    told; `halvings` counts how often memory ran out and the rows were halved."""

    def __init__(self, forward: AnyForward, tokens: int, limit: int | None) -> None:
        if tokens < 1:
            raise SpecError("token_budget is less than 1")
        self.tokens = tokens
        self.limit = limit or int(0.9 * memory.available(forward.device))
        self.costs: memory.Costs | None = None
        self.halvings = 0
        #: what is held without any slot
        self.idle = 0
        #: bytes a row of a slot keeps for the backward, beyond those of the base
        self.keeps: dict[str, int] = {}
        #: the micro-batch at work
        self.part: list[Segment] = []
        self._forward = forward
        self._reduced: int | None = None

    def calibrate(self, slots: int) -> memory.Costs | None:
        """Run three probe steps on the bare base: learn what memory steps take, and have every
        kernel ready before the first job. `slots` bytes are held already. None where the system
        does not tell."""
        device = self._forward.device
        probes = [self._forward.probe_segments(*each) for each in _PROBES]
        self._forward.rehearse(probes[0])  # what is made once is not a step's
        points = []
        for part in probes:
            before = memory.held(device)
            peak = memory.peak_of(device, partial(self._forward.rehearse, part))
            if peak is None:
                return None
            points.append((*memory.amounts(part), max(0, peak - before)))
        self.idle = memory.held(device) - slots
        self.costs = memory.fit(points)
        return self.costs

    def costs_are(self, costs: memory.Costs, slots: int) -> None:
        """Take what `calibrate` measured another time, and have every kernel ready all the same."""
        self._forward.rehearse(self._forward.probe_segments(*_PROBES[0]))
        self.idle = memory.held(self._forward.device) - slots
        self.costs = costs

    def admit(self, job: TrainingJob) -> None:
        """Raises SpecError for examples the model cannot read, MemoryLimitError for a job that
        could never take a step, whoever else is there."""
        model = self._forward.model
        names = targets(model, job.spec)
        self._forward.admit(names)
        segments: list[Segment] = []
        for examples in (job.examples, job.validation):
            if examples is not None:
                segments += self._forward.largest(examples, job.optimizer_batch)
        if self.costs is None:
            return
        size = memory.size_of(model, job.spec, names)
        need = self.idle + memory.slot_bytes(size, job.patience is not None)
        need += max(self.costs.of([each]) + size.keeps * each.rows for each in segments)
        if need > self.limit:
            raise MemoryLimitError(
                f"the longest example ({max(s.tokens for s in segments)} tokens) needs "
                f"{need / 2**30:.2f} GiB of memory and {self.limit / 2**30:.2f} GiB are "
                "there: shorten the examples (context_length) or lower the rank"
            )

    def parts(self, segments: list[Segment], slots: int) -> list[list[Segment]]:
        """Micro-batches within the rows and, once it is known, within the memory beside the
        `slots` bytes of the slots. Where sequences do not share a forward, each segment is one:
        the order its gradients are added up in must not depend on who else is there."""
        if not self._forward.fused:
            return [[segment] for segment in segments]
        rows = min(self.tokens, self._reduced or self.tokens)
        if self.costs is None:
            return micro_batches(segments, rows)
        room = self.limit - self.idle - slots
        return micro_batches(segments, rows, lambda part: self._takes(part) <= room)

    def most(self, segments: list[Segment], slots: int) -> int | None:
        """Bytes that will be held at most while these are taken; None before `calibrate`."""
        if self.costs is None:
            return None
        taken = (self._takes(part) for part in self.parts(segments, slots))
        return self.idle + slots + max(taken, default=0)

    def _takes(self, part: list[Segment]) -> int:
        """Bytes of one micro-batch."""
        assert self.costs is not None
        own = sum(self.keeps.get(each.slot or "", 0) * each.rows for each in part)
        return self.costs.of(part) + own

    def relieved(self, error: BaseException) -> bool:
        """After an error in `part`: whether trying again with fewer rows at once is worth while.
        Raises the error again if it is not about memory."""
        if not memory.out_of_memory(error):
            raise error
        if len(self.part) <= 1:
            return False
        self._reduced = max(ALIGN, sum(segment.rows for segment in self.part) // 2)
        self.halvings += 1
        return True

    def restore(self) -> None:
        """All rows again: the job that memory was too little for may be gone."""
        self._reduced = None
