"""Writes ``remotegpu/_sync`` from ``remotegpu/_async``; with ``--check`` only fails when they differ."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent
SOURCE = ROOT / "remotegpu" / "_async"
TARGET = ROOT / "remotegpu" / "_sync"
SETTINGS = ROOT.parent / "pyproject.toml"

HEADER = "# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.\n"

SUBSTITUTIONS = (
    (r"async (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bremotegpu\._async\b", "remotegpu._sync"),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\bAwaitable, ", ""),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bAsyncGenerator\[([\w| ]+), None\]", r"Generator[\1, None, None]"),
    (r"\bAsyncGenerator\b", "Generator"),
    (r"\baclosing\b", "closing"),
    (r"\bAsyncBaseTransport\b", "BaseTransport"),
    (r"\bAsync(Client|Page)\b", r"\1"),
    (r"\bAsync([A-Z]\w+)", r"Sync\1"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"__a(iter|enter|exit)__", r"__\1__"),
    (r"\ba(close|read)\(", r"\1("),
    (r"\baiter_bytes\b", "iter_bytes"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\bimport asyncio\nimport copy\nimport sys\n", "import copy\nimport sys\nimport time\n"),
    (r"\bimport asyncio\nimport time\n", "import time\n"),
    (r"\bimport asyncio\n", "import time\n"),
    (r'"""The client, written once\..*?"""', '"""The blocking client."""'),
)


def generate() -> dict[Path, str]:
    """The files of the blocking client. :raises SystemExit: a substitution is not needed any more."""
    unused = set(range(len(SUBSTITUTIONS)))
    texts = {}
    for source in sorted(SOURCE.rglob("*.py")):
        text = source.read_text(encoding="utf-8")
        for number, (pattern, replacement) in enumerate(SUBSTITUTIONS):
            text, count = re.subn(pattern, replacement, text, flags=re.DOTALL)
            if count:
                unused.discard(number)
        leftover = re.search(r"\b(async|await|asyncio|Async\w+|_async)\b", text)
        if leftover:
            sys.exit(f"{source}: {leftover[0]!r} is left over; add a substitution")
        texts[TARGET / source.relative_to(SOURCE)] = _formatted(HEADER + text)
    if unused:
        sys.exit(
            f"substitutions that match nothing: {[SUBSTITUTIONS[number][0] for number in sorted(unused)]}"
        )
    return texts


def _formatted(text: str) -> str:
    for command in (["check", "--select=I", "--fix", "--quiet"], ["format", "--quiet"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, f"--config={SETTINGS}", "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        text = done.stdout
    return text


def differences(texts: dict[Path, str]) -> list[Path]:
    """Files that are missing, differ, or should not be there."""
    stale = [
        path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    return stale + [path for path in TARGET.rglob("*.py") if path not in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="fail when the generated files are not up to date"
    )
    check = parser.parse_args().check
    texts = generate()
    stale = differences(texts)
    if check and stale:
        sys.exit("not up to date, run sdk/generate_sync.py:\n" + "\n".join(f"  {path}" for path in stale))
    for path in stale:
        if path in texts:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[path], encoding="utf-8")
        else:
            path.unlink()


if __name__ == "__main__":
    main()
