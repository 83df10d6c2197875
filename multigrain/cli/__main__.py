"""`python -m multigrain.cli`, as launchers such as torchrun call it."""

import sys

from .main import main

sys.exit(main())
