"""`guyot inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from guyot.app.cli.app import OUTPUT, Json, Quiet, app, option, print_json
from guyot.app.cli.options import SETTINGS
from guyot.app.settings import AT_LEAST_1
from guyot.core.condition import require
from guyot.core.errors import MisconfiguredError

_WHAT, _FIND = "What to inspect", "What may go"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="resnet20, torchvision:resnet50, timm:vit_tiny_patch16_224, a plain name of one of "
        "them, or package.module:factory of your own.",
        show_default=False,
    ),
]
InputSize = Annotated[
    str | None,
    option(
        _WHAT,
        "224, or 3x224x224; columns of a table, characters of a text (what the network was made "
        "for).",
    ),
]
Batch = Annotated[int, option(_WHAT, "Inputs per batch (2).")]
Classes = Annotated[int | None, option(_WHAT, "Outputs (1000 for torchvision and timm, else 10).")]
Ignore = Annotated[list[str] | None, option(_FIND, SETTINGS["ignore"].help)]
Freeze = Annotated[list[str] | None, option(_FIND, SETTINGS["freeze"].help)]
Tie = Annotated[list[str] | None, option(_FIND, SETTINGS["tie"].help)]
NoVerify = Annotated[
    bool, option(_FIND, "Skip the numerical check of everything found.", "--no-verify")
]
All = Annotated[bool, option(OUTPUT, "Name every member and reader.", "--all")]


@app.command()
def inspect(  # noqa: PLR0913 - one parameter per option
    model: Model,
    input_size: InputSize = None,
    batch: Batch = 2,
    classes: Classes = None,
    ignore: Ignore = None,
    freeze: Freeze = None,
    tie: Tie = None,
    no_verify: NoVerify = False,
    all: All = False,  # noqa: A002 - the option's name
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show what can go in a network, what it costs, and what stays and why.

    A group is a set of units that shrinks everywhere at once: where its units
    are made and passed on, and where they are read. A layer is a residual
    branch that can go as a whole. Nothing is trained or downloaded.

    Try: guyot inspect resnet20
    """
    from guyot.app.cli.inspected import show
    from guyot.app.models import build_with_inputs, example_of, image_shape, natural_classes
    from guyot.report import inspection_of
    from guyot.structures import find_structures

    require("batch", batch, AT_LEAST_1)
    if (Path(model) / "config.json").is_file():
        raise MisconfiguredError(
            f"model={model!r} is the folder of a run: guyot report {model} shows what was found; "
            "here give the name of its network, such as mlp --input-size 13 --classes 3"
        )
    shape = image_shape(model, input_size)
    count = natural_classes(model) if classes is None else classes
    network, inputs = build_with_inputs(model, count, shape)
    if inputs is None or input_size is not None:
        if shape is None:
            raise MisconfiguredError(
                f"model={model!r} does not say what it takes: give input_size, such as 3x224x224, "
                "or let the function return the network and its example inputs"
            )
        inputs = (example_of(model, shape, batch),)
    structures = find_structures(
        network,
        inputs,
        ignore=ignore or (),
        freeze=freeze or (),
        tie=[patterns.split(",") for patterns in tie or ()],
        verify=not no_verify,
    )
    seen = inspection_of(structures)
    if json:
        print_json({"model": model, "verified": not no_verify, **seen.to_dict()})
        return
    show(model, seen, quiet=quiet, shortened=not all)
