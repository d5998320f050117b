"""Headings of figures that go on in a second line where they are wider than the figure."""

import textwrap
import warnings

from matplotlib.figure import Figure
from matplotlib.text import Text


def wrap_titles(figure: Figure) -> None:
    """Breaks every heading that would make the saved figure wider than its axes need.

    The figure is complete. Its layout, which takes a while, is computed where a heading comes near
    the right edge.
    """
    headings = {figure.get_suptitle()}
    for axes in figure.axes:
        headings |= {axes.get_title("left"), axes.get_title("center"), axes.get_title("right")}
    shown = [text for text in figure.findobj(Text) if text.get_text() in headings - {""}]
    # Layout moves axes by less than this share.
    if all(text.get_window_extent().x1 < 0.85 * figure.bbox.x1 for text in shown):
        return
    with warnings.catch_warnings():
        # Saving says it again.
        warnings.simplefilter("ignore")
        figure.draw_without_rendering()
    for text in shown:
        box = text.get_window_extent()
        room = figure.bbox.x1 - max(box.x0, figure.bbox.x0)
        if box.x1 > figure.bbox.x1 and room > 0:
            whole = text.get_text()
            text.set_text(textwrap.fill(whole, max(1, int(len(whole) * room / box.width))))
