"""SVG files of matplotlib as short as they can be while they draw the same."""

import itertools
import re
from collections.abc import Iterator

_UNIT = 100  # a hundredth of a point is fine enough
_NUMBER = r"-?[\d.]+(?:e[+-]?\d+)?"


def compact(svg: bytes) -> bytes:
    """An SVG file of matplotlib at half its size or less: it draws the same to a hundredth of a point.

    Paths go from point to point by differences, elements of one style share a class of the style sheet, names are
    short, and there are no comments, indents, or names that nothing refers to.
    """
    head, end, drawing = svg.decode().partition("</metadata>")
    drawing = re.sub(r"<!--.*?-->", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'\bd="([^"]*)"', lambda path: f'd="{_relative(path[1])}"', drawing)
    drawing = re.sub(r">\s+<", "><", drawing)

    referred = set(re.findall(r'#([^"();]+)["()]', drawing))
    names = dict(zip((id for id in re.findall(r' id="([^"]*)"', drawing) if id in referred), _short("i"), strict=False))
    drawing = re.sub(r' id="([^"]*)"', lambda id: f' id="{names[id[1]]}"' if id[1] in names else "", drawing)
    drawing = re.sub(r'#([^"();]+)(?=["()])', lambda id: f"#{names.get(id[1], id[1])}", drawing)

    drawing = re.sub(rf'(<use [^>]*)transform="translate\(({_NUMBER}) ({_NUMBER})\)"', r'\1x="\2" y="\3"', drawing)
    drawing = re.sub(rf'(?<= )([xy])="({_NUMBER})"', lambda at: f'{at[1]}="{_number(_whole(at[2]))}"', drawing)
    drawing = re.sub(
        rf"translate\(({_NUMBER}) ({_NUMBER})\)",
        lambda by: f"translate({_number(_whole(by[1]))} {_number(_whole(by[2]))})",
        drawing,
    )

    classes = dict(zip(dict.fromkeys(re.findall(r' style="([^"]*)"', drawing)), _short("s"), strict=False))
    drawing = re.sub(r' style="([^"]*)"', lambda style: f' class="{classes[style[1]]}"', drawing)
    sheet = "".join(f".{name}{{{style.replace(': ', ':').replace('; ', ';')}}}" for style, name in classes.items())
    return (head + end + drawing.replace("</style>", f"{sheet}</style>", 1)).encode()


def _short(letter: str) -> Iterator[str]:
    """Letter0, letter1, ..."""
    return (f"{letter}{i}" for i in itertools.count())


def _relative(path: str) -> str:
    """Path data by differences; they are between rounded points, so that errors do not add up."""
    written, last, at, start = [], "", (0, 0), (0, 0)
    for letter, numbers in re.findall(r"([MLQCz])([^MLQCz]*)", path):
        values = [_whole(number) for number in numbers.split()]
        points = list(zip(values[::2], values[1::2], strict=True))
        steps = [_number(to - of) for point in points for to, of in zip(point, at, strict=True)]
        if letter == "L" and "0" in steps:
            letter = "VH"[steps.index("0") == 1]
            steps.remove("0")
        if letter != last or letter in "Mz":
            written.append(letter.lower())
        elif not steps[0].startswith("-"):
            written.append(" ")
        written.append(steps[0] if steps else "")
        written += [step if step.startswith("-") else f" {step}" for step in steps[1:]]
        last, at = letter, points[-1] if points else start
        start = at if letter == "M" else start
    return "".join(written)


def _whole(number: str) -> int:
    return round(_UNIT * float(number))


def _number(whole: int) -> str:
    """A number of hundredths, as short as it can be written."""
    sign, (ones, rest) = "-" * (whole < 0), divmod(abs(whole), _UNIT)
    return f"{sign}{ones or ''}{f'.{rest:02}'.rstrip('0') if rest else ''}" if whole else "0"
