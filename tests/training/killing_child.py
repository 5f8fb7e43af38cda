"""What a child of ``killing.py`` needs, imported once in the server that the children fork from."""

import plotly.graph_objects  # noqa: F401
import torch.distributed.checkpoint  # noqa: F401
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401

import patchtrain.cli.main
import patchtrain.training.run  # noqa: F401
