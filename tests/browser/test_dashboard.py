"""The dashboard in a real browser: it draws, it opens a design, it asks nobody else for anything."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from dse import Choice, Scenario, Space, Study
from dse.launch import dashboard_command, dashboard_environment
from dse.testing.samples import small_model

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium-headless-shell") or shutil.which("chromium")
if BROWSER is None:
    pytest.skip("no Chromium: apt install chromium-headless-shell", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HOSTILE = "<img src=x onerror=alert(1)> ![x](https://example.org/x.png) [y](javascript:alert(1))"

# Streamlit looks for its server beside the page it was opened on before it looks at the root.
EXPECTED_404 = ("/_stcore/health", "/_stcore/host-config")


def study(name):
    return Study(
        name,
        model=small_model(),
        scenario=Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
        hardware="npu-template",
        space=Space(weight_bits=Choice(3, 4, 8, per="component"), pe_rows=Choice(4, 8, 16, 32)),
        objectives="min latency_s, min energy_j, min quality_loss",
        ask_size=16,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('db')}/a.db"
    study(HOSTILE).run(16, db=url, report=lambda _: None)
    study("small").run(48, db=url, report=lambda _: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        dashboard_command(port), env=dashboard_environment(url), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if urllib.request.urlopen(f"{address}/_stcore/health").read() == b"ok":
                break
        except OSError:
            time.sleep(0.2)
    yield address
    process.terminate()
    process.wait(timeout=20)


@pytest.fixture
def page(server):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1440, "height": 1200})
        seen = {"outside": [], "errors": [], "missing": []}
        opened.on("request", lambda r: seen["outside"].append(r.url) if _is_outside(r.url, server) else None)
        opened.on("pageerror", lambda e: seen["errors"].append(str(e)))
        opened.on("dialog", lambda d: seen["errors"].append(d.message))
        opened.on("response", lambda r: seen["missing"].append(r.url) if r.status >= 400 else None)
        opened.set_default_timeout(60_000)
        yield opened
        browser.close()
    assert seen["outside"] == []
    assert seen["errors"] == []
    assert [url for url in seen["missing"] if not url.endswith(EXPECTED_404)] == []


def _is_outside(url, server):
    return not url.startswith((server, server.replace("http", "ws"), "data:", "blob:"))


def test_from_the_studies_to_a_design(server, page):
    page.goto(server)
    page.get_by_role("heading", name="Studies", exact=True).wait_for()
    page.goto(f"{server}/front?study=small")
    page.locator(".js-plotly-plot canvas").first.wait_for()
    page.get_by_text("a prior from published tables").wait_for()
    assert page.get_by_test_id("stMetricValue").first.inner_text() == "48"
    page.goto(f"{server}/design?study=small&design=3")
    page.get_by_text("proposed by auto").wait_for()
    page.get_by_role("heading", name="Latency (s)").wait_for()
    assert "design=3" in page.url


def test_a_box_selects_designs(server, page):
    page.goto(f"{server}/front?study=small")
    plot = page.locator(".js-plotly-plot .nsewdrag").first
    plot.wait_for()
    page.wait_for_timeout(1500)
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] - 3, steps=10)
    page.mouse.up()
    page.get_by_text("designs selected").wait_for()


def test_hostile_names_are_only_text(server, page):
    page.goto(f"{server}/front")
    page.get_by_role("heading", name="Front", exact=True).wait_for()
    from urllib.parse import quote

    page.goto(f"{server}/front?study={quote(HOSTILE)}")
    page.locator(".js-plotly-plot canvas").first.wait_for()
    assert page.locator("img[src='x']").count() == 0
    page.goto(f"{server}/design?study={quote(HOSTILE)}")
    page.get_by_text("proposed by auto").wait_for()


def test_the_server_listens_on_loopback_only(server):
    port = int(server.rsplit(":", 1)[1])
    own = subprocess.run([sys.executable, "-c", "import socket; print(socket.gethostbyname(socket.gethostname()))"],
                         capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    if own.startswith("127."):
        own = "192.0.2.1"  # no address of its own: nothing answers there either
    with socket.socket() as attempt:
        attempt.settimeout(1)
        assert attempt.connect_ex((own, port)) != 0


def test_a_strange_host_name_is_turned_away(server):
    port = int(server.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(
            b"GET /_stcore/stream HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n"
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert b" 403 " in connection.recv(200).split(b"\r\n")[0]
