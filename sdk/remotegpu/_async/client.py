"""The client: one attribute per noun of the API."""

from __future__ import annotations

import copy
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from remotegpu import _config, _http
from remotegpu._async.transport import AsyncTransport

if TYPE_CHECKING:
    from remotegpu._async.resources.agent import AsyncAgent
    from remotegpu._async.resources.alert_rules import AsyncAlertRules
    from remotegpu._async.resources.alert_silences import AsyncAlertSilences
    from remotegpu._async.resources.alerts import AsyncAlerts
    from remotegpu._async.resources.audit import AsyncAudit
    from remotegpu._async.resources.auth import AsyncAuth
    from remotegpu._async.resources.capacity import AsyncCapacity
    from remotegpu._async.resources.customers import AsyncCustomers
    from remotegpu._async.resources.dedications import AsyncDedications
    from remotegpu._async.resources.environments import AsyncEnvironments
    from remotegpu._async.resources.events import AsyncEvents
    from remotegpu._async.resources.gpus import AsyncGpus
    from remotegpu._async.resources.health import AsyncHealth
    from remotegpu._async.resources.hosts import AsyncHosts
    from remotegpu._async.resources.images import AsyncImages
    from remotegpu._async.resources.me import AsyncMe
    from remotegpu._async.resources.notifications import AsyncNotifications
    from remotegpu._async.resources.placements import AsyncPlacements
    from remotegpu._async.resources.queue import AsyncQueue
    from remotegpu._async.resources.quota_requests import AsyncQuotaRequests
    from remotegpu._async.resources.quotas import AsyncQuotas
    from remotegpu._async.resources.reservations import AsyncReservations
    from remotegpu._async.resources.settings import AsyncSettings
    from remotegpu._async.resources.ssh_keys import AsyncSshKeys
    from remotegpu._async.resources.task_arrays import AsyncTaskArrays
    from remotegpu._async.resources.task_inputs import AsyncTaskInputs
    from remotegpu._async.resources.task_schedules import AsyncTaskSchedules
    from remotegpu._async.resources.tasks import AsyncTasks
    from remotegpu._async.resources.tokens import AsyncTokens
    from remotegpu._async.resources.usage import AsyncUsage
    from remotegpu._async.resources.users import AsyncUsers
    from remotegpu._async.resources.volumes import AsyncVolumes
    from remotegpu._async.resources.webhooks import AsyncWebhooks
    from remotegpu._async.resources.workspaces import AsyncWorkspaces


class AsyncClient:
    """A RemoteGPU server, as one caller sees it.

    Without arguments it goes where ``REMOTEGPU_URL`` and ``REMOTEGPU_TOKEN`` say (set in every notebook),
    else where ``remotegpu login`` went. A token is only sent to the server it was given with; ``token=""``
    sends none.

    `timeout_s` bounds each attempt of a request, `max_retries` how often one is repeated where that is safe.
    Close the client, or use it in a ``with`` statement. :raises NotConfigured: no server is known.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = 30.0,
        max_retries: int = 3,
        transport: _http.AsyncBaseTransport | None = None,
    ) -> None:
        self._owns_connections = True
        self._transport = AsyncTransport(
            _config.resolve(url, token),
            timeout_s=timeout_s,
            max_retries=max_retries,
            http_transport=transport,
        )

    @property
    def url(self) -> str:
        """The server's address."""
        return self._transport.url

    def on_behalf_of(self, username: str) -> Self:
        """This client acting for a user; for services. Shares the connections; closing it closes nothing."""
        view = copy.copy(self)
        vars(view).clear()  # resources that were used already are bound to the old transport
        view._owns_connections = False
        view._transport = self._transport.bound_to(username)
        return view

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owns_connections:
            await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        acting = f" for {self._transport.acting_for}" if self._transport.acting_for else ""
        return f"<{type(self).__name__} {self.url}{acting}>"

    # Resources are imported on first use: each brings its wire types, and most programs need two or three.

    @cached_property
    def auth(self) -> AsyncAuth:
        """Signing in and out."""
        from remotegpu._async.resources.auth import AsyncAuth

        return AsyncAuth(self._transport)

    @cached_property
    def me(self) -> AsyncMe:
        """The caller."""
        from remotegpu._async.resources.me import AsyncMe

        return AsyncMe(self._transport)

    @cached_property
    def tokens(self) -> AsyncTokens:
        """API tokens of the caller."""
        from remotegpu._async.resources.tokens import AsyncTokens

        return AsyncTokens(self._transport)

    @cached_property
    def customers(self) -> AsyncCustomers:
        """The tenants."""
        from remotegpu._async.resources.customers import AsyncCustomers

        return AsyncCustomers(self._transport)

    @cached_property
    def users(self) -> AsyncUsers:
        """The logins."""
        from remotegpu._async.resources.users import AsyncUsers

        return AsyncUsers(self._transport)

    @cached_property
    def workspaces(self) -> AsyncWorkspaces:
        """Where environments live, and who works there."""
        from remotegpu._async.resources.workspaces import AsyncWorkspaces

        return AsyncWorkspaces(self._transport)

    @cached_property
    def hosts(self) -> AsyncHosts:
        """Machines with one agent each."""
        from remotegpu._async.resources.hosts import AsyncHosts

        return AsyncHosts(self._transport)

    @cached_property
    def dedications(self) -> AsyncDedications:
        """Hosts lent for a period."""
        from remotegpu._async.resources.dedications import AsyncDedications

        return AsyncDedications(self._transport)

    @cached_property
    def gpus(self) -> AsyncGpus:
        """GPUs of all hosts."""
        from remotegpu._async.resources.gpus import AsyncGpus

        return AsyncGpus(self._transport)

    @cached_property
    def capacity(self) -> AsyncCapacity:
        """What could start now."""
        from remotegpu._async.resources.capacity import AsyncCapacity

        return AsyncCapacity(self._transport)

    @cached_property
    def images(self) -> AsyncImages:
        """What may run."""
        from remotegpu._async.resources.images import AsyncImages

        return AsyncImages(self._transport)

    @cached_property
    def reservations(self) -> AsyncReservations:
        """GPUs promised for a period."""
        from remotegpu._async.resources.reservations import AsyncReservations

        return AsyncReservations(self._transport)

    @cached_property
    def queue(self) -> AsyncQueue:
        """The queue as a whole."""
        from remotegpu._async.resources.queue import AsyncQueue

        return AsyncQueue(self._transport)

    @cached_property
    def quotas(self) -> AsyncQuotas:
        """What a subject may hold at once."""
        from remotegpu._async.resources.quotas import AsyncQuotas

        return AsyncQuotas(self._transport)

    @cached_property
    def ssh_keys(self) -> AsyncSshKeys:
        """SSH keys of the caller."""
        from remotegpu._async.resources.ssh_keys import AsyncSshKeys

        return AsyncSshKeys(self._transport)

    @cached_property
    def volumes(self) -> AsyncVolumes:
        """Homes, and what they take of the disk."""
        from remotegpu._async.resources.volumes import AsyncVolumes

        return AsyncVolumes(self._transport)

    @cached_property
    def quota_requests(self) -> AsyncQuotaRequests:
        """Asking for a higher limit."""
        from remotegpu._async.resources.quota_requests import AsyncQuotaRequests

        return AsyncQuotaRequests(self._transport)

    @cached_property
    def settings(self) -> AsyncSettings:
        """What admins change while the server runs."""
        from remotegpu._async.resources.settings import AsyncSettings

        return AsyncSettings(self._transport)

    @cached_property
    def usage(self) -> AsyncUsage:
        """What was used."""
        from remotegpu._async.resources.usage import AsyncUsage

        return AsyncUsage(self._transport)

    @cached_property
    def placements(self) -> AsyncPlacements:
        """What would happen to a request."""
        from remotegpu._async.resources.placements import AsyncPlacements

        return AsyncPlacements(self._transport)

    @cached_property
    def tasks(self) -> AsyncTasks:
        """Commands that run to their end on a host."""
        from remotegpu._async.resources.tasks import AsyncTasks

        return AsyncTasks(self._transport)

    @cached_property
    def task_arrays(self) -> AsyncTaskArrays:
        """Arrays of tasks, as a whole."""
        from remotegpu._async.resources.task_arrays import AsyncTaskArrays

        return AsyncTaskArrays(self._transport)

    @cached_property
    def task_inputs(self) -> AsyncTaskInputs:
        """Files that are sent before the tasks that read them."""
        from remotegpu._async.resources.task_inputs import AsyncTaskInputs

        return AsyncTaskInputs(self._transport)

    @cached_property
    def task_schedules(self) -> AsyncTaskSchedules:
        """The same task submitted again and again."""
        from remotegpu._async.resources.task_schedules import AsyncTaskSchedules

        return AsyncTaskSchedules(self._transport)

    @cached_property
    def environments(self) -> AsyncEnvironments:
        """Interactive containers with a notebook server."""
        from remotegpu._async.resources.environments import AsyncEnvironments

        return AsyncEnvironments(self._transport)

    @cached_property
    def events(self) -> AsyncEvents:
        """What happened."""
        from remotegpu._async.resources.events import AsyncEvents

        return AsyncEvents(self._transport)

    @cached_property
    def notifications(self) -> AsyncNotifications:
        """What the caller is told."""
        from remotegpu._async.resources.notifications import AsyncNotifications

        return AsyncNotifications(self._transport)

    @cached_property
    def alerts(self) -> AsyncAlerts:
        """What the rules say of hosts, GPUs and work."""
        from remotegpu._async.resources.alerts import AsyncAlerts

        return AsyncAlerts(self._transport)

    @cached_property
    def alert_rules(self) -> AsyncAlertRules:
        """What admins want to hear of."""
        from remotegpu._async.resources.alert_rules import AsyncAlertRules

        return AsyncAlertRules(self._transport)

    @cached_property
    def alert_silences(self) -> AsyncAlertSilences:
        """Nobody is told for a while."""
        from remotegpu._async.resources.alert_silences import AsyncAlertSilences

        return AsyncAlertSilences(self._transport)

    @cached_property
    def webhooks(self) -> AsyncWebhooks:
        """Programs that are told what happens."""
        from remotegpu._async.resources.webhooks import AsyncWebhooks

        return AsyncWebhooks(self._transport)

    @cached_property
    def audit(self) -> AsyncAudit:
        """Who did what."""
        from remotegpu._async.resources.audit import AsyncAudit

        return AsyncAudit(self._transport)

    @cached_property
    def agent(self) -> AsyncAgent:
        """The protocol of a host's agent."""
        from remotegpu._async.resources.agent import AsyncAgent

        return AsyncAgent(self._transport)

    @cached_property
    def health(self) -> AsyncHealth:
        """Whether the server is well."""
        from remotegpu._async.resources.health import AsyncHealth

        return AsyncHealth(self._transport)
