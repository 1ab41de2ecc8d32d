"""A page of somebody else, open in the same browser: on another port, and under another name."""

from __future__ import annotations

import http.server
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.app.ui.fake_studio import FakeStudio

pytestmark = [pytest.mark.timeout(180)]
Visit = Callable[..., Any]

# Each way to ask, as a page would try it; the answers say what the page could read.
ATTACKS = """
async ([studio, picture, calls]) => {
  const seen = [];
  const asks = [
    ['config', '/config', {}],
    ['gallery', picture, {}],
    ['alive', '/studio/alive', {}],
    ...calls.flatMap(([name, body]) => [
      [name, '/gradio_api/queue/join', {method: 'POST', body,
        headers: {'Content-Type': 'application/json'}}],
      [name + ' as text', '/gradio_api/queue/join', {method: 'POST', body,
        headers: {'Content-Type': 'text/plain'}}],
      [name + ' at once', '/gradio_api/run/predict', {method: 'POST', body,
        headers: {'Content-Type': 'text/plain'}}],
    ]),
    ['paint', '/gradio_api/call/generate', {method: 'POST',
      headers: {'Content-Type': 'application/json'},
      body: JSON.stringify({data: ['a cat', '', '', '', null, null, '', '', 1, 'None']})}],
  ];
  // The studio keeps pictures only.
  const head = new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 13]);
  const files = new FormData();
  files.append('files', new Blob([head]), 'foreign.png');
  asks.push(['upload', '/gradio_api/upload', {method: 'POST', body: files}]);
  for (const [name, path, init] of asks)
    for (const mode of ['cors', 'no-cors'])
      for (const credentials of ['include', 'omit']) {
        try {
          const answer = await fetch(studio + path, {...init, mode, credentials});
          // An opaque answer has the status 0 and no text; it may still have changed something.
          if (answer.status) seen.push(`${name}: ${answer.status} ${await answer.text()}`);
        } catch {}
      }
  const loaded = (element, source) => new Promise((done) => {
    element.onload = () => done(true);
    element.onerror = () => done(false);
    element.src = source;
    document.body.append(element);
    setTimeout(() => done(false), 3000);
  });
  if (await loaded(new Image(), studio + picture)) seen.push('the picture is shown');
  if (await loaded(document.createElement('script'), studio + '/studio/static/js/-/studio.js'))
    seen.push('a script is loaded');
  await new Promise((done) => {
    const events = new EventSource(`${studio}/gradio_api/queue/data?session_hash=foreign`);
    events.onopen = () => { seen.push('events are heard'); events.close(); done(); };
    events.onerror = () => { events.close(); done(); };
  });
  await new Promise((done) => {
    const socket = new WebSocket(studio.replace('http', 'ws') + '/gradio_api/queue/join');
    socket.onopen = () => { seen.push('a socket is open'); done(); };
    socket.onerror = done;
  });
  const frame = document.createElement('iframe');
  frame.name = 'sent';
  frame.src = studio + '/';
  document.body.append(frame);
  await new Promise((done) => { frame.onload = done; setTimeout(done, 2000); });
  const submit = async (path, encoding, fill) => {
    const form = document.createElement('form');
    form.method = 'post'; form.target = 'sent'; form.enctype = encoding;
    form.action = studio + path;
    fill(form);
    document.body.append(form);
    form.submit();
    await new Promise((done) => { frame.onload = done; setTimeout(done, 2000); });
  };
  await submit('/gradio_api/upload', 'multipart/form-data', (form) => {
    const input = document.createElement('input');
    input.type = 'file'; input.name = 'files';
    const held = new DataTransfer();
    held.items.add(new File([head], 'by-form.png'));
    input.files = held.files;
    form.append(input);
  });
  for (const [name, body] of calls)
    await submit('/gradio_api/run/predict', 'text/plain', (form) => {
      const input = document.createElement('input');
      input.name = body.slice(0, -1) + ',"x":"'; input.value = '"}';
      form.append(input);
    });
  return seen;
}
"""


@pytest.fixture(scope="module")
def foreign() -> Iterator[int]:
    """A server of somebody else; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<!doctype html><title>foreign</title><body>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            if self.path == "/sandbox":
                # Such a page has no origin of its own; browsers call it "null".
                rules = "sandbox allow-scripts allow-forms"
                self.send_header("Content-Security-Policy", rules)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def picture(studio: FakeStudio, address: str) -> str:
    """The path of a picture in the gallery."""
    with httpx.Client(base_url=address) as http:
        data = ["a cat", "", "", "", None, None, "", "5", 1, "None"]
        event = http.post("/gradio_api/call/generate", json={"data": data}).json()["event_id"]
        assert "complete" in http.get(f"/gradio_api/call/generate/{event}").text
    file = max(studio.settings.outputs.rglob("*.png"))
    return f"/studio/pictures/{file.parent.name}/{file.name}"


def calls(address: str, name: str) -> list[list[str]]:
    """The bodies that delete a picture, run the doctor, start an import; as JSON."""
    config = httpx.get(f"{address}/config").json()
    listed = {d["api_name"]: d for d in config["dependencies"]}

    def body(api_name: str, event: dict[str, Any] | None, **values: Any) -> str:
        found = listed[api_name]
        data = [values.get(str(i)) for i in range(len(found["inputs"]))]
        return json.dumps(
            {"data": data, "event_data": event, "fn_index": found["id"], "session_hash": "foreign"}
        )

    return [
        ["ask to delete", body("act_gallery", {"do": "ask-delete", "name": name})],
        ["delete", body("act_gallery", {"do": "delete", "name": name})],
        ["the doctor", body("act_models", {"do": "examine", "name": ""})],
        ["ask", body("act_models", {"do": "ask", "name": "alpha-1024"})],
        ["import", body("start_import", None, **{"2": "/etc", "3": "Foreign", "4": "foreign"})],
    ]


def state(studio: FakeStudio) -> tuple[Any, ...]:
    """What an attack would change."""
    files = sorted(p for p in studio.settings.workspace.rglob("*") if p.is_file())
    kept = [p for p in files if "thumbs" not in p.parts and not p.name.startswith("gallery.db")]
    return kept, studio.models.job, studio.imports.job, list(studio._jobs._entries)


def foreign_page(browser: Any, address: str) -> Any:
    page = browser.new_context().new_page()
    page.set_default_timeout(60_000)
    page.goto(address)
    return page


def test_a_foreign_page_reads_and_changes_nothing(
    browser: Any, studio: FakeStudio, address: str, foreign: int, picture: str
) -> None:
    port = urlsplit(address).port
    tried = calls(address, picture.removeprefix("/studio/pictures/"))
    studios = [
        f"http://{host}:{port}" for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]")
    ] + [f"http://studio.example:{port}"]
    before = state(studio)
    for own, name in itertools.product(("127.0.0.1", "localhost", "evil.example"), studios):
        page = foreign_page(browser, f"http://{own}:{foreign}")
        seen = page.evaluate(ATTACKS, [name, picture, tried])
        assert seen == [], (own, name)
        page.context.close()
    assert state(studio) == before


def test_a_page_without_an_origin_reads_and_changes_nothing(
    browser: Any, studio: FakeStudio, address: str, foreign: int, picture: str
) -> None:
    tried = calls(address, picture.removeprefix("/studio/pictures/"))
    before = state(studio)
    page = foreign_page(browser, f"http://localhost:{foreign}/sandbox")
    assert page.evaluate("self.origin") == "null"
    assert page.evaluate(ATTACKS, [address, picture, tried]) == []
    page.context.close()
    assert state(studio) == before


def test_the_same_attack_works_for_the_page_itself(
    browser: Any, studio: FakeStudio, address: str, picture: str
) -> None:
    """Else the tests above would prove nothing."""
    page = foreign_page(browser, address)
    seen = page.evaluate(ATTACKS, [address, picture, []])
    for what in ("config: 200", "gallery: 200", "paint: 200", "upload: 200", "is shown"):
        assert any(what in one for one in seen), what
    page.context.close()


def test_a_name_that_leads_here_by_rebinding_shows_nothing(browser: Any, address: str) -> None:
    page = browser.new_context().new_page()
    answer = page.goto(f"http://evil.example:{urlsplit(address).port}/")
    assert answer.status == 403
    page.context.close()


def test_a_link_of_another_site_opens_the_page(
    browser: Any, address: str, foreign: int, studio: FakeStudio
) -> None:
    page = foreign_page(browser, f"http://evil.example:{foreign}")
    for target in (address, f"{address}/config"):
        page.evaluate("at => { document.body.innerHTML = `<a href='${at}'>it</a>` }", target)
        with page.expect_navigation() as opened:
            page.click("a")
        if target == address:
            page.wait_for_function("window.studioReady === true")
            page.go_back()
        assert opened.value.status == (200 if target == address else 403)
    page.context.close()


def listen(page: Any, said: list[str]) -> None:
    """Keeps what the page complains about."""
    page.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))


def test_the_page_itself_breaks_no_rule(
    visit: Visit, studio: FakeStudio, address: str, tmp_path: Any
) -> None:
    from PIL import Image

    for own in (address, address.replace("127.0.0.1", "localhost")):
        page = visit() if own == address else None
        if page is None:
            page = foreign_page(visit().context.browser, own)
            page.wait_for_function("window.studioReady === true")
        said: list[str] = []
        listen(page, said)
        page.reload()
        page.wait_for_function("window.studioReady === true")
        file = tmp_path / "dog.png"
        Image.new("RGB", (90, 60), "orange").save(file)
        page.set_input_files("#start-card input[type=file]", file)
        page.wait_for_selector(".start-chip img")
        page.fill("#prompt textarea", "a red apple")
        page.get_by_role("button", name="Generate").click()
        page.wait_for_selector(".canvas[data-state=result]")
        page.get_by_role("tab", name="Gallery").click()
        page.wait_for_selector(".shot img")
        page.get_by_role("tab", name="Models").click()
        page.wait_for_selector(".model-card")
        page.click("[data-do=examine]")
        page.wait_for_selector(".report")
        assert said == [], own
        if own != address:
            page.context.close()
