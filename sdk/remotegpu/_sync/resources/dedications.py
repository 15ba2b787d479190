# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Dedications: hosts lent to a customer or a workspace for a period."""

from __future__ import annotations

from datetime import datetime

from remotegpu._protocol import given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.dedications import Dedication


class SyncDedications(SyncResource):
    """Hosts lent to a customer or a workspace for a period. Admins make and end them."""

    def list(
        self, *, host: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[Dedication]:
        """Newest first."""
        params = given(host=host, limit=limit, cursor=cursor)
        return fetch_page(self._transport, Dedication, "/v1/dedications", params)

    def create(
        self,
        *,
        host: str,
        customer: str,
        ends_at: datetime,
        workspace: str | None = None,
        starts_at: datetime | None = None,
        remark: str | None = None,
        idempotency_key: str | None = None,
    ) -> Dedication:
        """Lend a host, from now or `starts_at` on."""
        body = given(
            host=host,
            customer=customer,
            workspace=workspace,
            starts_at=None if starts_at is None else starts_at.isoformat(),
            ends_at=ends_at.isoformat(),
            remark=remark,
        )
        return self._transport.create(
            Dedication, "/v1/dedications", body=body, idempotency_key=idempotency_key
        )

    def get(self, dedication: str) -> Dedication:
        """One, with the steps of its clean-up."""
        return self._transport.call(Dedication, "GET", f"/v1/dedications/{segment(dedication)}")

    def extend(self, dedication: str, *, ends_at: datetime) -> Dedication:
        """Another end, in the future."""
        return self._do(dedication, "extend", given(ends_at=ends_at.isoformat()))

    def end(self, dedication: str, *, reason: str | None = None) -> Dedication:
        """End it early: its grace begins; before its beginning it is cancelled."""
        return self._do(dedication, "end", given(reason=reason))

    def reclaim(self, dedication: str, *, reason: str, force: bool | None = None) -> Dedication:
        """Clean up now; refused while work runs, unless forced. Again: failed steps begin anew."""
        return self._do(dedication, "reclaim", given(reason=reason, force=force))

    def _do(self, dedication: str, verb: str, body: dict[str, object]) -> Dedication:
        path = f"/v1/dedications/{segment(dedication)}:{verb}"
        return self._transport.call(Dedication, "POST", path, body=body)
