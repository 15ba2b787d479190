"""The GPU pages: signed in by the hub, as the person who looks, with actions for admins alone."""

from __future__ import annotations

import re

import httpx
import psutil
import pytest
from bs4 import BeautifulSoup
from hub.stack import Hub, Stack, until

pytestmark = [pytest.mark.hub, pytest.mark.timeout(180)]

PAGES = "/services/remotegpu/"


@pytest.fixture(autouse=True, scope="module")
def _pages_are_up(hub: Hub) -> None:
    """The hub answers before its services do."""
    up = httpx.codes.FOUND
    until("the pages answer", lambda: "oauth2" in httpx.get(hub.url + PAGES).headers.get("Location", ""))
    assert httpx.get(hub.url + PAGES).status_code == up


def words(answer: httpx.Response) -> str:
    return " ".join(BeautifulSoup(answer.text, "html.parser").get_text(" ").split())


def test_pages_show_a_member_capacity_quota_and_own_environments(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username, gpus=1)
    hub.spawn(username, image="quick", gpus=1)
    hub.await_ready(username)
    with hub.signed_in(username) as person:
        answer = person.http.get(PAGES)
        assert answer.status_code == httpx.codes.OK, answer.text
        text = words(answer)
        assert "A100-80GB" in text
        assert "simulated" in text
        assert "1 of 2 free" in text
        assert "running" in text
        assert "1 of 1" in text, "the quota"
        assert "All GPUs" not in text
        assert "Add a host" not in text
        assert "'none'" in answer.headers["Content-Security-Policy"]
    hub.delete(username)
    hub.await_stopped(username)


def test_pages_let_an_admin_cordon_and_refuse_it_to_a_member_and_to_a_foreign_form(
    hub: Hub, stack: Stack, username: str
) -> None:
    stack.user(username)
    boss = stack.user(f"{username}-boss", role="admin")
    cordon = f"{PAGES}hosts/gpu-host/cordon"
    with hub.signed_in(boss) as admin:
        page = admin.http.get(PAGES)
        assert "All GPUs" in words(page)
        token = re.search(r'name="_xsrf" value="([^"]+)"', page.text)
        assert token, page.text
        forged = admin.http.post(cordon, data={"_xsrf": "forged"})
        assert forged.status_code == httpx.codes.FORBIDDEN
        assert stack.admin.hosts.get("gpu-host").operational == "available"
        assert admin.http.get(cordon).url.path == PAGES, "a link changes nothing"
        assert stack.admin.hosts.get("gpu-host").operational == "available"

        done = admin.http.post(cordon, data={"_xsrf": token[1]})
        assert done.status_code == httpx.codes.OK, done.text
        assert stack.admin.hosts.get("gpu-host").operational == "cordoned"
        assert "Uncordon" in words(done)
        admin.http.post(f"{PAGES}hosts/gpu-host/uncordon", data={"_xsrf": token[1]})
        assert stack.admin.hosts.get("gpu-host").operational == "available"
    with hub.signed_in(username) as member:
        page = member.http.get(PAGES)
        token = re.search(r'xsrf_token: "([^"]+)"', page.text)
        assert token, page.text
        refused = member.http.post(cordon, data={"_xsrf": token[1]})
        assert refused.status_code == httpx.codes.FORBIDDEN
        assert "Only platform admins" in words(refused)
    assert stack.admin.hosts.get("gpu-host").operational == "available"


def test_pages_add_a_host_and_show_its_token_once(hub: Hub, stack: Stack, username: str) -> None:
    boss = stack.user(username, role="admin")
    with hub.signed_in(boss) as admin:
        page = admin.http.get(PAGES)
        token = re.search(r'name="_xsrf" value="([^"]+)"', page.text)
        assert token
        name = f"host-{username}"
        shown = admin.http.post(f"{PAGES}hosts", data={"name": name, "_xsrf": token[1]})
        assert shown.status_code == httpx.codes.OK, shown.text
        assert "rge_" in shown.text
        assert "rge_" not in admin.http.get(PAGES).text
        assert stack.admin.hosts.get(name).connection == "never"
        again = admin.http.post(f"{PAGES}hosts", data={"name": name, "_xsrf": token[1]})
        assert again.status_code == httpx.codes.CONFLICT
        assert name in words(again)
    stack.admin.hosts.delete(name)


def test_pages_end_with_a_killed_hub_and_come_back_with_the_next(make_hub: object, stack: Stack) -> None:
    hub = make_hub()  # type: ignore[operator]
    user = stack.user("pagesreader")
    with hub.signed_in(user) as person:
        until("the pages answer", lambda: person.http.get(PAGES).status_code == httpx.codes.OK)
        pages = _pages_process(hub)
        hub.process.kill()
        until("the orphaned service ended", lambda: not pages.is_running() or pages.status() == "zombie")
        hub.start()
        until("the pages are back", lambda: person.http.get(PAGES).status_code == httpx.codes.OK)


def _pages_process(hub: Hub) -> psutil.Process:
    parent = psutil.Process(hub.process.pid)
    found = [child for child in parent.children() if "remotegpu_hub.pages" in " ".join(child.cmdline())]
    assert len(found) == 1
    return found[0]
