"""The pure plan, applied to a model of a host: it always arrives, and never does what it must not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from agent_workloads import absent, workload
from hypothesis import given, settings
from hypothesis import strategies as st

from remotegpu.types.agent import DesiredState, Workload
from remotegpu_agent import reconcile
from remotegpu_agent.reconcile import Past
from remotegpu_agent.runtime import Actual, ActualState

STATES = st.sampled_from(list(ActualState))


def instance(generation: int, state: ActualState) -> Actual:
    name = f"rgpu-{generation}-{state}"
    return Actual(key=name, name=name, workload_id="env-1", generation=generation, state=state)


INSTANCES = st.lists(st.builds(instance, st.integers(1, 4), STATES), max_size=4, unique_by=lambda it: it.key)


@dataclass
class Host:
    """Applies steps as a runtime would, and notes what was reported."""

    instances: list[Actual]
    past: Past = field(default_factory=Past)
    reported: list[str] = field(default_factory=list)
    stopped: list[Actual] = field(default_factory=list)

    def apply(self, step: reconcile.Step) -> None:
        match step:
            case reconcile.Create(wanted):
                self.instances.append(instance(wanted.generation, ActualState.RUNNING))
                self.past = replace(self.past, launched=True)
            case reconcile.Stop(actual):
                self.stopped.append(actual)
                self._move(actual, ActualState.EXITED)
            case reconcile.Remove(_, generation):
                left = [it for it in self.instances if it.generation > generation]
                assert all(it.state is not ActualState.RUNNING for it in self.instances if it not in left)
                self.instances = left
            case reconcile.ReportAbsent():
                assert self.instances == [], "absence was reported without proof"
                self.reported.append("absent")
            case reconcile.Quarantine():
                self.reported.append("quarantined")
            case reconcile.Pull():
                return
            case _:
                self.reported.append(type(step).__name__)

    def _move(self, actual: Actual, state: ActualState) -> None:
        self.instances = [replace(it, state=state) if it.key == actual.key else it for it in self.instances]

    def settle(self, desired: Workload | None) -> list[reconcile.Step]:
        """Plan and apply until the plan changes nothing; the plan of the rest state."""
        for _ in range(5):
            before = (list(self.instances), self.past)
            steps = reconcile.plan(desired, self.instances, self.past)
            for step in steps:
                self.apply(step)
            if before == (self.instances, self.past):
                return steps
        raise AssertionError(f"never comes to rest: {self.instances}")


@given(INSTANCES)
def test_absent_leaves_nothing_whatever_was_there(found: list[Actual]) -> None:
    host = Host(found)
    host.settle(absent(workload(generation=4)))
    assert host.instances == []
    assert host.reported[-1] == "absent"


@given(INSTANCES)
def test_unexplained_instances_are_never_touched(found: list[Actual]) -> None:
    host = Host(list(found))
    host.settle(None)
    assert host.instances == found
    assert host.stopped == []


@settings(max_examples=300)
@given(INSTANCES, st.booleans(), st.booleans())
def test_running_ends_with_at_most_one_instance_of_the_wanted_generation(
    found: list[Actual], launched: bool, failed: bool
) -> None:
    host = Host(found, Past(launched=launched, failed=failed))
    newer = any(it.generation > 3 for it in found)
    steps = host.settle(workload(generation=3))
    if newer:
        assert host.instances == found, "a stale desired set touched a newer instance"
        return
    alive = [it for it in host.instances if it.state is ActualState.RUNNING]
    assert len(alive) <= 1
    assert all(it.generation == 3 for it in host.instances)
    running = [it for it in found if it.generation == 3 and it.state is ActualState.RUNNING]
    if len(running) == 1 and not failed:
        assert running[0] not in host.stopped, "a good instance was stopped"
    assert len(steps) == 1, "the rest state is one report"


@given(INSTANCES)
def test_word_of_a_newer_server_changes_nothing(found: list[Actual]) -> None:
    unknown = workload().model_copy(update={"desired": DesiredState.UNKNOWN})
    assert reconcile.plan(unknown, found, Past()) == []


def test_first_start_pulls_creates_and_follows() -> None:
    wanted = workload()
    assert reconcile.plan(wanted, [], Past()) == [reconcile.Pull(wanted), reconcile.Create(wanted)]


def test_instance_that_was_started_and_vanished_is_reported_not_made_again() -> None:
    assert reconcile.plan(workload(), [], Past(launched=True)) == [reconcile.ReportVanished()]


def test_instance_that_ended_stays_until_the_server_says_absent() -> None:
    ended = instance(1, ActualState.EXITED)
    assert reconcile.plan(workload(), [ended], Past(launched=True)) == [reconcile.ReportExited(ended)]


def test_instance_that_was_only_created_is_made_anew() -> None:
    wanted = workload()
    assert reconcile.plan(wanted, [instance(1, ActualState.CREATED)], Past()) == [
        reconcile.Remove("env-1", 1),
        reconcile.Pull(wanted),
        reconcile.Create(wanted),
    ]


def test_older_generation_is_stopped_and_removed_before_the_new_one_is_made() -> None:
    old, wanted = instance(1, ActualState.RUNNING), workload(generation=2)
    assert reconcile.plan(wanted, [old], Past()) == [
        reconcile.Stop(old, wanted.stop_grace_s),
        reconcile.Remove("env-1", 1),
        reconcile.Pull(wanted),
        reconcile.Create(wanted),
    ]
