# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Reservations: GPUs promised for a period."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from remotegpu._protocol import given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.reservations import Calendar, Reservation


class SyncReservations(SyncResource):
    """Reservations: GPUs promised for a period."""

    def list(
        self, *, over: bool | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[Reservation]:
        """The next to start first; with `over` also those that are over."""
        params = given(over=over, limit=limit, cursor=cursor)
        return fetch_page(self._transport, Reservation, "/v1/reservations", params)

    def create(
        self,
        *,
        name: str,
        gpus: int,
        starts_at: datetime,
        ends_at: datetime,
        gpu_model: str | None = None,
        host_labels: Mapping[str, str] | None = None,
        workspace: str | None = None,
        customer: str | None = None,
        idempotency_key: str | None = None,
    ) -> Reservation:
        """Reserve GPUs for a workspace, or with `customer` for all workspaces of one.

        :raises Conflict: it does not fit; ``data["next_free"]`` is the next slot of this length.
        """
        body = given(
            name=name,
            gpus=gpus,
            starts_at=starts_at.isoformat(),
            ends_at=ends_at.isoformat(),
            gpu_model=gpu_model,
            host_labels=None if host_labels is None else dict(host_labels),
            workspace=workspace,
            customer=customer,
        )
        return self._transport.create(
            Reservation, "/v1/reservations", body=body, idempotency_key=idempotency_key
        )

    def get(self, reservation_id: str) -> Reservation:
        """One reservation."""
        return self._transport.call(Reservation, "GET", f"/v1/reservations/{segment(reservation_id)}")

    def cancel(self, reservation_id: str) -> Reservation:
        """Give it back. What runs in it goes on until its end."""
        path = f"/v1/reservations/{segment(reservation_id)}:cancel"
        return self._transport.call(Reservation, "POST", path)

    def calendar(self, *, from_at: datetime | None = None, until_at: datetime | None = None) -> Calendar:
        """What is promised in a period (left out: the next two weeks), and of how much."""
        params = given(
            from_at=None if from_at is None else from_at.isoformat(),
            until_at=None if until_at is None else until_at.isoformat(),
        )
        return self._transport.call(Calendar, "GET", "/v1/reservations/calendar", params=params)
