"""The command `nml`."""

from nml_kit.cli.main import app as app
