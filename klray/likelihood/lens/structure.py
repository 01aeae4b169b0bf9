"""Where a model's layers are: the hidden state before each of them, and what stands between the last and the head.

Both are found by watching one short forward pass, not by a list of names: the layers are the list of as many modules as
the model's config has layers, and what is called after the last of them (a final norm; for some OPT models a projection
too) is the way to the head. It is believed only if it turns the last layer's output into the model's own last hidden
state. transformers' own ``output_hidden_states`` is not asked, as it means other things for some: Mamba's begins after
the first layer, and gives the last layer's output with and without the final norm.

Shape suffixes: N texts (rows of a batch), T tokens, D width of the hidden states; L layers.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from klray.errors import CheckpointError, KlrayError
from klray.likelihood.head import relative_error, text_config
from klray.words.numbers import counted

# Greatest difference between the way to the head that was found and the model's own, relative, in root mean square.
# The same modules on the same numbers give the same bits; a wrong module is off by a tenth or more.
_TOLERANCE = 1e-3
_NAMES_SHOWN = 8


@dataclass(frozen=True, eq=False)
class States:
    """Hidden states of a batch in one forward pass."""

    before: tuple[torch.Tensor, ...]  # L of (N, T, D): what each layer was given, the embedding output first
    last: torch.Tensor  # (N, T, D') what the head reads after the last layer: normed, projected where the model does


@dataclass(frozen=True, eq=False)
class Layers:
    """A model's L layers, and the way from a hidden state to what the output head reads.

    The way are the modules behind the last layer, in the order of the calls; none at all for a model whose head reads
    its last layer as it is. Their ``names`` are those in ``model.named_modules()``.
    """

    model: Any
    blocks: nn.ModuleList
    names: tuple[str, ...]
    way: tuple[nn.Module, ...]

    def states(self, ids_NT: torch.Tensor) -> States:
        """Hidden states of every layer for rows of token ids (N, T), from one forward pass.

        Raises CheckpointError (load_failed) if the layers are not called once each.
        """
        before: list[torch.Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            if isinstance(hidden, torch.Tensor):
                before.append(hidden.clone())  # the layer may work in place

        with contextlib.ExitStack() as hooks:
            for block in self.blocks:
                hooks.enter_context(_removed(block.register_forward_pre_hook(keep, with_kwargs=True)))
            last = self.model.base_model(input_ids=ids_NT, use_cache=False).last_hidden_state
        if len(before) != len(self.blocks):
            raise CheckpointError(
                f"{type(self.model).__name__} has {counted(len(self.blocks), 'layer')}, of which {len(before)} were "
                "given hidden states in a forward pass: a lens cannot read it; score it with scoring.lens=none",
                "load_failed",
            )
        return States(tuple(before), last)

    def to_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) of any layer -> what the head reads, on the device of the modules on the way."""
        for module in self.way:
            parameter = next(module.parameters(), None)
            hidden = module(hidden if parameter is None else hidden.to(parameter.device))
        return hidden


def find_layers(model: Any, probe_T: torch.Tensor, norm: str | None = None) -> Layers:
    """The layers of ``model``, checked on a short text ``probe_T`` (T,) of token ids.

    ``norm`` is what stands behind the last layer, in place of what is found: a dotted path as in
    ``model.named_modules()``, or several joined by "+", such as
    ``model.decoder.final_layer_norm+model.decoder.project_out``. To be called in eval mode without gradients.

    Raises CheckpointError (load_failed) if nothing was found that leads from the last layer to the model's last hidden
    state; the message has the modules to choose from. Raises KlrayError if ``norm`` is no module of the model.
    """
    depth = getattr(text_config(model), "num_hidden_layers", None)
    why = f"it has no list of {depth} layers"
    for name, blocks in _block_lists(model, depth):
        names = _named(model, norm) if norm else _called_after(model, probe_T, blocks[-1])
        modules = dict(model.named_modules())
        layers = Layers(model, blocks, names, tuple(modules[each] for each in names))
        error = _way_error(layers, probe_T)
        if error <= _TOLERANCE:
            return layers
        why = (
            f"{' + '.join(names) or 'nothing'} after {name} gives hidden states that are {error:.1e} off the model's "
            f"last ones ({_TOLERANCE:.0e} allowed)"
        )
    raise CheckpointError(
        f"{type(model).__name__}: what stands between its last layer and its head was not found: {why}; name its final "
        f"norm with lens.norm=PATH, for example one of {', '.join(_norms(model)) or 'model.named_modules()'}",
        "load_failed",
    )


def _named(model: Any, norm: str) -> tuple[str, ...]:
    modules = dict(model.named_modules())
    names = tuple(part.strip() for part in norm.split("+"))
    unknown = [name for name in names if not name or name not in modules]
    if unknown:
        raise KlrayError(
            f"lens.norm={norm}: {type(model).__name__} has no module {unknown[0]!r}; "
            f"its norms are {', '.join(_norms(model)) or 'not called so: see model.named_modules()'}"
        )
    return names


def _block_lists(model: Any, depth: int | None) -> list[tuple[str, nn.ModuleList]]:
    """Lists of as many modules as the model has layers, the outermost first: experts, too, stand in lists."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == (depth or len(module)) > 0
    ]
    return sorted(lists, key=lambda each: each[0].count("."))


def _called_after(model: Any, probe_T: torch.Tensor, last_block: nn.Module) -> tuple[str, ...]:
    """Names of the outermost modules that are called once the last block is done, in that order."""
    calls: list[str] = []
    done = False

    def finished(*_: object) -> None:
        nonlocal done
        done = True

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():

            def called(*_: object, name: str = name) -> None:
                if done:
                    calls.append(name)

            hooks.enter_context(_removed(module.register_forward_pre_hook(called)))
        hooks.enter_context(_removed(last_block.register_forward_hook(finished)))
        model.base_model(input_ids=probe_T[None], use_cache=False)
    return tuple(name for name in calls if not any(name.startswith(f"{other}.") for other in calls))


def _way_error(layers: Layers, probe_T: torch.Tensor) -> float:
    """How far the way leads from the model's last hidden states, from its last layer's output; infinite if nowhere."""
    given: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        given.append((output[0] if isinstance(output, tuple) else output).clone())

    with _removed(layers.blocks[-1].register_forward_hook(keep)):
        own_TD = layers.model.base_model(input_ids=probe_T[None], use_cache=False).last_hidden_state[0]
    if not given:
        return float("inf")
    if not torch.isfinite(own_TD).all():
        return 0.0  # nothing can be compared; the log-likelihoods will say that they are not finite
    try:
        found = layers.to_head(given[-1])
    except (RuntimeError, TypeError, AttributeError):  # a module that takes other things than hidden states
        return float("inf")
    if not isinstance(found, torch.Tensor) or found.numel() != own_TD.numel():
        return float("inf")
    return relative_error(found.reshape(own_TD.shape), own_TD)


def _norms(model: Any) -> list[str]:
    """Names of modules that are norms by the name of their class, outside the layers first."""
    names = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
    return sorted(names, key=lambda name: name.count("."))[:_NAMES_SHOWN]


@contextlib.contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
