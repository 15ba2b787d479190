"""Every command and option. Commands are loaded when they run: ``--help`` needs no httpx, no pydantic."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module

from remotegpu import __version__
from remotegpu.cli import identity_parser, task_parser

Commands = argparse._SubParsersAction  # argparse has no public name for it

_SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_HOST_VERBS = {
    "cordon": "place no new work there",
    "uncordon": "place new work there again",
    "drain": "warn its users, and stop what runs at the deadline",
    "maintenance": "out of service for a while; it must be empty",
    "activate": "back into service",
    "retire": "out of service for good; it must be empty",
}
_QUOTA_SUBJECTS = ("user", "workspace", "customer")
_QUOTA_RESOURCES = (
    "gpus",
    "gpu_hours",
    "cpus",
    "memory_bytes",
    "storage_bytes",
    "environments",
    "tasks",
)
_LIMIT_HELP = f"{', '.join(_QUOTA_RESOURCES)}; a number (0: none allowed) or unlimited"


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="remotegpu",
        description="Notebooks on GPU hosts.",
        epilog="Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 not reachable, 4 not signed in.",
    )
    parser.add_argument("--version", action="version", version=f"remotegpu {__version__}")
    parser.add_argument("--url", help="the server (default: REMOTEGPU_URL, or where you signed in)")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables and sentences")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _session(commands)
    _environments(commands)
    task_parser.add_commands(commands, _add, _group, needs=_needs, pair=_pair)
    _reservations(commands)
    _ssh_keys(commands)
    _volumes(commands)
    _hosts_and_gpus(commands)
    _dedications(commands)
    _quota(commands)
    _settings(commands)
    _images(commands)
    identity_parser.add_commands(commands, _add, _group)
    _events(commands)
    completion = _add(commands, "completion", "completion.show", "print a script that completes commands")
    completion.add_argument("shell", choices=["bash", "zsh", "fish"])
    return parser


def _add(
    commands: Commands[argparse.ArgumentParser], name: str, run: str, help_: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
    # Also after the command, where people type them; without a default, which would undo the one before it.
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--url", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.set_defaults(run=_loader(run))
    return parser


def _loader(run: str) -> Callable[[argparse.Namespace], None]:
    module, function = run.split(".")

    def load_and_run(arguments: argparse.Namespace) -> None:
        getattr(import_module(f"remotegpu.cli.{module}"), function)(arguments)

    return load_and_run


def _group(
    commands: Commands[argparse.ArgumentParser], name: str, help_: str
) -> Commands[argparse.ArgumentParser]:
    parser = commands.add_parser(name, help=help_)
    return parser.add_subparsers(required=True, metavar="COMMAND", title="commands")


def _session(commands: Commands[argparse.ArgumentParser]) -> None:
    login = _add(commands, "login", "session.login", "sign in and keep a session token")
    login.add_argument("server", nargs="?", metavar="URL", help="such as https://gpu.example.org")
    login.add_argument("--username", "-u")
    login.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    login.add_argument(
        "--days", type=float, default=0.5, help="how long the session lasts (default: %(default)s)"
    )
    _add(commands, "logout", "session.logout", "end the session and forget its token")
    _add(commands, "whoami", "session.whoami", "who the server takes you for")


def _environments(commands: Commands[argparse.ArgumentParser]) -> None:
    env = _group(commands, "env", "environments: notebooks on GPU hosts")
    list_ = _add(env, "list", "environments.list_", "list environments")
    list_.add_argument("--owner", help="user name (admins and owners)")
    list_.add_argument("--status", help="such as running")

    create = _add(env, "create", "environments.create", "make an environment and wait until it runs")
    create.add_argument("name")
    create.add_argument("--image", required=True, help="a name from `remotegpu image list`")
    _size_options(create)
    _queue_options(create)
    _start_options(create)

    start = _with_environment(_add(env, "start", "environments.start", "start a stopped environment"))
    start.add_argument("--image", help="left out: as last time, like all the sizes")
    _size_options(start)
    _queue_options(start)
    _start_options(start)

    stop = _with_environment(
        _add(env, "stop", "environments.stop", "stop it and wait until its GPUs are free")
    )
    stop.add_argument("--no-wait", action="store_true", help="return at once")
    stop.add_argument(
        "--timeout", type=float, default=120, metavar="S", help="seconds (default: %(default)s)"
    )

    _with_environment(_add(env, "rm", "environments.remove", "stop and remove it; files stay"))
    logs = _with_environment(_add(env, "logs", "environments.logs", "print its newest output"))
    logs.add_argument("--tail", type=int, metavar="N", help="lines")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until it stops")
    _with_environment(_add(env, "watch", "watching.watch_environment", "print its state at every change"))
    restart = _with_environment(
        _add(env, "restart", "environments.restart", "start it anew on the same host with the same GPUs")
    )
    restart.add_argument("--no-wait", action="store_true", help="return at once")
    restart.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="seconds (default: %(default)s)"
    )
    rename = _with_environment(_add(env, "rename", "environments.rename", "change its name"))
    rename.add_argument("name", nargs="?", help="left out: as it is")
    rename.add_argument("--display-name")
    extend = _with_environment(_add(env, "extend", "environments.extend", "put its stop off"))
    extend.add_argument("--hours", type=float, default=1.0, metavar="N", help="default: %(default)s")
    save = _with_environment(
        _add(env, "save", "environments.save", "save it as an image of its workspace, without the home")
    )
    save.add_argument("image", help="name of the new image")
    save.add_argument("--display-name")
    save.add_argument("--description")
    save.add_argument("--no-wait", action="store_true", help="return at once")
    save.add_argument(
        "--timeout", type=float, default=3600, metavar="S", help="seconds (default: %(default)s)"
    )
    _with_environment(_add(env, "cancel-save", "environments.cancel_save", "take the save under way back"))
    _with_environment(_add(env, "access", "environments.access", "how to reach it: notebook, SSH, ports"))
    _with_environment(_add(env, "open", "environments.open_", "print the URL of its notebook"))

    queue = _add(commands, "queue", "environments.queue", "what waits: position, reason, estimated start")
    queue.add_argument("--owner", help="user name (admins and owners)")


def _reservations(commands: Commands[argparse.ArgumentParser]) -> None:
    group = _group(commands, "reservation", "GPUs promised for a period")
    list_ = _add(group, "list", "reservations.list_", "list reservations")
    list_.add_argument("--all", action="store_true", help="also those that are over")
    create = _add(group, "create", "reservations.create", "reserve GPUs")
    create.add_argument("name")
    create.add_argument("--gpus", type=int, required=True, metavar="N")
    create.add_argument("--gpu-model", metavar="MODEL", help="left out: any")
    create.add_argument("--workspace", metavar="ID", help="left out: your own")
    create.add_argument("--customer", metavar="ID", help="for all its workspaces (owners, admins)")
    calendar = _add(group, "calendar", "reservations.calendar", "what is promised")
    for command, needed in ((create, True), (calendar, False)):
        command.add_argument("--from", dest="starts", type=_time, metavar="TIME", required=needed)
        command.add_argument("--until", dest="ends", type=_time, metavar="TIME", required=needed)
    cancel = _add(group, "cancel", "reservations.cancel", "give one back")
    cancel.add_argument("reservation", metavar="ID")


def _with_environment(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("environment", help="name or id")
    parser.add_argument("--owner", help="whose, where several users have one of this name")
    return parser


def _size_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=int, metavar="N")
    parser.add_argument(
        "--gpu-model", action="append", metavar="MODEL", help="such as A100-80GB; repeatable; left out: any"
    )
    parser.add_argument(
        "--gpu-memory",
        type=_bytes,
        metavar="SIZE",
        help="a share of one GPU, such as 20G, in place of the whole",
    )
    parser.add_argument(
        "--min-gpu-memory", type=_bytes, metavar="SIZE", help="GPUs with at least this memory"
    )
    parser.add_argument("--max-gpu-memory", type=_bytes, metavar="SIZE", help="GPUs with at most this memory")
    parser.add_argument("--mig-profile", metavar="PROFILE", help="MIG instances, such as 1g.10gb, not GPUs")
    parser.add_argument(
        "--host-label", type=_pair, action="append", metavar="KEY=VALUE", help="only such hosts; repeatable"
    )
    parser.add_argument("--cpus", type=float, metavar="N")
    parser.add_argument("--memory", type=_bytes, metavar="SIZE", help="such as 16G")
    parser.add_argument(
        "--env", type=_pair, action="append", default=[], metavar="KEY=VALUE", help="repeatable"
    )


def _needs(parser: argparse.ArgumentParser) -> None:
    _size_options(parser)
    _queue_options(parser)


def _queue_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--priority", type=int, metavar="N", help="1 is served first; usual: 5")
    parser.add_argument(
        "--preemptible", action="store_true", default=None, help="may be stopped for something urgent"
    )
    parser.add_argument("--min-run", type=float, metavar="S", help="but not in its first S seconds")
    parser.add_argument("--start-at", type=_time, metavar="TIME", help="such as 2026-12-01T08:00")


def _start_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-queue", action="store_true", help="fail instead of waiting for free GPUs")
    parser.add_argument("--no-wait", action="store_true", help="return at once")
    parser.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="seconds (default: %(default)s)"
    )


def _ssh_keys(commands: Commands[argparse.ArgumentParser]) -> None:
    keys = _group(commands, "ssh-key", "SSH keys that open your environments")
    _add(keys, "list", "ssh_keys.list_", "list your keys")
    add = _add(keys, "add", "ssh_keys.add", "register a public key")
    add.add_argument("file", help="such as ~/.ssh/id_ed25519.pub; - for standard input")
    add.add_argument("--name", help="left out: the file's")
    remove = _add(keys, "remove", "ssh_keys.remove", "remove a key")
    remove.add_argument("key", help="name, fingerprint or id")


def _volumes(commands: Commands[argparse.ArgumentParser]) -> None:
    volume = _group(commands, "volume", "homes and the disk that they take")
    list_ = _add(volume, "list", "volumes.list_", "list your homes (admins: everybody's)")
    list_.add_argument("--owner", help="only this user's")
    list_.add_argument("--host", help="only those on this host")
    delete = _add(volume, "delete", "volumes.delete", "delete a home with everything in it, for good")
    delete.add_argument("volume", help="its id")


def _hosts_and_gpus(commands: Commands[argparse.ArgumentParser]) -> None:
    host = _group(commands, "host", "hosts (admins)")
    list_ = _add(host, "list", "hosts.list_hosts", "list hosts")
    for state in ("operational", "connection", "health"):
        list_.add_argument(f"--{state}", help="only hosts of this state")
    list_.add_argument("--label", action="append", default=[], metavar="KEY[=VALUE]", help="repeatable")
    list_.add_argument("--gpu-model", help="a part of a model's name")
    _add(host, "show", "hosts.show_host", "everything about one host").add_argument("host", help="name or id")
    add = _add(host, "add", "hosts.add_host", "let a machine join: prints the command to type on it")
    add.add_argument("name")
    add.add_argument(
        "--label", type=_pair, action="append", default=[], metavar="KEY=VALUE", help="repeatable"
    )
    add.add_argument("--again", action="store_true", help="a new token for a host that exists already")
    import_ = _add(host, "import", "hosts.import_csv", "add hosts from a CSV file")
    import_.add_argument("file", metavar="FILE", help="name,hostname,ip_address,labels; - is standard input")
    import_.add_argument("--dry-run", action="store_true", help="say what would happen, and add nothing")
    _add(host, "export", "hosts.export_csv", "print all hosts as CSV")
    rotate = _add(host, "rotate-credential", "hosts.rotate_credential", "a new secret for a host's agent")
    rotate.add_argument("host", help="name or id")
    rotate.add_argument("--overlap", type=int, metavar="S", help="seconds that the old one still works")
    revoke = _add(host, "revoke-credential", "hosts.revoke_credential", "end a host's credential at once")
    revoke.add_argument("host", help="name or id")
    for verb, what in _HOST_VERBS.items():
        do = _add(host, verb, "hosts.operate", what)
        do.set_defaults(verb=verb, deadline=None)
        do.add_argument("hosts", nargs="+", metavar="HOST", help="name or id; several are done one by one")
        do.add_argument("--reason", "--message", default="", help="shown with the host and to its users")
        if verb == "drain":
            do.add_argument("--deadline", type=int, metavar="S", help="seconds until what runs is stopped")

    gpu = _group(commands, "gpu", "GPUs")
    list_ = _add(gpu, "list", "platform.list_gpus", "list GPUs, their load and what is free")
    list_.add_argument("--host")
    list_.add_argument("--model")
    list_.add_argument("--free", action="store_true", help="only those that are free")
    check = _add(gpu, "check", "platform.check_gpu", "have a sick GPU's agent test it (admins)")
    check.add_argument("gpu", help="id")
    restore = _add(gpu, "restore", "platform.restore_gpu", "take a sick GPU back on your word (admins)")
    restore.add_argument("gpu", help="id")
    restore.add_argument("--reason", required=True)


def _dedications(commands: Commands[argparse.ArgumentParser]) -> None:
    group = _group(commands, "dedication", "hosts lent to a customer or a workspace")
    _add(group, "list", "dedications.list_", "newest first").add_argument("--host", help="name or id")
    create = _add(group, "create", "dedications.create", "lend a host for a period")
    create.add_argument("host")
    create.add_argument("--customer", required=True)
    create.add_argument("--workspace", help="left out: the whole customer")
    create.add_argument("--start-at", type=_time, metavar="TIME", help="left out: now")
    create.add_argument("--until", type=_time, required=True, metavar="TIME")
    create.add_argument("--remark")
    extend = _add(group, "extend", "dedications.extend", "change its end")
    extend.add_argument("dedication", help="id")
    extend.add_argument("--until", type=_time, required=True, metavar="TIME")
    end = _add(group, "end", "dedications.end", "end it early: its grace begins")
    end.add_argument("dedication", help="id")
    end.add_argument("--reason")
    reclaim = _add(group, "reclaim", "dedications.reclaim", "clean the host up now")
    reclaim.add_argument("dedication", help="id")
    reclaim.add_argument("--reason", required=True)
    reclaim.add_argument("--force", action="store_true", help="although work runs")


def _quota(commands: Commands[argparse.ArgumentParser]) -> None:
    quota = _add(commands, "quota", "quotas.show", "your limits and what is used of them")
    verbs = quota.add_subparsers(metavar="COMMAND", title="commands")
    get = _add(verbs, "get", "quotas.get", "the limits of a user, workspace or customer")
    set_ = _add(verbs, "set", "quotas.set_", "change limits (admins)")
    for parser in (get, set_):
        parser.add_argument("subject", choices=_QUOTA_SUBJECTS)
        parser.add_argument("name", help="id or name; of a workspace the id")
    set_.add_argument("limit", type=_limit, nargs="+", metavar="RESOURCE=LIMIT", help=_LIMIT_HELP)

    check = _add(verbs, "check", "quotas.check", "would the limits allow this")
    check.add_argument("amount", type=_limit, nargs="+", metavar="RESOURCE=AMOUNT")
    check.add_argument("--workspace", help="id; left out: the personal one")

    request = _add(verbs, "request", "quotas.request", "ask for a higher limit")
    request.add_argument("limit", type=_limit, metavar="RESOURCE=LIMIT", help="the limit that you want")
    request.add_argument("--why", required=True)
    request.add_argument("--until", type=_until, metavar="TIME", help="3d, 12h, or 2026-12-31")
    request.add_argument("--subject", choices=_QUOTA_SUBJECTS, help="whose limit; left out: yours")
    request.add_argument("--name", help="id or name of the subject; left out: your own")
    requests = _add(verbs, "requests", "quotas.requests", "requests for more: yours, or those you decide")
    requests.add_argument("--status", choices=["open", "approved", "refused", "withdrawn", "lapsed"])
    approve = _add(verbs, "approve", "quotas.approve", "grant a request (owners, admins)")
    approve.add_argument("request", help="id")
    approve.add_argument("--amount", type=int, help="left out: as asked")
    approve.add_argument("--until", type=_until, metavar="TIME", help="3d, 12h, or 2026-12-31")
    approve.add_argument("--note")
    refuse = _add(verbs, "refuse", "quotas.refuse", "refuse a request (owners, admins)")
    refuse.add_argument("request", help="id")
    refuse.add_argument("note", help="why")


def _settings(commands: Commands[argparse.ArgumentParser]) -> None:
    setting = _group(commands, "setting", "platform settings: what admins change while it runs")
    _add(setting, "list", "settings.list_", "list settings")
    get = _add(setting, "get", "settings.get", "one setting and what it means")
    set_ = _add(setting, "set", "settings.set_", "change a setting (admins)")
    reset = _add(setting, "reset", "settings.reset", "set it back to its default (admins)")
    for parser in (get, set_, reset):
        parser.add_argument("key", help="such as system.name")
    set_.add_argument("value")


def _images(commands: Commands[argparse.ArgumentParser]) -> None:
    image = _group(commands, "image", "images: what may run")
    _add(image, "list", "platform.list_images", "list images")
    add = _add(image, "add", "platform.add_image", "allow an image (admins)")
    add.add_argument("name")
    add.add_argument("reference", help="what the engine pulls")
    add.add_argument("--display-name")
    add.add_argument("--digest", help="sha256:...; left out, the first pull pins it")
    add.add_argument("--runtime", choices=["docker", "process", "slurm"])
    add.add_argument(
        "--command",
        type=shlex.split,
        metavar="'PROGRAM ARGUMENT …'",
        help="starts the notebook server (default: the image's own; needed with --runtime process)",
    )

    for verb, what in (
        ("activate", "let new environments use it (admins)"),
        ("deprecate", "warn whoever starts it, and refuse that from a time on (admins)"),
        ("withdraw", "nothing new starts from it; what runs goes on (admins)"),
    ):
        change = _add(image, verb, f"platform.{verb}_image", what)
        change.add_argument("image", help="id or name")
        if verb == "deprecate":
            change.add_argument("--until", type=_until, metavar="TIME", help="30d, or 2026-12-31")
            change.add_argument("--note", help="such as what to use instead")


def _events(commands: Commands[argparse.ArgumentParser]) -> None:
    event = _group(commands, "event", "events: what happened")
    list_ = _add(event, "list", "watching.list_events", "list events, oldest first")
    watch = _add(event, "watch", "watching.watch_events", "print events as they happen")
    for parser in (list_, watch):
        parser.add_argument("--subject-type", metavar="TYPE", help="such as environment")
        parser.add_argument("--subject-id", metavar="ID")
        parser.add_argument("--after", metavar="ID", help="only those after this event; 0 is the beginning")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b?)", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"not a size like 16G: {text!r}")
    return int(float(match[1]) * _SIZES[match[2]])


def _time(text: str) -> datetime:
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a time like 2026-12-01T08:00: {text!r}") from None
    return given if given.tzinfo else given.astimezone()


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"not KEY=VALUE: {text!r}")
    return key, value


def _limit(text: str) -> tuple[str, int | None]:
    resource, value = _pair(text)
    if resource not in _QUOTA_RESOURCES:
        raise argparse.ArgumentTypeError(f"not one of {', '.join(_QUOTA_RESOURCES)}: {resource!r}")
    if value == "unlimited":
        return resource, None
    if resource.endswith("_bytes"):
        return resource, _bytes(value)
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"neither a whole number nor unlimited: {value!r}")
    return resource, int(value)


def _until(text: str) -> datetime:
    """A time: so many days or hours from now, or a date with or without a clock time, of this machine."""
    match = re.fullmatch(r"(\d+)([dh])", text.strip())
    if match is not None:
        return datetime.now(UTC) + timedelta(**{"days" if match[2] == "d" else "hours": int(match[1])})
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a time like 3d, 12h or 2026-12-31: {text!r}") from None
