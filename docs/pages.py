"""What the site generates: links, docstrings as reStructuredText, the index of formulas, and notebooks that are run."""

import contextlib
import functools
import importlib
import inspect
import io
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = re.compile(r"(Args|Attributes|Returns|Raises|Source):(?: |\n|$)")


@functools.cache
def documented() -> dict[str, str]:
    """The full name of everything that the page of the API documents, and its short name in these pages."""
    text = (ROOT / "docs" / "api.md").read_text()
    names = {}
    for module in re.findall(r"^```\{members\} (\S+)$", text, re.MULTILINE):
        for name in members(module):
            names[f"{module}.{name}"] = f"{module}.{name}".replace("mftadv", "mf", 1)
    return names


def members(module: str) -> list[str]:
    """The public functions and classes of a module, but for those that the package itself has."""
    package, here = importlib.import_module("mftadv"), importlib.import_module(module)
    own = [name for name in here.__all__ if callable(getattr(here, name))]
    return [name for name in own if here is package or getattr(package, name, None) is not getattr(here, name)]


def escaped(text: str) -> str:
    """Text of a docstring, whose formulas are plain text, as reStructuredText; `code` stays code."""
    parts = re.split(r"(`+[^`]+`+|(?<!\S)\*\*\w[^*]*\w\*\*(?!\w))", text)
    for i in range(0, len(parts), 2):  # but for the star of a list
        parts[i] = re.sub(r"([\\|]|(?<!^)\*|^\*(?! )|_(?![a-zA-Z0-9]))", r"\\\1", parts[i], flags=re.MULTILINE)
    return "".join(rf"\ ``{part.strip('`')}``\ " if part.startswith("`") else part for part in parts)


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of a docstring, those of indented formulas among them, also where no empty line parts them."""
    lines, in_section = [], False
    for line in docstring.strip("\n").split("\n"):
        in_section = in_section if line.startswith(" ") or not line else bool(HEADER.match(line))
        before = lines[-1] if lines else ""
        if not in_section and before and line and before.startswith("    ") != line.startswith("    "):
            lines.append("")
        lines.append(line)
    return "\n".join(lines).split("\n\n")


def to_rst(docstring: str) -> str:
    """A docstring of this project as Google style for napoleon: indented formulas become literal blocks."""
    blocks, section = [], None
    for block in paragraphs(docstring):
        if header := HEADER.match(block):
            section, rest = header[1], block[header.end() :]
            indent = "    " if block[len(section) + 1 :].startswith(" ") else ""  # "Source: ..." goes on in its line
            blocks.append(f"{section}:\n" + "\n".join(indent + line for line in escaped(rest).split("\n")))
        elif block.startswith("    ") and section is None:
            blocks.append("::\n\n" + block)
        else:
            section = section if block.startswith(" ") else None
            blocks.append(escaped(block))
    return "\n\n".join(blocks)


def process_docstring(app, what, name, obj, options, lines):
    """For autodoc: the docstring as reStructuredText."""
    lines[:] = [*to_rst("\n".join(lines)).split("\n"), ""]


def process_signature(app, what, name, obj, options, signature, returned):
    """For autodoc: types of JAX by the names that its users know."""
    names = {
        r"~?[\w.]*Array \| ~?numpy\.ndarray \| [^,\]]*? complex": "~jax.typing.ArrayLike",
        r"(?<!\w)(jax\.)?jaxlib\._jax\.Array": "jax.Array",
    }
    for pattern, short in names.items():
        signature, returned = (text and re.sub(pattern, short, text) for text in (signature, returned))
    return signature, returned


def formula(docstring: str) -> str:
    """The formula of a docstring: its second paragraph, with the indented lines that follow."""
    shown = []
    for block in paragraphs(inspect.cleandoc(docstring))[1:]:
        if HEADER.match(block) or (shown and not block.startswith("    ")):
            break
        shown.append(block if block.startswith("    ") else textwrap.fill(block, 84))
    return "\n\n".join(shown)


def glossary() -> list[list[str]]:
    """The rows of the glossary: symbol, meaning, names in code, tests."""
    lines = (ROOT / "docs" / "glossary.md").read_text().splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def index_of_formulas() -> str:
    """Every closed form: its symbols, its formula, the function, the tests, and whose it is; as Markdown."""
    from mftadv import theory

    entries = {}
    for symbol, _, names, tests in glossary():
        for name in re.findall(r"`mf\.theory\.(\w+)`", names):
            if inspect.isroutine(function := inspect.unwrap(getattr(theory, name))):
                entries.setdefault(name, (function, [], []))
                entries[name][1].append(symbol)
                entries[name][2].extend(test for test in tests.split(", ") if test not in entries[name][2])
    shown, order = [], list(vars(theory))  # as the formulas build on each other
    for name in sorted(entries, key=order.index):
        function, symbols, tests = entries[name]
        text = inspect.cleandoc(function.__doc__)
        source = re.search(r"^Source: (the paper|ours)", text, re.MULTILINE)
        shown.append(
            f"## {name}\n\n{text.split(chr(10) * 2)[0]}\n\n```text\n{formula(text)}\n```\n\n"
            f"Symbols: {'; '.join(symbols)}. Code: `mf.theory.{name}`. Tests: {', '.join(tests)}. "
            f"Source: {source[1] if source else 'see the docstring'}.\n"
        )
    return "\n".join(shown)


def notebook(script: Path) -> str:
    """A script of `# %%` cells as Markdown, each cell of code with what it prints and draws when it is run."""
    names, shown = {"__name__": script.stem}, []
    for cell in re.split(r"^# %%", script.read_text(), flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            shown.append(re.sub(r"^# ?", "", body, flags=re.MULTILINE))
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(body, str(script), "exec"), names)  # noqa: S102
        shown.append(f"```python\n{body.strip()}\n```\n")
        if printed.getvalue():
            shown.append(f"```text\n{printed.getvalue().rstrip()}\n```\n")
    return "\n".join(shown)


def setup(app):
    """Register what needs Sphinx, which the tests of this file do without."""
    from docutils import nodes
    from sphinx import addnodes
    from sphinx.transforms import SphinxTransform
    from sphinx.util.docutils import SphinxDirective

    class Generated(SphinxDirective):
        """A directive of one argument, or none, whose content is generated Markdown."""

        optional_arguments = 1

        def run(self):
            text = self.text(*self.arguments)
            return self.parse_text_to_nodes(text, allow_section_headings=True)

    class Members(Generated):
        def text(self, module):
            kinds = {name: getattr(importlib.import_module(module), name) for name in members(module)}
            directives = (
                f".. auto{'class' if inspect.isclass(kind) else 'function'}:: {module}.{name}"
                for name, kind in kinds.items()
            )
            return "```{eval-rst}\n" + "\n\n".join(directives) + "\n```"

    class Formulas(Generated):
        def text(self):
            return index_of_formulas()

    class Notebook(Generated):
        def text(self, script):
            return notebook(ROOT / script)

    class Links(SphinxTransform):
        """`mf.name` links to its documentation, `tests/file.py` to the file."""

        default_priority = 870  # before the event by which files to download are found

        def apply(self, **kwargs):
            in_docstrings = self.env.docname == "api"  # where names stand alone
            short = {
                name: full
                for full, short in documented().items()
                for name in (full, short, *(in_docstrings * [short.removeprefix("mf."), full.split(".")[-1]]))
            }
            for literal in list(self.document.findall(nodes.literal)):
                text = literal.astext().partition("(")[0]
                file = re.fullmatch(r"((?:tests|examples|benchmarks)/[\w/]+\.py)(?:::\w+)?", text)
                if isinstance(literal.parent, nodes.reference | addnodes.pending_xref | nodes.title):
                    continue
                if text in short:
                    link = addnodes.pending_xref(
                        "", refdomain="py", reftype="obj", reftarget=short[text], refdoc=self.env.docname, refwarn=True
                    )
                elif file and (ROOT / file[1]).is_file():
                    link = addnodes.download_reference("", reftarget=f"/../{file[1]}", refdoc=self.env.docname)
                else:
                    continue
                literal.replace_self(link)
                link += literal

    app.add_directive("members", Members)
    app.add_directive("formulas", Formulas)
    app.add_directive("notebook", Notebook)
    app.add_transform(Links)
    return {"parallel_read_safe": True, "version": "1"}


if __name__ == "__main__":
    print(index_of_formulas())
