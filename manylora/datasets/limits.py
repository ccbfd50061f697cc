"""How large a dataset may be."""

from __future__ import annotations

from dataclasses import dataclass

from manylora.settings import Settings


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, nesting in levels, counts in examples."""

    max_file_bytes: int = 512 * 2**20
    max_line_bytes: int = 256 * 2**10
    max_json_depth: int = 32
    max_examples: int = 1_000_000
    min_examples: int = 1

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        """The limits an operator set."""
        return cls(
            max_file_bytes=settings.max_file_bytes,
            max_line_bytes=settings.max_line_bytes,
            max_json_depth=settings.max_json_depth,
            max_examples=settings.max_examples,
            min_examples=settings.min_examples,
        )
