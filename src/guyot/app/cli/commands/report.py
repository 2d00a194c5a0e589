"""`guyot report`."""

from pathlib import Path
from typing import Annotated

import typer

from guyot.app.cli.app import OUTPUT, Json, Quiet, app, option, print_json
from guyot.app.cli.options import Runs
from guyot.core.errors import MisconfiguredError

Output = Annotated[Path, option(OUTPUT, "The page (report.html); replaced if it exists.")]
Plots = Annotated[Path | None, option(OUTPUT, "Folder for every plot as SVG and PNG, for papers.")]


@app.command()
def report(
    run: Runs,
    output: Output = Path("report.html"),
    plots: Plots = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show one run, or several side by side, as an HTML page.

    The page holds everything it needs: it opens from disk, and can be sent or
    printed. A run that is not finished is shown as far as it is.

    Try: guyot report runs/* --output report.html
    """
    from guyot import report as reports

    runs = reports.read_runs(run)
    text = reports.render(runs)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MisconfiguredError(
            f"output={str(output)!r} cannot be written ({error.strerror}): give another file"
        ) from error
    files = [] if plots is None else reports.write_plots(runs, plots)
    if json:
        figures = [str(file) for file in files]
        print_json(
            {
                "output": str(output),
                "plots": figures,
                "runs": [reports.summary(run) for run in runs],
            }
        )
    elif not quiet:
        typer.echo(f"{output}: {len(runs)} run{'s' * (len(runs) != 1)}, {len(text) / 1e3:.0f} kB")
        if plots is not None:
            typer.echo(f"{plots}: {len(files)} plots")
