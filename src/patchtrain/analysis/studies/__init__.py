"""Studies: several recipes over several seeds at an equal something, run, counted and compared.

``study.py`` says what a study is, ``equal.py`` makes its arms equal, ``runner.py`` trains what is
not trained yet, ``results.py`` counts. ``ablation.py`` and ``tokenizers.py`` are two studies.
"""

from patchtrain.analysis.studies.equal import at_compute, at_data
from patchtrain.analysis.studies.runner import run_study
from patchtrain.analysis.studies.study import Arm, Study

__all__ = ["Arm", "Study", "at_compute", "at_data", "run_study"]
