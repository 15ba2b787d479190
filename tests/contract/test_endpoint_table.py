"""The endpoint tables of docs/api.md are the app's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.routing import APIRoute

_API = Path(__file__).parents[2] / "docs" / "api.md"


def test_endpoint_tables_name_exactly_the_routes_of_the_app(app: FastAPI) -> None:
    served = {
        (method, _without_names(route.path))
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert set(_documented(_API.read_text())) == served


def _documented(text: str) -> Iterator[tuple[str, str]]:
    """Every method and path of the tables' first column; ``…`` repeats the path before it."""
    tables = text.split("| endpoint |")[1:]
    for row in (row for table in tables for row in table.split("\n\n")[0].splitlines()[2:]):
        path = ""
        methods: list[str] = []
        for code in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
            *named, place = re.split(r",? ", code)
            methods = named or methods
            path = place.split("?")[0].split("&")[0].replace("…", path.split(":")[0])
            for method in methods:
                yield method, _without_names(path)


def _without_names(path: str) -> str:
    return re.sub(r"{\w+}", "{}", path)
