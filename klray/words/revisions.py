"""What the name of a revision says of its place in training: branch, step, tokens. The only such rule.

Families name them step1000 (Pythia), step1000-tokens4B (OLMo), stage2-ingredient1-step1000-tokens5B (OLMo 2),
stage1-step-40000 and lc-4k-to-32k-step-20000 (SmolLM3), ckpt_100 (Amber), CrystalCoder_phase1_checkpoint_055500,
anneal_iter_0001000 (OpenCoder), step1250-seed-default (DataDecide), step-001000-2BT (FineWeb), checkpoint-500.

A bare number in B or T that follows the step and ends the name, as in step1000-4B, counts tokens. In M and K it may be
the size of a model or a length of context, as a number before the step may: these are branches. Where it was a size
after all, two checkpoints claim one step, and `klray.analysis.runs` takes neither.
"""

import re
from dataclasses import dataclass

from klray.words.outside import whole_number

# A point between digits ends no number: ckpt_1.5T is no step 1.
_BEGIN, _END = r"(?:^|(?<=[-_./]))", r"(?=$|[-_/]|\.(?!\d))"
# A number after such a word, both on their own. "step10k" has no step: its number is not a count of steps.
_STEP = re.compile(
    rf"{_BEGIN}(?:global[-_]?)?(?:steps?|checkpoint|ckpt|iteration|iter)[-_]?(?P<step>\d+)(?:steps?)?{_END}", re.I
)
_TOKENS = re.compile(
    rf"{_BEGIN}(?:tokens?[-_]?(\d+(?:\.\d+)?)([KMBT]?)|(\d+(?:\.\d+)?)([KMBT])(?:T|[-_]?tokens?)){_END}", re.I
)
_BARE_TOKENS = re.compile(r"[-_./](\d+(?:\.\d+)?)([BT])", re.I)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_JOINTS = "-_./"


@dataclass(frozen=True)
class Place:
    """A place in training. Only places of one branch follow each other; "" is that of a name without a branch."""

    branch: str = ""
    step: int | None = None
    tokens: int | None = None  # trained on, as the name rounds them


def place_of(revision: str) -> Place:
    """The place that a revision names; its branch is what is left without step and tokens, "" where there is no step.

    >>> place_of("stage2-ingredient1-step1000-tokens5B")
    Place(branch='stage2-ingredient1', step=1000, tokens=5000000000)
    >>> place_of("global_step64"), place_of("step100-restart").branch, place_of("main").step
    (Place(branch='', step=64, tokens=None), 'restart', None)
    """
    found = _STEP.search(revision)
    step = whole_number(found["step"]) if found else None
    if found is None or step is None:
        return Place()
    rest = [revision[: found.start()], revision[found.end() :]]
    tokens = None
    for at, part in enumerate(rest):
        if tokens is None and (said := _TOKENS.search(part)):
            tokens = _tokens(said[1] or said[3], said[2] or said[4] or "")
            rest[at] = part[: said.start()].rstrip(_JOINTS) + part[said.end() :]
    if tokens is None and (said := _BARE_TOKENS.fullmatch(rest[1])):
        tokens, rest[1] = _tokens(said[1], said[2]), ""
    return Place("-".join(filter(None, (part.strip(_JOINTS) for part in rest))), step, tokens)


def _tokens(number: str, unit: str) -> int | None:
    return whole_number(round(float(number) * _UNITS[unit.upper()])) if len(number) < 20 else None


def step_of(revision: str) -> int | None:
    """Training step named by a revision, or None; a number that no array takes is none.

    >>> step_of("stage1-step1000-tokens3B"), step_of("global_step64"), step_of("main"), step_of(f"step{10**20}")
    (1000, 64, None, None)
    """
    return place_of(revision).step


def run_of(repository: str, revision: str) -> str:
    """The training run that a revision belongs to: its repository, and each branch of steps in it a run of its own.

    >>> run_of("org/a", "step7"), run_of("org/a", "stage1-step7-tokens1B"), run_of("org/a", "main")
    ('org/a', 'org/a@stage1', 'org/a')
    """
    branch = place_of(revision).branch
    return f"{repository}@{branch}" if branch else repository
