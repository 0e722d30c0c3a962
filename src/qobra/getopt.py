"""Command lines as GNU getopt_long reads them: what QEMU's tools use, so the same lines mean the same.

Short options may be combined (``-qf raw``), long ones shortened where that is clear (``--outp json``), operands may
stand between options, and ``--`` ends the options. argparse knows neither QEMU's texts nor how to start in a
millisecond.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Parsed = tuple[list[tuple[str, str]], list[str]]
    """Options with their values ("" for those that take none), in order, and the operands."""
    Met = Callable[[str, str], None]
    """Told of an option and its value."""


class UsageError(Exception):
    """A command line that cannot be; the text is the one line to print."""


class UnknownGroup(UsageError):
    """The first word is a group of short options of which the first is unknown: programs in C name themselves."""

    def __init__(self, called: str) -> None:
        super().__init__(f"unrecognized option '{called}'")


class HelpWanted(Exception):
    """``-h`` was among the options."""


def parse(
    arguments: Sequence[str],
    short: str,
    long: Sequence[str] = (),
    *,
    permute: bool = True,
    raw_texts: bool = False,
    met: Met | None = None,
) -> Parsed:
    """Split ``arguments`` into options and operands.

    ``short`` is getopt's option string (``hf:b:``). A name in ``long`` that ends in ``=`` takes a value; ``name|x``
    (or ``name=|x``) says that it is the short option ``x`` by another name. Without ``permute`` the first operand
    ends the options. ``raw_texts`` words errors as getopt itself does (qemu-io), without a program's name. ``met`` is
    told of each option before the next is looked at, so that the first mistake of a line is the one that it ends with.
    Raises UsageError.
    """
    return _Scan(arguments, short, long, raw_texts, met).run(permute)


class _Scan:
    """One look at a command line."""

    def __init__(
        self, arguments: Sequence[str], short: str, long: Sequence[str], raw_texts: bool, met: Met | None
    ) -> None:
        self._arguments = arguments
        self._short = short
        self._long = {}
        for each in long:
            name, _, alias = each.partition("|")
            self._long[name.rstrip("=")] = (name.endswith("="), alias or name.rstrip("="))
        self._raw_texts = raw_texts
        self._met = met
        self._position = 0
        self._options: list[tuple[str, str]] = []

    def run(self, permute: bool) -> Parsed:
        operands: list[str] = []
        previous = ""
        while self._position < len(self._arguments):
            word = self._next()
            if word == "--":
                operands.extend(self._arguments[self._position :])
                break
            if word.startswith("--"):
                self._take_long(word)
            elif word.startswith("-") and word != "-":
                self._take_short(word, previous)
            else:
                operands.append(word)
                if not permute:
                    operands.extend(self._arguments[self._position :])
                    break
            previous = word
        return self._options, operands

    def _next(self) -> str:
        self._position += 1
        return self._arguments[self._position - 1]

    def _take(self, name: str, value: str) -> None:
        self._options.append((name, value))
        if self._met is not None:
            self._met(name, value)

    def _take_long(self, word: str) -> None:
        if self._raw_texts and not self._long:  # as where there are letters only
            raise UsageError("invalid option -- '-'")
        full, takes_value, name = _long_option(word, self._long, self._raw_texts)
        _, equals, value = word.partition("=")
        if takes_value and not equals:
            if self._position >= len(self._arguments):
                wanted = f"option '--{full}' requires an argument"
                raise UsageError(wanted if self._raw_texts else f"missing argument for option '{word}'")
            value = self._next()
        elif equals and not takes_value:
            unwanted = f"option '--{full}' doesn't allow an argument"
            raise UsageError(unwanted if self._raw_texts else f"unrecognized option '{word}'")
        self._take(name, value)

    def _take_short(self, word: str, previous: str) -> None:
        """A group of letters; the value of one that takes one is the rest of the group, or the next word."""
        for place, letter in enumerate(word[1:], 2):
            index = self._short.find(letter)
            if index < 0 or letter in ":;":
                raise self._unknown(word, previous, letter, unfinished=place < len(word))
            if self._short[index + 1 : index + 2] != ":":
                self._take(letter, "")
                continue
            if place < len(word):
                self._take(letter, word[place:])
            elif self._position < len(self._arguments):
                self._take(letter, self._next())
            elif self._raw_texts:
                raise UsageError(f"option requires an argument -- '{letter}'")
            else:
                raise UsageError(f"missing argument for option '{word}'")
            return

    def _unknown(self, word: str, previous: str, letter: str, *, unfinished: bool) -> UsageError:
        if self._raw_texts:
            return UsageError(f"invalid option -- '{letter}'")
        # getopt has not moved on from an unfinished group, so the tools name the word before it.
        if unfinished and not previous:
            return UnknownGroup(word)
        return UsageError(f"unrecognized option '{previous if unfinished else word}'")


def _long_option(word: str, names: dict[str, tuple[bool, str]], raw_texts: bool) -> tuple[str, bool, str]:
    """The option that ``word`` is, by its full name: whether it takes a value, and what it is called here."""
    given = word[2:].partition("=")[0]
    matches = [given] if given in names else [name for name in names if name.startswith(given)]
    if len({names[name] for name in matches}) == 1:
        return matches[0], *names[matches[0]]
    if matches and raw_texts:
        possible = " ".join(f"'--{name}'" for name in matches)
        raise UsageError(f"option '{word}' is ambiguous; possibilities: {possible}")
    raise UsageError(f"unrecognized option '{word}'")


class CommandLine:
    """What a subcommand was given; of an option that takes one value and was given twice, the last counts."""

    def __init__(self, options: list[tuple[str, str]], operands: list[str]) -> None:
        self.options = options
        """Each option with its value, in order."""
        self.operands = operands

    def has(self, name: str) -> bool:
        """Whether the option was given."""
        return any(option == name for option, _value in self.options)

    def values(self, name: str) -> list[str]:
        """All values of the option, in order."""
        return [value for option, value in self.options if option == name]

    def optional(self, name: str) -> str | None:
        """The option's value, or None if it was not given."""
        values = self.values(name)
        return values[-1] if values else None

    def value(self, name: str, default: str) -> str:
        """The option's value, or what it is when it was not given."""
        values = self.values(name)
        return values[-1] if values else default


def parse_command(
    arguments: Sequence[str], short: str, long: Sequence[str] = (), met: Met | None = None
) -> CommandLine:
    """:func:`parse` with ``-h`` and ``--help`` as every subcommand has them. Raises HelpWanted or UsageError."""

    def look(option: str, value: str) -> None:
        if option == "h":
            raise HelpWanted
        if met is not None:
            met(option, value)

    return CommandLine(*parse(arguments, "h" + short, ("help|h", *long), met=look))
