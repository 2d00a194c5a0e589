"""`guyot cache`."""

from typing import Annotated

import typer

from guyot.app.cli.app import Json, Quiet, app, option, print_json

Clear = Annotated[bool, option("What to do", "Remove all of it.", "--clear")]


@app.command()
def cache(clear: Clear = False, quiet: Quiet = False, json: Json = False) -> None:
    """Say what is kept between runs, where, and how big; or remove it.

    These are images as they were decoded, and the widths that suit this
    machine. The variable GUYOT_CACHE_GB bounds the size (10); what was not
    used for the longest time goes first. All of it can be made again.

    Try: guyot cache
    """
    from guyot.app.cache import bound, cache_root, entries, remove

    root, limit = cache_root(), bound()
    found = entries(root)
    size = sum(entry.size for entry in found)
    if clear:
        remove(found)
    if json:
        kinds = {kind: sum(e.kind == kind for e in found) for kind in ("images", "measurements")}
        print_json(
            {"folder": str(root), "bytes": size, "bound": limit, "cleared": clear, "entries": kinds}
        )
        return
    if quiet:
        typer.echo(str(size))
        return
    typer.echo(f"{root}")
    for entry in found:
        typer.echo(f"  {entry.name:<40} {entry.kind:<13}{entry.size / 1e6:>10.1f} MB")
    word = "removed" if clear else "kept"
    typer.echo(f"{size / 1e6:.1f} MB {word}, at most {limit / 1e9:g} GB")
    if found and not clear:
        typer.echo("guyot cache --clear removes it")
