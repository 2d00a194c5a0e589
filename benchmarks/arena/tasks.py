"""All tasks by name."""

from functools import cache

from arena import planted, real
from arena.crew import Orders
from arena.task import Task


def names() -> list[str]:
    """What there is, in the order in which it is worth having; drawn-N is one of many."""
    return [*planted.TASKS, "drawn-0", *real.MAKERS]


@cache
def _made(name: str, folder: real.Folder) -> Task:
    if name.startswith("drawn-") and name.removeprefix("drawn-").isdigit():
        return planted.drawn(int(name.removeprefix("drawn-")))
    if name in planted.TASKS:
        return planted.TASKS[name]
    if name in real.MAKERS:
        return real.MAKERS[name](folder)
    raise ValueError(f"task={name!r} is unknown: choose among {', '.join(names())}, or drawn-N")


def task_of(name: str, orders: Orders) -> Task:
    """The task of a name."""
    return _made(name, real.Folder(orders.data_dir, orders.cache_dir))
