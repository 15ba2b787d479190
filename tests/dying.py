"""A server that dies around a commit. The process is spared, which the database cannot tell apart."""

from __future__ import annotations

from remotegpu_server.fault_points import FaultPoints


class Died(BaseException):
    """The process is gone: no handler runs, nothing is answered."""


class DyingFaultPoints(FaultPoints):
    """Dies at the first request that reaches the label."""

    def __init__(self, label: str) -> None:
        super().__init__(None)
        self._at: str | None = label

    def reach(self, label: str) -> None:
        if label == self._at:
            self._at = None
            raise Died(label)
