"""Studies: several recipes over several seeds at an equal something, run, counted and compared.

``study.py`` says what a study is, ``equal.py`` makes its arms equal, ``runner.py`` trains what is
not trained yet, ``results.py`` counts. ``ablation.py`` and ``tokenizers.py`` are two studies.
"""
