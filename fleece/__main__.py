"""`python -m fleece` is the command line."""

import sys

from fleece.cli.main import main

sys.exit(main())
