"""A block graph as SVG: users above, what they use below, in layers."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable

    Link = tuple[int, int, str, bool]

# All in pixels.
MARGIN = 16
GAP = 28
BOX_HEIGHT = 30
LAYER_HEIGHT = 90
PADDING = 12
CHARACTER = 7.2
"""Width of a character of the 12 pixel monospaced font."""


def svg(labels: dict[int, str], links: Iterable[Link]) -> str:
    """The picture of vertices with ``labels`` and their links (parent, child, name, writes); writing ones are thick."""
    links = [link for link in links if link[0] in labels and link[1] in labels]
    layers = _layers(labels, links)
    widths = {vertex: len(label) * CHARACTER + 2 * PADDING for vertex, label in labels.items()}
    extents = [sum(widths[vertex] for vertex in layer) + GAP * (len(layer) - 1) for layer in layers]
    width = max(extents, default=0) + 2 * MARGIN
    height = max(len(layers) - 1, 0) * LAYER_HEIGHT + BOX_HEIGHT + 2 * MARGIN
    places: dict[int, tuple[float, float]] = {}
    for depth, (layer, extent) in enumerate(zip(layers, extents, strict=True)):
        left = (width - extent) / 2
        for vertex in layer:
            places[vertex] = (left + widths[vertex] / 2, MARGIN + depth * LAYER_HEIGHT)
            left += widths[vertex] + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        'font-family="monospace" font-size="12" text-anchor="middle">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for parent, child, name, writes in links:
        (start, top), (end, bottom) = places[parent], places[child]
        top += BOX_HEIGHT
        middle = (top + bottom) / 2
        parts.append(
            f'<path d="M{start:.1f} {top} C{start:.1f} {middle} {end:.1f} {middle} {end:.1f} {bottom}" fill="none" '
            f'stroke="#6b7280" stroke-width="{2.5 if writes else 1}"/>'
        )
        parts.append(f'<text x="{(start + end) / 2:.1f}" y="{middle}" fill="#6b7280">{escape(name)}</text>')
    for vertex, label in labels.items():
        x, y = places[vertex]
        parts.append(
            f'<rect x="{x - widths[vertex] / 2:.1f}" y="{y}" width="{widths[vertex]:.1f}" height="{BOX_HEIGHT}" rx="4" '
            'fill="#eff6ff" stroke="#2563eb"/>'
        )
        parts.append(f'<text x="{x:.1f}" y="{y + BOX_HEIGHT / 2 + 4}" fill="#111827">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>"])


def _layers(labels: dict[int, str], links: list[Link]) -> list[list[int]]:
    """The vertices by how far below a root they are at most, each row in the order of the parents above."""
    depths = dict.fromkeys(labels, 0)
    for _ in labels:  # a path has no more links than there are vertices: a graph with a loop in it ends too
        moved = False
        for parent, child, _, _ in links:
            if depths[child] <= depths[parent] and depths[parent] + 1 < len(labels):
                depths[child] = depths[parent] + 1
                moved = True
        if not moved:
            break
    layers: list[list[int]] = [[] for _ in range(max(depths.values(), default=-1) + 1)]
    for vertex, depth in depths.items():
        layers[depth].append(vertex)
    column: dict[int, int] = {}
    for layer in layers:
        layer.sort(
            key=lambda vertex: _mean(column[link[0]] for link in links if link[1] == vertex and link[0] in column)
        )
        column.update((vertex, place) for place, vertex in enumerate(layer))
    return [layer for layer in layers if layer]


def _mean(places: Iterable[int]) -> float:
    found = list(places)
    return sum(found) / len(found) if found else 0.0
