"""The command line: ``klray VERB key=value ...``, the same as ``python -m jobs.VERB key=value ...``.

A verb's module, with all that it imports, is loaded when its config stands: help, ``--cfg`` and mistakes are answered
before.
"""

import ast
import difflib
import importlib
import os
import pkgutil
import sys
from pathlib import Path

import jobs
from klray.words.tables import flush, say, show


def main() -> None:
    """Entry point of the ``klray`` command."""
    verbs = sorted({module.name for module in pkgutil.iter_modules(jobs.__path__)} - {"__main__"})
    asked = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if asked in ("-h", "--help", "help"):
        show(_usage(verbs))
        return
    if asked not in verbs:
        near = difflib.get_close_matches(asked, verbs, n=1)
        hint = f"did you mean {near[0]}?" if near else "klray --help lists the verbs"
        say(f"klray: error: there is no verb {asked}: {hint}", file=sys.stderr)
        sys.exit(2)
    from klray.config.job import Verb, run  # noqa: PLC0415 - Hydra takes half a second, which the list of verbs need not

    def load() -> Verb:
        loaded: Verb = importlib.import_module(f"jobs.{asked}").main.__wrapped__
        return loaded

    if {"-h", "--help"} & set(sys.argv[2:]):  # Hydra lists groups and values below; what the verb does it cannot know
        say(f"klray {asked} key=value ...   {_summary(asked)}")
        say()
        flush()
    sys.argv = [f"klray {asked}", *sys.argv[2:]]
    try:
        code = run(asked, load)
        flush()
    except BrokenPipeError:  # whoever read our output has seen enough; nothing is left to be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code)


def _usage(verbs: list[str]) -> str:
    lines = ["klray VERB key=value ...   (--cfg job prints the configuration, --help the groups)", ""]
    for name in verbs:
        lines.append(f"  {name:<10}{_summary(name)}")
    return "\n".join(lines)


def _summary(name: str) -> str:
    source = (Path(next(iter(jobs.__path__))) / f"{name}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


if __name__ == "__main__":
    main()
