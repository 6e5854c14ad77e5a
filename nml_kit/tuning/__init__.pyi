from .tune import Tuning as Tuning
from .tune import fine_tune as fine_tune
from .tune import tune_on as tune_on
from .tune import with_features_of as with_features_of
