"""The house's plan, held: imports go up one list, every outside library has its doors, log 2 has one home."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import klray

ROOT = Path(str(klray.__file__)).parent

# A room may import what stands above it.
ROOMS = [
    "errors",
    "words",
    "units",
    "weights",
    "alignment",
    "texts",
    "checkpoints",
    "tokens",
    "linear",
    "streams",
    "head",
    "reader",
    "likelihood",
    "lens",
    "quantization",
    "stored",
    "models",
    "cost",
    "objects",
    "store",
    "table",
    "progress",
    "scoring",
    "compute",
    "preload",
    "processes",
    "scorer",
    "cluster",
    "sweep",
    "doctor",
    "preprocess",
    "centering",
    "tiles",
    "divergence",
    "pairs",
    "layers",
    "watch",
    "noise",
    "diffusion",
    "drift",
    "embedding",
    "relatives",
    "maps",
    "trajectory",
    "summary",
    "scale",
    "figures",
    "report",
    "embedded",
    "config",
    "job",
    "cli",
]

DOORS = {
    "zarr": {"store"},
    "ray": {"cluster", "sweep"},
    "huggingface_hub": {"checkpoints"},
    "transformers": {"models", "embedded", "watch"},
    "tokenizers": {"embedded"},
    "safetensors": {"lens", "stored", "embedded"},
    "matplotlib": {"figures"},
    "sklearn": {"embedding"},
    "scipy": {"alignment"},
    "jinja2": {"report"},
    "hydra": {"config", "job"},
    "omegaconf": {"config", "job"},
    "distributed": {"cluster"},
    "s3fs": {"objects"},
    "fsspec": {"objects"},
    "aiohttp": {"objects"},
    "aiobotocore": {"objects"},
    "botocore": {"objects"},
    "obstore": {"objects"},
    "tqdm": {"progress"},
    "bitsandbytes": {"quantization"},
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports() -> Iterator[tuple[Path, str]]:
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


def test_design_and_readme_list_the_rooms_in_their_order() -> None:
    design, readme = ((ROOT.parent / name).read_text() for name in ("docs/design.md", "README.md"))
    table = [re.findall(r"`([a-z]+)/?`", line.split("|")[1]) for line in design.splitlines() if line.startswith("| `")]
    house = re.findall(r"^      ([a-z]+(?:, [a-z]+)*)/?  ", readme.split("## The house")[1], flags=re.M)
    assert [name for names in table for name in names if name in ROOMS] == ROOMS
    assert [name for names in house for name in names.split(", ")] == ROOMS


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
        if room(path) not in DOORS.get(name.split(".")[0], {room(path)})
    ]
    assert wrong == []


def test_log_2_has_one_home() -> None:
    pattern = re.compile(r"log\(2(\.0?)?\)|log2\b|0\.693|LN2|ln2\b")
    found = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if pattern.search(path.read_text())]
    assert found == ["units.py"]


def loaded_by(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def test_import_klray_is_light() -> None:
    assert not loaded_by("import klray") & {"ray", "zarr", "torch", "dask", "transformers", "numpy"}


def test_command_line_is_light() -> None:
    assert not loaded_by("import klray.cli") & {"ray", "zarr", "torch", "dask", "transformers", "numpy", "hydra"}


def test_likelihood_needs_torch_alone() -> None:
    loaded = loaded_by("import klray; klray.log_likelihood")
    assert "torch" in loaded
    assert not loaded & {"ray", "zarr", "hydra", "dask", "xarray", "s3fs"}
