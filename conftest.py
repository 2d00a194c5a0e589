# Python code blocks in README.md and docs/ are run as tests, in order, one namespace per page.
# A page can prepare what its blocks assume in an HTML comment that readers do not see:
#     <!--- invisible-code-block: python
#     model = ...
#     -->
# and leave a block out with <!--- skip: next -->. The blocks of a page run in an empty folder.

import os
import tempfile
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


def enter(namespace: dict[str, Any]) -> None:
    """Begin a page in a folder of its own."""
    namespace["_left"] = Path.cwd()
    os.chdir(tempfile.mkdtemp())


def leave(namespace: dict[str, Any]) -> None:
    """Go back to where the tests run."""
    os.chdir(namespace["_left"])


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    setup=enter,
    teardown=leave,
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
).pytest()
