"""`python -m beyondvl`."""

import sys

from .cli import main

sys.exit(main())
