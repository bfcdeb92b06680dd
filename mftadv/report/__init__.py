"""The style of tables and figures, and the pages of runs; no physics and no experiment is known here."""

from mftadv.report._figures import BLUE, GREY, ORANGE, RED, figure_files
from mftadv.report._page import PAGE, page, span, write
from mftadv.report._terminal import Terminal, grid_table, notes, number, table, verdict, verdict_table

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "PAGE",
    "RED",
    "Terminal",
    "figure_files",
    "grid_table",
    "notes",
    "number",
    "page",
    "span",
    "table",
    "verdict",
    "verdict_table",
    "write",
]
