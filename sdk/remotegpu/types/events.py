"""Events: what happened, append-only."""

from __future__ import annotations

from remotegpu.types.wire import UtcTime, Wire


class Event(Wire):
    """One recorded change."""

    id: str
    """Opaque position in the stream; pass it as ``after`` or ``Last-Event-ID`` to go on from here."""
    at: UtcTime
    kind: str
    """``<noun>.<what happened>``, such as ``environment.status``."""
    subject_type: str
    """``environment``, ``host``, ``user``, ``image``, ``quota``, ``gpu``, ``customer`` or ``token``."""
    subject_id: str
    actor: str
    """User name, ``agent:<host>`` or ``system``."""
    reason: str | None
    message: str
    data: dict[str, object]
    """Facts of this kind of event, such as ``{"from": "starting", "to": "running"}``; never a secret."""
