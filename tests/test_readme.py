"""The pages, held: commands compose, Python runs, links and names exist, sentences are short, the tree is the house."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import klray
from klray.analysis import analyze as trajectory
from klray.analysis.recipe import Recipe
from klray.analysis.scale.choosing_pairs import Choice
from klray.analysis.scale.measuring import measure_scale
from klray.config import Config, register
from klray.store import Column, Identity, Store
from klray.texts import TextSet
from tests.test_architecture import ROOMS

pytestmark = pytest.mark.slow

HOUSE = Path(__file__).parent.parent
README = HOUSE / "README.md"
USERS = [HOUSE / "docs" / f"{name}.md" for name in ("operator", "curator", "analyst", "trainer")]
PAGES = [README, *sorted((HOUSE / "docs").glob("*.md")), HOUSE / "infra" / "README.md"]
GROUPS = {each.name: {key.name for key in fields(each.default_factory)} for each in fields(Config)}  # type: ignore[arg-type]
NO_KEYS = {"json", "safetensors", "py", "md", "npz"}  # file names, such as lens.json

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^\n|\A)((?:^ {4}.*\n|^\n)+)", re.M)


def name_of(page: Path) -> str:
    return str(page.relative_to(HOUSE))


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCED.findall(page.read_text()) if found == language]


def commands(page: Path) -> list[str]:
    """Lines of code blocks that begin with ``klray`` and a verb."""
    text = page.read_text()
    bodies = [body for _, body in FENCED.findall(text)] + INDENTED.findall(FENCED.sub("", text))
    return [line.strip() for body in bodies for line in body.splitlines() if re.match(r"\s*klray [a-z]+ ", line)]


def sentences(page: Path) -> list[str]:
    """Prose by sentences: a list item ends one, code spans and links are the words that a reader sees."""
    text = FENCED.sub("\n", page.read_text())
    text = INDENTED.sub("\n\n", text)
    text = re.sub(r"^(#.*|\|.*|!\[.*|</?[a-z].*)$", "", text, flags=re.M)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "code", text).replace("**", "")
    units = re.split(r"\n\s*\n|\n\s*(?=(?:-|\d+\.) )", text)
    units = [re.sub(r"^\s*(?:-|\d+\.) ", "", unit) for unit in units]
    found = [re.split(r"(?<=[.!?])[\"')]?\s+", " ".join(unit.split())) for unit in units]
    return [sentence for unit in found for sentence in unit if sentence]


def words(sentence: str) -> int:
    return len([word for word in sentence.split() if re.search(r"\w", word)])


def heading_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def config_name(verb: str) -> str:
    """The config file that a verb begins with: its own, if it has one."""
    assert (HOUSE / "jobs" / f"{verb}.py").is_file(), f"there is no verb {verb}"
    return verb if (HOUSE / "conf" / f"{verb}.yaml").is_file() else "config"


COMPOSED: dict[str, set[str]] = {}  # overrides that a command had before, by config: a third of a second each time


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_compose(page: Path) -> None:
    register()
    with initialize_config_dir(str(HOUSE / "conf"), version_base="1.3"):
        for line in commands(page):
            _, verb, *overrides = shlex.split(line, comments=True)
            config, asked = config_name(verb), {each for each in overrides if not each.startswith("-")}
            if not asked <= COMPOSED.setdefault(config, set()):
                assert isinstance(OmegaConf.to_object(compose(config, sorted(asked))), Config), line
                COMPOSED[config] |= asked


def test_every_user_has_commands() -> None:
    assert all(len(commands(page)) >= 3 for page in USERS)


TEXTS = TextSet(
    "pages", tuple(f"text {i} " * 40 for i in range(60)), tuple(("prose", "code")[i % 2] for i in range(60))
)


def column(repository: str, step: int | None, values: np.ndarray, **facts: object) -> Column:
    layers = (-1,) if len(values) == 1 else tuple(range(len(values)))
    commit = f"{len(repository):02x}{step or 0:038x}"
    identity = Identity(repository, commit, TEXTS.fingerprint, lens="none" if len(values) == 1 else "logit")
    known = {"revision": "main" if step is None else f"step{step}", "step": step, "family": "pages", "parameters": 10}
    if step is not None:
        known["run"] = repository
    return Column(identity, values, layers, np.full(len(TEXTS), 7), {**known, **facts}, {"klray": "test"}, {})


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stores that the pages open: store/demo, analysed and measured, and store/layers."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    text = -rng.gamma(4.0, 250.0, (1, len(TEXTS)))
    columns = []
    for seed in (1, 2):
        values = text + rng.normal(size=text.shape) * 30
        for step in range(0, 260, 20):
            values = values + rng.normal(size=text.shape) * 5
            columns.append(column(f"lab/tiny-seed{seed}", step, values, size="1m", seed=seed))
    demo = Store.create(str(folder / "store" / "demo"), TEXTS)
    for each in columns:
        demo.add_column(each)
    snapshot = demo.publish()[0].id
    dataset = demo.dataset()
    result = trajectory.analyze(dataset, min_step=100, outlier_min_step=100, tsne=False)
    recipe = Recipe.from_json(result.attrs["recipe"])
    demo.write_result(snapshot, "trajectory", result)
    demo.write_result(snapshot, "scale", measure_scale(dataset, recipe, Choice(20, 100, 5), 10))

    layers = Store.create(str(folder / "store" / "layers"), TEXTS)
    layers.add_column(column("lab/deep", None, text + rng.normal(size=(4, len(TEXTS))) * 20))
    layers.publish()
    return folder


@pytest.mark.parametrize("page", [README, HOUSE / "docs" / "analyst.md"], ids=name_of)
def test_python_runs(page: Path, stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stores)
    known: dict[str, object] = {}
    programs = blocks(page, "python")
    assert programs
    for program in programs:
        exec(compile(program, str(page), "exec"), known)
    assert known["kl"].sizes["model"] == known["result"].sizes["model"] == 26  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_that_is_not_run_is_python(page: Path) -> None:
    for program in blocks(page, "py"):
        compile(program, str(page), "exec")


def test_readme_is_short() -> None:
    tree = re.search(r"^    klray/ .*?^$", README.read_text(), re.M | re.S)
    assert tree
    assert len(README.read_text().splitlines()) - len(tree[0].splitlines()) < 120


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sentences_are_short(page: Path) -> None:
    lengths = {sentence: words(sentence) for sentence in sentences(page)}
    assert {sentence: length for sentence, length in lengths.items() if length >= 30} == {}
    assert sum(length < 25 for length in lengths.values()) >= 0.9 * len(lengths)


def test_no_table_is_wider_than_a_page() -> None:
    wide = [line for page in [README, *USERS] for line in page.read_text().splitlines() if len(line) > 150]
    assert wide == []


def test_tree_is_the_house() -> None:
    rooms = re.findall(r"^ {6}(\w+)/? +\S", README.read_text(), re.M)
    assert rooms == ROOMS
    assert all((HOUSE / name).is_dir() for name in re.findall(r"^    (\w+)/ +\S", README.read_text(), re.M))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]*(?:#[^)]*)?)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in heading_anchors(there), target


def exists(name: str) -> bool:
    """Whether ``klray.x.y`` is a public name, or a room and a name that its face or file says."""
    path, value = HOUSE / "klray", None
    parts = name.split(".")[1:]
    for number, part in enumerate(parts):
        if (path / part).is_dir():
            path = path / part
        elif (path / f"{part}.py").is_file():
            path = path / f"{part}.py"
        elif path != HOUSE / "klray":
            source = path if path.is_file() else path / "__init__.py"
            return bool(re.search(rf"\b{re.escape(part)}\b", source.read_text()))
        elif part in dir(klray):
            value = getattr(klray, part) if number + 1 < len(parts) else part
            return all(hasattr(value, rest) for rest in parts[number + 1 :])
        else:
            return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_exist(page: Path) -> None:
    names = set(re.findall(r"(?<![\w/.])klray\.[A-Za-z_]+(?:\.[A-Za-z_]+)*", page.read_text()))
    assert {name for name in names if not exists(name)} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_and_groups_exist(page: Path) -> None:
    spans = " ".join(re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text())))
    keys = re.findall(rf"(?<![\w./])({'|'.join(GROUPS)})\.(\w+)", spans)
    assert {f"{group}.{key}" for group, key in keys if key not in GROUPS[group] | NO_KEYS} == set()
    choices = re.findall(r"(?<![\w.])(models|texts|ray|dask|analysis|scale|study)=(\w+)(?![\w.])", spans)
    assert {choice for choice in choices if not (HOUSE / "conf" / choice[0] / f"{choice[1]}.yaml").is_file()} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_extras_and_targets_exist(page: Path) -> None:
    extras = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = ",".join(re.findall(r"(?:klray|'\.)\[([\w,]+)\]", page.read_text()))
    assert {extra for extra in asked.split(",") if extra} <= set(extras)
    targets = re.findall(r"^(\w+):", (HOUSE / "Makefile").read_text(), re.M)
    assert set(re.findall(r"(?:`|^    )make (\w+)", page.read_text(), re.M)) <= set(targets)
