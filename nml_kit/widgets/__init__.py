"""Explorers for notebooks: controls over figures, with a readable `view` and a `static` twin that needs no kernel.

>>> from nml_kit.study import load_results
>>> explorer = SpectrumExplorer(load_results())
>>> explorer.choose(task="ID · digits", between=0.15)
>>> explorer.view["between"]
0.15
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
