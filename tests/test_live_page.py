"""The live page in a real browser: it reads stores from a folder's server and from S3, and says what klray says."""

from __future__ import annotations

import functools
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
import pytest

import klray
from klray.analysis import analyze as trajectory
from klray.report.live.making import content_type, page_files
from klray.store import Column, Identity, Store
from klray.texts import TextSet
from tests.browser import new_page, running_browser, why_no_browser
from tests.s3_server import S3Server
from tests.test_cli import klray as command

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser())]

ROOT = Path(__file__).parent.parent
HOSTILE = "org/<img src=x onerror=alert(1)>"
N = 3000
TEXTS = TextSet(
    "live <b>texts</b>",
    tuple(f"text {n} <script>alert({n})</script> " * (8 + n % 20) for n in range(N)),
    tuple(("web", "<i>code</i>")[n % 2] for n in range(N)),
)


def columns() -> Iterator[Column]:
    rng = np.random.default_rng(0)
    base = -rng.gamma(4.0, 150.0, N)
    for number, name in enumerate(["org/run"] * 6 + ["org/other", HOSTILE]):
        step = number * 1000 if name == "org/run" else None
        revision = "main" if step is None else f"step{step}"
        values = np.minimum(base + rng.normal(0, 4 + number, (1, N)), 0)
        facts = {"revision": revision, "step": step, "run": name, "family": name.split("/")[1], "parameters": 10}
        identity = Identity(name, f"{number:040x}", TEXTS.fingerprint)
        yield Column(identity, values, (-1,), np.full(N, 7), facts, {"klray": "test"}, {})
    layers = np.minimum(base + rng.normal(0, 9, (3, N)), 0)
    identity = Identity("org/deep", "e" * 40, TEXTS.fingerprint, lens="logit")
    yield Column(identity, layers, (0, 1, 2), np.full(N, 7), {"revision": "main", "family": "deep"}, {}, {})


def fill(url: str) -> Store:
    """Two chunks of log-likelihoods, a result, the texts themselves."""
    store = Store.create(url, TEXTS)
    for each in columns():
        store.add_column(each)
    store.publish_texts(TEXTS)
    snapshot = store.publish()[0].id
    store.write_result(snapshot, "trajectory", trajectory.analyze(store.dataset(), outlier_min_step=0, tsne=False))
    return store


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as found:
        yield found


class Served(http.server.SimpleHTTPRequestHandler):
    """A folder, with ranges as object storage has them; each answer is counted."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        counted: list[tuple[str, int, int]] = self.server.counted  # type: ignore[attr-defined]
        if not path.is_file():
            counted.append((self.path, 404, 0))
            self.send_error(404)
            return
        body, asked = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        status = 206 if asked else 200
        body = body[int(asked[1]) : int(asked[2]) + 1] if asked else body
        counted.append((self.path, status, len(body)))
        self.send_response(status)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path, str, list[tuple[str, int, int]]]]:
    """A store in a folder, a folder beside it, their address, and what the server answered."""
    folder = tmp_path_factory.mktemp("live")
    store = fill(str(folder / "store"))
    handler = functools.partial(Served, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.counted = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield store, folder, f"http://localhost:{server.server_address[1]}", server.counted  # type: ignore[attr-defined]
        server.shutdown()


def opened(browser: Browser, address: str, *labels: str) -> tuple[Page, list[str]]:
    page, said = new_page(browser)
    page.goto(address + ("#" + urlencode(dict(zip("ab", labels, strict=False))) if labels else ""))
    page.wait_for_selector("#about:has-text('Snapshot'), #status:has-text('cannot')")
    return page, said


def divergence(page: Page) -> tuple[float, float]:
    page.wait_for_selector(".compare output, .compare:has-text('cannot'), #status:has-text('cannot')")
    assert page.locator("#status").inner_text() == ""
    found = page.locator(".compare output").evaluate("each => [each.dataset.kl, each.dataset.se]")
    return float(found[0]), float(found[1])


def test_kl_of_two_models_is_klrays_own_and_little_is_asked_for(
    place: tuple[Store, Path, str, list[tuple[str, int, int]]],
    browser: Browser,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, folder, address, counted = place
    words = [f"store.url={store.url}", f"page.dir={folder / 'page'}"]
    assert command(capsys, monkeypatch, "page", *words)[0] == 0
    data, result = store.dataset(), store.result(store.manifest().id, "trajectory")
    labels = data["model"].values.tolist()
    a, b = labels.index("org/run@step1000"), labels.index("org/other@main")
    counted.clear()
    page, said = opened(browser, f"{address}/page/index.html", labels[a], labels[b])
    found = divergence(page)
    expected = (float(result[name].values[a, b]) for name in ("kl", "kl_standard_error"))
    np.testing.assert_allclose(found, list(expected), rtol=1e-6)
    asked = [each for each in counted if "/store/" in each[0]]
    rows = [each for each in asked if "log_likelihood" in each[0]]
    assert [size for _, _, size in rows] == [4 * N] * 2, "two rows, by their bytes"
    assert len(asked) <= 40 and sum(size for *_, size in asked) < 250_000
    assert [path for path, status, _ in counted if status == 404] == []
    before = len(counted)
    page.uncheck(".compare input[type=checkbox]")
    page.wait_for_selector(".of:has-text('as they were scored')")
    values = data["log_likelihood"].values[[a, b]], data["text_bytes"].values
    expected_raw = klray.kl_divergence(*values)[0, 1], klray.kl_standard_error(*values)[0, 1]
    np.testing.assert_allclose(divergence(page), expected_raw, rtol=1e-6)
    assert not [path for path, *_ in counted[before:] if "log_likelihood" in path], "rows are read once"
    assert said == []
    print(f"{len(asked)} requests, {sum(size for *_, size in asked):,} bytes")


def test_what_a_store_says_is_text_and_the_texts_are_shown(
    place: tuple[Store, Path, str, list[tuple[str, int, int]]], browser: Browser
) -> None:
    store, folder, address, _ = place
    _write(folder / "page2", "../store")
    labels = store.dataset()["model"].values.tolist()
    hostile = next(label for label in labels if label.startswith(HOSTILE))
    page, said = opened(browser, f"{address}/page2/index.html", hostile, "org/run@step0")
    divergence(page)
    chosen = ".slot .name >> nth="
    assert page.locator(f"{chosen}0").inner_text().startswith(hostile) and page.locator("img").count() == 0
    first = page.locator("table:has-text('Share of KL') tbody tr").first
    number, domain, size = (words.replace(",", "") for words in first.locator("td").all_inner_texts()[:3])
    assert TEXTS.domains[int(number)] == domain and len(TEXTS.texts[int(number)].encode()) == int(size)
    first.locator("summary").click()
    page.wait_for_function("() => document.querySelector('details pre').textContent")
    assert first.locator("pre").inner_text().strip() == TEXTS.texts[int(number)].strip()
    assert page.locator(".likeness").inner_text().startswith(repr(klray.place(divergence(page)[0])).split(": ")[1][:20])
    page.fill("[aria-label='Choose B']", "other main")
    page.press("[aria-label='Choose B']", "Enter")
    page.wait_for_selector(f"{chosen}1 >> text=org/other@main")
    divergence(page)
    page.wait_for_function("() => location.hash.includes('other')")
    again, _ = opened(browser, page.url)
    again.wait_for_selector(f"{chosen}1 >> text=org/other@main")
    assert said == []


def test_map_of_the_live_page_is_the_reports(
    place: tuple[Store, Path, str, list[tuple[str, int, int]]], browser: Browser
) -> None:
    """Two points pressed are compared, the wheel zooms, the legend dims, the path of the run is there."""
    store, folder, address, _ = place
    _write(folder / "page4", "../store")
    page, said = opened(browser, f"{address}/page4/index.html")
    page.wait_for_selector(".map-panel canvas")
    labels = store.dataset()["model"].values.tolist()
    a, b = labels.index("org/run@step0"), labels.index("org/other@main")
    page.wait_for_function("() => globalThis.klray.explorer.panels[0].places")
    for model in (a, b):
        x, y = page.evaluate(f"klray.explorer.panels[0].at({model})")
        page.locator(".map-panel canvas").first.click(position={"x": x, "y": y})
    result = store.result(store.manifest().id, "trajectory")
    np.testing.assert_allclose(divergence(page)[0], result["kl"].values[a, b], rtol=1e-6)
    paths = [[str(labels[at]) for at in path] for path in page.evaluate("klray.data.paths")]
    assert paths == [[f"org/run@step{1000 * n}" for n in range(6)]]
    page.keyboard.press("+")
    assert page.evaluate("klray.explorer.panels[0].view.zoom") > 1
    page.locator(".legend .entry").first.click()
    assert page.evaluate("klray.explorer.look.state.some((each) => each === 1)")
    assert said == []


def test_layers_of_a_column_are_checked_together(
    place: tuple[Store, Path, str, list[tuple[str, int, int]]], browser: Browser
) -> None:
    store, folder, address, _ = place
    _write(folder / "page3", "../store")
    data = store.dataset()
    labels = data["model"].values.tolist()
    pair = [labels.index(label) for label in labels if "#layer" in label][:2]
    page, said = opened(browser, f"{address}/page3/index.html", *(labels[each] for each in pair))
    page.uncheck(".compare input[type=checkbox]")
    page.wait_for_selector(".of:has-text('as they were scored')")
    values = data["log_likelihood"].values[pair], data["text_bytes"].values
    np.testing.assert_allclose(divergence(page)[0], klray.kl_divergence(*values)[0, 1], rtol=1e-6)
    assert said == []


def test_damage_is_said(tmp_path: Path, browser: Browser, serve: Callable[[Path], str]) -> None:
    """A changed row, a chunk that is gone: never other values, nor fill values."""
    store = Store.create(str(tmp_path / "store"), TEXTS)
    made = list(columns())[:3]
    for each in made:
        store.add_column(each)
    snapshot = store.publish()[0].id
    _write(tmp_path / "page", "../store")
    address = serve(tmp_path)
    chunk = tmp_path / f"store/snapshots/{snapshot}/log_likelihood/c/0/0"
    body = bytearray(chunk.read_bytes())
    body[4 * N + 5] ^= 1
    chunk.write_bytes(body)
    page, _ = opened(browser, f"{address}/page/index.html", "org/run@step0", "org/run@step1000")
    page.wait_for_selector(".compare:has-text('holds other bytes than were written')")
    (tmp_path / f"store/snapshots/{snapshot}/text_bytes/c/0").unlink()
    page, _ = opened(browser, f"{address}/page/index.html")
    page.wait_for_selector("#status:has-text('is missing: it was written and is gone')")


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    servers = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Served, directory=str(folder)))
        server.counted = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://localhost:{server.server_address[1]}"

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


def _write(folder: Path, store: str) -> None:
    folder.mkdir()
    for name, body in page_files(store, "trajectory", "Live", None).items():
        (folder / name).write_bytes(body)


def public(server: S3Server, url: str) -> str:
    """Everybody may read the store, from pages of every address: as infra/README.md has it. The store's address."""
    from infra.access.bucket_policy import bucket_policy

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = server.client()
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(bucket_policy(bucket, prefix, {"reader": ["*"]})))
    rule = json.loads((ROOT / "infra/access/cors.json").read_text())
    client.put_bucket_cors(Bucket=bucket, CORSConfiguration=rule)
    return f"{server.endpoint}/{bucket}/{prefix}"


def test_on_s3_from_the_bucket_and_from_elsewhere(
    s3_server: S3Server,
    s3_url: str,
    browser: Browser,
    tmp_path: Path,
    serve: Callable[[Path], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = fill(s3_url)
    address = public(s3_server, s3_url)
    code, said, errors = command(capsys, monkeypatch, "page", f"store.url={s3_url}", "page.publish=true")
    assert code == 0, errors
    link = said.split()[1].rstrip(";")
    assert link == f"{address}/page/index.html"
    result = store.result(store.manifest().id, "trajectory")
    labels = result["model"].values.tolist()
    words = "page", f"store.url={s3_url}", f"page.store_url={address}", f"page.dir={tmp_path / 'page'}"
    assert command(capsys, monkeypatch, *words)[0] == 0
    for at in (link, f"{serve(tmp_path)}/page/index.html"):
        page, noise = opened(browser, at, labels[1], labels[3])
        np.testing.assert_allclose(divergence(page)[0], result["kl"].values[1, 3], rtol=1e-6)
        assert noise == []
    code, _, errors = command(capsys, monkeypatch, "page", f"store.url={s3_url}", f"page.dir={tmp_path / 'x'}")
    assert code == 1 and "page.store_url=" in errors and "page.publish=true" in errors


def test_a_page_asks_nobody_but_its_store() -> None:
    files = page_files("https://host.example/bucket/store", "trajectory", "<script>alert(1)</script>", None)
    page = files["index.html"].decode()
    assert "connect-src https://host.example/bucket/store/; base-uri" in page and "default-src 'none'" in page
    assert "<script>alert" not in page
    assert {content_type(name).split(";")[0] for name in files} == {
        "text/html",
        "text/javascript",
        "text/css",
        "text/plain",
    }
    scripts = "".join(body.decode() for name, body in files.items() if name.endswith(".js") and name != "zarrita.js")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", scripts)
    assert "https://" not in scripts
