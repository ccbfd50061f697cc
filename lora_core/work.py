"""A fused step under way, as the layers of a model see it (`layer.Work`): where the rows are whose,
and what their slots hold. How a model is taken through is `forward.py`'s and `array_forward.py`'s.
"""

from __future__ import annotations

from torch import Tensor

from lora_core import private
from lora_core.group import LinearGroup
from lora_core.ops import norm, tokens
from lora_core.ops.linear import group_product
from lora_core.ops.lookup import lookup
from lora_core.segments import Axis, stretched
from lora_core.weights import SlotWeights


class Pass:
    """One forward under way (`layer.Work`): where the rows are whose, and what their slots hold."""

    def __init__(self, layout: Axis, slots: dict[str, SlotWeights], anchor: Tensor) -> None:
        self.slots = slots
        self._anchor = anchor
        self._axes = {len(layout.keys): layout}
        self._layout = layout

    def product(self, group: LinearGroup, x: Tensor) -> tuple[Tensor, ...]:
        """Base and adapters of a group for x [..., D]."""
        axis = self._axis(x.shape[:-1].numel())
        return group_product(x, self._anchor, group, axis, self.slots)

    def lookup(self, group: LinearGroup, ids: Tensor) -> Tensor:
        """Base and adapters of an embedding for ids [...]."""
        return lookup(ids, self._anchor, group, self._axis(ids.numel()), self.slots)

    def _axis(self, rows: int) -> Axis:
        """The rows of a layer that may see several of each example."""
        if rows not in self._axes and self.slots:
            self._axes[rows] = stretched(self._layout, rows)
        return self._axes.get(rows, self._layout)

    def norm(self, part: norm.Norm, x: Tensor) -> Tensor:
        """A norm over x [..., D], with the slots' own weights."""
        found = private.of_norm(private.owned(part, self.slots, self._layout.spans))
        return norm.owned_norm(x, self._anchor, part, found) if found else part.plain(x)

    def tokens(self, part: tokens.Tokens, ids: Tensor, out: Tensor) -> Tensor:
        """The embedding's output [..., D], with the slots' own vectors in it."""
        found = private.of_tokens(part, private.owned(part, self.slots, self._layout.spans))
        return tokens.replaced(out, self._anchor, ids.flatten(), found) if found else out
