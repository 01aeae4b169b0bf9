"""Models from a checkpoint's folder."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import transformers

from klray.checkpoints import check_small_files, model_config
from klray.checkpoints.causes import explained, first_line
from klray.checkpoints.gguf import is_gguf
from klray.checkpoints.tensors import read_tensors, refuse_coded, weight_files
from klray.errors import CheckpointError, KlrayError
from klray.likelihood import gguf_model, plausible, quantised, steady
from klray.likelihood import quantization as quantizations
from klray.likelihood.choices import NONE, Dtype, check_quantization, lacks_accelerate, lacks_quantization
from klray.likelihood.gguf_taken import left_out
from klray.likelihood.kinds import auto_class, check_class, check_kind, check_runs, check_takes_text
from klray.likelihood.quiet import quiet
from klray.likelihood.score import context_length
from klray.likelihood.taken import find_slots, refuse_codes_as_numbers, refuse_left_out


@dataclass(frozen=True)
class ModelShape:
    """What of a model's shape its config tells: layers, width of the hidden states, vocabulary entries."""

    layers: int
    width: int
    vocabulary: int


@dataclass(eq=False)
class Loaded:
    """A model from a checkpoint, in eval mode, and the facts about it."""

    model: Any  # of transformers; it owns its memory: the checkpoint's files may go
    architecture: str  # its class, such as GPTNeoXForCausalLM
    parameters: int  # tied ones count once
    context: int | None  # most tokens that it reads at once; None for no limit
    stored_quantization: str  # how its files are quantised, such as bitsandbytes or gptq; "" if they are not
    bits_per_parameter: float | None  # as it is in memory, scales included; None where the files' method is not known
    quantised_share: float  # of the weights of its layers, embeddings and output head apart
    unused: tuple[str, ...]  # stored tensors that it does not take, as ``allow_unused`` says
    # All of a checkpoint but its numbers: where two are equal, one's numbers can take the place of the other's.
    _layout: tuple[Any, ...]
    _slots: dict[str, torch.Tensor] | None  # where each stored tensor went; None if not all of them can be told


def load(
    directory: str | Path,
    dtype: Dtype = "float32",
    device: str | torch.device = "cpu",
    *,
    quantization: str = "none",
    reuse: Loaded | None = None,
    look: Callable[[Mapping[str, torch.Tensor]], None] | None = None,
    allow_unused: Sequence[str] = (),
) -> Loaded:
    """Load a causal language model from a checkpoint's folder, in eval mode, never running code that it brings.

    The folder holds config.json and model.safetensors or pytorch_model.bin, whole or in shards. It may be a GGUF file,
    too: its weights are dequantised, and quantised again as ``quantization`` says.

    Parameters
    ----------
    dtype
        Of the parameters in memory; "auto" for the checkpoint's own.
    device
        Where the model goes; "auto": layer by layer to all GPUs that the process sees, which takes accelerate, and to
        the CPU where there is none.
    quantization
        One of ``choices.QUANTIZATIONS``. A checkpoint that is stored quantised is loaded as it is, with "none".
    reuse
        What an earlier call returned, to be given up: if the two checkpoints differ in numbers alone, those of its
        model are overwritten in place (addresses stay) and it is returned; if not, and always if it is quantised, its
        memory is freed before the new model is built. Either way the result is the same, bit for bit.
    look
        Called with the stored tensors by name, in the files' own dtypes, before the model is made of them.
    allow_unused
        Patterns, as of file names, of stored tensors that the model need not take; ``taken.HARMLESS`` never count.

    Raises CheckpointError with reason load_failed (unknown architecture, broken config or weights, weights missing: a
    parameter that the checkpoint does not hold would be random; weights that the model does not take as they are
    stored), not_causal, no_safe_weights, or out_of_memory; KlrayError for "auto" without accelerate, a quantisation
    that there is not, or one without its library.
    """
    check_quantization(quantization)
    if lacking := lacks_quantization(quantization):
        raise KlrayError(lacking)
    if device == "auto" and (lacking := lacks_accelerate()):
        raise KlrayError(lacking)
    if dtype not in get_args(Dtype):
        raise KlrayError(f"dtype is {dtype!r}: it must be one of {', '.join(get_args(Dtype))}")
    folder = Path(directory)
    if is_gguf(folder):
        with quiet(), explained(folder):
            return _load_gguf(folder, dtype, device, quantization, reuse, look, allow_unused)
    with quiet(), explained(folder):
        files = weight_files(folder)
        config = model_config(folder)
        check_kind(config, folder)
        method = quantizations.stored_method(config)
        if method and quantization != NONE:
            raise CheckpointError(
                f"{folder} is stored quantised ({method}), and scoring.quantization={quantization} would quantise it "
                "again: score it as it is with scoring.quantization=none, or its unquantised original",
                "load_failed",
            )
        plain = quantization == NONE and not quantizations.is_method_known(config)
        if not plain:
            quantizations.import_library()
        read = read_tensors(files)
        plausible.check_config(folder, config, len(read))
        if look is not None:
            look(read)
        stored = read if plain else {}
        refuse_coded(stored, folder)
        tensors = [(name, tensor.shape, tensor.dtype) for name, tensor in sorted(stored.items())]
        layout = (json.dumps(config, sort_keys=True), dtype, quantization, str(device), tensors)
        known = reuse is not None and reuse._layout == layout
        if reuse is not None:
            if known and reuse._slots is not None:
                with torch.no_grad():
                    for name, slot in reuse._slots.items():
                        slot.copy_(stored[name])
                return reuse
            _give_up(reuse)
        with _quantized_explained(folder, method):
            model, unexpected = _build(folder, files, dtype, device, quantization)
        check_class(config, model, folder)
        check_takes_text(model, folder)
        slots = find_slots(model, stored) if plain else None
        if method and not plain:
            refuse_codes_as_numbers(model, read, method, folder)
        unplaced = {name: tensor for name, tensor in stored.items() if not known and name not in (slots or {})}
        unused = refuse_left_out(model, unplaced, unexpected, allow_unused, folder)
        counted = quantised.count(model)
        if quantization != NONE:
            quantised.refuse_mostly_left(model, quantization, counted)
        if counted.share:
            quantised.refuse_read(model)
        if steady.run_once(model):
            slots = None  # stored numbers have no place in it any more
        return Loaded(
            model=model,
            architecture=type(model).__name__,
            parameters=model.num_parameters(),
            context=context_length(model),
            stored_quantization=method,
            bits_per_parameter=counted.bits_per_parameter if method in ("", "bitsandbytes") else None,
            quantised_share=counted.share,
            unused=unused,
            _layout=layout,
            _slots=slots,
        )


def _load_gguf(
    place: Path,
    dtype: str,
    device: str | torch.device,
    quantization: str,
    reuse: Loaded | None,
    look: Callable[[Mapping[str, torch.Tensor]], None] | None,
    allow_unused: Sequence[str],
) -> Loaded:
    """The model in a GGUF file; each is built anew, and its numbers are checked once for those of one form."""
    file = gguf_model.open_gguf(place)
    if quantization != NONE:
        quantizations.import_library()
    if look is not None:
        look(read_tensors([place]))
    layout = (json.dumps(file.form, sort_keys=True), dtype, quantization, str(device), ())
    known = reuse is not None and reuse._layout == layout
    if reuse is not None:
        _give_up(reuse)
    model = gguf_model.build(file, dtype, device if quantization == NONE else "cpu")
    unused = () if known else refuse_left_out(model, {}, left_out(model, file), allow_unused, place)
    if quantization != NONE:
        model = gguf_model.quantised_again(model, quantizations.options(quantization, dtype), dtype, device)
    quantizations.settle(model)
    model.eval()
    counted = quantised.count(model)
    if quantization != NONE:
        quantised.refuse_mostly_left(model, quantization, counted)
        quantised.refuse_read(model)
    steady.run_once(model)
    return Loaded(
        model=model,
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        context=context_length(model),
        stored_quantization=file.quantization,
        bits_per_parameter=file.bits_per_parameter if quantization == NONE else counted.bits_per_parameter,
        quantised_share=file.quantised_share if quantization == NONE else counted.share,
        unused=unused,
        _layout=layout,
        _slots=None,
    )


def model_shape(directory: str | Path) -> ModelShape:
    """Shape of the language model whose config.json is in ``directory``, or which is in a GGUF file of that path.

    Raises CheckpointError, load_failed.
    """
    folder = Path(directory)
    if is_gguf(folder):
        return ModelShape(*gguf_model.shape_of(folder))
    with quiet(), explained(folder):
        config = _config(folder).get_text_config()
        return ModelShape(int(config.num_hidden_layers), int(config.hidden_size), int(config.vocab_size))


def import_early() -> None:
    """Import what transformers imports with the first model, 2 s, for processes that are forked from this one."""
    for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "PreTrainedModel", "GenerationMixin"):
        getattr(transformers, name)


def _give_up(reuse: Loaded) -> None:
    """Free the memory of a model that is not used again."""
    _free(reuse.model)
    reuse._slots = None
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # other sizes would not fit into the blocks that the old model leaves


def _free(model: Any) -> None:
    """Free a model's memory, whoever still holds the model; its own .to warns, or refuses quantised parameters."""
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                nothing = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                module._parameters[name] = torch.nn.Parameter(nothing, requires_grad=False)
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = tensor.to("meta")
        if type(module).__module__.startswith("bitsandbytes"):  # they hold weights and scales here, too
            module.state = module.quant_state = None


def _config(folder: Path) -> Any:
    plausible.check_config(folder, model_config(folder))
    check_small_files(folder)
    return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _build(
    folder: Path, files: list[Path], dtype: str, device: str | torch.device, quantization: str
) -> tuple[Any, set[str]]:
    """The model, and the names of stored tensors that transformers did not take."""
    config = _config(folder)
    plausible.keep_built_in(config)
    check_runs(config, folder)
    plausible.check_size(folder, config, sum(file.stat().st_size for file in files))
    stored_quantized = hasattr(config, "quantization_config")
    more: dict[str, Any] = {}
    if quantization != NONE:
        more["quantization_config"] = transformers.BitsAndBytesConfig(**quantizations.options(quantization, dtype))
    if device == "auto":
        more["device_map"] = "auto"
    elif more or stored_quantized:
        more["device_map"] = {"": device}  # quantised where they stay, and not on a GPU just because there is one
    model, info = auto_class(config).from_pretrained(
        folder,
        config=config,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=files[0].suffix == ".safetensors",
        weights_only=True,
        ignore_mismatched_sizes=True,  # they are refused below: transformers only prints which
        output_loading_info=True,
        **more,
    )
    if others := sorted(info["mismatched_keys"]):
        found = [f"{name} is {tuple(stored)}, not {tuple(own)}" for name, stored, own in others]
        raise CheckpointError(
            f"{folder} holds {len(found)} weights of other shapes than {type(model).__name__} of its config.json has: "
            f"{'; '.join(found[:3])}{'; ...' if len(found) > 3 else ''}; take config and weights from one checkpoint",
            "load_failed",
        )
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if missing := sorted(parameters & set(info["missing_keys"])):
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the weights of {type(model).__name__}: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; they would be random: use a complete checkpoint of a causal model",
            "load_failed",
        )
    if device == "auto":
        _check_places(model, folder)
    elif not more:
        model = model.to(device)
    if next(model.parameters()).device.type == "cpu":
        model = _own_memory(model, stored_quantized)
    quantizations.settle(model)
    if next(model.parameters()).dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # grouped products have no float64
    return model.eval(), set(info["unexpected_keys"])


def _own_memory(model: Any, stored_quantized: bool) -> Any:
    """The model without memory that is mapped from its files: what needed no conversion is mapped from the file, which
    may be evicted or written over, at odd addresses.
    """
    if stored_quantized:  # its parameters hold scales, too, each kind in places of its own
        return copy.deepcopy(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor) in (torch.Tensor, torch.nn.Parameter):  # others were quantised just now
            tensor.data = tensor.data.clone()
    return model


def _check_places(model: Any, folder: Path) -> None:
    """Refuse a model that found no room on the GPUs: what is left over would be moved to them in every pass."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if torch.cuda.is_available() and places & {"cpu", "disk"}:
        raise CheckpointError(
            f"{folder} does not fit into the memory of {torch.cuda.device_count()} GPUs: "
            "raise ray.gpus_per_worker, or choose a 16-bit dtype",
            "out_of_memory",
        )


@contextmanager
def _quantized_explained(folder: Path, method: str) -> Iterator[None]:
    """Of a checkpoint that is stored quantised, say so when the library that reads such files is not here."""
    try:
        yield
    except ImportError as error:
        if not method:
            raise
        cure = "pip install 'klray[quant]'" if method == "bitsandbytes" else "install what it names"
        raise CheckpointError(
            f"{folder} is stored quantised ({method}), and what reads that is not here: {first_line(error)[:200]}; "
            f"{cure}, or choose its unquantised original",
            "load_failed",
        ) from error
