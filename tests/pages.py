"""What a page of ours has to be: well-formed, in one piece, readable by a screen reader, without scripts."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

WIDTHS = (390, 1280)  # of a phone and of a laptop
PROBE = """onload = () => document.title = [...document.querySelectorAll("iframe")].map(({contentWindow: seen}) => [
  seen.innerWidth, seen.document.documentElement.scrollWidth,
  seen.getComputedStyle(seen.document.body).backgroundColor]).join("|")"""
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """The elements of a page, after a check that every tag is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open = [], "", []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check_page(path, most=2 * 2**20):
    """Check a page, and return it parsed."""
    text = path.read_text()
    assert len(text.encode()) <= most
    assert text.startswith("<!DOCTYPE html>")
    page = Page(text)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("title")) == len(page.all("h1")) == len(page.all("main")) == 1
    assert any(each.get("name") == "viewport" for each in page.all("meta"))
    assert not page.all("script")
    assert not re.search(r"url\(|@import|javascript:", text)
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in {"src", "href", "action", "data", "srcset"} & attributes.keys():
            value = attributes[name]
            if value.startswith("data:image/svg+xml;base64,"):
                continue
            assert tag == "a", (tag, value)
            assert not re.match(r"\w+:|//|/", value), value
            assert f'id="{value[1:]}"' in text if value[0] == "#" else (path.parent / value).exists(), value
    assert all(len(each["alt"]) > 20 for each in page.all("img"))
    assert all(each["id"] for each in page.all("h2"))
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        assert '<th scope="' in table
    return page


def look(path, folder):
    """Look at a page in a browser, on a phone and a laptop, light and dark: it fits, and has the colours asked for."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("NO BROWSER HERE: pages are not looked at; install chromium")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
    frames = "".join(
        f'<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{html.escape(text)}"></iframe>'
        for width in WIDTHS
    )
    (folder / "probe.html").write_text(f"<!DOCTYPE html><title></title>{frames}<script>{PROBE}</script>")
    for scheme, background in ((0, "rgb(21, 24, 28)"), (1, "rgb(255, 255, 255)")):
        found = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom",
             f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={folder}/profile",
             f"file://{folder}/probe.html"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        widths = "|".join(f"{width},{width},{background}" for width in WIDTHS)
        title = re.search(r"<title>(.*?)</title>", found.stdout)[1]
        assert title == widths, title
