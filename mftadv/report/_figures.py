"""The colours of figures, and the files they are stored in."""

import base64
import dataclasses
import html
import io
import re
from collections.abc import Iterator
from typing import Any

from mftadv.report._svg import compact

GREY, BLUE, RED, ORANGE = "#555555", "#3b6ea8", "#c0392b", "#d98c21"

_DESCRIPTION = re.compile(r"<dc:description>(.*?)</dc:description>", re.DOTALL)


def figure_files(name: str, figure: Any) -> Iterator[tuple[str, bytes]]:
    """A figure as PNG, PDF and SVG: the name of each file and its content, the same for the same figure.

    Args:
        name: of the files, without suffix.
        figure: a matplotlib Figure, of which `figure.set_label` says in a sentence what it shows; that is stored in
            the files, and pages have it as the alternative text.
    """
    import matplotlib

    title = figure.get_suptitle()
    shows = figure.get_label() or title or name
    metadata = {
        "png": {"Title": name, "Description": shows},
        "pdf": {"Title": name, "Subject": shows, "CreationDate": None},
        "svg": {"Title": name, "Description": shows, "Date": None},
    }
    with matplotlib.rc_context({"svg.hashsalt": "mftadv", "svg.fonttype": "path", "pdf.fonttype": 42}):
        for suffix, words in metadata.items():
            file = io.BytesIO()
            figure.savefig(file, format=suffix, dpi=130, metadata=words)
            yield f"{name}.{suffix}", compact(file.getvalue()) if suffix == "svg" else file.getvalue()
            figure.set_layout_engine("none")  # it stays as it was laid out


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure in a page: its name, what it shows, its size in CSS pixels, and where a browser finds it."""

    name: str
    shows: str
    width: int
    height: int
    address: str

    @classmethod
    def of(cls, name: str, svg: bytes) -> "Picture":
        """The picture of a file that `figure_files` made."""
        text = svg.decode()
        shows = _DESCRIPTION.search(text)
        size = re.search(r'<svg [^>]*?\bwidth="([\d.]+)pt"', text), re.search(r'<svg [^>]*?\bheight="([\d.]+)pt"', text)
        width, height = (round(float(found[1]) * 4 / 3) if found else 0 for found in size)
        address = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        return cls(name, html.unescape(shows[1]) if shows else name, width, height, address)
