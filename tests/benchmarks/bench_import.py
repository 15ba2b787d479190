"""How long `import remotegpu` and a ready client take, beside httpx and other clients in the same run.

Every figure is the wall time of a whole Python process minus that of bare Python, median over the rounds;
the cases take turns, so that a busy moment hits all of them. Our package is measured in a virtual
environment with its base dependencies only, peers in another one; both are compiled to bytecode.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

OURS = {
    "bare": "pass",
    "import": "import remotegpu",
    "ready": "import remotegpu; remotegpu.Client('https://127.0.0.1:1', 'rgu_x_y')",
    "ready_async": "import remotegpu; remotegpu.AsyncClient('https://127.0.0.1:1', 'rgu_x_y')",
    "first_use": "import remotegpu; remotegpu.Client('https://127.0.0.1:1', 'rgu_x_y').environments",
    "httpx_ready": "import httpx; httpx.Client()",
}
PEERS = {
    "peer_bare": "pass",
    "docker_ready": "import docker; docker.DockerClient(base_url='tcp://127.0.0.1:1', version='1.41')",
    "kubernetes_ready": (
        "import kubernetes.client as k; k.CoreV1Api(k.ApiClient(k.Configuration(host='http://127.0.0.1:1')))"
    ),
    "openai_ready": "import openai; openai.OpenAI(api_key='x', base_url='http://127.0.0.1:1')",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="median of so many (default: %(default)s)")
    parser.add_argument("--venv", type=Path, help="keep and reuse the environments in this folder")
    parser.add_argument("--no-peers", action="store_true", help="only ours and httpx")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-import-") as scratch:
        folder = arguments.venv or Path(scratch)
        cases = {name: (our_venv(folder / "ours"), code) for name, code in OURS.items()}
        if not arguments.no_peers:
            peers = peer_venv(folder / "peers")
            cases |= {name: (peers, code) for name, code in PEERS.items()}
        seconds = measure(cases, rounds=arguments.rounds)
    report(seconds, rounds=arguments.rounds)


def uv(*words: str | Path) -> None:
    environ = {**os.environ, "UV_COMPILE_BYTECODE": "1"}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, "-m", "uv", *map(str, words)], check=True, cwd=ROOT, env=environ)


def our_venv(folder: Path) -> Path:
    """The wheel and nothing but its base dependencies, in the versions of the peers' lock."""
    python = folder / "bin" / "python"
    if not python.exists():
        uv("venv", "--quiet", "--python", sys.executable, folder)
        uv("build", "--quiet", "--wheel", "--out-dir", folder / "wheel", ROOT)
        (wheel,) = (folder / "wheel").glob("*.whl")
        # The lock as constraints: without its hashes, which would demand one for our own wheel too.
        pins = [line.split()[0] for line in lock().read_text().splitlines() if line[:1].isalnum()]
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(pins) + "\n")
        uv("pip", "install", "--quiet", "--python", python, "--constraint", constraints, wheel)
    return python


def peer_venv(folder: Path) -> Path:
    """The peers as locked in requirements/bench.txt."""
    python = folder / "bin" / "python"
    if not python.exists():
        uv("venv", "--quiet", "--python", sys.executable, folder)
        uv("pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", lock())
    return python


def lock() -> Path:
    return ROOT / "requirements" / "bench.txt"


def measure(cases: dict[str, tuple[Path, str]], *, rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each case in each round; one round before that warms the page cache."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, (python, code) in cases.items():
            took = run_once(python, code)
            if number:
                seconds[name].append(took)
    return seconds


def run_once(python: Path, code: str) -> float:
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "REMOTEGPU_")) and not name.lower().endswith("_proxy")
    }
    started = time.perf_counter()
    subprocess.run([str(python), "-c", code], check=True, cwd="/", env=environ)
    return time.perf_counter() - started


def report(seconds: dict[str, list[float]], *, rounds: int) -> None:
    median_ms = {name: statistics.median(values) * 1000 for name, values in seconds.items()}
    print(f"median of {rounds}, wall time; over bare Python in the same environment")
    print(f"{'case':<18}{'total ms':>10}{'over bare ms':>14}{'spread ms':>20}")
    over: dict[str, float] = {}
    for name, total in median_ms.items():
        bare = median_ms["peer_bare" if name in PEERS else "bare"]
        over[name] = round(total - bare, 1)
        spread = f"{min(seconds[name]) * 1000:.1f} to {max(seconds[name]) * 1000:.1f}"
        print(f"{name:<18}{total:>10.1f}{total - bare:>14.1f}{spread:>20}")
    figures = {
        "bare_ms": round(median_ms["bare"], 1),
        "import_ms": over["import"],
        "ready_ms": over["ready"],
        "httpx_ready_ms": over["httpx_ready"],
        "ready_ratio": round(over["ready"] / over["httpx_ready"], 3),
        "ready_async_ms": over["ready_async"],
        "first_use_ms": over["first_use"],
        **{f"{name}_ms": over[name] for name in PEERS if name in over and name != "peer_bare"},
        "over": "bare Python",
        "rounds": rounds,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
