"""Change some options of an open node, and of the children that were opened with it, and keep all others.

That is what qemu-io's ``reopen`` does; blockdev-reopen puts what it is not given back to the default.
"""

from __future__ import annotations

from qobra.block.filename import flat_name
from qobra.block.node import BlockNode, Options
from qobra.block.reopen import reopen
from qobra.block.vertex import GENERIC_OPTIONS, TEXTS
from qobra.errors import QobraError
from qobra.option_list import option_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def parse_changes(node: BlockNode, text: str, warn: Callable[[str], object] | None = None) -> Options:
    """The nested options that ``text`` (``a=b,c.d=e``) has for ``node``. Raises QobraError.

    ``warn`` is told of words without a value. ``x.template`` is the same as ``x`` for options that have both forms.
    """
    from qobra.block.filename import unflatten

    pairs = dict(option_pairs(text, warn=warn))
    for name in [name.removesuffix(".template") for name in pairs if name.endswith(".template")]:
        template = f"{name}.template"
        if pairs.get(name, pairs[template]) != pairs[template]:
            raise QobraError(
                f"Conflicting values for {node.driver} options '{name}' ('{pairs[name]}') and "
                f"'{template}' ('{pairs[template]}')"
            )
        if not any(other.startswith(f"{name}.") for other in pairs if other != template):
            pairs[name] = pairs.pop(template)
    return unflatten(pairs)


def change_options(node: BlockNode, changes: Options) -> None:
    """Reopen ``node`` with ``changes``: nested options, whose values may be texts.

    Raises QobraError where the node, or a child that the options are for, cannot change them.
    """
    reopen(node.layer, [_changed(node, changes)])


def typed_changes(node: BlockNode, changes: Options) -> Options:
    """``changes`` of the node itself, not of its children, with proper values. Raises QobraError."""
    from qobra.block.typed_options import typed

    for name, current in (("node-name", node.node_name), ("driver", node.driver)):
        if changes.get(name, current) != current:
            raise QobraError(f"Cannot change the option '{name}'")
    own = {name: value for name, value in changes.items() if not (name in node.children and isinstance(value, dict))}
    known = _known_options(node.driver)
    for name in own:
        if name not in known:
            raise QobraError(f"Cannot change the option '{flat_name(name, own[name])}'")
    result = typed({**own, "driver": node.driver})
    del result["driver"]
    result.pop(TEXTS, None)
    return result


def _changed(node: BlockNode, changes: Options) -> Options:
    own = typed_changes(node, changes)
    free = GENERIC_OPTIONS | node.changeable_options
    options = {key: value for key, value in node.options.items() if key not in free}
    options.update(node.explicit_options)
    for name, value in own.items():
        before = options.get(name)
        options[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    node.drop_overridden(options, own)
    for name, child in node.children.items():
        wanted = changes.get(name, child.node_name)
        if isinstance(wanted, dict):
            if child.opened_by is not node:
                raise QobraError(f"Cannot change the option '{flat_name(name, wanted)}'")
            wanted = _changed(child, wanted)
        options[name] = wanted
    return {**options, "node-name": node.node_name, "driver": node.driver}


def _known_options(driver: str) -> set[str]:
    from qobra.qapi.contract import contract

    types = contract().types
    union = types["BlockdevOptions"]
    branch = union.branches.get(driver)
    members = [*union.members, *(types[branch].members if branch else ())]
    return {member.name for member in members}
