"""The commands: one per file, and a file is all it takes to add one.

A file imports `app` and decorates a function of its own with `@app.command()`. It raises a
`GuyotError` or warns a `GuyotWarning` and leaves saying so to `guyot.app.cli.app`, from where it
takes the options `Quiet` and `Json` where they make sense.
"""

import importlib
import pkgutil

from guyot.app.cli.app import app

__all__ = ["app"]

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
