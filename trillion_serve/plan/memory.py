"""Amounts of memory as people write them: ``80GiB``, ``4x80GiB``, ``24GB``."""

import re
from dataclasses import dataclass

from trillion_serve.errors import PlanError

GIB = 2**30
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", 1)}
_UNITS |= {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class Devices:
    """Equal devices.

    Attributes:
        count: how many.
        memory: bytes of each.
    """

    count: int
    memory: int

    @classmethod
    def parse(cls, text: str) -> "Devices":
        """Read ``4x80GiB``, or ``80GiB`` for one device.

        Raises:
            PlanError: it is neither, or no memory at all.
        """
        count, times, amount = text.rpartition("x")
        if times and not (count.strip().isdigit() and int(count) > 0):
            raise PlanError(f"{text!r} is no memory; write 80GiB, or 4x80GiB for four devices")
        return cls(int(count) if times else 1, parse_bytes(amount))


def parse_bytes(text: str) -> int:
    """Bytes of ``1.5GiB``, ``24GB`` or ``1024``.

    Raises:
        PlanError: it is no amount above 0.
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or found[2] not in _UNITS or (amount := int(float(found[1]) * _UNITS[found[2]])) <= 0:
        raise PlanError(f"{text!r} is no amount of memory; write a number above 0 and one of {', '.join(_UNITS)[2:]}")
    return amount


def in_gib(amount: float) -> str:
    """GiB for people to read."""
    return f"{amount / GIB:,.2f}"
