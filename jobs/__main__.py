"""The command line: ``klray VERB key=value ...``, the same as ``python -m jobs.VERB key=value ...``.

A verb's module, with all that it imports, is loaded when its config stands: help, ``--cfg`` and mistakes are answered
before.
"""

import ast
import difflib
import functools
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

    if {"-h", "--help"} & set(sys.argv[2:]):
        show(_help(asked))
        flush()
        return
    sys.argv = [f"klray {asked}", *sys.argv[2:]]
    try:
        code = run(asked, load)
        flush()
    except BrokenPipeError:  # whoever read our output has seen enough; nothing is left to be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code)


def _usage(verbs: list[str]) -> str:
    lines = [
        "klray VERB key=value ...   (--help lists the keys that a verb reads, --cfg job prints all with their values)",
        "",
    ]
    for name in verbs:
        lines.append(f"  {name:<10}{_summary(name)}")
    return "\n".join(lines)


def _help(verb: str) -> str:
    """The groups that a verb reads, and their keys."""
    from klray.config.keys import choices_of, first_line, groups, keys  # noqa: PLC0415 - as above

    read = _read(verb, set(groups()))
    lines = [f"klray {verb} key=value ...   {_summary(verb)}", "--cfg job prints every key with its value."]
    for name, kind in groups().items():
        if name in read:
            choices = choices_of(name)
            lines += ["", f"{name}: {first_line(kind)}", *([f"  {name}={', '.join(choices)}"] if choices else [])]
            rows = [(key.name, ", ".join(key.values) or key.kind, key.default, key.comment) for key in keys(name, kind)]
            widths = [max(len(row[column]) for row in rows) for column in range(3)]
            lines += [f"  {'  '.join(map(str.ljust, row[:3], widths))}  {row[3]}".rstrip() for row in rows]
    return "\n".join(lines)


def _read(verb: str, groups: set[str]) -> set[str]:
    """The groups that a verb reads: ``config.GROUP`` in its function, and in those of the jobs that this calls.

    A verb that calls others by their names, as a study does, reads all.
    """
    found, seen, todo = {"log"}, set(), [(verb, "main")]
    while todo:
        module, name = todo.pop()
        tree = _tree(module)
        homes = {
            alias.name: each.module.removeprefix("jobs.")
            for each in tree.body
            if isinstance(each, ast.ImportFrom) and each.module and each.module.startswith("jobs.")
            for alias in each.names
        }
        for node in tree.body:
            named = getattr(node, "name", None) or (
                ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ""
            )
            if named != name:
                continue
            for part in ast.walk(node):
                if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "config":
                    found |= {part.attr} & groups
                elif isinstance(part, ast.Attribute) and part.attr == "import_module":
                    return groups
                elif isinstance(part, ast.Name) and (where := (homes.get(part.id, module), part.id)) not in seen:
                    seen.add(where)
                    todo.append(where)
    return found


@functools.cache
def _tree(name: str) -> ast.Module:
    return ast.parse((Path(next(iter(jobs.__path__))) / f"{name}.py").read_text())


def _summary(name: str) -> str:
    return (ast.get_docstring(_tree(name)) or "").splitlines()[0]


if __name__ == "__main__":
    main()
