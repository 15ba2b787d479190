"""The command line: ``remotegpu``. A thin shell around :class:`remotegpu.Client`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from remotegpu.cli.failures import INTERRUPTED, PIPE_CLOSED, UsageError, report
from remotegpu.cli.parser import make_parser
from remotegpu.errors import RemoteGPUError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the answer is the exit code (``docs/cli.md``)."""
    arguments = make_parser().parse_args(argv)
    as_json = bool(getattr(arguments, "json", False))
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except (RemoteGPUError, UsageError) as error:
        return report(error, as_json=as_json)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us (`| head`) has enough; Python must not complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return 0
