"""Jobs: what makes a verb of a function. Hydra composes the config, and every mistake is answered in one sentence."""

import difflib
import errno
import functools
import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import hydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from klray.config import Config, register
from klray.config.choices import check_choices
from klray.errors import KlrayError, lacks, refuse_unfit
from klray.sweep.processes import spare_loopback
from klray.words.log_lines import JsonLines, Words
from klray.words.secrets import Discreet, without_secrets
from klray.words.tables import flush, say

KINDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}  # as OmegaConf calls them
FREE = "store.storage_options"  # what it holds is the backend's, so that Hydra knows none of its keys
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as shells count


T = TypeVar("T")
Verb = Callable[[Config], int]  # returns the exit code


def verb(function: Callable[[Config], T], failed: Callable[[T], object] | None = None) -> Callable[[], None]:
    """Make a job of a function; it is called like its file.

    The exit code is 1 where what the function returned has ``failed``, and 0 elsewhere; without ``failed`` a whole
    number that it returned is the exit code.
    """

    def exit_code(config: Config) -> int:
        found = function(config)
        if failed is not None:
            return 1 if failed(found) else 0
        return found if isinstance(found, int) else 0

    @functools.wraps(exit_code)
    def entry() -> None:
        sys.exit(run(Path(function.__code__.co_filename).stem, lambda: exit_code))

    return entry


def run(name: str, load: Callable[[], Verb]) -> int:
    """Compose the config of a verb, conf/NAME.yaml or else conf/config.yaml, and do what ``load`` gives; the exit code.

    Help, ``--cfg`` and mistakes in what was typed are answered before anything is loaded.
    """
    code = 0
    unread = False
    ended = INTERRUPTED

    def terminate(*_: object) -> None:
        nonlocal ended
        ended = TERMINATED
        raise KeyboardInterrupt  # no class of our own, since Ray raises it anew

    def task(config: DictConfig) -> None:
        nonlocal code, unread
        try:
            given = OmegaConf.to_container(config, enum_to_str=True)
            assert isinstance(given, dict)
            refuse_unfit("config", {str(name): value for name, value in given.items()})
            values = OmegaConf.to_object(config)
            assert isinstance(values, Config)
            check_choices(values)
            if values.log.json:
                _log_as_json()
            code = max(code, load()(values))
        except KlrayError as error:  # caught here: Hydra would print the overrides first
            code = _fail(str(error))
        except OmegaConfBaseException as error:
            code = _fail(_explain(error))
        except ModuleNotFoundError as error:
            code = _fail(f"klray {name}: {lacks(error)}")
        except ValueError:
            if not (why := _unfit_variable()):
                raise
            code = _fail(why)
        except BrokenPipeError:  # whoever read our output has seen enough; Hydra would print the overrides
            unread = True
        except OSError as error:
            code = _fail(_explain_system(error))

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, so that the message below is all that a user sees
    spare_loopback()
    _log_to_stderr()
    register()
    folder = Path(str(conf.__file__)).parent
    primary = name if (folder / f"{name}.yaml").is_file() else "config"
    try:
        hydra.main(version_base="1.3", config_path=str(folder), config_name=primary)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        return _fail(_explain(error))
    except KeyboardInterrupt:
        return _fail("interrupted; what was committed is safe, the same command goes on from there", ended)
    if unread:
        raise BrokenPipeError
    return code


def _log_to_stderr() -> None:
    log = logging.getLogger("klray")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(Words())
        handler.addFilter(Discreet())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def _log_as_json() -> None:
    for handler in logging.getLogger("klray").handlers:
        if isinstance(handler.formatter, Words):
            handler.setFormatter(JsonLines())
    logging.getLogger("klray").setLevel(logging.DEBUG)  # also what is told once for people


def _fail(message: str, code: int = 1) -> int:
    flush()
    say(f"klray: error: {without_secrets(message)}", file=sys.stderr)
    return code


def _explain(error: Exception) -> str:
    """Hydra's finding in one sentence, with the nearest keys that exist."""
    if isinstance(error, OverrideParseException):
        return _explain_word(error.override)
    found = f"{error}\n{error.__cause__ or ''}"
    text = "; ".join(line.strip() for line in found.splitlines() if line.strip())
    text = re.sub(r"; To append to your config use.*|; full_key:.*|; object_type=.*|; Config search path.*", "", text)
    group = re.search(r"Could not find '(\w+)/([^']+)'; Available options in '\w+':;(.*)", text)
    if group:
        options = [option.strip() for option in group.group(3).split(";")]
        near = difflib.get_close_matches(group.group(2), options, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"unknown config group {group.group(1)}={group.group(2)}: {hint}there are {', '.join(options)}"
    if value := _explain_value(text):
        return value
    if several := re.search(r"Ambiguous value for argument '(.*?)'; 1\.", text):
        return _explain_word(several[1])
    if variable := re.search(r"Interpolation key '(.*?)' not found", text):
        return (
            f"${{{variable[1]}}} names no key: for these letters themselves write \\${{{variable[1]}}} in single quotes"
        )
    if "Could not override ''" in text:
        return _explain_word("=...")
    asked = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' (?:is )?not in", text)
    if asked is None:
        return text
    if re.match(rf"{re.escape(FREE)}(\.|$)", asked[1]):
        return f"{FREE} has no keys of its own: put a + before what you add, as in +{FREE}.anon=true"
    known = _keys(OmegaConf.structured(Config))
    near = difflib.get_close_matches(asked.group(1), known, n=3, cutoff=0.6)
    near = near or [key for key in known if key.rsplit(".", 1)[-1] == asked.group(1).rsplit(".", 1)[-1]]
    hint = f"did you mean {' or '.join(near)}?" if near else "klray VERB --cfg job prints every key"
    return f"unknown config key {asked.group(1)}: {hint}"


def _explain_word(word: str) -> str:
    """For a word that Hydra cannot read, how to write it: quoted for Hydra, and then for the shell."""
    key, equals, value = word.partition("=")
    if not (key and equals):
        return f"{word} is no key=value: klray VERB --help lists keys; a value with spaces is written 'KEY=\"a value\"'"
    if value.startswith("{"):
        return f"{word} cannot be read as it stands: quote each value in it, as in '{key}={{name: \"value\"}}'"
    parts = [each.strip() for each in value.strip("[]").split(",")]
    as_list = shlex.quote(f"{key}=[{','.join(map(_quoted, parts))}]")
    if value.startswith("["):
        return f"{word} cannot be read as it stands: write {as_list}"
    several = f", or for several values {as_list}" if len(parts) > 1 else ""
    return f"{word} cannot be read as it stands: write {shlex.quote(f'{key}={_quoted(value)}')}{several}"


def _quoted(value: str) -> str:
    """A value as Hydra takes it whatever it holds; a backslash counts before a quotation mark alone."""
    escaped = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + found[2].replace('"', '\\"'), value)
    return f'"{escaped}"'


def _explain_value(text: str) -> str:
    """For a value that a key cannot have, what it can; "" for any other finding."""
    found = re.search(r"override (\S+)=.*; (?:Invalid value|Value) '([^']*)'(.*)", text)
    if not found:
        return ""
    key, given, wanted = found.groups()
    names = re.search(r"expected one of \[(.*)\]", wanted)
    kind = re.search("|".join(KINDS), wanted)
    if names:
        *rest, last = names[1].split(", ")
        known = f"{', '.join(rest)} or {last}" if rest else last
        return f"{key}={given}: write {known}"
    return f"{key}={given}: write {KINDS[kind[0]]}" if kind else ""


def _unfit_variable() -> str:
    """Which variable makes the import of huggingface_hub fail, and what to do; not with what it holds. "" for none."""
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        if (value := os.environ.get(name, "").strip()) and not value.isdecimal():
            return f"{name} holds no whole number of seconds; set one, or unset it"
    try:
        _ = urlsplit(os.environ.get("HF_ENDPOINT", "")).port
    except ValueError:
        return "HF_ENDPOINT holds no address of a hub; set https://HOST, or unset it"
    return ""


def _explain_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    cures = {errno.ENOSPC: "make room there", errno.EDQUOT: "make room there", errno.EACCES: "check the permissions"}
    cure = cures.get(error.errno or 0, "check the place")
    return f"{where}{error.strerror or error}; {cure} and run the same command again: what was committed is safe"


def _keys(config: DictConfig) -> list[str]:
    """Dotted names of all values."""
    keys: list[str] = []
    for name in map(str, config):
        value = config._get_node(name)
        keys += [f"{name}.{key}" for key in _keys(value)] if isinstance(value, DictConfig) and value else [name]
    return keys
