"""Write ``qobra/model`` from the schema: ``python -m qobra.qapi.generate [--check]``."""

from __future__ import annotations

import os
import sys

from qobra.qapi.load import load_qobra
from qobra.qapi.schema import Schema
from qobra.qapi.tables import tables_source
from qobra.qapi.typed import index_source, model_sources

MODEL_DIRECTORY = os.path.join(os.path.dirname(os.path.dirname(__file__)), "model")


def sources(schema: Schema) -> dict[str, str]:
    """File name in ``qobra/model`` to content."""
    return {"tables.py": tables_source(schema), "__init__.py": index_source(schema), **model_sources(schema)}


def main(argv: list[str] | None = None) -> int:
    """Write the files that differ, and delete those that are no longer made; with ``--check`` only tell."""
    check = "--check" in (sys.argv[1:] if argv is None else argv)
    wanted = sources(load_qobra())
    stale = [name for name in sorted(os.listdir(MODEL_DIRECTORY)) if name.endswith(".py") and name not in wanted]
    changed = [name for name, text in wanted.items() if _read(os.path.join(MODEL_DIRECTORY, name)) != text]
    for name in [*changed, *stale]:
        print(f"{'stale' if check else 'written' if name in wanted else 'removed'}: {name}")
    if check:
        return 1 if changed or stale else 0
    for name in changed:
        with open(os.path.join(MODEL_DIRECTORY, name), "w", encoding="utf-8") as stream:
            stream.write(wanted[name])
    for name in stale:
        os.unlink(os.path.join(MODEL_DIRECTORY, name))
    return 0


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
