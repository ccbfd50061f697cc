"""LoRA+: B learns faster than A.

"LoRA+: Efficient Low Rank Adaptation of Large Models" (Hayou, Ghosh and Yu, 2024): the learning
rate of B is `ratio` times that of A. As in PEFT, whatever is not an A goes at B's rate. The update
itself is `optim.py`'s.
"""

from __future__ import annotations

Pace = tuple[slice, float]


def paces(places: dict[str, slice], ratio: float) -> list[Pace]:
    """Where in a slot's numbers which multiple of the learning rate is at work: runs, in order,
    that cover all of `places` (`<layer>.<part>`: its numbers)."""
    found: list[Pace] = []
    for name, place in sorted(places.items(), key=lambda each: each[1].start):
        factor = 1.0 if name.endswith(".A") else ratio
        if found and found[-1][1] == factor:
            found[-1] = (slice(found[-1][0].start, place.stop), factor)
        else:
            found.append((place, factor))
    return found
