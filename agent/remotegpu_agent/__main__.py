"""``remotegpu-agent run | slurm | enroll | install-credential | status``."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from remotegpu_agent import __version__, fault_points, status
from remotegpu_agent.settings import (
    Settings,
    SettingsError,
    credential_path,
    load_credential,
    save_credential,
)

# Two libraries load optional parts that an agent never uses: httpx its command line with rich and pygments,
# aiohttp a DNS resolver of its own. Both expect that these are absent; it saves 6 MB.
for _unused in ("httpx._main", "aiodns"):
    sys.modules.setdefault(_unused, None)  # type: ignore[arg-type]

_SECRET_PREFIX = "rga_"  # noqa: S105  how every agent secret begins


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
    try:
        answer: int = arguments.command(arguments)
    except SettingsError as error:
        print(f"remotegpu-agent: {error}", file=sys.stderr)
        return 2
    return answer


def _run(arguments: argparse.Namespace) -> int:
    from remotegpu_agent import runner  # `status` must answer at once and needs none of this

    credential = load_credential(arguments.state_dir)
    settings = _settings(arguments, url=arguments.url or credential.url)
    fault_points.arm(settings.crash_at)
    return int(asyncio.run(runner.run(settings, credential)))


def _slurm(arguments: argparse.Namespace) -> int:
    from remotegpu_agent.slurm import pool

    shared_name, shared_dir = arguments.shared_home or (None, None)
    state_dir: Path = arguments.state_dir.absolute()
    settings = Settings(
        url=arguments.url or "",
        state_dir=state_dir,
        home_root=state_dir,  # of each node its own, below its folder
        shared_home_name=shared_name,
        shared_home_dir=shared_dir,
        labels=dict(arguments.host_label),
        poll_wait_s=arguments.poll_wait,
    )
    offered = pool.Pool(
        partition=arguments.partition, gpu_types=dict(arguments.gpu), simulated=arguments.simulated_gpus
    )
    fault_points.arm(os.environ.get("REMOTEGPU_CRASH_AT"))
    return int(asyncio.run(pool.run(settings, offered)))


def _enroll(arguments: argparse.Namespace) -> int:
    from remotegpu import errors
    from remotegpu_agent import runner

    if not arguments.url:
        raise SettingsError("Say where the server is: --url, or REMOTEGPU_URL.")
    try:
        token = arguments.token or Path(arguments.token_file).read_text().strip()
    except OSError as error:
        raise SettingsError(f"The token file cannot be read: {error}") from None
    try:
        credential = asyncio.run(runner.enroll(arguments.url, token))
    except errors.RemoteGPUError as error:
        print(f"remotegpu-agent: {error}", file=sys.stderr)
        return 1
    save_credential(arguments.state_dir, credential)
    print(f"This host is {credential.host_name}. Credential: {credential_path(arguments.state_dir)}")
    return 0


def _install_credential(arguments: argparse.Namespace) -> int:
    credential = load_credential(arguments.state_dir)
    secret = sys.stdin.read().strip()
    if not secret.startswith(_SECRET_PREFIX) or not secret.isascii() or not secret.isprintable():
        raise SettingsError(
            "Standard input does not hold an agent's secret; `remotegpu host rotate-credential` makes one."
        )
    save_credential(arguments.state_dir, replace(credential, secret=secret))
    print(f"The new secret of {credential.host_name} is in place; it counts from the agent's next start.")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    answer = status.read(arguments.state_dir)
    print(json.dumps(answer, indent=1))
    return 0 if answer["alive"] else 1


def _settings(arguments: argparse.Namespace, *, url: str) -> Settings:
    shared_name, shared_dir = arguments.shared_home or (None, None)
    state_dir: Path = arguments.state_dir.absolute()
    return Settings(
        url=url,
        state_dir=state_dir,
        home_root=(arguments.home_root or state_dir / "homes").absolute(),
        runtime=arguments.runtime,
        docker_host=arguments.docker_host,
        address=arguments.address,
        simulate_gpus=arguments.simulate_gpus,
        shared_home_name=shared_name,
        shared_home_dir=shared_dir,
        labels=dict(arguments.host_label),
        network_pool=arguments.network_pool,
        poll_wait_s=arguments.poll_wait,
        pull_silence_s=arguments.pull_silence,
        max_tasks=arguments.max_tasks,
        metrics_listen=arguments.metrics_listen,
        metrics_token=_secret_of(arguments.metrics_token_file),
        crash_at=os.environ.get("REMOTEGPU_CRASH_AT"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="remotegpu-agent", description="The RemoteGPU host agent.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="run|slurm|enroll|install-credential|status")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--state-dir", type=Path, default=_default_state_dir(), help="default: %(default)s")
    server = argparse.ArgumentParser(add_help=False)
    server.add_argument("--url", default=os.environ.get("REMOTEGPU_URL"), help="the server (REMOTEGPU_URL)")

    serving = argparse.ArgumentParser(add_help=False)
    serving.add_argument(
        "--shared-home", type=_shared_home, metavar="NAME=DIR", help="a shared root of homes"
    )
    serving.add_argument("--host-label", type=_label, action="append", default=[], metavar="KEY=VALUE")
    serving.add_argument(
        "--poll-wait", type=float, default=25.0, metavar="SECONDS", help="default: %(default)s"
    )

    run = commands.add_parser("run", parents=[common, server, serving], help="serve this host")
    run.set_defaults(command=_run)
    run.add_argument("--home-root", type=Path, help="homes of this host (default: STATE_DIR/homes)")
    run.add_argument("--runtime", choices=["auto", "docker", "process"], default="auto")
    run.add_argument("--docker-host", help="unix:///path or tcp://host:port of the engine")
    run.add_argument("--simulate-gpus", metavar="SPEC", help="such as 2xA100-80GB,1xH100-80GB")
    run.add_argument("--address", default="127.0.0.1", help="where the hub's proxy reaches environments")
    run.add_argument("--network-pool", default="10.213.0.0/16", help="default: %(default)s")
    run.add_argument(
        "--max-tasks", type=int, default=Settings.max_tasks, metavar="N",
        help="attempts of tasks that run at once (default: %(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--pull-silence", type=float, default=120.0, metavar="SECONDS",
        help="give up an image transfer that moves nothing for this long (default: %(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--metrics-listen", type=_address_port, metavar="ADDRESS:PORT", help="serve /metrics for Prometheus"
    )
    run.add_argument("--metrics-token-file", type=Path, metavar="FILE", help="what a scrape shows as bearer")

    slurm = commands.add_parser(
        "slurm", parents=[common, server, serving],
        help="serve the enrolled nodes of a partition of Slurm; STATE_DIR has a folder for each",
    )  # fmt: skip
    slurm.set_defaults(command=_slurm)
    slurm.add_argument("--partition", required=True)
    slurm.add_argument(
        "--gpu", type=_label, action="append", default=[], metavar="TYPE=MODEL",
        help="what a type of GRES is, such as a100=A100-80GB",
    )  # fmt: skip
    slurm.add_argument("--simulated-gpus", action="store_true", help="no GPU is behind the device files")

    enroll = commands.add_parser("enroll", parents=[common, server], help="join with a one-time token")
    enroll.set_defaults(command=_enroll)
    token = enroll.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", help="visible in the process list: prefer --token-file")
    token.add_argument("--token-file")

    install = commands.add_parser(
        "install-credential", parents=[common], help="replace this host's secret by the one on standard input"
    )
    install.set_defaults(command=_install_credential)

    show = commands.add_parser("status", parents=[common], help="print the running agent's state as JSON")
    show.set_defaults(command=_status)
    return parser


def _address_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        colon = ""
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT with an IP address")
    return host, int(port)


def _secret_of(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        secret = file.read_text().strip()
    except OSError as error:
        raise SettingsError(f"--metrics-token-file {file}: {error.strerror}") from None
    if len(secret) < 16:
        raise SettingsError(f"--metrics-token-file {file}: a secret of 16 characters or more is needed")
    return secret


def _default_state_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/remotegpu-agent")
    return Path.home() / ".local" / "state" / "remotegpu-agent"


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError("write KEY=VALUE")
    return key, value


def _shared_home(text: str) -> tuple[str, Path]:
    name, directory = _label(text)
    if not Path(directory).is_dir():
        raise argparse.ArgumentTypeError(f"{directory} is not a directory on this host")
    return name, Path(directory)


if __name__ == "__main__":
    sys.exit(main())
