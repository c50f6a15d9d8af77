"""The dashboard in a real browser, over a database of the flagship study: it draws, it opens a design, it exports, it
starts, pauses and stops studies, and asks nobody else for anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from agents.auto import Auto
from agents.llm.arm import LlmArm
from agents.llm.provider import SCRIPTS, Scripted
from dse import Choice, Rung, Scenario, Space, Study
from dse.calls import designs_of
from dse.launch import dashboard_command, dashboard_environment
from dse.results import Results
from dse.store import open_store
from dse.studyfile import load_study
from dse.testing.samples import small_model

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium-headless-shell") or shutil.which("chromium")
if BROWSER is None:
    pytest.skip("no Chromium: apt install chromium-headless-shell", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HOSTILE = "<img src=x onerror=alert(1)> ![x](https://example.org/x.png) [y](javascript:alert(1))"

# Streamlit looks for its server beside the page it was opened on before it looks at the root; the browser's console
# says so too.
EXPECTED_404 = ("/_stcore/health", "/_stcore/host-config")
FLAGSHIP = "medical-vqa-edge"
N_FLAGSHIP = 320

TINY = """
from dse import Choice, Scenario, Space, Study

study = Study("tiny", model="qwen2.5-coder-0.5b", scenario=Scenario(prompt_tokens=8, output_tokens=4),
              hardware="npu-template", space=Space(weight_bits=Choice(3, 4, 6, 8), pe_rows=Choice(16, 32, 64)),
              objectives="min latency_s, min quality_loss")
"""


def study(name, **options):
    return Study(
        name,
        model=small_model(),
        scenario=Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
        hardware="npu-template",
        space=Space(weight_bits=Choice(3, 4, 8, per="component"), pe_rows=Choice(4, 8, 16, 32)),
        objectives="min latency_s, min energy_j, min quality_loss",
        ask_size=16,
        **options,
    )


# A study that takes a fifth of a second per design; its definition is what matters here, not its figures.
SLOW = """
import sys, time
import numpy as np
from dse import Choice, Scenario, Space, Study
from dse.metrics import MetricBatch
from dse.testing.samples import small_model

class Slow:
    name, group, fidelity, version, fingerprint = "slow", "hardware", "analytical", "1", "slow-1"
    laws, metrics = frozenset(), ("latency_s", "energy_j")
    def prepare(self, problem):
        return self
    def evaluate(self, batch):
        time.sleep(0.2 * len(batch))
        rows = batch["pe_rows"].astype(float)
        return MetricBatch({"latency_s": 1 / rows, "energy_j": rows + batch["n_cores"]}, len(batch))
    def breakdown(self, batch):
        return []

Study("slow", model=small_model(), scenario=Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
      hardware="npu-template", space=Space(pe_rows=Choice(*range(1, 100)), n_cores=Choice(*range(1, 100))),
      objectives="min latency_s, min energy_j", cost_models=[Slow()], proposers="random", ask_size=4,
      ).run(2000, db=sys.argv[1], executor="local", report=lambda _: None)
"""


def n_designs(url, name):
    with closing_store(url) as store:
        return store.study(name).n_designs if store.has_study(name) else 0


def state_of(url, name):
    with closing_store(url) as store:
        return store.study(name).state


@contextmanager
def closing_store(url):
    store = open_store(url, read_only=True)
    yield store
    store.close()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('db')}/a.db"
    study(HOSTILE).run(16, db=url, report=lambda _: None)
    study("small").run(48, db=url, report=lambda _: None)
    arm = LlmArm("wait_s=30,repair=off", Scripted(hostile_answer, model=HOSTILE))
    study("asked", proposers=[Auto(), arm]).run(32, db=url, report=lambda _: None, executor="local")
    flagship = load_study(str(Path(__file__).parents[2] / "studies" / "medical_vqa_edge.py"))
    flagship.run(N_FLAGSHIP, db=url, report=lambda _: None)
    return url


def hostile_answer(request):
    answer = json.loads(SCRIPTS["random"](request))
    for proposal in answer["proposals"]:
        proposal["reason"] = HOSTILE
    return json.dumps(answer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the dashboard is started, with a study to start from it."""
    made = tmp_path_factory.mktemp("here")
    (made / "studies").mkdir()
    (made / "studies" / "tiny.py").write_text(TINY)
    return made


@pytest.fixture(scope="module")
def server(database, folder):
    url = database
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        dashboard_command(port),
        env=dashboard_environment(url),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
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
        opened.on("console", lambda m: seen["errors"].append(m.text) if _is_complaint(m) else None)
        opened.on("response", lambda r: seen["missing"].append(r.url) if r.status >= 400 else None)
        opened.set_default_timeout(60_000)
        yield opened
        browser.close()
    assert seen["outside"] == []
    assert seen["errors"] == []
    assert [url for url in seen["missing"] if not url.endswith(EXPECTED_404)] == []


def _is_outside(url, server):
    return not url.startswith((server, server.replace("http", "ws"), "data:", "blob:"))


def _is_complaint(message):
    return message.type == "error" and not message.location["url"].endswith(EXPECTED_404)


def drag(page, box, first, last):
    """Drag over a part of a box, its corners as fractions of its sides."""
    page.mouse.move(box["x"] + first[0] * box["width"], box["y"] + first[1] * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + last[0] * box["width"], box["y"] + last[1] * box["height"], steps=12)
    page.mouse.up()


def plot_area(page):
    """The drawing area of the first figure, once it stands still."""
    page.locator(".js-plotly-plot canvas").first.wait_for()
    plot = page.locator(".js-plotly-plot .nsewdrag").first
    plot.wait_for()
    plot.scroll_into_view_if_needed()
    before = None
    while (now := plot.bounding_box()) != before:
        before = now
        page.wait_for_timeout(500)
    return now


def test_from_the_studies_over_the_front_to_a_design_and_its_files(server, page, tmp_path):
    page.goto(server)
    page.get_by_role("heading", name="Studies", exact=True).wait_for()
    page.goto(f"{server}/front?study={FLAGSHIP}")
    assert page.get_by_test_id("stMetricValue").first.inner_text() == str(N_FLAGSHIP)
    drag(page, plot_area(page), (0.01, 0.01), (0.99, 0.99))
    page.get_by_text("designs selected").wait_for()
    page.get_by_role("button", name="Set aside to compare").first.click()
    page.get_by_role("link", name=re.compile(r"Compare \d")).first.click()
    page.get_by_role("heading", name="Compare", exact=True).wait_for()
    assert f"study={FLAGSHIP}" in page.url
    assert "designs=" in page.url
    page.goto(f"{server}/front?study={FLAGSHIP}")
    page.get_by_role("link", name=re.compile(r"Open design \d")).first.click()
    page.get_by_text("proposed by auto").wait_for()
    number = re.search(r"design=(\d+)", page.url)[1]
    page.get_by_role("heading", name="Maps").wait_for()
    page.get_by_role("tab", name="Where time and energy go").click()
    page.get_by_role("heading", name="Latency (s)").wait_for()
    page.get_by_role("heading", name="Roofline").wait_for()
    page.get_by_role("tab", name="Export").click()
    document = json.loads(download(page, "design", tmp_path).read_text())
    assert document["provenance"]["number"] == number
    assert document["provenance"]["study"] == FLAGSHIP
    page.get_by_role("combobox", name="format").click()
    page.get_by_role("option", name="zigzag", exact=True).click()
    with zipfile.ZipFile(download(page, "zigzag", tmp_path)) as archive:
        assert any(name.endswith(".yaml") for name in archive.namelist())


def download(page, name, folder):
    """Press the button of a format and return the file that comes."""
    with page.expect_download() as downloaded:
        page.get_by_role("button", name=f"Download {name}", exact=True).click()
    file = folder / name
    downloaded.value.save_as(file)
    return file


def test_a_window_is_zoomed_to_and_left_again(server, page):
    page.goto(f"{server}/front?study=small")
    drag(page, plot_area(page), (0.01, 0.01), (0.6, 0.99))
    page.get_by_role("button", name="Zoom to the box").click()
    page.get_by_role("button", name="Show all").wait_for()
    assert "zoom=" in page.url
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("button", name="Show all").wait_for(state="detached")


def test_compare_and_search_draw_without_an_error(server, page):
    page.goto(f"{server}/compare?study=small&designs=0,1,2")
    page.get_by_role("heading", name="Knobs").wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    page.goto(f"{server}/search?study=small")
    page.get_by_role("heading", name="Which knobs matter").wait_for()
    page.locator(".js-plotly-plot").first.wait_for()


def test_letters_and_fidelities_are_drawn(server, page, database):
    both = study("both", proposers=["auto", "llm:provider=random,wait_s=30"], ladder=Rung("simulated", designs=6))
    both.run(48, db=database, report=lambda _: None, executor="local")
    page.goto(f"{server}/llm?study=both")
    page.get_by_role("heading", name="Predicted against observed").wait_for()
    page.get_by_role("heading", name=re.compile(r"^Call \d")).wait_for()
    page.goto(f"{server}/fidelity?study=both")
    page.get_by_role("heading", name="Step 1").wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    page.goto(f"{server}/front?study=small")  # no longer the latest: it stays chosen from page to page
    page.locator(".js-plotly-plot").first.wait_for()
    page.get_by_role("link", name="Search").click()
    page.get_by_role("heading", name="Which knobs matter").wait_for()
    assert "study=small" in page.url


def test_a_running_study_grows_on_the_page_and_is_paused_resumed_and_stopped(server, page, database, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    run = subprocess.Popen(
        [sys.executable, str(script), database], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 90
        while n_designs(database, "slow") < 4 and time.monotonic() < deadline:
            time.sleep(0.2)
        page.goto(f"{server}/front?study=slow")
        counter = page.get_by_test_id("stMetricValue").first
        counter.wait_for()
        first = int(counter.inner_text().replace(",", ""))
        page.wait_for_function(
            "before => +document.querySelector('[data-testid=stMetricValue]').innerText.replace(',', '') > before",
            arg=first,
        )
        for what, state in (("pause", "paused"), ("resume", "running"), ("stop", "stopped")):
            ask(database, page, server, what)
            while (now := state_of(database, "slow")) != state and time.monotonic() < deadline + 120:
                time.sleep(0.2)
            assert now == state
        assert run.wait(timeout=60) == 0
    finally:
        run.kill()
        run.wait()


def ask(database, page, server, what):
    """Press a button of the list of studies."""
    page.goto(server)
    grid = page.get_by_test_id("stDataFrame").first
    grid.wait_for()
    page.wait_for_timeout(1500)
    box = grid.bounding_box()
    page.mouse.click(box["x"] + 20, box["y"] + 35 + 17)  # the check box of the first row: the newest study
    page.get_by_role("button", name=what.capitalize(), exact=True).click()
    page.get_by_text(f"asked to {what}").wait_for()


def test_hostile_names_are_only_text(server, page):
    page.goto(f"{server}/front")
    page.get_by_role("heading", name="Front", exact=True).wait_for()
    from urllib.parse import quote

    page.goto(f"{server}/front?study={quote(HOSTILE)}")
    page.locator(".js-plotly-plot canvas").first.wait_for()
    assert page.locator("img[src='x']").count() == 0
    page.goto(f"{server}/design?study={quote(HOSTILE)}")
    page.get_by_text("proposed by auto").wait_for()


def test_what_a_model_wrote_is_only_text(server, page, database):
    with closing_store(database) as store:
        row = store.study("asked")
        edits = store.call_log(row.id).edits()
        number = next(iter(designs_of(edits, Results.load(store, "asked").stored.hashes).values()))
    page.goto(f"{server}/llm?study=asked&call=0")
    page.get_by_role("heading", name=re.compile(r"^Call \d")).wait_for()
    page.get_by_text(HOSTILE).first.wait_for()
    assert page.locator("img[src='x']").count() == 0
    page.goto(f"{server}/design?study=asked&design={number}")
    page.get_by_role("tab", name="Where it comes from").click()
    page.get_by_role("heading", name="Why a language model proposed it").wait_for()
    assert page.locator("img[src='x']").count() == 0


def test_a_study_is_started_with_another_budget_and_seed_and_outlives_the_page(server, page, database):
    page.goto(server)
    page.get_by_text("Start a study").click()
    page.get_by_role("spinbutton", name="designs").fill("9")
    page.get_by_role("spinbutton", name="seed").fill("3")
    page.get_by_role("textbox", name="name").fill("from-the-page")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("Started; it goes on").wait_for()
    page.goto("about:blank")
    deadline = time.monotonic() + 120
    while n_designs(database, "from-the-page") < 9 and time.monotonic() < deadline:
        time.sleep(0.2)
    with closing_store(database) as store:
        row = store.study("from-the-page")
    assert (row.n_designs, row.spec["seed"]) == (9, 3)


def test_the_server_listens_on_loopback_only(server):
    port = int(server.rsplit(":", 1)[1])
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    sockets = [line.split()[1:4] for table in tables for line in table]
    listening = [local.split(":") for local, _, state in sockets if state == "0A"]
    assert [host for host, at in listening if int(at, 16) == port] == ["0100007F"]  # 127.0.0.1, low byte first


def test_a_strange_host_name_is_turned_away(server):
    port = int(server.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(
            b"GET /_stcore/stream HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n"
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert b" 403 " in connection.recv(200).split(b"\r\n")[0]
