"""``qobra completion SHELL``: completion of subcommands, for bash, zsh and fish."""

from __future__ import annotations

import sys

HELP = 'print shell completion: eval "$(qobra completion bash)"'

_BASH = """\
_qobra() {{
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{names}" -- "${{COMP_WORDS[1]}}"))
    else
        COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}"))
    fi
}}
complete -o filenames -F _qobra qobra
"""

_ZSH = """\
#compdef qobra
_qobra() {{
    if (( CURRENT == 2 )); then
        compadd -- {names}
    else
        _files
    fi
}}
compdef _qobra qobra
"""

_FISH = "complete -c qobra -n __fish_use_subcommand -f -a '{names}'\n"

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def main(argv: list[str]) -> int:
    """Print the script for one shell."""
    if len(argv) != 1 or argv[0] not in _SCRIPTS:
        print("usage: qobra completion bash|zsh|fish", file=sys.stdout if "--help" in argv else sys.stderr)
        return 0 if "--help" in argv else 2
    from qobra.cli.main import PROGRAMS, subcommands

    print(_SCRIPTS[argv[0]].format(names=" ".join(sorted([*subcommands(), *PROGRAMS]))), end="")
    return 0
