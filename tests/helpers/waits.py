"""Which calls would wait for a device, if tensors were on one."""

from torch.overrides import TorchFunctionMode


class Waits(TorchFunctionMode):
    """Note what would wait for a device."""

    NAMES = frozenset(
        {"cpu", "item", "tolist", "numpy", "__bool__", "__float__", "__int__", "nonzero"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if (name := getattr(func, "__name__", "")) in self.NAMES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))
