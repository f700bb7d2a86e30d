"""A polite distributed crawler: seed -> frontier -> fetch -> record -> frontier."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("crawler-fleet")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0"
