"""Rows to wire types."""

from __future__ import annotations

from remotegpu.types.reservations import Reservation, ReservationState
from remotegpu_server.reservations.queries import Bundle


def to_wire(bundle: Bundle) -> Reservation:
    """What its readers see."""
    row = bundle.reservation
    return Reservation(
        id=row.id,
        name=row.name,
        customer_id=row.customer_id,
        workspace_id=row.workspace_id,
        gpus=row.gpus,
        gpu_model=row.gpu_model,
        host_labels=row.host_labels,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        state=ReservationState(row.state),
        gpus_in_use=bundle.gpus_in_use,
        created_by=bundle.created_by,
        created_at=row.created_at,
        used_at=row.used_at,
        ended_at=row.ended_at,
    )
