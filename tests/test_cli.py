"""The command line: what is typed wrong is answered in one sentence that says what to type."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import jobs
import jobs.__main__ as cli
from klray.config.keys import groups
from klray.store import Store
from tests.stores import add, column

VERBS = {module.name for module in pkgutil.iter_modules(jobs.__path__)} - {"__main__"}


def klray(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["klray", *words])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["scroe"], "verb scroe: .* score?"),
        (["score", "scoring.dtyp=float32"], "key scoring.dtyp: .* scoring.dtype?"),
        (["score", "dtype=float32"], "key dtype: .* scoring.dtype?"),
        (["score", "models=piythia"], "models=piythia: .* pythia"),
        (["score", "scoring.threads=many"], "scoring.threads=many: .*whole number$"),
        (["score", "store.backend=boto"], "store.backend=boto: .*s3fs or obstore$"),
        (["score", "store.single_writer=perhaps"], "store.single_writer=perhaps: .*true or false$"),
        (["verify", "verify.grace_hours=day"], "verify.grace_hours=day: .*number$"),
        (["score", "store.url=x"], "no models .*: set models=tiny"),
        (["score", "models=tiny"], "no store was named: set store.url="),
        (
            ["score", "models=tiny", "store.url=x", "scoring.dtype=float8"],
            "dtype=float8: .*float32, bfloat16 or float16$",
        ),
        (
            ["plan", "models=tiny", "store.url=x", "scoring.quantization=int4"],
            "quantization=int4: .*none, int8, fp4 or nf4$",
        ),
        (["score", "models=tiny", "store.url=x", "models.recipe=huge"], "recipe=huge: .*default, smallest or study$"),
        (["analyze", "store.url=x", "analysis.pairs=some"], "analysis.pairs=some: .*all, neighbours or runs$"),
        (["analyze", "store.url=x", "dask.scheduler=slurm"], "dask.scheduler=slurm: .*threads, distributed or ray$"),
        (["score", "models.repo=./no/such", "store.url=x"], "./no/such is a path, and .*/no/such: check it"),
        (["score", 'models.names=["~/a-path-of-nobody"]', "store.url=x"], "~/a-path-of-nobody is a path"),
        (
            ["status", "store.url=/a=b"],
            re.escape("""store.url=/a=b cannot be read as it stands: write 'store.url="/a=b"'"""),
        ),
        (["status", "store.url=/a (b)"], re.escape("""write 'store.url="/a (b)"'""")),
        (["status", 'store.url=a"b'], re.escape("""write 'store.url="a\\"b"'""")),
        (
            ["status", "store.url=/a,b"],
            re.escape("""write 'store.url="/a,b"', or for several values 'store.url=["/a","b"]'"""),
        ),
        (["score", "models.names=[~/a, b]"], re.escape("""write 'models.names=["~/a","b"]'""")),
        (["score", "models.repositories=[{repository: (a)}]"], "cannot be read"),
        (["status", "word"], "word is no key=value"),
        (["status", "=x"], "=... is no key=value"),
        (["status", "store.url=${a}"], r"\$\{a\} names no key"),
        (["score", "models=tiny", "store.url=x", "scoring.threads=0"], "scoring.threads=0: must be above 0"),
        (["score", "models=tiny", "store.url=x", "texts=jsonl"], "place of the texts: set texts.path="),
        (
            ["score", "models=tiny", "store.url=x", "+store.storage_options.aws_Secret=s"],
            "credentials do not belong in a config",
        ),
        (["analyze", "store.url=x", "dask.memory_limit=much"], "there is no klray store"),
        (
            ["status", "store.storage_options={anon:true}"],
            r"a \+ before .*\+store\.storage_options\.",
        ),
        (
            ["status", "store.storage_options.anon=true"],
            r"a \+ before .*\+store\.storage_options\.",
        ),
        (["score", 'scoring.cache_dir="/x\udcff"'], r"config: scoring cache_dir holds the character U\+DCFF"),
        (["plan", 'models.names=["a\x1b[2J"]'], r"config: models names item 0 holds the character U\+001B"),
        (["pl\x1b[2Jan\udcff"], "no verb pl�"),
        (["plan", "dtype=\x1b]0;owned\x07"], "dtype=�"),
        (["status", "store.url=s3://b-1/a//b"], "a part of the prefix is ''"),
        (["status", "store.url=x"], "there is no klray store"),
    ],
)
def test_mistakes_are_answered(
    words: list[str], answer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = klray(capsys, monkeypatch, *words)
    assert code != 0
    assert errors.startswith("klray: error: ") and "Traceback" not in errors
    assert re.search(answer, errors), errors
    assert errors.removesuffix("\n").isprintable()
    assert list(tmp_path.iterdir()) == [], "a mistake must leave nothing behind"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = klray(capsys, monkeypatch)
    assert code == 0
    for verb in (
        "plan",
        "score",
        "status",
        "publish",
        "analyze",
        "report",
        "demo",
        "train",
        "verify",
        "doctor",
        "noise",
        "scale",
    ):
        assert f"\n  {verb}" in out


REPOSITORIES = {
    **{"tiny": 4, "pythia": 10, "pythia_seeds": 45, "modelmap_1018": 1018},
    **{"olmo2": 4, "olmo3": 2, "smollm3": 2, "amber": 1, "marin": 1},
}


@pytest.mark.parametrize("models", REPOSITORIES)
def test_families_compose(models: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, errors = klray(capsys, monkeypatch, "score", f"models={models}", "--cfg", "job")
    assert code == 0, errors
    config = OmegaConf.create(out)
    count = len(config.models.repositories) + len(config.models.names)
    assert config.models.family == models
    assert count == REPOSITORIES[models]


@pytest.mark.slow
def test_verbs_run_as_modules() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.status", "--cfg", "job"], capture_output=True, text=True, check=True
    )
    assert "models:" in done.stdout


def test_help_of_a_verb_says_what_it_does_and_the_keys_that_it_reads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = klray(capsys, monkeypatch, "score", "--help")
    assert code == 0 and out.startswith("klray score key=value ...   Score the checkpoints that the store lacks.\n")
    assert re.findall(r"^(\w+): ", out, re.MULTILINE) == ["models", "texts", "store", "scoring", "ray", "lens", "log"]
    assert re.search(r"scoring\.dtype +float32, bfloat16, float16 +float32$", out, re.MULTILINE)
    every = {*groups()}
    read = {verb: cli._read(verb, every) for verb in VERBS}
    assert read["status"] == {"store", "status", "log"}
    assert read["demo"] >= read["score"] | read["publish"] | read["analyze"] | {"report"}, "what it calls"
    assert read["study"] == every == set.union(*(read[verb] for verb in VERBS - {"study"}))


def test_status_names_runs_and_families_with_several_tokenizers(
    folder_store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {1: "A, 4.0 bytes/token", 2: "A, 4.0 bytes/token", 3: "A, <s> before, 4.0 bytes/token"}
    add(
        folder_store,
        *(column("a", step, tokenizer=label) for step, label in made.items()),
        column("a", 4),  # of an older klray: nothing is known of it
        column("b", 1, tokenizer=made[1]),
    )
    code, out, _ = klray(capsys, monkeypatch, "status", f"store.url={folder_store.url}")
    assert code == 0
    said = [line for line in out.splitlines() if line.startswith("tokenizer")]
    assert said == [
        "tokenizer  run org/a has 2: A, 4.0 bytes/token (2 checkpoints); A, <s> before, 4.0 bytes/token (1 checkpoint)",
        "tokenizer  family fam has 2: A, 4.0 bytes/token (3 checkpoints); "
        "A, <s> before, 4.0 bytes/token (1 checkpoint)",
    ]
