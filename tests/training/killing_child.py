"""What a child of ``killing.py`` needs, imported once in the server that the children fork from."""

import gc

import plotly.graph_objects
import plotly.io
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp  # noqa: F401
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401

import patchtrain.cli.main
import patchtrain.cli.train
import patchtrain.training.run  # noqa: F401

plotly.graph_objects.Figure(plotly.graph_objects.Scatter())  # which imports the rest of it
gc.collect()
gc.freeze()  # a child's own collections need not walk through all of this
