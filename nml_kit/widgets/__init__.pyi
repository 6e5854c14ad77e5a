from .comparison import NoiseComparison as NoiseComparison
from .explorer import Explorer as Explorer
from .monitor import RunMonitor as RunMonitor
from .noise import NoiseGallery as NoiseGallery
from .spectra import SpectrumExplorer as SpectrumExplorer
from .terms import TermPlayground as TermPlayground
from .view import FigureView as FigureView
