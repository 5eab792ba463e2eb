"""The site builds, the reference is the code's, and the failures that the docs explain are the program's own words."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from replaygen.plan.reference import default_of, reference, renew, tables

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def test_every_key_of_a_recipe_has_words() -> None:
    """No field of any table is left without a description; tables of their own have a docstring instead."""
    bare = [
        f"{heading} {name}"
        for heading, model in tables()
        for name, field in model.model_fields.items()
        if not field.description and name not in _own_tables(model)
    ]
    assert not bare
    assert not [heading for heading, model in tables() if not (model.__doc__ or "").strip()]


def test_the_reference_is_written_from_the_code() -> None:
    """docs/recipes.md holds what the tables say now; if not: python -m replaygen.plan.reference docs/recipes.md"""
    page = DOCS / "recipes.md"
    assert renew(page) == page.read_text(encoding="utf-8")


def test_the_reference_tells_defaults_limits_and_choices() -> None:
    """A row as a reader needs it; a table that is there twice is told once."""
    told = reference()
    assert '| `setting` | `"overlapped"` | `"sequential"`, `"disjoint"`, `"overlapped"`, `"partitioned"` |' in told
    assert "| `unsure` | `0.7` | number, ≥ 0, < 1 |" in told
    assert "### `[relabel.erase]`" in told
    assert "The keys of `[replay.NAME.erase]`." in told
    assert "| `mib` | `distil` = 10.0," in told


@pytest.mark.parametrize("page", ["generators.md", "crawling.md"])
def test_defaults_in_other_pages_are_the_tables_own(page: str) -> None:
    """ "`batch` = 8" in a page's tables of keys is the default that the code has."""
    models = dict(tables())
    heading, compared = "", 0
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 5 or not line.startswith("|"):
            continue
        heading = cells[1].strip("`") or heading
        model = models.get(heading)
        for key, value in re.findall(r"`(\w+)` = (\[.*?\]|\S+?)(?=,|$)", cells[2]) if model else ():
            told = default_of(model.model_fields[key]).strip("`")
            assert _number(told) == _number(value), f"{page}: {heading} {key} = {value}, the code has {told}"
            compared += 1
    assert compared > 10


def test_failures_in_the_docs_are_the_programs_own_words() -> None:
    """Each message that the FAQ explains stands in the code, `…` standing for what is filled in."""
    texts = _texts_of_code()
    asked = re.findall(r"^### `(.+)`$", (DOCS / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(asked) > 25
    lost = [message for message in asked if not any(_says(text, message) for text in texts)]
    assert not lost


def test_links_and_pictures_lead_somewhere() -> None:
    """Relative links of README and docs name files that are there."""
    lost = []
    for page in (REPOSITORY / "README.md", *PAGES):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text(encoding="utf-8")):
            made = page.parent == DOCS and target in ("store.md", "results.md", "changelog.md")
            if "://" not in target and not made and not (page.parent / target).exists():
                lost.append(f"{page.name}: {target}")
    assert not lost


def test_what_the_text_names_is_there() -> None:
    """Environment variables, `make` targets, benchmark results, tests and recipes that a page names exist."""
    code = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "replaygen").rglob("*.py"))
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    lost = []
    for page in (REPOSITORY / "README.md", *PAGES):
        text = page.read_text(encoding="utf-8")
        lost += [f"{page.name}: {name}" for name in set(re.findall(r"\bREPLAYGEN_[A-Z_]+\b", text)) if name not in code]
        for target in set(re.findall(r"`make ([\w-]+)`", text)):
            script = REPOSITORY / "benchmarks" / f"{target.replace('-', '_')}.py"
            if not (script.exists() or re.search(rf"^{target}:", makefile, re.MULTILINE)):
                lost.append(f"{page.name}: make {target}")
        for path in set(re.findall(r"\b(?:benchmarks/results|tests|trainers)/[\w.-]+\.\w+", text)):
            if not (REPOSITORY / path).exists() and "my_" not in path:
                lost.append(f"{page.name}: {path}")
    assert not lost


def test_losses_that_the_docs_list_can_be_imported() -> None:
    """Each function of `replaygen.learn` in docs/trainers.md is one."""
    import replaygen.learn

    told = (DOCS / "trainers.md").read_text(encoding="utf-8").split("`replaygen.learn`", 1)[1].split("\n## ", 1)[0]
    names = re.findall(r"`(\w+)`", told)
    assert len(names) > 15
    assert not [name for name in names if not hasattr(replaygen.learn, name)]


def test_equations_become_mathml() -> None:
    """TeX between dollars is drawn as MathML; code keeps its dollars."""
    pytest.importorskip("latex2mathml", reason="equations are drawn by latex2mathml: pip install 'replaygen[docs]'")
    drawn = _site().with_equations("$$ \\frac{a}{b} $$\n\nwith $q'_c$ and `$HOME`\n\n```\necho $PATH $X\n```\n")
    assert drawn.count("<math") == 2
    assert "<mfrac>" in drawn
    assert "`$HOME`" in drawn
    assert "echo $PATH $X" in drawn


def test_the_site_builds_and_asks_nobody(tmp_path: Path) -> None:
    """`mkdocs build --strict` ends well; no page loads anything from another place; every equation is drawn."""
    pytest.importorskip("latex2mathml", reason="equations are drawn by latex2mathml: pip install 'replaygen[docs]'")
    pytest.importorskip("material", reason="pip install 'replaygen[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "site").glob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in PAGES} | {"store", "results", "changelog"}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loader = _Loaded()
        loader.feed(text)
        assert not [address for address in loader.addresses if re.match(r"(?:\w+:)?//", address)], page.name
        assert "$$" not in re.sub(r"<(code|pre).*?</\1>", "", text, flags=re.DOTALL), page.name
    assert not [page.name for page in pages if "\\" in _drawn(page.read_text(encoding="utf-8"))]
    methods = (tmp_path / "site" / "methods.html").read_text(encoding="utf-8")
    assert methods.count("<math") > 40
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:\w+:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def _drawn(page: str) -> str:
    """What the equations of a page show: TeX that was not understood would stand there as it is."""
    return re.sub(r"<[^>]*>", "", " ".join(re.findall(r"<math .*?</math>", page, flags=re.DOTALL)))


class _Loaded(HTMLParser):
    """What a browser would fetch for a page: scripts, styles, pictures, frames; not where links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio") and given.get("src"):
            self.addresses.append(given["src"] or "")
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(given.get("href") or "")


def _own_tables(model: type[BaseModel]) -> set[str]:
    """The fields of a table that are tables with keys of their own."""
    return {name for name, field in model.model_fields.items() if "replaygen." in str(field.annotation)}


def _number(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)


def _texts_of_code() -> list[list[str]]:
    """Every text of the package that is no docstring, cut at what an f-string fills in."""
    texts = []
    for path in sorted((REPOSITORY / "replaygen").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                pieces = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                texts.append("".join(map(str, pieces)).split("\0"))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                texts.append([node.value])
    return texts


def _says(text: list[str], message: str) -> bool:
    """Whether a text of the code, cut where something is filled in, can become the message, cut at `…`."""
    wanted = [piece for piece in message.split("…") if piece.strip()]
    rest = "\0".join(text)
    for piece in wanted:
        if piece not in rest:
            return False
        rest = rest.split(piece, 1)[1]
    return bool(wanted)


def _site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
