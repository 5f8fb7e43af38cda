"""``python -m patchtrain`` is the ``patchtrain`` command."""

import sys

from patchtrain.cli.main import main

sys.exit(main())
