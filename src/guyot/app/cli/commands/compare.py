"""`guyot compare`."""

import typer

from guyot.app.cli.app import Json, Quiet, app, columns, print_json
from guyot.app.cli.options import Runs


@app.command()
def compare(run: Runs, quiet: Quiet = False, json: Json = False) -> None:
    """Put runs of one task side by side: accuracy, size, latency, time.

    An accuracy has its interval and the number of test images. Every run is
    compared with the first full network, or else with the first run. The
    baselines and seeds in a folder count as runs. Runs that differ in the seed
    only get a mean and a spread.

    Try: guyot train --baseline full --out runs/a; guyot compare runs/a
    """
    from guyot import report

    runs = report.read_runs(run)
    if json:
        print_json({"runs": [one.to_dict() for one in report.compare(runs)]})
        return
    for line in report.compare_lines(runs, notes=not quiet, width=columns()):
        typer.echo(line)
