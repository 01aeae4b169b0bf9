"""The house's plan, held: imports go up one list, every outside library has its doors, log 2 has one home."""

from __future__ import annotations

import ast
import functools
import pkgutil
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import jobs
import klray
from klray.errors import EXTRAS
from klray.store import Store
from tests.stores import TEXTS

ROOT = Path(str(klray.__file__)).parent

# A room may import what stands above it: the way of the data.
ROOMS = [
    *("words", "errors", "units"),
    *("texts", "checkpoints", "weights", "likelihood", "store", "sweep", "analysis", "measure", "report", "watch"),
    *("tiny", "config", "doctor"),
]
# Nothing stands in these faces, so that each process imports what it needs and no more.
EMPTY_FACES = ["analysis", "likelihood", "measure", "sweep", "weights", "words"]
NAMES_AT_MOST = 17

# An outside library comes in by its doors: rooms, or packages in them.
DOORS = {
    "zarr": {"store"},
    "ray": {"sweep"},
    "huggingface_hub": {"checkpoints"},
    "transformers": {"likelihood", "tiny", "watch"},
    "tokenizers": {"likelihood.tokenizer", "tiny"},
    "sentencepiece": {"likelihood.tokenizer"},
    "safetensors": {"checkpoints", "likelihood.lens", "tiny"},
    "matplotlib": {"report.figures"},
    "sklearn": {"analysis.embedding"},
    "scipy": {"weights.alignment"},
    "jinja2": {"report"},
    "hydra": {"config"},
    "omegaconf": {"config"},
    "distributed": {"analysis"},
    "s3fs": {"store.objects"},
    "fsspec": {"store.objects"},
    "aiohttp": {"store.objects"},
    "aiobotocore": {"store.objects"},
    "botocore": {"store.objects"},
    "obstore": {"store.objects"},
    "pyarrow": {"store.adopted.parquet"},
    "tqdm": {"words"},
    "bitsandbytes": {"likelihood"},
    "gguf": {"likelihood"},
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def place(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@functools.cache
def imports() -> list[tuple[Path, str]]:
    return list(_imports())


def _imports() -> Iterator[tuple[Path, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                assert node.module
                if node.module == "klray":
                    yield from ((path, f"klray.{alias.name}") for alias in node.names)
                else:
                    yield path, node.module


def test_every_room_is_on_the_plan() -> None:
    assert {room(path) for path in ROOT.rglob("*.py")} - {"__init__"} == set(ROOMS)


def test_the_house_has_few_names_and_no_file_is_long() -> None:
    assert len({path.name for path in ROOT.iterdir()} - {"__pycache__"}) <= NAMES_AT_MOST
    long = [path for path in ROOT.parent.joinpath("klray").rglob("*.py") if len(path.read_text().splitlines()) > 400]
    assert long == []


def test_faces_are_empty() -> None:
    bodies = {name: ast.parse((ROOT / name / "__init__.py").read_text()).body for name in EMPTY_FACES}
    assert {name: len(body) for name, body in bodies.items()} == dict.fromkeys(EMPTY_FACES, 1)


def test_no_arrow_is_hidden() -> None:
    """Only the library's face, whose names are loaded when they are used, imports klray by a string."""
    hidden = re.compile(r"""import_module\(f?["']klray|__import__""")
    assert [path for path in ROOT.rglob("*.py") if hidden.search(path.read_text())] == []


def test_imports_go_up_the_list_only() -> None:
    wrong = []
    for path, name in imports():
        if name.startswith("klray.") and room(path) != "__init__":
            target = name.split(".")[1]
            if target != room(path) and ROOMS.index(target) >= ROOMS.index(room(path)):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_outside_libraries_come_in_by_their_doors() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, name in imports()
        if not any(f"{place(path)}.".startswith(f"{door}.") for door in DOORS.get(name.split(".")[0], {room(path)}))
    ]
    assert wrong == []


def test_log_2_has_one_home() -> None:
    pattern = re.compile(r"log\(2(\.0?)?\)|log2\b|0\.693|LN2|ln2\b")
    found = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if pattern.search(path.read_text())]
    assert found == ["units.py"]


# Seconds of start-up, and what an analyst's installation lacks.
HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "ray"}
# What is heavy and a verb may load with its module; all others load nothing of it.
MAY_LOAD = {
    "score": {"huggingface_hub", "ray"},
    "doctor": {"huggingface_hub", "ray", "torch"},
    "plan": HEAVY,
    "weights": HEAVY - {"ray", "transformers"},
    "noise": HEAVY - {"ray"},
    "compare": HEAVY - {"ray"},
    "lens": HEAVY - {"ray"},
    "train": HEAVY - {"ray"},
    "demo": {"huggingface_hub", "ray"},
    "study": HEAVY,
}
VERBS = sorted({module.name for module in pkgutil.iter_modules(jobs.__path__)} - {"__main__"})
START_RATIO = 1.5 / 0.7  # of the time that importing xarray and zarr takes


def loaded_by(*statements: str) -> list[set[str]]:
    """What one process has loaded after each of these."""
    told = "print('loaded', *sorted({name.split('.')[0] for name in sys.modules}))"
    program = "\n".join(["import sys", *(line for each in statements for line in (each, told))])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = [set(line.split()[1:]) for line in done.stdout.splitlines() if line.startswith("loaded ")]
    assert len(found) == len(statements)
    return found


def test_import_klray_is_light() -> None:
    assert not loaded_by("import klray")[0] & {*HEAVY, "zarr", "dask", "numpy"}


def test_command_line_is_light() -> None:
    assert not loaded_by("import jobs.__main__")[0] & {*HEAVY, "zarr", "dask", "numpy", "hydra"}


@pytest.mark.slow
def test_likelihood_needs_torch_alone() -> None:
    (loaded,) = loaded_by("import klray; klray.log_likelihood")
    assert "torch" in loaded
    assert not loaded & {"ray", "zarr", "hydra", "dask", "xarray", "s3fs"}


@pytest.mark.slow
def test_help_and_config_load_no_library_that_computes() -> None:
    asked = [*([verb, "--cfg", "job"] for verb in VERBS), ["score", "--help"]]  # the help of all is made alike
    (loaded,) = loaded_by(f"""
import contextlib
import jobs.__main__ as cli
for words in {asked}:
    sys.argv = ["klray", *words]
    with contextlib.suppress(SystemExit):
        cli.main()""")
    assert "hydra" in loaded
    assert not loaded & {*HEAVY, "zarr", "xarray", "dask", "matplotlib", "sklearn", "scipy"}


@pytest.mark.slow
def test_what_an_analyst_uses_loads_nothing_of_what_scores() -> None:
    """Law 1: an analyst's names, every module of these rooms, and the verbs that go with them."""
    names = {*klray.__dir__()} - {"KlrayCallback", "layer_log_likelihood", "log_likelihood", "token_kl", "watch"}
    assert {"open_dataset", "kl_divergence", "layer_kl", "place", "pairs", "relatives", "texts"} <= names
    rooms = {"errors", "units", "words", "texts", "store", "analysis", "report"}
    modules = ["klray." + place(path).removesuffix(".__init__") for path in ROOT.rglob("*.py") if room(path) in rooms]
    verbs = [f"jobs.{verb}" for verb in VERBS if verb not in MAY_LOAD]
    light = {"adopt", "analyze", "export", "page", "publish", "report", "scale", "status", "verify"}
    assert {f"jobs.{verb}" for verb in light} == set(verbs)
    statements = [f"import klray; [getattr(klray, name) for name in {sorted(names)}]"]
    statements += [f"import {', '.join(each)}" for each in (modules, verbs)]
    assert [loaded & HEAVY for loaded in loaded_by(*statements)] == [set()] * 3


def test_an_extra_that_is_named_to_users_brings_the_library() -> None:
    extras = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {name: {re.split(r"[><=]", each)[0] for each in needs} for name, needs in extras.items()}
    brought["distributed"].add("distributed")  # which dask[distributed] brings
    brought["maps"].add("sklearn")  # of scikit-learn
    assert {library: extra for library, extra in EXTRAS.items() if library not in brought[extra]} == {}


# Law 2: a scorer has no PyTorch, a model's process no Ray.
PROCESSES = {
    ("klray.sweep.scorer", "klray.sweep.actor"): HEAVY - {"torch", "transformers"},
    ("klray.sweep.preload", "klray.sweep.model_process"): HEAVY - {"ray"},
}


@pytest.mark.slow
def test_verbs_and_processes_load_what_they_may() -> None:
    """A process for those of which each may load what the one before may, and more; those that may load everything
    need none.
    """
    may = {**PROCESSES, **{(f"jobs.{verb}",): allowed for verb, allowed in MAY_LOAD.items()}}
    chains: list[list[set[str]]] = []
    for allowed in sorted({frozenset(each) for each in may.values() if each != HEAVY}, key=len):
        chain = next((chain for chain in chains if chain[-1] <= allowed), None)
        chain.append(set(allowed)) if chain else chains.append([set(allowed)])
    for chain in chains:
        modules = [
            ", ".join(name for names, each in may.items() if each == allowed for name in names) for allowed in chain
        ]
        for loaded, allowed in zip(loaded_by(*(f"import {each}" for each in modules)), chain, strict=True):
            assert loaded & HEAVY <= allowed, modules


def cpu_seconds(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_a_verb_starts_in_little_more_than_its_libraries_take(tmp_path: Path) -> None:
    """Of several times, the least: what a busy machine adds is no part of it."""
    store = Store.create(str(tmp_path / "store"), TEXTS)
    most = START_RATIO * min(cpu_seconds("-c", "import xarray, zarr") for _ in range(2))
    for words in (["status", f"store.url={store.url}"], ["score", "--help"]):
        assert any(cpu_seconds("-m", "jobs", *words) < most for _ in range(5)), words


def test_one_place_prints() -> None:
    """What quotes a stranger is printed by what makes it fit to be; the embedded family quotes nobody."""
    places = [*ROOT.rglob("*.py"), *Path(str(jobs.__file__)).parent.glob("*.py")]
    prints = [path for path in places if re.search(r"\bprint\(", path.read_text()) and path.parent.name != "tiny"]
    assert [path.name for path in prints] == ["tables.py"]
