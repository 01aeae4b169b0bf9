"""A study: stages scored into one store by settings of their own, what follows them, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import conf
from jobs.plan import plan_study
from jobs.study import study
from klray import config as configs
from klray.config import Config, FollowConfig, StageConfig, StoreConfig, StudyConfig, TextsConfig
from klray.config import sweep as sweep_configs
from klray.errors import KlrayError
from klray.store import Store
from klray.sweep.cluster import connected
from klray.sweep.settings import RaySettings

pytestmark = pytest.mark.slow

STAGES = [
    StageConfig("first", "tiny_smallest", select={"limit": 2}),
    StageConfig("last", "tiny_smallest", select={"revisions": "step40"}, scoring={"dtype": "bfloat16"}),
]


def config_of(tmp_path: Path, **study: object) -> Config:
    config = Config(
        texts=TextsConfig(n=8),
        store=StoreConfig(url=str(tmp_path / "store")),
        study=StudyConfig(**{"stages": STAGES, "then": [FollowConfig("publish")], **study}),  # type: ignore[arg-type]
    )
    config.scoring.cache_dir = str(tmp_path / "cache")
    config.ray.workers = 1
    return config


def test_stages_are_scored_into_one_store_each_by_its_own_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path)
    before = OmegaConf.to_yaml(OmegaConf.structured(config))
    assert study(config) == 0
    dataset = Store.open(str(tmp_path / "store")).dataset("latest")
    found = zip(*(dataset[name].values.tolist() for name in ("run", "revision", "dtype")), strict=True)
    assert sorted(found) == [
        ("klray/tiny-46k-seed1", "step0", "float32"),
        ("klray/tiny-46k-seed1", "step1", "float32"),
        ("klray/tiny-46k-seed1", "step40", "bfloat16"),
        ("klray/tiny-46k-seed2", "step40", "bfloat16"),
    ]
    out = capsys.readouterr().out
    assert out.index("stage first") < out.index("stage last") < out.index("snapshot ")
    assert OmegaConf.to_yaml(OmegaConf.structured(config)) == before


def test_cost_of_a_study_is_the_sum_over_its_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = plan_study(config_of(tmp_path))
    assert (first.cost.checkpoints, last.cost.checkpoints) == (2, 2)
    words = capsys.readouterr().out.splitlines()[-1].split()
    assert words[:3] == ["all", "4", "4"]
    assert float(words[3]) == pytest.approx((first.cost.fetch_bytes + last.cost.fetch_bytes) / 1e9, abs=6e-4)


def test_one_stage_alone(tmp_path: Path) -> None:
    ((asked, stage),) = configs.stages(config_of(tmp_path, only=["last"]))
    assert (asked.name, stage.scoring.dtype, stage.models.revisions) == ("last", configs.Dtype.bfloat16, "step40")
    assert stage.scoring.cache_dir == str(tmp_path / "cache")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"only": ["lost"]}, r"study\.only=\['lost'\]: .*first, last"),
        ({"stages": [StageConfig("x", "tinny")]}, r"stage x: models=tinny .*tiny_study"),
        ({"stages": [StageConfig("x", "tiny", select={"strid": 2})]}, r"stage x: select: Key 'strid' not in"),
        ({"stages": [StageConfig("x", "tiny", scoring={"dtype": "int3"})]}, r"stage x: scoring: Invalid value 'int3'"),
        (
            {"stages": [StageConfig("x", "tiny", scoring={"quantization": "int4"})]},
            r"x: scoring: quantization=int4: write",
        ),
        ({"stages": [StageConfig("x", "tiny")] * 2}, r"study\.stages has the name 'x'"),
        ({"stages": [StageConfig("", "tiny")]}, r"study\.stages has the name ''"),
        ({"stages": []}, r"no stages: set study=tiny or study=pythia"),
        ({"then": [FollowConfig("doctor")]}, r"study\.then has doctor"),
        ({"then": [FollowConfig("publsh")]}, r"study\.then has publsh, .* analyze, "),
    ],
)
def test_studies_that_cannot_be(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(KlrayError, match=words):
        study(config_of(tmp_path, **changes))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["tiny", "pythia", "smollm2", "smollm2_layers"])
def test_studies_of_conf_name_families_that_are_there(name: str) -> None:
    folder = Path(str(conf.__file__)).parent
    stages = composed("study", f"study={name}").study.stages
    assert len({stage.name for stage in stages}) == len(stages) > 0
    for stage in stages:
        assert (folder / "models" / f"{stage.models}.yaml").is_file()


def test_a_stage_with_a_lens_of_its_own_is_planned_trained_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = {"repo": "klray/tiny-46k-seed1", "revisions": "step40"}
    plain, tuned = (
        StageConfig("plain", "tiny_smallest", select=last),
        StageConfig("tuned", "tiny_smallest", select=last),
    )
    tuned.tune = True
    config = config_of(tmp_path, stages=[plain, tuned])
    config.report.dir = str(tmp_path / "report")
    config.lens.n, config.lens.steps = 20, 2
    with connected(RaySettings(workers=1)):
        _plain_then_tuned(config, tuned, capsys)


def _plain_then_tuned(config: Config, tuned: StageConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert study(replace(config, study=replace(config.study, only=["plain"]))) == 0
    capsys.readouterr()
    assert [each.cost.checkpoints for each in plan_study(config)] == [0, 1]  # a plain column is no lens's
    assert "stage       tuned, through a lens to be trained" in capsys.readouterr().out
    assert study(config) == 0
    assert [each.cost.checkpoints for each in plan_study(config)] == [0, 0]
    folder = configs.tuned_folder(config, tuned)
    assert f"stage       tuned, through the lens in {folder}" in capsys.readouterr().out
    config.lens.steps = 3
    with pytest.raises(KlrayError, match=r"lens\.steps=2, and lens\.steps=3 .*name"):
        study(config)


def test_a_home_folder_is_one_place_for_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(configs.cache_home().parent))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    config = config_of(tmp_path, stages=[StageConfig("x", "tiny_smallest", select={"revisions": "lost"})], then=[])
    config.report.dir = "~/report"
    assert configs.tuned_folder(config, StageConfig("x")) == tmp_path / "home" / "report" / "lenses" / "x"
    assert study(config) == 2
    assert (tmp_path / "home" / "report").is_dir() and not Path("~").exists()


def composed(config_name: str, *overrides: str) -> Config:
    configs.register()
    with initialize_config_dir(str(Path(str(conf.__file__)).parent), version_base="1.3"):
        found = OmegaConf.to_object(compose(config_name, list(overrides)))
    assert isinstance(found, Config)
    return found


def test_a_plan_of_the_tiny_study_is_for_its_texts_and_its_place() -> None:
    plan, run = composed("config", "study=tiny"), composed("study")
    assert plan == run
    assert (run.texts.n, run.store.url, run.analysis.min_step, run.scale.spacing) == (512, "store/study", 100, 20)


def test_another_study_takes_nothing_from_the_tiny_one() -> None:
    found = composed("study", "study=pythia")
    assert (found.store.url, found.analysis.min_step, found.scale.spacing) == (None, 1000, 1000)
    assert "embedded" not in found.report.title


def test_the_study_of_pythia_measures_its_noise_for_its_report() -> None:
    followed = dict(configs.followed(composed("study", "study=pythia", "report.dir=out")))
    (spec,) = sweep_configs.selection(followed["noise"].models).repositories
    assert (spec.repository, spec.patterns) == ("EleutherAI/pythia-410m", ("step143000",))
    assert followed["noise"].noise.path == followed["report"].report.noise == "out/noise.json"


def test_what_a_user_sets_stands_over_what_the_study_brings() -> None:
    found = composed("study", "analysis=trajectory", "texts.n=7", "store.url=elsewhere")
    assert (found.analysis.min_step, found.texts.n, found.store.url, found.scale.spacing) == (1000, 7, "elsewhere", 20)


def test_a_study_without_a_place_says_so_before_any_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path)
    config.store.url = None
    for verb in (study, plan_study):
        with pytest.raises(KlrayError, match=r"no store was named: set store\.url="):
            verb(config)
    assert capsys.readouterr().out == ""
