"""The status page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from msm.observe.events import Event
from msm.resources.manifest import load
from msm.resources.serving import ModelStatus, SplitEntry, VersionStatus
from tests.support.browser import CHROMIUM, Page, browser_page
from tests.support.served_api import ServedApi, served_api

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

EVIL = "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>"
MODEL = f"""\
apiVersion: msm/v1
kind: Model
metadata: {{name: iris, labels: {{note: "{EVIL}"}}}}
spec:
  versions: [{{name: v1, uri: "s3://b/1"}}, {{name: v2, uri: "s3://b/2"}}]
  aliases: {{stable: v1}}
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedApi]:
    data = tmp_path / "data"
    data.mkdir()
    with served_api(data) as running:
        model = load(MODEL)[0].resource
        running.run(running.deps.catalog.apply([model], who="test"))
        status = ModelStatus(
            versions={
                "v1": VersionStatus(phase="Valid", format="onnx", memory_bytes=3 << 20),
                "v2": VersionStatus(phase="Failed", message=EVIL),
            },
            traffic=(SplitEntry(version="v1", weight=100),),
        )
        running.run(running.deps.catalog.put_status(model.key, status))
        running.run(running.node.activate("iris", "v1"))
        yield running


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser_page(tmp_path / "profile") as opened:
        yield opened


def sign_in(page: Page, served: ServedApi, token: str) -> None:
    page.open(served.url + "/")
    page.until("document.readyState === 'complete' && !document.getElementById('enter').hidden")
    page.run(f"document.getElementById('token').value = {token!r}")
    page.run("document.querySelector('#enter button').click()")


def test_the_page_shows_the_node_after_the_token_and_events_as_they_come(page: Page, served: ServedApi):
    sign_in(page, served, served.deps.tokens.token)
    first = page.until("document.querySelector('#models tr')?.innerText")
    for part in ("iris", "v1", "Valid", "onnx", "100 %", "stable", "1 Ready", "3.0 MiB"):
        assert part in first
    assert "it ended by signal 11" in page.run("document.getElementById('workers').innerText")
    assert "1.0 GiB of 4.0 GiB" in page.run("document.getElementById('memory-text').innerText")
    page.until("true")
    event = Event(at=1_000.0, subject="model/iris", reason="Seen", message=f"something new {EVIL}", source="test")
    served.call(lambda: served.deps.events.emit(event))
    page.until("document.getElementById('events').innerText.includes('something new')")
    assert page.run("document.title") == "Model Service Mesh"
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert EVIL in page.run("document.getElementById('models').innerText")
    assert page.console == []
    assert all(address.startswith((served.url, "data:", "about:")) for address in page.requests)
    assert served.deps.tokens.token not in page.run("location.href + document.cookie + JSON.stringify(localStorage)")


def test_a_wrong_token_is_refused_and_forgotten(page: Page, served: ServedApi):
    sign_in(page, served, "wrong")
    page.until("document.getElementById('refused').innerText.includes('does not know this token')")
    assert page.run("sessionStorage.length") == 0
    assert page.run("document.getElementById('state').hidden") is True


def test_the_token_is_forgotten_on_demand(page: Page, served: ServedApi):
    sign_in(page, served, served.deps.tokens.token)
    page.until("document.querySelector('#models tr') !== null")
    page.run("document.getElementById('leave').click()")
    assert page.run("sessionStorage.length + Number(document.getElementById('state').hidden)") == 1
