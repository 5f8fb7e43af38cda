"""What runs and models show: what patches hold, a model inside, studies of many.

``studies`` trains small models and compares them; the other files read what is there already.
"""
