"""MkDocs: pages link source files as in the repository, and the site holds copies of them."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(\.\./((?:src|examples)/[\w/.]+\.py)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the source files that pages link."""
    pages = [page.content_string for page in files.documentation_pages()]
    for path in sorted({path for text in pages for path in LINK.findall(text)}):
        files.append(File.generated(config, path, content=(ROOT / path).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links at the copies."""
    return LINK.sub(r"](\1)", markdown)
