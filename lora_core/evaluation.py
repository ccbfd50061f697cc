"""One evaluation under way: examples that go through the base bit by bit, between other jobs'
steps, so that a long validation set keeps nobody's slot waiting.

What a forward is, is `forward.py`'s; when an evaluation is due and what follows from it is
`trainer.py`'s and `active.py`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lora_core.active import Tally
from lora_core.forward import Found
from lora_core.job import AnyExamples, StepReport
from lora_core.segments import Segment, cut


@dataclass
class Evaluation:
    """What is left of an evaluation of `slot` (None: the bare base), what was found so far, and the
    report that waits for it."""

    slot: str | None
    left: list[Segment]
    report: StepReport | None = None
    tally: Tally = field(default_factory=Tally)
    hits: int = 0
    #: whether there is a right and a wrong
    counts: bool = True

    @classmethod
    def of(
        cls, slot: str | None, examples: AnyExamples, report: StepReport | None = None
    ) -> Evaluation:
        """All examples, in order, without dropout."""
        sequences = [examples.sequence(index) for index in range(len(examples))]
        return cls(slot, cut(slot, sequences), report)

    def add(self, part: list[Segment], found: Found) -> None:
        """Count a part of what is left as done."""
        labels = len(found.losses)
        self.counts = found.hits is not None
        if found.hits is not None:
            self.hits += int(found.hits(slice(0, labels)).sum())
        for span in found.layout.spans:
            self.tally.loss += float(found.losses[span.label_start : span.label_stop].sum())
        self.tally.labels += labels
        self.left = self.left[len(part) :]

    @property
    def loss(self) -> float:
        """Mean per label token; NaN where there is none."""
        return self.tally.loss / self.tally.labels if self.tally.labels else math.nan

    @property
    def accuracy(self) -> float:
        """Share of label tokens that are predicted right; NaN where there is none, or no right
        and wrong."""
        return self.hits / self.tally.labels if self.tally.labels and self.counts else math.nan
