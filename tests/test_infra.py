"""The files of infra/, as far as a machine without a cloud can tell: fields, numbers, commands, scripts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import jsonschema
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

from infra.access.bucket_policy import ROLES, filled
from klray.config import Config, register
from klray.config.scoring import PlanConfig
from klray.sweep.cost import H100_PEAK_TFLOPS, H100_SHARE, Cost, Rates
from tests import infra_schemas as schemas

HOUSE = Path(__file__).parent.parent
INFRA = HOUSE / "infra"
LAUNCHED = [
    path
    for folder in ("container", "kubernetes", "slurm", "skypilot", "aws", "grafana")
    for path in (INFRA / folder).iterdir()
]
SIGNALLED = "143"  # a klray that SIGTERM ended


def read(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text())


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``klray VERB key=value ...`` of the files, by its file; what the shell fills in is taken for 1."""
    for path in LAUNCHED:
        text = re.sub(r"\\\n#?", "", path.read_text())
        for found in re.findall(r"(?<![\w/.-])klray (?:score|doctor) [^\n&|>`]*(?:\n +[a-z]+\.[a-z_]+=[^\n]*)*", text):
            words = shlex.split(found.rstrip('"').replace('"${@:2}"', "").replace('"$@"', ""), comments=True)
            yield path.name, [re.sub(r"\$\w+", "1", word) for word in words[1:]]
    (container,) = read("kubernetes/indexed_job.yaml")["spec"]["template"]["spec"]["containers"]
    yield "indexed_job.yaml", container["args"][1:]


def options(file: str) -> dict[str, str]:
    """Keys and values of the last command in a file."""
    return dict(word.split("=", 1) for name, words in commands() if name == file for word in words[1:])


def gigabytes(quantity: str) -> float:
    return float(quantity.removesuffix("Gi")) * 2**30 / 1e9


def pin(library: str) -> str:
    (version,) = re.findall(rf"^{library}==(\S+)$", (HOUSE / "constraints.txt").read_text(), re.M)
    return str(version)


def test_every_file_is_short() -> None:
    assert {path.name: lines for path in LAUNCHED if (lines := len(path.read_text().splitlines())) >= 60} == {}


def test_every_command_composes() -> None:
    register()
    found = list(commands())
    assert {name for name, _ in found} == {
        *("ray_job.yaml", "indexed_job.yaml", "cluster.sh", "array.sh", "pool.yaml", "job.yaml", "ray_cluster.yaml"),
    }
    with initialize_config_dir(str(HOUSE / "conf"), version_base="1.3"):
        for name, (verb, *overrides) in found:
            config = OmegaConf.to_object(
                compose(verb if (HOUSE / f"conf/{verb}.yaml").is_file() else "config", overrides)
            )
            assert isinstance(config, Config), name


def test_container_is_built_of_what_is_there_and_runs_as_nobody_special() -> None:
    text = re.sub(r"^#.*\n", "", (INFRA / "container/Containerfile").read_text(), flags=re.M).replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    assert {name for name, _ in steps} <= {"ARG", "FROM", "RUN", "COPY", "USER", "WORKDIR", "ENV", "ENTRYPOINT", "CMD"}
    copied = [words.split()[:-1] for name, words in steps if name == "COPY"]
    assert all((HOUSE / source).exists() for sources in copied for source in sources)
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {"pyproject.toml", "constraints.txt", *packages} <= {source for sources in copied for source in sources}
    (install,) = [words for name, words in steps if name == "RUN" and "pip install" in words]
    (extras,) = re.findall(r"'/src\[([\w,]+)\]'", install)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    assert "--constraint /src/constraints.txt" in install
    brings = project["project"]["optional-dependencies"]["cluster"]
    assert "boto3" in brings and all(
        f" {each} " in text for each in ("openssh-client", "rsync", "tmux")
    )  # Ray's launcher
    users = [words for name, words in steps if name == "USER"]
    assert users == ["1000:1000"] and steps.index(["USER", users[0]]) > steps.index(["RUN", install])
    assert all(isinstance(json.loads(words), list) for name, words in steps if name in ("ENTRYPOINT", "CMD"))
    assert "RAY_AUTH_MODE=token RAY_enable_metrics_collection=0" in text  # of every Ray that is started in it
    python, minimum = re.findall(r"ARG PYTHON=(\S+)", text)[0], project["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, python.split("."))) >= tuple(map(int, minimum.split(".")))


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("kubernetes/ray_job.yaml", schemas.RAY_JOB),
        ("kubernetes/indexed_job.yaml", schemas.INDEXED_JOB),
        ("skypilot/pool.yaml", schemas.SKY_POOL),
        ("skypilot/job.yaml", schemas.SKY_JOB),
    ],
)
def test_fields_are_those_of_the_system_that_reads_them(name: str, schema: dict[str, Any]) -> None:
    jsonschema.validate(read(name), schema)


def pods() -> dict[str, Any]:
    """Pod specs by what they are for."""
    cluster = read("kubernetes/ray_job.yaml")["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    job = read("kubernetes/indexed_job.yaml")["spec"]["template"]["spec"]
    return {"head": cluster["headGroupSpec"]["template"]["spec"], "worker": group["template"]["spec"], "job": job}


def test_ray_job_scales_from_nothing_and_asks_for_what_it_can_get() -> None:
    spec = read("kubernetes/ray_job.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    asked = options("ray_job.yaml")
    assert cluster["authOptions"] == {"mode": "token"} and cluster["rayVersion"] == pin("ray")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert group["minReplicas"] == group["replicas"] == 0 and spec["backoffLimit"] > 0
    assert asked["ray"] == "cluster" and int(asked["ray.workers"]) == group["maxReplicas"]


def test_a_pod_has_what_its_worker_may_take() -> None:
    for name, file in (("worker", "ray_job.yaml"), ("job", "indexed_job.yaml")):
        pod, asked = pods()[name], options(file)
        (container,), (volume,) = pod["containers"], pod["volumes"]
        claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": asked["scoring.cache_dir"]}]
        assert 1.1 * float(asked["scoring.cache_gigabytes"]) < gigabytes(claim)  # file systems take a part
        assert int(asked["scoring.threads"]) < float(container["resources"]["requests"]["cpu"])
        assert container["resources"]["limits"]["nvidia.com/gpu"] == asked["ray.gpus_per_worker"] == "1"


@pytest.mark.parametrize("name", ["head", "worker", "job"])
def test_no_pod_runs_as_root_or_holds_a_secret_in_its_words(name: str) -> None:
    pod = pods()[name]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["envFrom"] == [{"secretRef": {"name": "klray"}}] and "env" not in container


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
@pytest.mark.parametrize("name", ["head", "worker", "job"])
def test_kubernetes_own_types_keep_every_field(name: str, tmp_path: Path) -> None:
    """kubectl without a cluster reads a manifest into Kubernetes' types, which drop what they do not know."""
    job = read("kubernetes/indexed_job.yaml")
    job["spec"]["template"]["spec"] = {"restartPolicy": "Never", **pods()[name]}
    (tmp_path / "job.json").write_text(json.dumps(job))
    container = pods()[name]["containers"][0]["name"]
    command = ["kubectl", "set", "image", "--local", "-f", "job.json", f"{container}=KEPT", "-o", "json"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "KUBECONFIG": os.devnull}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert missing(job, json.loads(done.stdout.replace("KEPT", "IMAGE"))) == []


def missing(given: Any, kept: Any, path: str = "") -> list[str]:
    if isinstance(given, dict):
        lost = [f"{path}.{key}" for key in given if key not in kept]
        return lost + [each for key in given if key in kept for each in missing(given[key], kept[key], f"{path}.{key}")]
    if isinstance(given, list):
        return [each for number, item in enumerate(given) for each in missing(item, kept[number], f"{path}[{number}]")]
    return [] if given == kept else [f"{path}: {given} became {kept}"]


def test_pool_and_job_ask_for_the_same_machines() -> None:
    pool, job = read("skypilot/pool.yaml"), read("skypilot/job.yaml")
    assert job["resources"] == {name: pool["resources"][name] for name in job["resources"]}
    assert options("job.yaml")["scoring.cache_dir"] == options("pool.yaml")["scoring.cache_dir"]
    assert float(options("job.yaml")["scoring.cache_gigabytes"]) < 0.7 * pool["resources"]["disk_size"]
    assert job["secrets"] == {"HF_TOKEN": None}


def test_ray_knows_its_cluster_file() -> None:
    config = prepare_config(read("aws/ray_cluster.yaml"))
    validate_config(config)
    nodes = config["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0} and nodes["spot"]["min_workers"] == 0
    for each in nodes.values():  # what Ray takes by default: a group that is open to all, and an image of 2022
        assert each["node_config"]["SecurityGroupIds"] == ["GROUP"] and each["node_config"]["ImageId"] == "AMI"
    assert "security_group" not in config["provider"]
    asked = options("ray_cluster.yaml")
    assert int(asked["ray.workers"]) == nodes["spot"]["max_workers"] == config["max_workers"]
    assert (
        float(asked["scoring.cache_gigabytes"])
        < 0.7 * nodes["spot"]["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]
    )
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    wrong = {**read("aws/ray_cluster.yaml"), "idle_timeout": 5}
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(wrong)


def test_the_buckets_files_parse_and_their_policies_are_those_of_access(tmp_path: Path) -> None:
    parsed = [hcl2.loads(path.read_text()) for path in (INFRA / "aws").glob("*.tf")]
    resources = {name.strip('"') for each in parsed for block in each.get("resource", ()) for name in block}
    assert {"aws_s3_bucket_versioning", "aws_s3_bucket_lifecycle_configuration", "aws_iam_policy"} <= resources
    (names,) = [block["names"] for each in parsed for block in each.get("locals", ())]
    assert [name.strip('"') for name in names] == [*ROLES, "conditional_create"]
    terraform = shutil.which("terraform") or shutil.which("tofu")
    if terraform is None:
        return
    subprocess.run([terraform, "fmt", "-check", "-diff", str(INFRA / "aws")], check=True, capture_output=True)
    shutil.copytree(INFRA / "access", tmp_path / "access")
    (tmp_path / "aws").mkdir()
    shutil.copy(INFRA / "aws/policies.tf", tmp_path / "aws")
    command = [
        terraform,
        f"-chdir={tmp_path / 'aws'}",
        "console",
        "-var",
        "bucket=my-bucket",
        "-var",
        "prefix=some/store",
    ]
    done = subprocess.run(command, input="jsonencode(local.policies)", capture_output=True, text=True, check=True)
    policies = json.loads(json.loads(done.stdout.strip()))
    assert policies == {name: filled(name, "my-bucket", "some/store") for name in [*ROLES, "conditional_create"]}


# Slurm: the scripts run as they are, beside programs that stand for those of Slurm, Ray and klray.

FAKES = {
    "scontrol": 'if [[ $1 == show ]]; then printf "node1\\nnode2\\n"; else echo "$@" >>"$RECORD/scontrol"; fi',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": 'printf "%s\\n" "$@" >"$RECORD/ray"; [[ $RAY_AUTH_MODE == token && ${#RAY_AUTH_TOKEN} == 64 ]] || exit 3\n'
    'while [[ $1 != -- ]]; do shift; done; shift; "$@"',
    "klray": 'printf "%s\\n" "$@" >"$RECORD/klray"\n'
    'for word; do [[ $word == scoring.cache_dir=* ]] && mkdir -p "${word#*=}"; done\n'
    'trap "exit 143" TERM; echo $$ >"$RECORD/up"; mv "$RECORD/up" "$RECORD/started"\n'
    "for _ in {1..600}; do [[ -e $RECORD/end ]] && exit 0; [[ -e $RECORD/fail ]] && exit 1; sleep 0.1; done",
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm job's script; what the programs were asked for is written down below RECORD."""
    for name, body in FAKES.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "tmp").mkdir()
    given = {
        "JOB_ID": "77",
        "JOB_NUM_NODES": "2",
        "JOB_NODELIST": "node[1-2]",
        "ARRAY_JOB_ID": "70",
        "ARRAY_TASK_ID": "3",
    }
    return {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "RECORD": str(tmp_path),
        "TMPDIR": str(tmp_path / "tmp"),
        **{f"SLURM_{name}": value for name, value in given.items()},
    }


def run_script(name: str, environment: dict[str, str], end: str) -> tuple[int, Path]:
    """Run a script until its klray has begun, and ``end`` it; exit code and the folder of records."""
    record = Path(environment["RECORD"])
    command = ["bash", str(INFRA / "slurm" / name), "models=pythia", "store.url=a b"]
    with subprocess.Popen(command, env=environment) as process:
        try:
            while not (record / "started").exists():
                assert process.poll() is None
                time.sleep(0.01)
            if end == "signal":
                process.send_signal(signal.SIGTERM)
            else:
                (record / end).touch()
            code = process.wait()
        finally:
            (record / "end").touch()
    return code, record


@pytest.mark.parametrize(("end", "code"), [("end", 0), ("fail", 1), ("signal", int(SIGNALLED))])
@pytest.mark.parametrize("name", ["array.sh", "cluster.sh"])
def test_a_slurm_job_hands_on_how_it_ended_and_is_queued_again_when_its_time_is_up(
    name: str, end: str, code: int, slurm: dict[str, str]
) -> None:
    found, record = run_script(name, slurm, end)
    assert found == code
    asked = (record / "klray").read_text().splitlines()
    assert asked[0] == "score" and asked[-2:] == ["models=pythia", "store.url=a b"]
    job = "77" if name == "cluster.sh" else "70_3"
    requeued = (record / "scontrol").read_text() if (record / "scontrol").exists() else ""
    assert requeued == (f"requeue {job}\n" if end == "signal" else "")
    assert list((record / "tmp").iterdir()) == []  # nothing is left on the node
    if name == "cluster.sh":
        words = (record / "ray").read_text().splitlines()
        assert words[:5] == ["symmetric-run", "--address", "node1:20077", "--min-nodes", "2"]
        assert curate_and_validate_ray_start_args(words[1 : words.index("--")]) == []
        assert "ray=cluster" in asked


@pytest.mark.parametrize("name", ["array.sh", "cluster.sh"])
def test_slurms_options_are_above_the_first_command(name: str) -> None:
    text = (INFRA / "slurm" / name).read_text()
    subprocess.run(["bash", "-n", str(INFRA / "slurm" / name)], check=True)
    head, _, rest = text.partition("\nset -euo pipefail\n")
    assert "#SBATCH" not in rest
    asked = re.findall(r"^#SBATCH --([a-z-]+)", head, re.M)
    assert {"requeue", "signal", "time", "open-mode"} <= set(asked) and "#SBATCH --signal=B:TERM@" in head


# The table of sizes and costs: arithmetic of klray plan on public numbers.

PYTHIA = {  # parameters of each size, embeddings included (github.com/EleutherAI/pythia, table of models)
    **{"14m": 14_067_712, "31m": 30_494_720, "70m": 70_426_624, "160m": 162_322_944, "410m": 405_334_016},
    **{"1b": 1_011_781_632, "1.4b": 1_414_647_808, "2.8b": 2_775_208_960, "6.9b": 6_857_302_016, "12b": 11_846_072_320},
}
SMALL = [PYTHIA[size] for size in ("14m", "31m", "70m", "160m", "410m")]
WORK = {  # what: parameters of each checkpoint
    "`models=pythia`, 14m to 410m": 154 * SMALL,
    "`models=pythia`, 1b to 2.8b": 154 * [PYTHIA[size] for size in ("1b", "1.4b", "2.8b")],
    "`models=pythia`, 6.9b and 12b": 154 * [PYTHIA["6.9b"], PYTHIA["12b"]],
    "`models=pythia_seeds`": 9 * 154 * SMALL,
    "100 checkpoints of 7 B": 100 * [7 * 10**9],
    "100 checkpoints of 32 B": 100 * [32 * 10**9],
}
TEXT_BYTES, DOLLARS_AN_HOUR = 10_000_000, 3.0
COST_HEADER = "| what | checkpoints | fetch, GB | link, hours | H100, hours | dollars | largest in GPU memory, GB |"


def cost_row(what: str, parameters: list[int]) -> str:
    defaults = PlanConfig()
    rates = Rates(H100_SHARE * H100_PEAK_TFLOPS["bfloat16"], defaults.gigabits, 1, defaults.bytes_per_token)
    count, size = len(parameters), 2 * sum(parameters)
    cost = Cost(count, count, size, sum(parameters), 0, round(TEXT_BYTES / rates.bytes_per_token), rates)
    hours = cost.device_seconds / 3600
    cells = [
        f"{size / 1e9:,.0f}",
        f"{cost.fetch_seconds / 3600:.1f}",
        f"{hours:.1f}",
        f"{DOLLARS_AN_HOUR * hours:,.0f}",
    ]
    return f"| {what} | {count:,} | {' | '.join(cells)} | {2 * max(parameters) / 1e9:.1f} |"


def test_the_table_of_costs_is_the_plans_arithmetic() -> None:
    lines = (INFRA / "README.md").read_text().splitlines()
    start = lines.index(COST_HEADER) + 2
    assert lines[start : start + len(WORK)] == [cost_row(what, parameters) for what, parameters in WORK.items()]
