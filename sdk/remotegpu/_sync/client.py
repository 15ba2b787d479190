# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""The client: one attribute per noun of the API."""

from __future__ import annotations

import copy
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from remotegpu import _config, _http
from remotegpu._sync.transport import SyncTransport

if TYPE_CHECKING:
    from remotegpu._sync.resources.agent import SyncAgent
    from remotegpu._sync.resources.alert_rules import SyncAlertRules
    from remotegpu._sync.resources.alert_silences import SyncAlertSilences
    from remotegpu._sync.resources.alerts import SyncAlerts
    from remotegpu._sync.resources.audit import SyncAudit
    from remotegpu._sync.resources.auth import SyncAuth
    from remotegpu._sync.resources.capacity import SyncCapacity
    from remotegpu._sync.resources.customers import SyncCustomers
    from remotegpu._sync.resources.dedications import SyncDedications
    from remotegpu._sync.resources.environments import SyncEnvironments
    from remotegpu._sync.resources.events import SyncEvents
    from remotegpu._sync.resources.gpus import SyncGpus
    from remotegpu._sync.resources.health import SyncHealth
    from remotegpu._sync.resources.hosts import SyncHosts
    from remotegpu._sync.resources.images import SyncImages
    from remotegpu._sync.resources.me import SyncMe
    from remotegpu._sync.resources.notifications import SyncNotifications
    from remotegpu._sync.resources.placements import SyncPlacements
    from remotegpu._sync.resources.queue import SyncQueue
    from remotegpu._sync.resources.quota_requests import SyncQuotaRequests
    from remotegpu._sync.resources.quotas import SyncQuotas
    from remotegpu._sync.resources.reservations import SyncReservations
    from remotegpu._sync.resources.settings import SyncSettings
    from remotegpu._sync.resources.ssh_keys import SyncSshKeys
    from remotegpu._sync.resources.task_arrays import SyncTaskArrays
    from remotegpu._sync.resources.task_inputs import SyncTaskInputs
    from remotegpu._sync.resources.task_schedules import SyncTaskSchedules
    from remotegpu._sync.resources.tasks import SyncTasks
    from remotegpu._sync.resources.tokens import SyncTokens
    from remotegpu._sync.resources.usage import SyncUsage
    from remotegpu._sync.resources.users import SyncUsers
    from remotegpu._sync.resources.volumes import SyncVolumes
    from remotegpu._sync.resources.webhooks import SyncWebhooks
    from remotegpu._sync.resources.workspaces import SyncWorkspaces


class Client:
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
        transport: _http.BaseTransport | None = None,
    ) -> None:
        self._owns_connections = True
        self._transport = SyncTransport(
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

    def close(self) -> None:
        """Close the connections."""
        if self._owns_connections:
            self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        acting = f" for {self._transport.acting_for}" if self._transport.acting_for else ""
        return f"<{type(self).__name__} {self.url}{acting}>"

    # Resources are imported on first use: each brings its wire types, and most programs need two or three.

    @cached_property
    def auth(self) -> SyncAuth:
        """Signing in and out."""
        from remotegpu._sync.resources.auth import SyncAuth

        return SyncAuth(self._transport)

    @cached_property
    def me(self) -> SyncMe:
        """The caller."""
        from remotegpu._sync.resources.me import SyncMe

        return SyncMe(self._transport)

    @cached_property
    def tokens(self) -> SyncTokens:
        """API tokens of the caller."""
        from remotegpu._sync.resources.tokens import SyncTokens

        return SyncTokens(self._transport)

    @cached_property
    def customers(self) -> SyncCustomers:
        """The tenants."""
        from remotegpu._sync.resources.customers import SyncCustomers

        return SyncCustomers(self._transport)

    @cached_property
    def users(self) -> SyncUsers:
        """The logins."""
        from remotegpu._sync.resources.users import SyncUsers

        return SyncUsers(self._transport)

    @cached_property
    def workspaces(self) -> SyncWorkspaces:
        """Where environments live, and who works there."""
        from remotegpu._sync.resources.workspaces import SyncWorkspaces

        return SyncWorkspaces(self._transport)

    @cached_property
    def hosts(self) -> SyncHosts:
        """Machines with one agent each."""
        from remotegpu._sync.resources.hosts import SyncHosts

        return SyncHosts(self._transport)

    @cached_property
    def dedications(self) -> SyncDedications:
        """Hosts lent for a period."""
        from remotegpu._sync.resources.dedications import SyncDedications

        return SyncDedications(self._transport)

    @cached_property
    def gpus(self) -> SyncGpus:
        """GPUs of all hosts."""
        from remotegpu._sync.resources.gpus import SyncGpus

        return SyncGpus(self._transport)

    @cached_property
    def capacity(self) -> SyncCapacity:
        """What could start now."""
        from remotegpu._sync.resources.capacity import SyncCapacity

        return SyncCapacity(self._transport)

    @cached_property
    def images(self) -> SyncImages:
        """What may run."""
        from remotegpu._sync.resources.images import SyncImages

        return SyncImages(self._transport)

    @cached_property
    def reservations(self) -> SyncReservations:
        """GPUs promised for a period."""
        from remotegpu._sync.resources.reservations import SyncReservations

        return SyncReservations(self._transport)

    @cached_property
    def queue(self) -> SyncQueue:
        """The queue as a whole."""
        from remotegpu._sync.resources.queue import SyncQueue

        return SyncQueue(self._transport)

    @cached_property
    def quotas(self) -> SyncQuotas:
        """What a subject may hold at once."""
        from remotegpu._sync.resources.quotas import SyncQuotas

        return SyncQuotas(self._transport)

    @cached_property
    def ssh_keys(self) -> SyncSshKeys:
        """SSH keys of the caller."""
        from remotegpu._sync.resources.ssh_keys import SyncSshKeys

        return SyncSshKeys(self._transport)

    @cached_property
    def volumes(self) -> SyncVolumes:
        """Homes, and what they take of the disk."""
        from remotegpu._sync.resources.volumes import SyncVolumes

        return SyncVolumes(self._transport)

    @cached_property
    def quota_requests(self) -> SyncQuotaRequests:
        """Asking for a higher limit."""
        from remotegpu._sync.resources.quota_requests import SyncQuotaRequests

        return SyncQuotaRequests(self._transport)

    @cached_property
    def settings(self) -> SyncSettings:
        """What admins change while the server runs."""
        from remotegpu._sync.resources.settings import SyncSettings

        return SyncSettings(self._transport)

    @cached_property
    def usage(self) -> SyncUsage:
        """What was used."""
        from remotegpu._sync.resources.usage import SyncUsage

        return SyncUsage(self._transport)

    @cached_property
    def placements(self) -> SyncPlacements:
        """What would happen to a request."""
        from remotegpu._sync.resources.placements import SyncPlacements

        return SyncPlacements(self._transport)

    @cached_property
    def tasks(self) -> SyncTasks:
        """Commands that run to their end on a host."""
        from remotegpu._sync.resources.tasks import SyncTasks

        return SyncTasks(self._transport)

    @cached_property
    def task_arrays(self) -> SyncTaskArrays:
        """Arrays of tasks, as a whole."""
        from remotegpu._sync.resources.task_arrays import SyncTaskArrays

        return SyncTaskArrays(self._transport)

    @cached_property
    def task_inputs(self) -> SyncTaskInputs:
        """Files that are sent before the tasks that read them."""
        from remotegpu._sync.resources.task_inputs import SyncTaskInputs

        return SyncTaskInputs(self._transport)

    @cached_property
    def task_schedules(self) -> SyncTaskSchedules:
        """The same task submitted again and again."""
        from remotegpu._sync.resources.task_schedules import SyncTaskSchedules

        return SyncTaskSchedules(self._transport)

    @cached_property
    def environments(self) -> SyncEnvironments:
        """Interactive containers with a notebook server."""
        from remotegpu._sync.resources.environments import SyncEnvironments

        return SyncEnvironments(self._transport)

    @cached_property
    def events(self) -> SyncEvents:
        """What happened."""
        from remotegpu._sync.resources.events import SyncEvents

        return SyncEvents(self._transport)

    @cached_property
    def notifications(self) -> SyncNotifications:
        """What the caller is told."""
        from remotegpu._sync.resources.notifications import SyncNotifications

        return SyncNotifications(self._transport)

    @cached_property
    def alerts(self) -> SyncAlerts:
        """What the rules say of hosts, GPUs and work."""
        from remotegpu._sync.resources.alerts import SyncAlerts

        return SyncAlerts(self._transport)

    @cached_property
    def alert_rules(self) -> SyncAlertRules:
        """What admins want to hear of."""
        from remotegpu._sync.resources.alert_rules import SyncAlertRules

        return SyncAlertRules(self._transport)

    @cached_property
    def alert_silences(self) -> SyncAlertSilences:
        """Nobody is told for a while."""
        from remotegpu._sync.resources.alert_silences import SyncAlertSilences

        return SyncAlertSilences(self._transport)

    @cached_property
    def webhooks(self) -> SyncWebhooks:
        """Programs that are told what happens."""
        from remotegpu._sync.resources.webhooks import SyncWebhooks

        return SyncWebhooks(self._transport)

    @cached_property
    def audit(self) -> SyncAudit:
        """Who did what."""
        from remotegpu._sync.resources.audit import SyncAudit

        return SyncAudit(self._transport)

    @cached_property
    def agent(self) -> SyncAgent:
        """The protocol of a host's agent."""
        from remotegpu._sync.resources.agent import SyncAgent

        return SyncAgent(self._transport)

    @cached_property
    def health(self) -> SyncHealth:
        """Whether the server is well."""
        from remotegpu._sync.resources.health import SyncHealth

        return SyncHealth(self._transport)
