"""Where a model's layers end: the hidden state after each of them, and what stands between the last and the head.

Both are found by watching one short forward pass, not by a list of names: the layers are the list of modules as long
as the model is deep, and what is called after the last of them (a final norm; for some OPT models a projection too) is
the way to the head. It is believed only if it turns the last layer's output into the model's own last hidden state.

Shape suffixes: N texts (rows of a batch), T tokens, D width of the hidden states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from klray.errors import CheckpointError, KlrayError

# Greatest difference between the way to the head that was found and the model's own, relative, in root mean square.
# The same modules on the same numbers give the same bits; a wrong module is off by a tenth or more.
_TOLERANCE = 1e-3
_NAMES_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Way:
    """The way from a layer's hidden state to what the output head reads: modules, in the order of their calls.

    ``names`` are those of ``model.named_modules()``; none at all for a model whose head reads its last layer as it is.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) of any layer -> what the head reads, on the device of the modules."""
        for module in self.modules:
            parameter = next(module.parameters(), None)
            hidden = module(hidden if parameter is None else hidden.to(parameter.device))
        return hidden


@dataclass(frozen=True, eq=False)
class States:
    """Hidden states of a batch in one forward pass.

    Parameters
    ----------
    before
        L tensors (N, T, D): the embedding output and the output of each layer but the last.
    last
        (N, T, D') what the output head reads after the last layer: normed, and projected where the model does.
    """

    before: tuple[torch.Tensor, ...]
    last: torch.Tensor


def layer_states(model: Any, ids_NT: torch.Tensor) -> States:
    """Hidden states of every layer for rows of token ids (N, T).

    Raises
    ------
    CheckpointError
        With reason load_failed: the model gives no hidden states.
    """
    output = model.base_model(input_ids=ids_NT, use_cache=False, output_hidden_states=True)
    states = getattr(output, "hidden_states", None)
    if not states or len(states) < 2 or any(state is None for state in states):
        raise CheckpointError(
            f"{type(model).__name__} gives no hidden states of its layers (output_hidden_states=True gave "
            f"{'none' if not states else len(states)}): a lens cannot read it; score it with scoring.lens=none",
            "load_failed",
        )
    return States(before=tuple(states[:-1]), last=output.last_hidden_state)


def find_way(model: Any, probe_T: torch.Tensor, named: str | None = None) -> Way:
    """The way from the last layer to the head, checked on a short text ``probe_T`` (T,) of token ids.

    To be called in eval mode without gradients.

    Parameters
    ----------
    named
        Modules to be used in place of what is found: a dotted path as in ``model.named_modules()``, or several joined
        by "+" in the order of their calls, such as ``model.decoder.final_layer_norm+model.decoder.project_out``.

    Raises
    ------
    CheckpointError
        With reason load_failed: nothing was found that leads from the last layer to the model's last hidden state; the
        message has the modules to choose from.
    KlrayError
        ``named`` is no module of the model.
    """
    if named:
        return _checked(model, probe_T, _named(model, named), None)
    depth = len(layer_states(model, probe_T[None]).before)
    why = f"it has no list of {depth} layers"
    for name, blocks in _block_lists(model, depth):
        calls = _calls_after(model, probe_T, blocks[-1])
        try:
            return _checked(model, probe_T, _outermost(model, calls), blocks[-1])
        except CheckpointError as error:
            why = f"after {name} come {', '.join(calls) or 'no modules'}, and {error.message}"
    raise CheckpointError(
        f"{type(model).__name__}: what stands between its last layer and its head was not found: {why}; name its final "
        f"norm with lens.norm=PATH, for example one of {', '.join(_norms(model)) or 'model.named_modules()'}",
        "load_failed",
    )


def _named(model: Any, named: str) -> Way:
    modules = dict(model.named_modules())
    names = tuple(part.strip() for part in named.split("+"))
    unknown = [name for name in names if not name or name not in modules]
    if unknown:
        raise KlrayError(
            f"lens.norm={named}: {type(model).__name__} has no module {unknown[0]!r}; "
            f"its norms are {', '.join(_norms(model)) or 'not called so: see model.named_modules()'}"
        )
    return Way(names, tuple(modules[name] for name in names))


def _block_lists(model: Any, depth: int) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of as many modules as the model is deep, the outermost first: experts, too, stand in lists."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    yield from sorted(lists, key=lambda each: each[0].count("."))


def _calls_after(model: Any, probe_T: torch.Tensor, last_block: nn.Module) -> list[str]:
    """Names of the modules of the base model that are called once the last block is done, in that order."""
    calls: list[str] = []
    done = False

    def finished(*_: object) -> None:
        nonlocal done
        done = True

    with contextlib.ExitStack() as hooks:
        for name, module in model.base_model.named_modules():

            def called(module: nn.Module, args: Any, name: str = name) -> None:
                if done:
                    calls.append(name)

            hooks.enter_context(_removed(module.register_forward_pre_hook(called)))
        hooks.enter_context(_removed(last_block.register_forward_hook(finished)))
        model.base_model(input_ids=probe_T[None], use_cache=False)
    return calls


def _outermost(model: Any, calls: Sequence[str]) -> Way:
    names = tuple(name for name in calls if not any(name.startswith(f"{other}.") for other in calls))
    prefix = next(name for name, module in model.named_modules() if module is model.base_model)
    modules = dict(model.base_model.named_modules())
    return Way(tuple(f"{prefix}.{name}" if prefix else name for name in names), tuple(modules[name] for name in names))


def _checked(model: Any, probe_T: torch.Tensor, way: Way, last_block: nn.Module | None) -> Way:
    """``way``, if it leads from the last layer's output (or, without one, from what its first module was given)."""
    given: list[torch.Tensor] = []

    def keep(value: Any) -> None:
        given.append((value[0] if isinstance(value, tuple) else value).detach().clone())

    hook = (
        way.modules[0].register_forward_pre_hook(lambda module, args: keep(args))
        if last_block is None
        else last_block.register_forward_hook(lambda module, args, output: keep(output))
    )
    with _removed(hook):
        own_TD = model.base_model(input_ids=probe_T[None], use_cache=False).last_hidden_state[0]
    if not given:
        raise CheckpointError(
            f"{type(model).__name__} never calls {way.names[0]}: name its final norm with lens.norm=PATH", "load_failed"
        )
    error = _relative_error(way, given[-1], own_TD)
    if torch.isfinite(own_TD).all() and not error <= _TOLERANCE:  # else the log-likelihoods will say so
        raise CheckpointError(
            f"{' + '.join(way.names) or 'its last layer'} gives hidden states that are {error:.1e} off the own last "
            f"ones of {type(model).__name__} ({_TOLERANCE:.0e} allowed); name its final norm with lens.norm=PATH",
            "load_failed",
        )
    return way


def _relative_error(way: Way, hidden: torch.Tensor, own_TD: torch.Tensor) -> float:
    try:
        found = way(hidden)
    except (RuntimeError, TypeError, AttributeError):  # a module that takes other things than hidden states
        return float("inf")
    if not isinstance(found, torch.Tensor) or found.numel() != own_TD.numel():
        return float("inf")
    theirs_TD = own_TD.float()
    difference_TD = found.to(own_TD.device).float().reshape(own_TD.shape) - theirs_TD
    return float(difference_TD.norm() / theirs_TD.norm().clamp_min(torch.finfo(torch.float32).tiny))


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
