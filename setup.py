"""Package metadata. Tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"

# auto_LiRPA is needed but not listed: its last release on PyPI (0.3) declares torch < 1.13, so that naming it here
# would make the package uninstallable. `make setup` installs it with `pip install --no-deps`, and importing
# lirpa_lip without it prints that command. What auto_LiRPA imports itself is therefore listed here on its behalf.
AUTO_LIRPA_IMPORTS = ["appdirs>=1.4", "packaging>=20.0", "tqdm>=4.64", "graphviz>=0.20"]

setup(
    name="lirpa_lip",
    version="0.1.0",
    description="Valid, tight and fast local Lipschitz bounds and certified training for auto_LiRPA",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["lirpa_lip", "lirpa_lip.*"]),
    package_data={"lirpa_lip": ["py.typed"]},
    install_requires=[
        "torch>=2.2",
        "torchvision",
        "numpy",
        "scipy",
        "click>=8.0",
        "rich>=13.0",
        "matplotlib>=3.7",
        "safetensors>=0.4",
        "accelerate>=0.26",
        "scikit-learn>=1.3",
        "foolbox>=3.3",
        "jaxtyping>=0.2.25",
        "pyyaml>=6.0",
        "tensorboard>=2.14",
        *AUTO_LIRPA_IMPORTS,
    ],
    extras_require={
        "dev": ["pytest>=7.4", "pytest-xdist>=3.5", "hypothesis>=6.90", "mpmath>=1.3", "ruff>=0.6", "mypy>=1.10", "types-PyYAML"],
    },
    entry_points={"console_scripts": ["lirpa-lip = lirpa_lip.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
