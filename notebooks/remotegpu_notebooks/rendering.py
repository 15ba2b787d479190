"""A view as plain text and as HTML without scripts: for terminals, for saved notebooks, for the magics."""

from __future__ import annotations

from html import escape

from remotegpu_notebooks.formatting import GpuCard, Meter, QuotaMeter, View, duration

BAR = 20
CELL = "padding:2px 14px 2px 0;text-align:left"
BADGE = "border:1px solid currentColor;border-radius:8px;padding:0 6px;font-size:85%"


def status_text(view: View) -> str:
    """GPUs and quota, one line each."""
    lines = [*_notices(view)]
    for index, gpu in enumerate(view["gpus"]):
        lines += _gpu_text(index, gpu)
    return "\n".join([*lines, *quota_lines(view)]) or "Waiting for the server."


def _notices(view: View) -> list[str]:
    lines = []
    if view["notice"]:
        age = "" if view["age_s"] is None else f" The values are {duration(view['age_s'])} old."
        lines.append(f"{view['notice']}{age}")
    if view["empty"]:
        lines.append(view["empty"])
    if view["uptime_s"] is not None:
        lines.append(f"Running for {duration(view['uptime_s'])}")
    return lines


def _gpu_text(index: int, gpu: GpuCard) -> list[str]:
    simulated = " (simulated)" if gpu["simulated"] else ""
    facts = ", ".join(f"{fact['label'].lower()} {fact['text']}" for fact in gpu["facts"])
    return [
        f"GPU {index}: {gpu['model']}{simulated}",
        f"  {_meter_text(gpu['utilization'])}",
        f"  {_meter_text(gpu['memory'])}",
        f"  {facts}",
    ]


def quota_lines(view: View) -> list[str]:
    """The limits as text bars."""
    return [f"Quota {_meter_text(meter, scope=meter['scope'])}" for meter in view["quota"]]


def _meter_text(meter: Meter, *, scope: str = "") -> str:
    label = f"{meter['label']} ({scope})" if scope else meter["label"]
    if meter["fraction"] is None:
        return f"{label}: {meter['text']}"
    filled = round(meter["fraction"] * BAR)
    return f"{label}: [{'#' * filled}{'.' * (BAR - filled)}] {meter['text']}"


def status_html(view: View) -> str:
    """The same as tables. Every text is escaped: names of GPUs and messages come from elsewhere."""
    badge = f' <span style="{BADGE}">simulated</span>' if view["simulated"] else ""
    notices = "".join(f"<div>{escape(line)}</div>" for line in _notices(view))
    tables = _gpu_table(view) + quota_html(view)
    return f'<div class="remotegpu-static"><b>RemoteGPU</b>{badge}{notices}{tables}</div>'


def _gpu_table(view: View) -> str:
    if not view["gpus"]:
        return ""
    rows = [
        [
            f"{index}",
            gpu["model"] + (" (simulated)" if gpu["simulated"] else ""),
            gpu["utilization"]["text"],
            gpu["memory"]["text"],
            *(fact["text"] for fact in gpu["facts"]),
        ]
        for index, gpu in enumerate(view["gpus"])
    ]
    return table_html(["GPU", "Model", "Utilisation", "Memory", "Temperature", "Power"], rows)


def quota_html(view: View) -> str:
    """The limits as a table; empty without any."""
    return _quota_table(view["quota"]) if view["quota"] else ""


def _quota_table(meters: list[QuotaMeter]) -> str:
    return table_html(["Quota", "Whose", "Used"], [[m["label"], m["scope"], m["text"]] for m in meters])


def table_html(head: list[str], rows: list[list[str]]) -> str:
    """A table in the notebook's own style."""
    cells = "".join(f'<th style="{CELL}">{escape(text)}</th>' for text in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{CELL}">{escape(text)}</td>' for text in row) + "</tr>" for row in rows
    )
    return f'<table style="margin:6px 0"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'


def table_text(head: list[str], rows: list[list[str]]) -> str:
    """Columns for a terminal."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    )
