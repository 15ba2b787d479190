"""Pure: what a job runs, and what agent and job write for each other.

The job's script holds no secret and is the same for every command: the controller keeps it. What is to be run
comes in the file ``go``, once the agent has seen that the job has its place.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from remotegpu_agent import processes
from remotegpu_agent.slurm.commands import JOB_PREFIX
from remotegpu_agent.tasks import shim

GO_WAIT_S = 300
"""A job that hears so long of no renewal gives its place back: by then its attempt has been given up."""
_END = "# end"

_SCRIPT = r"""#!/bin/sh
# One attempt of a task of RemoteGPU. It begins when its agent says so, and ends when its agent is silent.
REMOTEGPU_JOB=%(folder)s marker=%(marker)s # no variable of a task has that name
cd / || exit 76

be_there() { # anew where another job of this attempt, which will go, has said so meanwhile
    read -r said 2>/dev/null <"$REMOTEGPU_JOB/there" && [ "$said" = "job $SLURM_JOB_ID" ] && return
    {
        echo "job $SLURM_JOB_ID"
        echo "node ${SLURMD_NODENAME:-}"
        echo "gpus ${SLURM_JOB_GPUS:-}"
        echo "visible ${CUDA_VISIBLE_DEVICES:-}"
        echo "%(end)s"
    } >"$REMOTEGPU_JOB/there" || exit 76
}
may_begin() {
    read -r first <"$REMOTEGPU_JOB/go" && [ "$first" = "# go $SLURM_JOB_ID" ] &&
        [ "$(tail -n 1 "$REMOTEGPU_JOB/go")" = "%(end)s" ]
}
looks=0 renewal=
until may_begin; do
    [ "$looks" -ge %(looks)d ] && exit 75
    looks=$((looks + 1))
    be_there
    read -r word rest 2>/dev/null <"$REMOTEGPU_JOB/alive" &&
        [ "$word" != "$renewal" ] && renewal=$word looks=0
    sleep 0.2
done

end_tree() { # SIGNAL: to every process with the marker; false: there was none
    found=$(grep -laF -- "$marker" /proc/[0-9]*/environ 2>/dev/null)
    [ -n "$found" ] || return 1
    for place in $found; do
        place=${place#/proc/}
        kill -s "$1" "${place%%/environ}" 2>/dev/null
    done
}
kill_tree() {
    pass=0
    while [ "$pass" -lt 50 ] && end_tree KILL; do
        pass=$((pass + 1))
        sleep 0.1
    done
}
watch() { # its agent's sign of life, by the clock of this node
    trap '' TERM INT HUP
    trap 'kill -s KILL "$nap"; exit' USR1
    seen= until=0 grace=0 nap=
    while :; do
        read -r up rest </proc/uptime
        now=${up%%.*}
        [ -n "$seen" ] && [ "$now" -ge "$until" ] && break # what is new may be from before a freeze
        if read -r word left wait last <"$REMOTEGPU_JOB/alive" &&
            [ "$last" = "%(end)s" ] && [ "$word" != "$seen" ]; then
            seen=$word until=$((now + left)) grace=$wait
        fi
        [ "$now" -ge "$until" ] && break
        sleep 0.5 &
        nap=$!
        wait "$nap"
    done
    [ "$seen" = %(over)s ] || echo fenced >>"$REMOTEGPU_JOB/there"
    if [ "$grace" -gt 0 ]; then
        end_tree TERM
        waited=0
        while [ "$waited" -lt "$grace" ] && grep -qaF -- "$marker" /proc/[0-9]*/environ 2>/dev/null; do
            waited=$((waited + 1))
            sleep 1
        done
    fi
    kill_tree
    sleep 2 & # by then the end of the command has ended this watch, unless it hides from it
    nap=$!
    wait "$nap"
    kill -s KILL 0
}

trap : TERM INT HUP
watch >/dev/null 2>&1 &
watcher=$!
{
    trap : TERM INT HUP
    (
        . "$REMOTEGPU_JOB/go"
        : >"$REMOTEGPU_JOB/go"
        echo began >>"$REMOTEGPU_JOB/there"
        exec "$@"
    )
    code=$?
    kill_tree >/dev/null 2>&1
    echo "$code" 1<>"$REMOTEGPU_JOB/exit"
} 2>&1 </dev/null | (
    trap '' TERM INT HUP XFSZ
    exec 2>/dev/null
    ulimit -f %(blocks)d
    %(cat)s >>"$REMOTEGPU_JOB/log" || exec %(cat)s >/dev/null
)
kill -s USR1 "$watcher"
wait "$watcher"
read -r code <"$REMOTEGPU_JOB/exit"
exit "${code:-1}"
"""


@dataclass(frozen=True, kw_only=True)
class There:
    """What a job says of itself once it has its place."""

    job_id: str
    node: str
    gpus: str
    """``SLURM_JOB_GPUS``: the numbers of its devices on the node."""
    visible: str
    """``CUDA_VISIBLE_DEVICES``."""
    began: bool
    fenced: bool
    """It ended itself, since its agent was silent."""


def script(folder: str, *, marker: str, log_cap_bytes: int) -> str:
    return _SCRIPT % {
        "folder": shlex.quote(folder),
        "marker": shlex.quote(f"{processes.MARKER}={marker}"),
        "end": _END,
        "over": OVER,
        "looks": GO_WAIT_S * 5,
        "blocks": shim.blocks(log_cap_bytes),
        "cat": shim.CAT,
    }


def go(job_id: str, *, environment: Mapping[str, str], working_dir: str, command: Sequence[str]) -> str:
    """Read by the job's shell. The last line shows that all of it has arrived."""
    lines = [f"# go {job_id}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append(f"cd {shlex.quote(working_dir)} || exit 126")
    lines.append(f"set -- {shlex.join(command)}")
    return "\n".join([*lines, _END, ""])


def may_begin(text: str, job_id: str) -> bool:
    """Whether the job with this number was told to begin."""
    return text.startswith(f"# go {job_id}\n") and text.endswith(f"{_END}\n")


OVER = "over"
"""In place of a word of renewal: end all of it now."""


def alive(word: str, *, left_s: float, grace_s: float) -> str:
    """One line of a fixed width, written over the last one; whole seconds, and never more than are left."""
    return f"{word} {max(0, math.floor(left_s))} {max(0, math.ceil(grace_s))} {_END}".ljust(119) + "\n"


def there(text: str) -> There | None:
    """``None``: no job was there yet, or it is just writing."""
    lines = text.splitlines()
    if _END not in lines:
        return None
    told = dict(line.partition(" ")[::2] for line in lines[: lines.index(_END)])
    after = lines[lines.index(_END) + 1 :]
    return There(
        job_id=told.get("job", ""),
        node=told.get("node", ""),
        gpus=told.get("gpus", ""),
        visible=told.get("visible", ""),
        began="began" in after,
        fenced="fenced" in after,
    )


def name(attempt_id: str) -> str:
    return f"{JOB_PREFIX}{attempt_id}"


def comment(*, host_id: str, attempt_id: str, epoch: int, owner: str) -> str:
    """For people who look at the queue; the host's id tells whose attempt it is."""
    return f"remotegpu {host_id} {attempt_id} epoch={epoch} owner={owner}"


def is_of_host(text: str, host_id: str) -> bool:
    return text.startswith(f"remotegpu {host_id} ")
