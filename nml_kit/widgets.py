"""Explorers for notebooks: controls over figures, with a readable `view` and a `static` twin that needs no kernel.

>>> from nml_kit.results import load_results
>>> explorer = SpectrumExplorer(load_results())
>>> explorer.choose(task="ID · digits", between=0.15)
>>> explorer.view["between"]
0.15
"""

from nml_kit.widget_comparison import NoiseComparison
from nml_kit.widget_monitor import RunMonitor
from nml_kit.widget_noise import NoiseGallery
from nml_kit.widget_playground import TermPlayground
from nml_kit.widget_spectra import SpectrumExplorer

__all__ = ["NoiseComparison", "NoiseGallery", "RunMonitor", "SpectrumExplorer", "TermPlayground"]
