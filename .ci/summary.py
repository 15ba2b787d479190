"""The last line of `.ci/run`: tests passed, failed, skipped. A stage that failed otherwise counts as one."""

# ruff: noqa: INP001, S314  a script, reading what pytest has just written
import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def main(folder, stages):
    passed = failed = skipped = 0
    for stage in stages:
        broken = _count(folder / f"{stage}.xml", ("failures", "errors"))
        left_out = _count(folder / f"{stage}.xml", ("skipped",))
        passed += _count(folder / f"{stage}.xml", ("tests",)) - broken - left_out
        skipped += left_out
        code = int((folder / f"{stage}.code").read_text())
        failed += broken or (code != 0)
    sys.stdout.write(f"{passed} passed, {failed} failed, {skipped} skipped\n")
    return 1 if failed else 0


def _count(report, attributes):
    if not report.exists():
        return 0
    suites = ET.parse(report).getroot().iter("testsuite")
    return sum(int(suite.get(attribute, "0")) for suite in suites for attribute in attributes)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
