"""The configs stand beside the package in the repository, and within it where it is installed; see pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["topodet*"]), "topodet.configs"])
