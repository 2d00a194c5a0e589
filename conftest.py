# Python code blocks in README.md and docs/ are run as tests, in order, one namespace per page.
# A page can prepare what its blocks assume in an HTML comment that readers do not see:
#     <!--- invisible-code-block: python
#     model = ...
#     -->
# and leave a block out with <!--- skip: next -->.

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
).pytest()
