"""`python -m jepa` is `jepa`; `accelerate launch -m jepa train ...` needs it."""

import sys

from jepa.cli import main

sys.exit(main())
