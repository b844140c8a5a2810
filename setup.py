"""Packaging of kquant and tflite_export."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "kquant" / "__init__.py").read_text()).group(1)

setup(
    name="kquant",
    version=VERSION,
    description="Quantizes Keras models to full-integer TFLite files and proves what they hold.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["kquant", "kquant.*", "tflite_export", "tflite_export.*"]),
    package_data={"kquant.analysis.page": ["page.html.jinja"], "tflite_export.family": ["kquant_family.h"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "tf-keras>=2.21,<2.22",
        "tensorflow-model-optimization>=0.8.1,<0.9",
        "numpy>=1.26",
        "absl-py",
        "ai-edge-litert>=2.3,<2.4",
        "flatbuffers",
        "scipy",
        "Pillow",
        "matplotlib>=3.8",
        "Jinja2>=3.1",
        "scikit-learn",
        "threadpoolctl",
        "tqdm",
        'setuptools; python_version >= "3.12"',
    ],
    extras_require={"test": ["pytest", "pytest-xdist", "hypothesis", "ruff"], "hub": ["keras-hub"],
                    "parallel": ["joblib>=1.3", "dask", "distributed"],
                    "ray": ["joblib>=1.3", "ray"]},
)
