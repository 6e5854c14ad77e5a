"""The package's version, read by the build and by result rows."""

__version__ = "0.1.0"
