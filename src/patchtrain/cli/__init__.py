"""The command line: one small file a command.

A command module offers ``HELP`` (one line), ``add_arguments(parser)`` and ``run(args) -> int``.
Heavy packages (torch, transformers, datasets) are imported inside ``run``.
"""
