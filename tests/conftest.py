"""What every test gets: a fixed seed, one thread per worker, reproducible property tests."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

CPU = Path("/proc/cpuinfo")
if CPU.exists() and "avx512" not in CPU.read_text(encoding="utf-8", errors="replace"):
    # oneDNN 3 of torch 2.14 writes beyond its memory on AVX2 processors: gradients of a 1x1
    # convolution of stride 2 with fewer than 8 inputs in channels_last. It reads this when it
    # starts, and processes that tests start inherit it.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")

settings.register_profile(
    "default",
    deadline=None,  # the first call of a torch operator is slow
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=25,
)
# The same examples every time, so that a red build means a changed program.
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images and measurements are not left in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def unchanged_torch_state() -> Iterator[None]:
    """Put back the global settings that a test may leave behind."""
    dtype = torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_grad_enabled(True)
