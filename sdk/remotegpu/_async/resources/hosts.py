"""Hosts: machines with one agent each. For admins."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime

from remotegpu._async import wait
from remotegpu._async.pages import AsyncPage, fetch_page
from remotegpu._async.resource import AsyncResource
from remotegpu._async.stream import states
from remotegpu._protocol import given, listed, measured, segment
from remotegpu.types.hosts import (
    Connection,
    EnrollmentToken,
    Host,
    HostCredential,
    HostHealth,
    HostVerb,
    Operational,
)
from remotegpu.types.metrics import MetricsReport
from remotegpu.types.wire import BatchResult

SAMPLED = ("metrics", "last_heartbeat_at")
"""Fields that differ with every heartbeat."""


class AsyncHosts(AsyncResource):
    """Hosts: machines with one agent each. For admins. A host is named by id or name."""

    async def list(
        self,
        *,
        operational: Operational | str | None = None,
        connection: Connection | str | None = None,
        health: HostHealth | str | None = None,
        labels: Sequence[str] = (),
        gpu_model: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> AsyncPage[Host]:
        """Hosts by name; ``labels`` as ``key=value`` or ``key``, ``gpu_model`` a part of a model's name."""
        params = given(
            operational=operational,
            connection=connection,
            health=health,
            label=listed(labels, what="labels") or None,
            gpu_model=gpu_model,
            limit=limit,
            cursor=cursor,
        )
        return await fetch_page(self._transport, Host, "/v1/hosts", params)

    async def create(
        self,
        *,
        name: str,
        labels: Mapping[str, str] | None = None,
        hostname: str | None = None,
        ip_address: str | None = None,
        idempotency_key: str | None = None,
    ) -> Host:
        """A host that an agent will join with an enrolment token."""
        body = given(
            name=name,
            labels=None if labels is None else dict(labels),
            hostname=hostname,
            ip_address=ip_address,
        )
        return await self._transport.create(Host, "/v1/hosts", body=body, idempotency_key=idempotency_key)

    async def get(self, host: str) -> Host:
        """One host."""
        return await self._transport.call(Host, "GET", f"/v1/hosts/{segment(host)}")

    async def metrics(
        self,
        host: str,
        *,
        begin: datetime | None = None,
        end: datetime | None = None,
        step_s: int | None = None,
        metric: Sequence[str] | None = None,
    ) -> MetricsReport:
        """What was measured of a host and its GPUs (admins).

        Without times: the last hour. ``to_pandas()`` makes it a DataFrame.
        """
        path = f"/v1/hosts/{segment(host)}/metrics"
        return await self._transport.call(
            MetricsReport, "GET", path, params=measured(begin, end, step_s, metric)
        )

    async def update(
        self,
        host: str,
        *,
        labels: Mapping[str, str] | None = None,
        hostname: str | None = None,
        ip_address: str | None = None,
    ) -> Host:
        """Change what is given; labels are replaced as a whole."""
        body = given(
            labels=None if labels is None else dict(labels), hostname=hostname, ip_address=ip_address
        )
        return await self._transport.call(Host, "PATCH", f"/v1/hosts/{segment(host)}", body=body)

    async def delete(self, host: str) -> None:
        """Forget a host on which nothing runs."""
        await self._transport.send("DELETE", f"/v1/hosts/{segment(host)}")

    async def cordon(self, host: str, *, reason: str | None = None) -> Host:
        """Place no new work there; running work goes on, and its users are told."""
        return await self._do(host, "cordon", reason)

    async def uncordon(self, host: str, *, reason: str | None = None) -> Host:
        """Place new work there again: ends a cordon or a drain."""
        return await self._do(host, "uncordon", reason)

    async def drain(self, host: str, *, deadline_s: int | None = None, message: str | None = None) -> Host:
        """Warn its users, place no new work, and stop what runs after ``deadline_s``."""
        body = given(deadline_s=deadline_s, message=message)
        return await self._transport.call(Host, "POST", f"/v1/hosts/{segment(host)}:drain", body=body)

    async def maintenance(self, host: str, *, reason: str | None = None) -> Host:
        """Out of service for a while; refused while anything runs there."""
        return await self._do(host, "maintenance", reason)

    async def activate(self, host: str, *, reason: str | None = None) -> Host:
        """Into service; a retired host waits for an agent to join again."""
        return await self._do(host, "activate", reason)

    async def retire(self, host: str, *, reason: str | None = None) -> Host:
        """Out of service for good: refused while anything runs there; revokes its credential."""
        return await self._do(host, "retire", reason)

    async def _do(self, host: str, verb: str, reason: str | None) -> Host:
        body = given(reason=reason)
        return await self._transport.call(Host, "POST", f"/v1/hosts/{segment(host)}:{verb}", body=body)

    async def batch(
        self,
        verb: HostVerb | str,
        hosts: Sequence[str],
        *,
        reason: str | None = None,
        deadline_s: int | None = None,
    ) -> BatchResult:
        """Do a verb to many hosts, each by itself; the answer says which failed, and why."""
        body = given(verb=verb, hosts=listed(hosts, what="hosts"), reason=reason, deadline_s=deadline_s)
        return await self._transport.call(BatchResult, "POST", "/v1/hosts:batch", body=body)

    async def import_csv(self, text: str, *, dry_run: bool | None = None) -> BatchResult:
        """Add a host for each line of a CSV sheet with the columns ``name``, ``hostname``, ``ip_address`` and
        ``labels`` (``key=value;key=value``). ``failed`` says by line number what is wrong; the others stand.
        """
        body = given(csv=text, dry_run=dry_run)
        return await self._transport.call(BatchResult, "POST", "/v1/hosts:import", body=body)

    async def export_csv(self) -> str:
        """All hosts as a CSV sheet, in the columns that an import takes."""
        return (await self._transport.send("GET", "/v1/hosts:export")).text

    async def rotate_credential(
        self, host: str, *, overlap_s: int | None = None, idempotency_key: str | None = None
    ) -> HostCredential:
        """A second credential for its agent, shown this once; the one in use ends after the overlap."""
        return await self._transport.create(
            HostCredential,
            f"/v1/hosts/{segment(host)}:rotate-credential",
            body=given(overlap_s=overlap_s),
            idempotency_key=idempotency_key,
        )

    async def revoke_credential(self, host: str) -> Host:
        """End its agent's credential at once; workloads run on."""
        return await self._transport.put_in_state(Host, f"/v1/hosts/{segment(host)}:revoke-credential")

    async def create_enrollment_token(
        self, host: str, *, expires_in_s: int | None = None, idempotency_key: str | None = None
    ) -> EnrollmentToken:
        """A token with which one agent may join this host, shown this once."""
        return await self._transport.create(
            EnrollmentToken,
            f"/v1/hosts/{segment(host)}/enrollment-tokens",
            body=given(expires_in_s=expires_in_s),
            idempotency_key=idempotency_key,
        )

    async def wait_ready(
        self, host: str, *, timeout_s: float = 300.0, progress: bool | Callable[[Host], object] = True
    ) -> Host:
        """Look at a host until it takes new work: its agent is there and well, and it is not cordoned.

        :raises WaitTimeout: not within `timeout_s` seconds.
        """
        return await wait.until_host_ready(self.get, host, timeout_s=timeout_s, progress=progress)

    async def watch(self, host: str, *, give_up_after_s: float = 300.0) -> AsyncGenerator[Host, None]:
        """The host as it is now, and again after every change but those of its measurements, until it is
        deleted. Goes on over broken connections as ``environments.watch`` does.
        """
        known = await self.get(host)
        found = states(
            self._transport,
            lambda: self.get(known.id),
            subject_type="host",
            subject_id=known.id,
            unwatched=SAMPLED,
            give_up_after_s=give_up_after_s,
        )
        async with aclosing(found):
            async for state in found:
                yield state
