"""A table for a terminal of any width: what does not fit beside goes below, nothing is cut."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

# Between two columns; at both ends and behind the first column.
_GAP, _EDGES = 2, 3
_NARROWEST = 12
# Longer words, such as paths, go over several lines.
_LONGEST_WORD = 24


@dataclass
class FittedTable:
    """Text in columns, of which numbers are never cut or wrapped, nor words broken into letters.

    Columns that a terminal has no room for move into further tables below, each with the first
    column again, and a line says so.

    Attributes:
        header: The headings.
        lines: The cells of each line; a cell may have lines of its own.
        title: What stands above.
        words: The columns, by heading, of words that may go over several lines; the first
            column always may.
        sections: The lines, by number, above which a rule is drawn.
        styles: The lines, by number, that have a style.
        caption: What stands below.
    """

    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    title: str = ""
    words: Collection[str] = ()
    sections: Collection[int] = ()
    styles: dict[int, str] = field(default_factory=dict)
    caption: str = ""

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """The tables that fit the console's width."""
        del console
        # A log is read by other programs, too.
        box = SIMPLE_HEAD if options.is_terminal else None
        first, blocks = self.blocks(options.max_width)
        for number, block in enumerate(blocks):
            title = f"{self.title}{' (further columns)' if number else ''}".strip()
            if title:
                # A table's own title would be as narrow as the table.
                yield Text(title, style="bold")
            yield self._table(first, block, box)
        moved = f"too wide for this terminal: its columns are in {len(blocks)} tables"
        for line in (self.caption, moved if len(blocks) > 1 else ""):
            if line:
                yield Text(line, style="dim italic")

    def blocks(self, width: int) -> tuple[int, list[dict[int, int]]]:
        """How wide the first column is, and which others (by number), how wide, each table has."""
        wanted = [self._widest(number) for number in range(len(self.header))]
        least = [self._least(number) for number in range(len(self.header))]
        room = width - _EDGES
        widest = max(least[1:], default=0) + _GAP
        first = min(wanted[0], max(least[0], room // 3), max(_NARROWEST, room - widest))
        blocks: list[dict[int, int]] = [{}]
        left = room - first
        for number in range(1, len(self.header)):
            if least[number] + _GAP > left and blocks[-1]:
                blocks.append({})
                left = room - first
            blocks[-1][number] = least[number]
            left -= least[number] + _GAP
        for block in blocks:
            # What is left over goes to the words that would like more.
            spare = room - first - sum(block.values()) - _GAP * len(block)
            for number in block:
                more = max(0, min(spare, wanted[number] - block[number]))
                block[number] += more
                spare -= more
        if len(blocks) == 1:
            first = max(first, min(wanted[0], first + spare))
        return first, blocks

    def _table(self, first: int, block: dict[int, int], box: Box | None) -> Table:
        table = Table(
            header_style="bold",
            box=box,
            padding=(0, 1 if box else 2, 0, 0),
        )
        # As text: in a plain cell the brackets of a name would be read as markup.
        table.add_column(Text(_spaced(self.header[0])), width=first, overflow="fold")
        for place, width in block.items():
            words = self.header[place] in self.words
            table.add_column(
                Text(_spaced(self.header[place])),
                justify="left" if words else "right",
                width=width,
                overflow="fold",
            )
        for index, line in enumerate(self.lines):
            if index in self.sections:
                table.add_section()
            cells = [Text(line[place]) for place in (0, *block)]
            table.add_row(*cells, style=self.styles.get(index))
        return table

    def _cells(self, number: int) -> list[str]:
        return [line[number] for line in self.lines]

    def _widest(self, number: int) -> int:
        lines = [part for cell in self._cells(number) for part in cell.splitlines()]
        return max(map(len, [self.header[number], *lines]))

    def _least(self, number: int) -> int:
        """The narrowest that a column may be: whole numbers, whole words of a sensible length."""
        heading = max(map(len, _spaced(self.header[number]).split()), default=1)
        if number and self.header[number] not in self.words:
            lines = [part for cell in self._cells(number) for part in cell.splitlines()]
            return max([heading, *map(len, lines)])
        words = [word for cell in self._cells(number) for word in cell.split()]
        longest = min(max(map(len, words), default=1), _LONGEST_WORD)
        return max(heading, min(self._widest(number), max(_NARROWEST, longest)))


def _spaced(heading: str) -> str:
    return heading.replace("_", " ")
