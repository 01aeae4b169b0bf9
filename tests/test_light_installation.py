"""The installation of an analyst: what it has, what it takes, what it does, and what it says of the rest."""

from __future__ import annotations

import functools
import http.server
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import klray
from klray.store import Store
from klray.texts import TextSet
from tests.scale_data import fill_store, scale_snapshot
from tests.shared import made_once

pytestmark = pytest.mark.slow

ROOT = Path(str(klray.__file__)).parents[1]
MOST_MEGABYTES = 450  # of the whole environment, pip and compiled modules in it
COMPILED = 1.5  # bytes of compiled modules to a byte of their sources, at most
END = "-- this verb ends with "
ABSENT = ["torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "ray", "distributed", "obstore"]
ABSENT += ["sklearn", "scipy", "pyarrow"]


class Light:
    """An environment with klray's base installation alone."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, *words: str, code: int = 0, cwd: Path | None = None) -> str:
        """What ``python WORDS`` says, which must end with ``code``."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [str(self.folder / "bin" / "python"), "-P", *words],
            capture_output=True,
            text=True,
            env=environment,
            cwd=cwd or self.folder,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def verbs(self, *commands: str) -> list[tuple[int, str]]:
        """How ``klray WORDS`` ends and what it says, of each in turn, in one process that imports everything once."""
        program = f"""
import sys
import jobs.__main__ as cli
sys.stderr = sys.stdout
for words in {[each.split() for each in commands]}:
    sys.argv, code = ["klray", *words], 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    print(f"{END}{{code}}", flush=True)
"""
        ended = self("-c", program).split(END)
        codes = [int(each.partition("\n")[0]) for each in ended[1:]]
        words = [ended[0], *(each.partition("\n")[2] for each in ended[1:-1])]
        return list(zip(codes, words, strict=True))


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Light:
    """klray as pip installs it, and what its own metadata require and no more, out of this environment by links: it
    has those versions already, and their modules compiled.
    """

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        pip = [sys.executable, "-P", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*pip, "--no-deps", "--target", str(packages), str(ROOT)], check=True)
        (klray_itself,) = importlib.metadata.distributions(name="klray", path=[str(packages)])
        for each in required(klray_itself.requires or [], {}).values():
            for top in {file.parts[0] for file in each.files or [] if file.parts[0] not in ("..", "__pycache__")}:
                (packages / top).symlink_to(str(each.locate_file(top)))

    return Light(made_once(tmp_path_factory, "light", make))


def required(
    requirements: Iterable[str], found: dict[str, importlib.metadata.Distribution], extras: frozenset[str] = frozenset()
) -> dict[str, importlib.metadata.Distribution]:
    """The distributions of this environment that these requirements ask for, with all that those ask for."""
    for each in map(Requirement, requirements):
        if each.marker and not any(each.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        distribution = importlib.metadata.distribution(each.name)
        assert each.specifier.contains(distribution.version, prereleases=True), (
            f"{each}: {distribution.version} is here"
        )
        known = f"{canonicalize_name(each.name)}{sorted(each.extras)}"
        if known not in found:
            found[known] = distribution
            required(distribution.requires or [], found, frozenset(each.extras))
    return found


def megabytes(folder: Path) -> float:
    """What ``pip install`` takes: all files below a folder, behind links too, modules compiled, and pip."""
    pip = importlib.metadata.distribution("pip").files or []
    files = [Path(place, name) for place, _, names in os.walk(folder / "lib", followlinks=True) for name in names]
    files += [Path(str(file.locate())) for file in pip]
    sizes = {file: file.stat().st_size for file in files if file.suffix != ".pyc" and file.is_file()}
    return sum(size * (1 + COMPILED * (file.suffix == ".py")) for file, size in sizes.items()) / 1e6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in a folder with runs, sizes, seeds and children, not published."""
    dataset = scale_snapshot(n_texts=60, last_step=16_000)
    texts = tuple("x" * int(size) for size in dataset["text_bytes"].values)
    text_set = TextSet("made up", texts, tuple(map(str, dataset["domain"].values)))
    made = Store.create(str(tmp_path_factory.mktemp("light") / "store"), text_set)
    fill_store(made, dataset)
    return made


@pytest.fixture
def address(store: Store) -> Iterator[str]:
    """The store on the web."""
    store.publish()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=store.url)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_nothing_that_scores_is_installed_and_the_rest_is_small(light: Light) -> None:
    there = json.loads(
        light(
            "-c",
            "import importlib.util, json; "
            f"print(json.dumps([name for name in {ABSENT} if importlib.util.find_spec(name)]))",
        )
    )
    assert there == []
    assert 200 < megabytes(light.folder) < MOST_MEGABYTES


def test_a_store_on_the_web_is_opened_and_its_divergences_are_those_of_any_installation(
    light: Light, address: str, store: Store, tmp_path: Path
) -> None:
    program = f"""
import sys
import numpy as np
import klray
assert klray.__file__.startswith({str(light.folder)!r})
data = klray.open_dataset({address!r})
rows = data.isel(model=slice(12)).load()
kl = klray.kl_divergence(rows["log_likelihood"], rows["text_bytes"])
error = klray.kl_standard_error(rows["log_likelihood"], rows["text_bytes"])
np.savez("found.npz", kl=kl.values, error=error.values, centered=klray.double_center(rows["log_likelihood"]).values)
steps = np.arange(30)
print(klray.diffusion_exponent(steps * 1000, np.abs(np.subtract.outer(steps, steps))).exponent[1])
for name in ("layer_kl", "place", "open_result", "pairs", "relatives", "texts", "layers"):
    getattr(klray, name)
assert not set(sys.modules) & set({ABSENT})
"""
    assert float(light("-c", program, cwd=tmp_path).split()[-1]) == pytest.approx(1.0)
    found = np.load(tmp_path / "found.npz")
    rows = store.dataset().isel(model=slice(12)).load()
    values = rows["log_likelihood"], rows["text_bytes"]
    np.testing.assert_allclose(found["kl"], klray.kl_divergence(*values).values, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found["error"], klray.kl_standard_error(*values).values, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found["centered"], klray.double_center(rows["log_likelihood"]).values, rtol=1e-12)


def test_an_analyst_publishes_analyses_and_reports(light: Light, store: Store, tmp_path: Path) -> None:
    place, tables = f"store.url={store.url}", f"export.dir={tmp_path / 'tables'}"
    ended = light.verbs(
        *(f"{verb} {place}" for verb in ("publish", "analyze", "scale")),
        f"report {place} report.dir={tmp_path}",
        f"export {place} export.dir={tmp_path / 'none'}",
        f"export {place} {tables} export.format=csv",
        f"page {place} page.dir={tmp_path / 'page'}",
        *(f"{verb} {place}" for verb in ("status", "verify")),
    )
    assert [code for code, _ in ended] == [0, 0, 0, 0, 1, 0, 0, 0, 0], ended
    published, analysed, scaled, reported, refused, exported, paged, status, verified = (said for _, said in ended)
    assert "models" in published and "early" in scaled
    assert "models, new recipe" in analysed and "pip install 'klray[maps]'" in analysed
    assert {"map_pca", "map_tsne"} & set(store.result(store.manifest().id, "trajectory")) == {"map_pca"}
    assert Path(reported.split("report ")[-1].strip()).stat().st_size > 100_000
    assert refused.endswith("this needs pyarrow: pip install 'klray[parquet]'\n") and not (tmp_path / "none").exists()
    assert "pairs.csv" in exported and "index.html" in paged
    assert "results: scale, trajectory" in status and "hold what was committed, 0 do not" in verified


def test_what_it_lacks_is_said_with_the_extra_that_brings_it(light: Light, store: Store) -> None:
    place, score = f"store.url={store.url}", "pip install 'klray[score]'"
    verbs, schedulers = ("score", "plan", "weights", "study"), {"ray": "score", "distributed": "distributed"}
    *lacks, obstore, doctor = light.verbs(
        *(f"{verb} {place}" for verb in verbs),
        *(f"scale {place} dask={scheduler} scale.name=other" for scheduler in schedulers),
        "status store.url=s3://bucket/store store.backend=obstore",
        f"doctor {place}",
    )
    for verb, (code, said) in zip(verbs, lacks, strict=False):
        assert code == 1 and said.startswith(f"klray: error: klray {verb}: this needs "), said
        assert said.endswith(f"{score}\n"), said
    assert lacks[len(verbs) :] == [
        (1, f"klray: error: dask.scheduler={scheduler}: this needs {scheduler}: pip install 'klray[{extra}]'\n")
        for scheduler, extra in schedulers.items()
    ]
    assert obstore[0] == 1 and obstore[1].endswith("this needs obstore: pip install 'klray[obstore]'\n")
    said = light("-c", "import klray; klray.log_likelihood", code=1)
    assert said.endswith(f"KlrayError: klray.log_likelihood: this needs torch: {score}\n")
    assert doctor[0] == 0 and "this installation reads and analyses" in doctor[1]
    assert "a trial sum came back" in doctor[1]
