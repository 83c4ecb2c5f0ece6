"""Eight CPU devices, no accelerator look-up, and one compilation cache for the whole suite."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # a machine with libtpu but no TPU must not wait for its lock
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests compile more than they compute. LLVM's optimisation of programs that run a few times is not worth its time, and
# XLA's older emitters of fused loops are compiled in 0.4 of the processor time (14.2 s to 5.9 s, a model's gradients);
# programs in one piece instead of many, on cores that other tests use, in 0.85 of it.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
).strip()

import jax
import pytest

CACHE = Path(
    os.environ.get("JAXVL_TEST_CACHE", Path(tempfile.gettempdir()) / f"jaxvl-test-cache-{os.getuid()}")
)
ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append the ids of skipped tests to the file that `JAXVL_SKIPPED` names: `.ci/run` runs them where PyTorch is."""
    file = os.environ.get("JAXVL_SKIPPED")
    if file and report.skipped and not os.environ.get("PYTEST_XDIST_WORKER"):
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(f"{report.nodeid}\n")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module() -> Iterator[None]:
    """Drop compiled programs after each module: each maps memory, and Linux allows a process 65,530 maps."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The whole smallest recipe, run once by launch/main.py: `workdir`, `out`, `err`."""
    import tiny_run

    return tiny_run.recipe(tmp_path_factory.mktemp("recipe"))
