"""What to train with how much text and compute: published and own results, and what follows.

``published.json`` holds what the two papers measured, ``own.json`` the project's own runs.
``fits`` draws simple curves through them when asked, ``held_out`` says how well these curves
predict points that they have not seen, ``recommend`` turns them into advice.
"""

from patchtrain.advice.recommend import Advice, advise, plan_warnings

__all__ = ["Advice", "advise", "plan_warnings"]
