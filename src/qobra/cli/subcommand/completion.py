"""``qobra completion SHELL``: completion of subcommands, actions, options and names, for bash, zsh and fish.

The scripts ask ``qobra completion [--at WORD] --words WORD...``, which answers from the help of the program that the
words before the cursor name, and from the schema: what has a help text is completed, with no table to keep. ``--at``
is the word at the cursor, for shells that take ``--option=value`` for one word.
"""

from __future__ import annotations

import re
import sys

HELP = 'print shell completion: eval "$(qobra completion bash)"'

_PROGRAMS = (
    "qobra qobra-img qobra-io qobra-nbd qobra-shell qobra-storage-daemon qobra-system-riscv64 qobra-system-x86_64"
)

_BASH = """\
_qobra() {{
    local IFS=$'\\n' at=${{COMP_WORDS[COMP_CWORD]}} words=("${{COMP_WORDS[@]:0:COMP_CWORD}}")
    if [[ $at == "=" ]]; then words+=("=") at=""; fi  # to bash a word of its own
    COMPREPLY=($(compgen -W "$(qobra completion --words "${{words[@]}}" 2>/dev/null)" -- "$at"))
}}
complete -o default -F _qobra {programs}
"""

_ZSH = """\
#compdef {programs}
_qobra() {{
    local found=(${{(f)"$(qobra completion --at "$PREFIX" --words "${{(@)words[1,CURRENT-1]}}" 2>/dev/null)"}})
    compadd -- $found
    _files
}}
if [[ $funcstack[1] == _qobra ]]; then _qobra; else compdef _qobra {programs}; fi
"""
"""To be evaluated, or the file ``_qobra`` in a directory of ``fpath``."""

_FISH = """\
function __qobra
    set -l at (commandline -ct)
    qobra completion --at "$at" --words (commandline -opc) 2>/dev/null
end
for program in {programs}
    complete -c $program -a '(__qobra)'
end
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

_OPTION = re.compile(r"(?<![\w-])(--?[A-Za-z][-\w]*)")
_VALUE = re.compile(
    r"(?<![\w-])(?:(-\w), )?(--?[A-Za-z][-\w]*)[ =]"
    r"([A-Z][A-Z_]*(?![a-z])|[a-z]+(?:\|[a-z]+)+|\[enable=\]PATTERN)(?:  +(\S.*))?"
)
"""Names of an option that has a value, what the help calls that, and what it says of it."""
_CHOICES = re.compile(r"\(([a-z_]+(?:, [a-z_]+)+)\)")
_FORMATS = re.compile(r"^  FMT +a format: (.*)$", re.MULTILINE)
_ACTION = re.compile(r"^ {2,4}([a-z][-a-z]*)(?=  |$)", re.MULTILINE)


def main(argv: list[str]) -> int:
    """Print the script for one shell, or what may follow some words."""
    at = ""
    if argv[:1] == ["--at"]:
        at, argv = "".join(argv[1:2]), argv[2:]
    if argv[:1] == ["--words"]:
        print("\n".join(candidates(argv[1:], at)))
        return 0
    if len(argv) != 1 or argv[0] not in _SCRIPTS:
        print("usage: qobra completion bash|zsh|fish", file=sys.stdout if "--help" in argv else sys.stderr)
        return 0 if "--help" in argv else 2
    print(_SCRIPTS[argv[0]].format(programs=_PROGRAMS), end="")
    return 0


def candidates(words: list[str], at: str = "") -> list[str]:
    """What may come after ``words``, the first of which is a program: subcommands, actions and options, sorted.

    Where the word ``at`` the cursor has begun as ``--option=``, these are words that begin so.

    Empty where the help says nothing of what is to come, as with the value of an option or the name of a file.
    """
    option, equals, _ = at.partition("=")
    if equals and option.startswith("--"):
        return [f"{option}={value}" for value in candidates([*words, option, "="])]
    program, *rest = words or ["qobra"]
    if "help" in rest[:2]:
        rest.remove("help")  # of whatever follows
    named = [word for word in rest if not word.startswith("-")]
    name = program.rpartition("/")[2].removeprefix("qobra").removeprefix("-").replace("-", "_")
    path: list[str] = []
    while True:
        text = _help(name or "main", path) or _help("main", [name, *path])  # qemu-img resize has none
        usage = text.partition("\n\n")[0]
        actions = set(_ACTION.findall(text)) if "SUBCOMMAND" in usage or "ACTION" in usage else set()
        if len(named) == len(path) or named[len(path)] not in actions:
            break
        path.append(named[len(path)])
    place = [name, *path] if name else path
    if place[:1] in (["img"], ["io"], ["nbd"]):
        values = _values(text, rest[-2:-1] if rest[-1:] == ["="] else rest[-1:])
        if values is not None:
            return values
    if rest[-1:] == ["="]:
        return []
    if place == ["completion"]:
        return sorted(_SCRIPTS)
    options = set(_OPTION.findall(text))
    if place == ["schema", "show"]:
        return sorted(options | _schema_names())
    return sorted(actions | options if len(named) == len(path) else options)


def _values(text: str, option: list[str]) -> list[str] | None:
    """What the value of an option may be, as far as the help ``text`` says; None for one that has no value, or none."""
    found: list[str] | None = None
    for short, long, kind, told in _VALUE.findall(text):
        if option not in ([short], [long]):
            continue
        if kind.endswith(("FMT", "FORMAT")):
            return ", ".join(_FORMATS.findall(_help("img", []))).split(", ")
        if kind == "CACHE":
            from qobra.block.cache_modes import CACHE_MODES

            return list(CACHE_MODES)
        if "|" in kind:
            return str(kind).split("|")
        listed = _CHOICES.search(told)
        if listed is not None:
            return str(listed[1]).split(", ")
        found = []  # unless there is more about it further down
    return found


def _schema_names() -> set[str]:
    from qobra.qapi.contract import contract

    of = contract()
    return {name for name in (*of.commands, *of.events, *of.types) if not name.startswith("q_")}


def _help(module: str, path: list[str]) -> str:
    """The text of ``PROGRAM PATH... --help``, of the program that is ``qobra.cli.MODULE``."""
    import contextlib
    import importlib
    import io
    from functools import partial

    module, _, architecture = module.partition("system_")
    program = importlib.import_module(f"qobra.cli.{module or 'system'}").main
    if architecture:
        program = partial(program, architecture)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        program([*path, "--help"])
    return out.getvalue()
