"""How much more than to score once it is to measure noise or to train a lens: limits are in proportion to it."""

from pathlib import Path

from klray.checkpoints import model_config
from klray.measure.lens_making import LensWork
from klray.measure.noise_scorings import Ways
from klray.sweep.limits import Work
from klray.texts import TextSet

_FLOAT64 = 4.0  # times as long as float32, one text at a time
_BYTES_PER_TOKEN = 2.0  # of text, at least, as a rule
_TRAINING = 4.0  # a step beside a forward pass of its tokens, layer by layer
_LENS_COPIES = 12.0  # of the model's files: a matrix for each layer, its gradients and what Adam keeps
_TOKENS_PER_PASS, _LOGITS = 1024, 12  # of a lens: how many times logits are in memory, with their gradients
_USUAL, _LARGEST = 2**18, 2**21  # entries of a vocabulary


def work_of_noise(ways: Ways, text_set: TextSet, directory: Path) -> Work:
    """Of ``klray.measure.noise_scorings.measure``: its reference holds one text's logits whole, in float64, thrice."""
    longest = float(text_set.n_bytes.max()) / _BYTES_PER_TOKEN
    return Work(ways.scorings + _FLOAT64, copies=8.0, logits=longest * _vocabulary(directory) * 8 * 3)


def work_of_lens(work: LensWork) -> Work:
    """Of ``klray.measure.lens_making``, in proportion to the texts that it is judged on."""
    judged = float(work.judged_on.n_bytes.sum()) / _BYTES_PER_TOKEN
    trained = work.training.steps * work.training.tokens_per_step
    logits = float(_TOKENS_PER_PASS * _LOGITS * 4 * _vocabulary(work.directory))
    texts = 200.0 * float(work.trained_on.n_bytes.sum())  # strings, ids, positions
    layers = 10.0  # as many times the work of the model's own output: every layer's is compared
    passes = layers * (2.0 + _TRAINING * trained / max(judged, 1.0))
    return Work(passes, copies=_LENS_COPIES, logits=logits + texts)


def _vocabulary(directory: Path) -> int:
    """Entries, as the config says, or the model in it that has words."""
    config = model_config(directory)
    sizes = [each.get("vocab_size") for each in (config, *config.values()) if isinstance(each, dict)]
    return min(max([size for size in sizes if type(size) is int and size > 0], default=_USUAL), _LARGEST)
