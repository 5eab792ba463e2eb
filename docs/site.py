"""What mkdocs is told beside `mkdocs.yml`: pages made of other files, and equations as MathML.

Equations are written as TeX between `$$` (a block) or `$` (in a line) on pages that hold a `$$`; browsers draw MathML
by themselves, so the site needs no script and no font for them.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
_LOG = logging.getLogger("mkdocs.hooks.replaygen")
_PARTS = re.compile(
    r"(?P<code>^```.*?^```\s*$|`[^`\n]*`)|\$\$(?P<block>.+?)\$\$|(?<![\\$])\$(?P<line>[^$\n]+)\$",
    re.DOTALL | re.MULTILINE,
)


def on_files(files: Files, config: Any) -> Files:
    """Pages whose text lies elsewhere: the store's format, the results, the changes."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    results = readme.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    pages = {
        "store.md": (ROOT / "cache" / "README.md").read_text(encoding="utf-8"),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "results.md": "# Results\n\nEvery figure is written by the command above it into `benchmarks/results/`.\n"
        "mIoU in percent after the last step, background included, mean ± standard deviation over seeds.\n" + results,
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links that leave `docs/` lead to the pages made above; equations become MathML."""
    markdown = markdown.replace("(../cache/README.md)", "(store.md)").replace("(../CHANGELOG.md)", "(changelog.md)")
    return with_equations(markdown) if "$$" in markdown else markdown


def on_post_page(output: str, page: Any, config: Any) -> str:
    """A name for the theme's search dialog, which has none."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def with_equations(markdown: str) -> str:
    """The same page with every equation outside code as MathML."""
    return _PARTS.sub(_equation, markdown)


def _equation(match: re.Match[str]) -> str:
    if match["code"] is not None:
        return match[0]
    tex = (match["block"] or match["line"]).strip()
    try:
        from latex2mathml.converter import convert
    except ImportError:
        _LOG.warning("equations need the package latex2mathml: pip install 'replaygen[docs]'")
        return match[0]
    drawn: str = convert(tex, display="block" if match["block"] else "inline")
    drawn = drawn.replace("<math ", f'<math aria-label="{_quoted(tex)}" ', 1)
    if match["block"]:
        return f'\n<div class="equation" tabindex="0">{drawn}</div>\n'
    return f"<span>{drawn}</span>"  # Markdown would take a <math> that begins a line for a block


def _quoted(text: str) -> str:
    return " ".join(text.split()).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
