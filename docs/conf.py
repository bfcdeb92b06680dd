"""The site made of these pages: `make docs`. `pages.py` holds what is generated."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pages

import mftadv

project = "mftadv"
author = "The mftadv authors"
release = version = mftadv.__version__
html_title = f"mftadv {release}"
html_theme = "furo"
html_show_copyright = False

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "pages"]
myst_heading_anchors = 3

autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_custom_sections = ["Source", "Returns"]  # of plain text
napoleon_use_ivar = True
napoleon_attr_annotations = False
# Types of other libraries, and those that only annotations name, are not documented here.
nitpick_ignore_regex = [("py:.*", rf"(?!({'|'.join(map(str, sorted(pages.documented())))})$).*")]


def setup(app):
    app.connect("autodoc-process-docstring", pages.process_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", pages.process_signature)
