"""Amounts in plain words."""

from __future__ import annotations

from collections.abc import Sequence

GIB = 2**30


def gib(value: int) -> str:
    """Bytes for people, in GiB."""
    return f"{value / GIB:.3g} GiB"


def number(value: float) -> str:
    """Without a trailing ``.0``."""
    return f"{value:g}"


def gpus(count: int, models: Sequence[str] = (), *, part: str = "") -> str:
    """``2 A100-80GB GPUs``; ``part`` names a slice of one."""
    name = " ".join(word for word in (either(models), part or "GPU") if word)
    return f"{count} {name}{'' if count == 1 else 's'}"


def either(names: Sequence[str]) -> str:
    """``A``, ``A or B``, ``A, B or C``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} or {names[-1]}"


def all_of(names: Sequence[str]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def many(count: int, noun: str) -> str:
    """``1 request``, ``2 requests``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def many_cpus(count: float) -> str:
    """``1 CPU``, ``2.5 CPUs``."""
    return f"{number(count)} CPU{'' if count == 1 else 's'}"
