# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Quotas: what a user, a workspace or a customer may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from remotegpu._protocol import given, listed, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.quotas import Quota, QuotaChange, QuotaPolicy, QuotaVerdict


class SyncQuotas(SyncResource):
    """Quotas: what a user, a workspace or a customer may hold."""

    def mine(self, *, workspace: str | None = None) -> Quota:
        """All limits that bind the caller, and their use; `workspace` by id, left out: the personal one."""
        return self._transport.call(Quota, "GET", "/v1/quota", params=given(workspace=workspace))

    def get(self, subject: str, subject_id: str) -> Quota:
        """The limits of a ``user``, ``workspace`` or ``customer``, named by id or name (workspaces by id)."""
        return self._transport.call(Quota, "GET", _path(subject, subject_id))

    def set(
        self,
        subject: str,
        subject_id: str,
        *,
        limits: Mapping[str, int | None] | None = None,
        reset: Sequence[str] | None = None,
        window_s: int | None = None,
    ) -> QuotaChange:
        """Set limits: 0 allows none, ``None`` is unlimited. `reset` gives limits back to the policies.

        Nothing running is stopped; ``over`` in the answer says who is over a limit now.
        """
        body = given(
            limits=None if limits is None else dict(limits),
            reset=listed(reset, what="reset"),
            window_s=window_s,
        )
        return self._transport.call(QuotaChange, "PUT", _path(subject, subject_id), body=body)

    def check(
        self, amounts: Mapping[str, float], *, workspace: str | None = None, user: str | None = None
    ) -> QuotaVerdict:
        """Would the limits allow this, such as ``{"gpus": 2, "environments": 1}``? Nothing is reserved."""
        body = given(amounts=dict(amounts), workspace=workspace, user=user)
        return self._transport.call(QuotaVerdict, "POST", "/v1/quotas:check", body=body)

    def list_policies(self, *, limit: int | None = None, cursor: str | None = None) -> Page[QuotaPolicy]:
        """Sets of limits for groups; for admins."""
        params = given(limit=limit, cursor=cursor)
        return fetch_page(self._transport, QuotaPolicy, "/v1/quota-policies", params)

    def create_policy(
        self,
        *,
        name: str,
        description: str | None = None,
        limits: Mapping[str, int | None] | None = None,
        window_s: int | None = None,
        applies_to: Sequence[Mapping[str, str]] | None = None,
        idempotency_key: str | None = None,
    ) -> QuotaPolicy:
        """Make a policy. `applies_to` holds groups such as ``{"subject": "user", "group": "member"}``."""
        body = given(
            name=name,
            description=description,
            limits=None if limits is None else dict(limits),
            window_s=window_s,
            applies_to=None if applies_to is None else [dict(one) for one in applies_to],
        )
        return self._transport.create(
            QuotaPolicy, "/v1/quota-policies", body=body, idempotency_key=idempotency_key
        )

    def get_policy(self, policy: str) -> QuotaPolicy:
        """One policy, by id or name."""
        return self._transport.call(QuotaPolicy, "GET", f"/v1/quota-policies/{segment(policy)}")

    def update_policy(
        self,
        policy: str,
        *,
        description: str | None = None,
        limits: Mapping[str, int | None] | None = None,
        window_s: int | None = None,
        applies_to: Sequence[Mapping[str, str]] | None = None,
    ) -> QuotaPolicy:
        """Change what is given; `limits` and `applies_to` are replaced as a whole."""
        body = given(
            description=description,
            limits=None if limits is None else dict(limits),
            window_s=window_s,
            applies_to=None if applies_to is None else [dict(one) for one in applies_to],
        )
        path = f"/v1/quota-policies/{segment(policy)}"
        return self._transport.call(QuotaPolicy, "PATCH", path, body=body)

    def delete_policy(self, policy: str) -> None:
        """Delete a policy; limits that were set for one subject stay."""
        self._transport.send("DELETE", f"/v1/quota-policies/{segment(policy)}")


def _path(subject: str, subject_id: str) -> str:
    return f"/v1/quotas/{segment(subject)}/{segment(subject_id)}"
